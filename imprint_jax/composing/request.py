"""What can be asked of a `Compositor`: pictures as they come, checked before any work is done."""

import itertools
import logging
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from imprint_jax import config, geometry, images
from imprint_jax.errors import InputError

log = logging.getLogger(__name__)

# A typing error should not fill a disk. Ours.
MOST_PICTURES = 10_000

Picture = np.ndarray | jax.Array | Image.Image


@dataclass(eq=False)
class Placement:
    """An object and the hole it goes into.

    Attributes:
        object: Its picture, (h w 3) with `object_mask`, or (h w 4) whose alpha is the mask; uint8.
            Or a list of pictures, several views of the one object: their tokens are put one after
            the other, which is beyond the paper and what the model was trained on.
        mask: The hole, (h w) bool, or uint8 cut at half; of the background's size.
        object_mask: (h w), as `mask`: where the object is in its picture; a list for a list.
    """

    object: Picture | Sequence[Picture]
    mask: Picture
    object_mask: Picture | Sequence[Picture | None] | None = None


class Part(NamedTuple):
    """A checked placement: views [((h w 3) uint8, (h w) bool or uint8 coverage)], hole (h w)."""

    views: list[tuple[np.ndarray, np.ndarray]]
    hole: np.ndarray


@dataclass(eq=False)
class Request:
    """What to compose; checked when it is made.

    Attributes:
        background: (h w 3) uint8, any size; transparency is dropped.
        placements: What goes into it, in this order: each object sees the ones before. Where holes
            overlap, the later object is in front.
        seed: 0 to 2**32 - 1, see `compose`.
        num: Pictures to make; they differ by their noise.
        mask_level: 0 keeps the holes, 1 and 2 coarsen them as in training, 3 makes them boxes.
        scribble: The masks are strokes: their gaps are closed and what they enclose is filled.
        invert_mask: The masks are black (0, false) in the hole.
        photo: The background, (h w 3) uint8.
        parts: The placements, checked, their holes as they will be filled.

    Raises:
        InputError: Shapes, dtypes or values that do not fit, an empty mask.
    """

    background: Picture
    placements: Sequence[Placement]
    seed: int = 0
    num: int = 1
    mask_level: int = 0
    scribble: bool = False
    invert_mask: bool = False
    photo: np.ndarray = field(init=False, repr=False)
    parts: list[Part] = field(init=False, repr=False)

    def __post_init__(self):
        check_numbers(self.seed, self.num, self.mask_level)
        if not self.placements:
            raise InputError("There is no object to place.")
        self.photo = images.as_rgb(self.background, "background")
        counted = [f" {i}" for i in range(1, len(self.placements) + 1)]
        if len(counted) == 1:
            counted = [""]
        self.parts = [
            Part(_check_views(placement, number), self._hole(placement.mask, f"mask{number}"))
            for placement, number in zip(self.placements, counted, strict=True)
        ]
        for (i, first), (k, second) in itertools.combinations(enumerate(self.parts, 1), 2):
            covered = (first.hole & second.hole).sum() / first.hole.sum()
            if covered:
                log.info("object %d covers %.0f %% of object %d's hole", k, 100 * covered, i)

    def _hole(self, mask: Picture, name: str) -> np.ndarray:
        hole = images.as_mask(mask, self.photo.shape[:2], name) ^ self.invert_mask
        if not hole.any():
            where = "black (it was inverted)" if self.invert_mask else "white"
            raise InputError(f"The {name} is empty: mark where the object goes in {where}.")
        if geometry.looks_inverted(hole):
            log.warning(
                "the %s looks inverted: the hole is %.0f %% of the photo and most of its border;"
                " %s --invert-mask (invert_mask) if it should be the rest",
                name,
                100 * hole.mean(),
                "leave out" if self.invert_mask else "give",
            )
        if self.scribble:
            drawn = hole.mean()
            hole = geometry.close_scribble(hole)
            log.info(
                "scribble: %.1f %% of the photo, filled %.1f %%", 100 * drawn, 100 * hole.mean()
            )
        return geometry.mask_level(hole, self.mask_level, config.default().data.mask_sigmas)


def check_numbers(seed: int, num: int, mask_level: int) -> None:
    """Checks a request's whole numbers, without its pictures.

    Raises:
        InputError: One is no whole number, or out of range.
    """
    limits = {
        "number of pictures": (num, 1, MOST_PICTURES),
        "seed": (seed, 0, 2**32 - 1),
        "mask level": (mask_level, 0, 3),
    }
    for name, (value, least, most) in limits.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise InputError(f"The {name} must be a whole number {least} to {most}, not {value!r}.")


def _check_views(placement: Placement, number: str) -> list[tuple[np.ndarray, np.ndarray]]:
    several = isinstance(placement.object, list | tuple)
    views = placement.object if several else [placement.object]
    masks = placement.object_mask
    if masks is None:
        masks = [None] * len(views)
    elif not isinstance(masks, list | tuple):
        masks = [masks]
    if not views or len(masks) != len(views):
        raise InputError(
            f"There are {len(views)} pictures of the object{number} but {len(masks)} masks of it:"
            " give one mask a picture."
        )
    name = f"object{number}"
    return [_check_view(view, mask, name) for view, mask in zip(views, masks, strict=True)]


def _check_view(view: Picture, mask: Picture | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    image = images.as_rgb_or_rgba(view, f"{name}'s picture")
    if mask is not None:
        coverage = images.as_mask(mask, image.shape[:2], f"{name} mask")
    elif image.shape[2] == 4:
        coverage = image[..., 3]
        # What lies under nothing is no colour of the object's surroundings.
        image = image * (coverage > 0)[..., None]
        if coverage.min() == 255:
            log.warning(
                "the %s's picture is nowhere transparent and has no mask: all of it is taken as the"
                " object",
                name,
            )
    else:
        raise InputError(
            f"The {name}'s picture has no transparency: give an object mask or a picture with an"
            " alpha channel, or let --segment find the object."
        )
    if not (coverage if coverage.dtype == bool else coverage >= images.MASK_THRESHOLD).any():
        raise InputError(f"The {name}'s mask is empty: no pixel of its picture belongs to it.")
    return image[..., :3], coverage
