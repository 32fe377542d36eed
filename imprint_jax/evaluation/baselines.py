"""Composites without a model, to compare with: plain paste and Poisson blending."""

import cv2
import numpy as np

from imprint_jax import geometry
from imprint_jax.evaluation.background import pasted


def paste_plainly(
    background: np.ndarray, view: np.ndarray, mask: np.ndarray, hole: np.ndarray
) -> np.ndarray:
    """The baseline of no model: the object `pasted` into the background. Returns (h w 3) uint8."""
    colours, coverage = pasted(view, mask, hole)
    alpha = coverage[..., None].astype(np.float32) / 255
    return np.rint(background + alpha * (colours.astype(np.float32) - background)).astype(np.uint8)


def paste_poisson(
    background: np.ndarray, view: np.ndarray, mask: np.ndarray, hole: np.ndarray
) -> np.ndarray:
    """The object `pasted` and its gradients blended into the background (Perez et al. 2003).

    OpenCV's `seamlessClone`, NORMAL_CLONE. What is too thin to have any inside is pasted plainly.
    """
    colours, coverage = pasted(view, mask, hole)
    solid = coverage >= 128
    if not solid.any():
        return paste_plainly(background, view, mask, hole)
    # It wants a rim of background around the object, so that holes at the border need padding.
    pad = lambda x, mode: np.pad(x, [(2, 2), (2, 2)] + [(0, 0)] * (x.ndim - 2), mode)
    inside = pad(solid, "constant")
    source = np.where(inside[..., None], pad(colours, "constant"), pad(background, "edge"))
    x0, y0, x1, y1 = geometry.bounding_box(inside)
    centre = ((x0 + x1) // 2, (y0 + y1) // 2)
    blended = cv2.seamlessClone(
        source, pad(background, "edge"), inside.astype(np.uint8) * 255, centre, cv2.NORMAL_CLONE
    )
    return blended[2:-2, 2:-2]


BASELINES = {"paste": paste_plainly, "poisson": paste_poisson}
