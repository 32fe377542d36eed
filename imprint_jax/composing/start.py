"""Where sampling starts below strength 1: the object as it is, pasted into the hole."""

import cv2
import numpy as np
from PIL import Image

from imprint_jax import geometry

# A hole that covers less than this share of its box is an outline, and says how wide and high the
# object is; else it is a box, and says only where the object goes. Ours.
OUTLINE = 0.95
# To fit an outline the object is stretched this many times at most: one drawn by a brush is no
# outline of its own. Ours.
STRETCH = 1.5
# The hole is filled from so many pixels around it (`inpaintRadius` of OpenCV). Ours.
FILL_RADIUS = 3


def paste_object(
    square: np.ndarray, hole: np.ndarray, view: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Pastes an object into the hole of a square, which is first filled from what is around it.

    In a box the object keeps its proportions and stands in the middle of the lower edge. It is
    fitted to the box of an outline, for which it may be stretched up to `STRETCH` times. What was
    in the hole does not matter.

    Args:
        square: (s s 3) uint8.
        hole: (s s) bool.
        view: (h w 3) uint8, the object's picture.
        mask: (h w) bool, or uint8 coverage: where the object is.

    Returns:
        (s s 3) uint8; outside the hole, `square`.
    """
    coverage = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
    x0, y0, x1, y1 = geometry.main_box(coverage >= geometry.FAINT)
    cutout = Image.fromarray(np.dstack([view, coverage])[y0:y1, x0:x1])
    left, top, right, bottom = geometry.bounding_box(hole)
    across, down = (right - left) / cutout.width, (bottom - top) / cutout.height
    scale = min(across, down)
    if hole[top:bottom, left:right].mean() < OUTLINE:
        across, down = (min(s, STRETCH * scale) for s in (across, down))
    else:
        across = down = scale
    width, height = max(round(cutout.width * across), 1), max(round(cutout.height * down), 1)
    # Pillow weights colours by their coverage; Lanczos would overshoot at the edge.
    cutout = cutout.resize((width, height), Image.Resampling.HAMMING)
    around = cv2.inpaint(square, hole.astype(np.uint8), FILL_RADIUS, cv2.INPAINT_NS)
    canvas = Image.fromarray(around)
    canvas.paste(cutout, (left + (right - left - width) // 2, bottom - height), cutout)
    return np.where(hole[..., None], np.asarray(canvas), square)
