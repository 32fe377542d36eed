"""Seams: are the steps across a hole's border larger than the steps beside it?"""

import numpy as np
from scipy import ndimage

from imprint_jax.errors import InputError

# Rings on each side of the border, in pixels. Ours; wider than the feather.
WIDTH = 16


def seam_strength(image: np.ndarray, mask: np.ndarray, width: int = WIDTH) -> float:
    """How much the steepest ring along a hole's border stands out from the rings beside it.

    A step is the mean absolute difference over the channels of two neighbouring pixels that lie at
    different distances from the border. Steps are averaged over rings one pixel wide, `width` of
    them on both sides; the strength is the steepest ring over the median one. So a step that a
    feather has spread over some rings still counts, as far as it is steeper than what is there.

    Args:
        image: (h w 3) uint8, the composite.
        mask: (h w) bool, the hole.
        width: Rings on each side, in pixels.

    Returns:
        About 1 where no seam shows; more where one does. Both means count half a grey level more,
        so that flat images divide.

    Raises:
        InputError: The hole is empty or the whole image, so that it has no border.
    """
    if mask.all() or not mask.any():
        raise InputError("A seam needs a hole and something around it.")
    outside = ndimage.distance_transform_edt(~mask)
    distance = outside - ndimage.distance_transform_edt(mask)  # -1 and 1 beside the border
    total, count = np.zeros(2 * width + 1), np.zeros(2 * width + 1)
    for axis in (0, 1):
        step = np.abs(np.diff(image.astype(np.float32), axis=axis)).mean(axis=-1)
        first, second = np.delete(distance, -1, axis), np.delete(distance, 0, axis)
        ring = np.rint((first + second) / 2).astype(int) + width
        counts = (np.abs(first - second) > 0.5) & (ring >= 0) & (ring <= 2 * width)
        total += np.bincount(ring[counts], step[counts], 2 * width + 1)
        count += np.bincount(ring[counts], minlength=2 * width + 1)
    rings = total[count > 0] / count[count > 0] + 0.5
    return float(rings.max() / np.median(rings))
