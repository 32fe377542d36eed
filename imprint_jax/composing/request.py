"""What a `Compositor` can be asked for: pictures as they come, checked before any work is done."""

import functools
import itertools
import logging
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from imprint_jax import geometry, images
from imprint_jax.composing.photo import Photo, open_photo
from imprint_jax.config.fields import DataConfig
from imprint_jax.errors import InputError

log = logging.getLogger(__name__)

# A typing error should not fill a disk. Ours.
MOST_PICTURES = 10_000

Tell = Callable[..., None]  # `Request.tell`
Picture = np.ndarray | jax.Array | images.PathOrImage


@dataclass(eq=False)
class Placement:
    """An object and the hole it goes into: a mask or a box.

    Attributes:
        object: Its picture: a file's path, a PIL image, or a uint8 array (NumPy's or JAX's),
            (h w 3) with `object_mask`, or (h w 4) whose alpha is the mask. Or a list of pictures,
            several views of the one object: their tokens are put one after the other, which is
            beyond the paper and what the model was trained on.
        mask: The hole: a file's path, a PIL image, or an array (h w) bool, or uint8 cut at half; of
            the background's size.
        object_mask: As `mask`: where the object is in its picture; a list for a list.
        box: (x0, y0, x1, y1), the hole in pixels of the upright background, half-open.
    """

    object: Picture | Sequence[Picture]
    mask: Picture | None = None
    object_mask: Picture | Sequence[Picture | None] | None = None
    box: geometry.Box | None = None


class Part(NamedTuple):
    """A checked placement.

    Attributes:
        views: Of the object, [((h w 3) uint8, (h w) bool or uint8 coverage)].
        outline: (h w) bool, the hole as it was drawn.
        hole: (h w) bool, the hole at the request's mask level.
    """

    views: list[tuple[np.ndarray, np.ndarray]]
    outline: np.ndarray
    hole: np.ndarray


@dataclass(eq=False)
class Request:
    """What to compose; checked when it is constructed, and independent of the arguments from then.

    Attributes:
        background: As `Placement.object`, any size. Transparent parts show white.
        placements: What goes into it, in this order: each object sees the ones before. Where holes
            overlap, the later object is in front.
        seed: 0 to 2**32 - 1, see `compositor`.
        num: Pictures to compose; they differ by their noise.
        mask_level: 0 keeps the holes, 1 and 2 coarsen them as in training, 3 makes them boxes.
        scribble: The masks are strokes: their gaps are closed and what they enclose is filled.
        invert_mask: The masks are black (0, false) in the hole; boxes stay.
        mask_sigmas: Of levels 1 and 2, see `geometry.mask_level`. A `Compositor` uses its model's.
        name: Stands before what the log says of this request, to tell it from others.
        original: The background as it came.
        parts: The placements, checked.

    Raises:
        InputError: Shapes, dtypes or values that do not fit, an empty mask.
    """

    background: Picture = field(repr=False)
    placements: Sequence[Placement] = field(repr=False)
    seed: int = 0
    num: int = 1
    mask_level: int = 0
    scribble: bool = False
    invert_mask: bool = False
    mask_sigmas: tuple[float, float] = DataConfig.mask_sigmas
    name: str = ""
    original: Photo = field(init=False, repr=False)
    parts: list[Part] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_numbers(self.seed, self.num, self.mask_level)
        if not self.placements:
            raise InputError("There is no object to place.")
        self.original = open_photo(self.background)
        if self.original.pixels.shape[2] == 4:
            self.tell(
                logging.WARNING,
                "parts of the background are transparent: the object is fitted to white",
            )
        numbered = [f" {i}" for i in range(1, len(self.placements) + 1)]
        if len(numbered) == 1:
            numbered = [""]
        self.parts = [
            self._part(placement, number)
            for placement, number in zip(self.placements, numbered, strict=True)
        ]
        for (i, first), (k, second) in itertools.combinations(enumerate(self.parts, 1), 2):
            covered = (first.hole & second.hole).sum() / first.hole.sum()
            if covered:
                self.tell(
                    logging.INFO,
                    "object %d covers %.0f %% of object %d's hole",
                    *(k, 100 * covered, i),
                )

    def tell(self, level: int, message: str, *values: object) -> None:
        """Logs what a user should know of this request, as `logging.log` does."""
        log.log(level, "%s" + message, f"{self.name}: " if self.name else "", *values)

    @functools.cached_property
    def photo(self) -> np.ndarray:
        """The background as the networks see it: (h w 3) uint8, sRGB."""
        return self.original.to_srgb(self.original.visible[..., :3])

    def holes(self, mask_sigmas: tuple[float, float]) -> list[np.ndarray]:
        """The holes at the mask level, by a model's `mask_sigmas`."""
        if tuple(mask_sigmas) == tuple(self.mask_sigmas):
            return [part.hole for part in self.parts]
        return [self._leveled(part.outline, mask_sigmas) for part in self.parts]

    def _leveled(self, outline: np.ndarray, mask_sigmas: tuple[float, float]) -> np.ndarray:
        return geometry.mask_level(outline, self.mask_level, mask_sigmas)

    def _part(self, placement: Placement, number: str) -> Part:
        views = _check_views(placement, number, self.tell)
        if placement.mask is not None and placement.box is None:
            outline = self._drawn(placement.mask, f"mask{number}")
        elif placement.mask is None and placement.box is not None:
            outline = geometry.box_mask(check_box(placement.box), *self.original.pixels.shape[:2])
        else:
            raise InputError(f"Say where the object{number} goes: either a mask or a box.")
        return Part(views, outline, self._leveled(outline, self.mask_sigmas))

    def _drawn(self, mask: Picture, name: str) -> np.ndarray:
        hole = images.as_mask(mask, self.original.pixels.shape[:2], name) ^ self.invert_mask
        if not hole.any():
            where = "black (it was inverted)" if self.invert_mask else "white"
            raise InputError(f"The {name} is empty: mark where the object goes in {where}.")
        if geometry.looks_inverted(hole):
            self.tell(
                logging.WARNING,
                "the %s looks inverted: the hole is %.0f %% of the photo and most of its border;"
                " %s --invert-mask (invert_mask) if it should be the rest",
                name,
                100 * hole.mean(),
                "leave out" if self.invert_mask else "give",
            )
        if self.scribble:
            drawn = hole.mean()
            hole = geometry.close_scribble(hole)
            self.tell(
                logging.INFO,
                "scribble: %.1f %% of the photo, filled %.1f %%",
                *(100 * drawn, 100 * hole.mean()),
            )
        return _without_specks(hole, name, self.tell)


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
        if not is_whole(value) or not least <= value <= most:
            raise InputError(f"The {name} must be a whole number {least} to {most}, not {value!r}.")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_box(box: Sequence[int]) -> geometry.Box:
    """A box as a tuple.

    Raises:
        InputError: It is anything but four whole numbers.
    """
    if (
        not isinstance(box, tuple | list | np.ndarray)
        or len(box) != 4
        or not all(map(is_whole, box))
    ):
        raise InputError(f"The box must be four whole numbers (x0, y0, x1, y1), not {box!r}.")
    x0, y0, x1, y1 = map(int, box)
    return x0, y0, x1, y1


