"""Composites without a model, to compare with: plain paste, colour transfer, Poisson blending."""

import cv2
import numpy as np

from imprint_jax import geometry
from imprint_jax.evaluation.background import pasted

# Colours are taken from a square this many times as wide as the hole's box, and so far. Ours.
CONTEXT, TRANSFER = 2.0, 0.5


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


def paste_recoloured(
    background: np.ndarray, view: np.ndarray, mask: np.ndarray, hole: np.ndarray
) -> np.ndarray:
    """The object `pasted` with its colours brought to those around the hole (Reinhard et al. 2001).

    In CIELAB the object's mean and standard deviation of each channel become halfway those of the
    photo in the square of `CONTEXT` times the hole's side, without the hole: all the way would
    make every object the colour of its ground.
    """
    colours, coverage = pasted(view, mask, hole)
    crop = geometry.context_crop(hole, CONTEXT)
    around = np.zeros_like(hole)
    y0, x0 = max(crop.y0, 0), max(crop.x0, 0)
    around[y0 : crop.y0 + crop.side, x0 : crop.x0 + crop.side] = True
    around &= ~hole
    solid = coverage >= 128
    if not solid.any() or not around.any():
        return paste_plainly(background, view, mask, hole)
    to_lab = lambda x: cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab, photo = to_lab(colours), to_lab(background)[around]
    mean, deviation = lab[solid].mean(axis=0), lab[solid].std(axis=0)
    wanted = mean + TRANSFER * (photo.mean(axis=0) - mean)
    spread = deviation + TRANSFER * (photo.std(axis=0) - deviation)
    moved = (lab - mean) * (spread / np.maximum(deviation, 1e-3)) + wanted
    rgb = cv2.cvtColor(moved.astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1) * 255
    alpha = coverage[..., None].astype(np.float32) / 255
    return np.rint(background + alpha * (rgb - background)).astype(np.uint8)


BASELINES = {"paste": paste_plainly, "color": paste_recoloured, "poisson": paste_poisson}
