"""Which objects are worth learning from: every limit with its default, and the checks."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from imprint_jax.errors import InputError
from imprint_jax.geometry import bounding_box
from imprint_jax.images import MASK_THRESHOLD

# Longer side, in pixels, to which masks and objects are shrunk before they are judged: limits then
# mean the same at any resolution, and a photo of 40 megapixels costs no more than a small one.
JUDGED_SIDE = 256


class Reject(Exception):
    """Something is left out.

    Args:
        reason: A few words to count by.
        detail: A sentence.
        path: What is left out, where that is not the picture being read.
    """

    def __init__(self, reason: str, detail: str, path: Any = None):
        super().__init__(reason, detail, path)
        self.reason, self.detail, self.path = reason, detail, path


@dataclass(frozen=True)
class Filters:
    """What a picture and the object in it must be like; areas as shares of the picture's."""

    min_side: int = 32  # pixels: the picture's shorter side. Ours.
    min_object: int = 16  # pixels: the longer side of the object's bounding box. Ours.
    min_area: float = 0.01  # AnyDoor's check_mask_area (anydoor_datasets/base.py)
    max_area: float = 0.64  # likewise
    min_component: float = 0.9  # share of the object in its largest part; AnyDoor's mask_score
    # See `sharpness`. Ours: objects of data/samples have 340 and more; blurred by 3 of 256 pixels,
    # half of them have 12 or less, and half of the crops of the photos 4 or less.
    min_sharpness: float = 5.0

    @classmethod
    def changed(cls, base: "Filters", settings: Iterable[str]) -> "Filters":
        """The filters of a set with some of them set by a user.

        Args:
            base: The set's own.
            settings: Texts "name=number".

        Raises:
            InputError: Unknown name, or no number.
        """
        changes = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in base.__dataclass_fields__:
                names = ", ".join(base.__dataclass_fields__)
                raise InputError(f"There is no filter {name!r}; known are {names}.")
            try:
                changes[name] = type(getattr(base, name))(text)
            except ValueError:
                raise InputError(f"The filter {setting!r} must be NAME=NUMBER.") from None
        return dataclasses.replace(base, **changes)

    def check_picture(self, image: np.ndarray) -> None:
        """Raises `Reject` if (h w c) uint8 is too small."""
        height, width = image.shape[:2]
        if min(height, width) < self.min_side:
            raise Reject("picture too small", f"It has {width}x{height} pixels.")

    def check_object(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Raises `Reject` if the object is not worth keeping.

        Args:
            image: (h w 3) or (h w 4) uint8.
            mask: (h w) uint8 coverage.
        """
        inside = mask >= MASK_THRESHOLD
        area = inside.mean()
        if not area:
            raise Reject("empty mask", "Nothing of the mask is object.")
        x0, y0, x1, y1 = bounding_box(inside)
        if max(x1 - x0, y1 - y0) < self.min_object:
            raise Reject("object too small", f"It has {x1 - x0}x{y1 - y0} pixels.")
        if area < self.min_area:
            raise Reject("object too small", f"It covers {area:.2%} of the picture.")
        if area > self.max_area:
            raise Reject("object too large", f"It covers {area:.1%} of the picture.")
        inside = inside[y0:y1, x0:x1]
        share = largest_part(inside)
        if share < self.min_component:
            raise Reject("object in pieces", f"Its largest part is {share:.0%} of it.")
        if self.min_sharpness > 0:
            sharp = sharpness(image[y0:y1, x0:x1, :3])
            if sharp < self.min_sharpness:
                raise Reject("blurred", f"Its sharpness is {sharp:.1f}.")


def largest_part(mask: np.ndarray) -> float:
    """The share of the true pixels of (h w) bool, not empty, in the largest connected part."""
    step = math.ceil(max(mask.shape) / JUDGED_SIDE)
    # A cell is true if any pixel is, so that thin bridges still connect.
    height, width = (math.ceil(side / step) * step for side in mask.shape)
    padded = np.pad(mask, ((0, height - mask.shape[0]), (0, width - mask.shape[1])))
    cells = padded.reshape(height // step, step, width // step, step)
    labels, _ = ndimage.label(cells.any(axis=(1, 3)), structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), weights=cells.sum(axis=(1, 3)).ravel())[1:]
    return float(sizes.max() / sizes.sum())


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of the brightness (0 to 255), seen at `JUDGED_SIDE` pixels.

    Args:
        image: (h w 3) uint8; smaller ones are taken as they are.
    """
    grey = Image.fromarray(image).convert("L")
    grey.thumbnail((JUDGED_SIDE, JUDGED_SIDE), Image.Resampling.BOX)
    return float(ndimage.laplace(np.asarray(grey, np.float32), mode="nearest").var())