def _without_specks(mask: np.ndarray, name: str, tell: Tell) -> np.ndarray:
    solid = mask if mask.dtype == bool else mask >= geometry.FAINT
    if geometry.main_box(solid) == geometry.bounding_box(solid):
        return mask
    cleaned = geometry.without_specks(mask)
    dropped = int(np.count_nonzero(solid) - np.count_nonzero(cleaned[solid]))
    tell(
        logging.WARNING,
        "the %s has specks far from the rest, %d pixels: they are left out",
        *(name, dropped),
    )
    return cleaned


def _check_views(
    placement: Placement, number: str, tell: Tell
) -> list[tuple[np.ndarray, np.ndarray]]:
    views: list[Picture] = _listed(placement.object)
    masks: list[Picture | None] = [None] * len(views)
    if placement.object_mask is not None:
        masks = _listed(placement.object_mask)
    if not views or len(masks) != len(views):
        raise InputError(
            f"There are {len(views)} pictures of the object{number} but {len(masks)} masks of it:"
            " give one mask a picture."
        )
    name = f"object{number}"
    return [_check_view(view, mask, name, tell) for view, mask in zip(views, masks, strict=True)]


def _listed(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_view(
    view: Picture, mask: Picture | None, name: str, tell: Tell
) -> tuple[np.ndarray, np.ndarray]:
    image = images.as_rgb_or_rgba(view, f"{name}'s picture")
    if mask is not None:
        coverage = images.as_mask(mask, image.shape[:2], f"{name} mask", of_object=True)
    elif image.shape[2] == 4:
        coverage = image[..., 3]
        # What lies under nothing is no colour of the object's surroundings.
        image = image * (coverage > 0)[..., None]
        if not images.has_cut_out(image):
            tell(
                logging.WARNING,
                "the %s's picture is nowhere transparent and has no mask: all of it is taken as the"
                " object",
                name,
            )
    else:
        raise InputError(
            f"The {name}'s picture has no transparency: give an object mask or a picture with an"
            " alpha channel, or let --segment find the object."
        )
    solid = coverage if coverage.dtype == bool else coverage >= images.MASK_THRESHOLD
    if not solid.any():
        if coverage.any():
            raise InputError(
                f"The {name}'s picture is nowhere more than {coverage.max() / 2.55:.0f} % opaque:"
                " half is needed to belong to the object. Give its mask, or make it opaque."
            )
        raise InputError(f"The {name}'s mask is empty: no pixel of its picture belongs to it.")
    return image[..., :3], _without_specks(coverage, f"{name}'s mask", tell)
