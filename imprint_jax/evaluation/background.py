"""What happened around the hole, and to the hole's shape: no network is needed.

Images are (h w 3) uint8, holes and masks (h w) bool.
"""

import math

import numpy as np
from PIL import Image
from scipy import ndimage

from imprint_jax import geometry
from imprint_jax.composing.request import Request

# Around a hole results may fade into the photo over this share of the longer side of its box.
# Ours; `compose` fades over at most 0.037 (FEATHER x a context of 1.75), more where a small hole
# is enlarged.
RIM = 0.06
# A pixel has changed if a channel has by so many grey levels; fewer are a JPEG's noise. Ours.
CHANGED = 12
# Side at which a result is compared with the object pasted as it is, pixels. Ours.
POSE_SIZE = 64
# Shifts tried to either side, in pixels at that size. Ours.
SHIFTS = 4
# What is compared is finer than a Gaussian of this standard deviation, in pixels at that size:
# light and Poisson blending change what is coarser. Ours.
DETAIL = 4.0
# Correlation from which on a result is a copy. Ours: of the 22 sample objects' views, in holes of
# other views' shapes, so count all that are pasted, 77 % of those blended in by Poisson, and 1 % of
# true other views 9 to 18 frames away (7 % of those 4 to 8 away).
COPY = 0.6
# A mask whose overlap (IoU) with the object as it is stays below this asks for another pose. Ours.
SAME_POSE = 0.75
# Objects whose detail deviates by less than this many grey levels have no pattern to tell poses by.
FLAT = 2.0


def preserved(result: np.ndarray, background: np.ndarray, hole: np.ndarray) -> tuple[float, float]:
    """Is the photo untouched outside of the hole and its rim?

    Returns:
        The share of pixels there that are the same in all channels, 0 to 1, and the mean absolute
        difference in grey levels; both nan if nothing lies outside.
    """
    x0, y0, x1, y1 = geometry.bounding_box(hole)
    rim = math.ceil(RIM * max(x1 - x0, y1 - y0)) + 2
    outside = ndimage.distance_transform_edt(~hole) > rim
    if not outside.any():
        return math.nan, math.nan
    difference = np.abs(result[outside].astype(np.int16) - background[outside])
    return float((difference == 0).all(axis=1).mean()), float(difference.mean())


def changed_overlap(result: np.ndarray, background: np.ndarray, hole: np.ndarray) -> float:
    """Overlap (IoU) of the pixels that changed with the hole; a stand-in for mask adherence.

    The object itself would have to be found in the result; what changed is more than it, if the
    hole is larger, and less, where it is coloured like the photo.
    """
    difference = np.abs(result.astype(np.int16) - background).max(axis=-1)
    return overlap(difference >= CHANGED, hole)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def pasted(view: np.ndarray, mask: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An object as it is in its picture, scaled to fit into a hole's box, its shape kept.

    Args:
        view: (h w 3) uint8, the object's picture.
        mask: (h w) bool, or uint8 coverage.
        hole: (H W) bool.

    Returns:
        Colours (H W 3) uint8 and coverage (H W) uint8.
    """
    x0, y0, x1, y1 = geometry.bounding_box(mask if mask.dtype == bool else mask >= geometry.FAINT)
    coverage = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
    rgba = Image.fromarray(np.dstack([view, coverage])[y0:y1, x0:x1])
    left, top, right, bottom = geometry.bounding_box(hole)
    scale = min((right - left) / rgba.width, (bottom - top) / rgba.height)
    width, height = (max(round(side * scale), 1) for side in rgba.size)
    # As in training's `paste`: Lanczos would overshoot at the edge.
    scaled = np.asarray(rgba.resize((width, height), Image.Resampling.HAMMING))
    x, y = left + (right - left - width) // 2, top + (bottom - top - height) // 2
    canvas = np.zeros((*hole.shape, 4), np.uint8)
    canvas[y : y + height, x : x + width] = scaled
    return canvas[..., :3], canvas[..., 3]


def pose(
    result: np.ndarray,
    hole: np.ndarray,
    view: np.ndarray,
    mask: np.ndarray,
    mask_sigmas: tuple[float, float] = Request.mask_sigmas,
) -> tuple[float, float]:
    """Is the object copied as it is, and does the mask ask for that?

    The result is compared with the object `pasted`, where both have the object, by the correlation
    of their brightness's detail over small shifts, so that new colours and light do not hide a
    copy. Holes may have been coarsened (`geometry.mask_level`) from an outline: that of the object
    as it is is compared at the level at which it fits best.

    Args:
        result: (H W 3) uint8.
        hole: (H W) bool.
        view: (h w 3) uint8, the object's picture.
        mask: (h w) bool, or uint8 coverage.
        mask_sigmas: Of mask levels 1 and 2, see `geometry.mask_level`.

    Returns:
        The correlation, -1 to 1, nan for objects without a pattern; and the overlap (IoU) of the
        outline of the object as it is with the hole: the lower, the more the mask asks for another
        pose.
    """
    x0, y0, x1, y1 = geometry.bounding_box(hole)
    colours, coverage = pasted(view, mask, hole)
    window = np.s_[y0:y1, x0:x1]
    small = lambda x: np.asarray(
        Image.fromarray(x[window]).resize((POSE_SIZE, POSE_SIZE), Image.Resampling.BOX), np.float32
    )
    grey = lambda x: np.asarray(Image.fromarray(x).convert("L"))
    small_result, copy = small(grey(result)), small(grey(colours))
    both = (small(coverage) >= 128) & (small(hole.astype(np.uint8) * 255) >= 128)
    same = _outline_overlap(coverage >= 128, hole, mask_sigmas)
    if both.sum() < 16 or (detail := _detail(copy, both)).std() < FLAT:
        return math.nan, same
    best = max(
        _correlation(_detail(np.roll(small_result, (dy, dx), axis=(0, 1)), both), detail)
        for dy in range(-SHIFTS, SHIFTS + 1)
        for dx in range(-SHIFTS, SHIFTS + 1)
    )
    return best, same


def _outline_overlap(
    solid: np.ndarray, hole: np.ndarray, mask_sigmas: tuple[float, float]
) -> float:
    """Of a shape at its best mask level with a hole; a box, level 3, has no shape to compare."""
    if not solid.any():
        return 0.0
    return max(overlap(geometry.mask_level(solid, level, mask_sigmas), hole) for level in range(3))


def _detail(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(n,) what is finer than `DETAIL` at the pixels `where`, which alone are looked at."""
    blur = lambda x: ndimage.gaussian_filter(x, DETAIL)
    coarse = blur(picture * where) / np.maximum(blur(where.astype(np.float32)), 1e-6)
    return (picture - coarse)[where]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(math.sqrt((a**2).sum() * (b**2).sum()), 1e-6))
