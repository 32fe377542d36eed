"""The masks of a picture's objects, as data sets store them: files, labels, boxes, COCO's.

Each function takes the picture (h w c) and yields (which object, its coverage (h w) uint8), with a
`Reject` in place of what cannot be used.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from imprint_jax.data.preparation.filters import Reject
from imprint_jax.errors import InputError
from imprint_jax.geometry import box_mask
from imprint_jax.images import decode_coverage, decode_image, decode_labels, too_large

# The reason that `--segment` takes care of.
NO_MASK = "no mask"

MAX_INSTANCE = 2**63 - 1  # of a record, an int64
MAX_COORDINATE = 1e6  # of a polygon, pixels; Pillow draws others wrongly, or never ends

# Of a picture (h w c) uint8, its objects: which one, and its (h w) uint8 coverage.
Masks = Callable[[np.ndarray], Iterable[tuple[int, np.ndarray | Reject]]]


def _read(path: Path) -> bytes:
    """A mask's file.

    Raises:
        Reject: It is missing, cannot be read, or has too many pixels.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Reject(NO_MASK, f"There is no {path}.") from None
    except OSError as error:
        raise Reject("unreadable mask", f"{path}: {error.strerror}.") from error
    if too_large(data):
        raise Reject("too large", f"The mask {path} has more pixels than are read safely.")
    return data


def _same_size(mask: np.ndarray, image: np.ndarray, path: Path) -> np.ndarray:
    (height, width), (high, wide) = mask.shape, image.shape[:2]
    if (height, width) != (high, wide):
        detail = f"{path} has {width}x{height} pixels, its picture {wide}x{high}."
        raise Reject("mask of another size", detail)
    return mask


def _coverage(path: Path, *, cut_out: bool = False) -> np.ndarray:
    data = _read(path)
    try:
        if cut_out:
            return _alpha(decode_image(data, str(path)), str(path))
        return decode_coverage(data, str(path))
    except InputError as error:
        raise Reject("unreadable mask", str(error)) from error


def _alpha(image: np.ndarray, name: str) -> np.ndarray:
    if image.shape[2] == 3 or image[..., 3].min() == 255:
        raise Reject("no alpha", f"Nothing of {name} is transparent.")
    return image[..., 3]


def own_alpha(image: np.ndarray) -> Iterator:
    """The object of a picture that is transparent around it."""
    try:
        yield 0, _alpha(image, "the picture")
    except Reject as reject:
        yield 0, reject


def one_mask(path: Path, image: np.ndarray, *, instance: int = 0) -> Iterator:
    """The object of a mask file."""
    try:
        yield instance, _same_size(_coverage(path), image, path)
    except Reject as reject:
        yield instance, reject


def is_palette(path: Path) -> bool:
    """Whether a file is a picture of a palette's numbers; false if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.mode == "P"
    except OSError:  # the reader that follows says what is wrong with it
        return False


def label_masks(
    path: Path, image: np.ndarray, *, objects_of: Callable[[np.ndarray], Iterable[int]]
) -> Iterator:
    """The objects of a file of labels.

    Args:
        path: The file.
        image: Its picture.
        objects_of: Which labels are objects, given those that occur in it. One that does not occur
            is a reject.
    """
    try:
        labels = _same_size(decode_labels(_read(path), str(path)), image, path)
    except Reject as reject:
        yield 0, reject
        return
    except InputError as error:
        yield 0, Reject("unreadable mask", str(error))
        return
    # Counting is many times faster than sorting, but needs room for every number.
    few = labels.max() < 2**16
    present = np.flatnonzero(np.bincount(labels.ravel())) if few else np.unique(labels)
    objects = sorted(objects_of(present))
    if not objects:
        yield 0, Reject("no object", f"{path} marks none.")
    for label in objects:
        if label in present:
            yield label, (labels == label).astype(np.uint8) * 255
        else:
            yield label, Reject("object not in mask", f"{path} has no pixels of object {label}.")


def scaled_mask(path: Path, image: np.ndarray, *, cut_out: bool = False) -> Iterator:
    """The object of a mask file that may be smaller or larger than its picture.

    Args:
        path: The file.
        image: Its picture.
        cut_out: The file is the object on transparent ground: its colours are no mask.
    """
    try:
        mask = _coverage(path, cut_out=cut_out)
        (high, wide), (height, width) = image.shape[:2], mask.shape
        # The same proportions, but for rounding to whole pixels.
        if abs(width * high - height * wide) <= max(width, height, wide, high):
            mask = np.asarray(Image.fromarray(mask).resize((wide, high), Image.Resampling.BILINEAR))
        yield 0, _same_size(mask, image, path)
    except Reject as reject:
        yield 0, reject


def box_file(path: Path, image: np.ndarray) -> Iterator:
    try:
        x0, y0, x1, y1 = (int(word) for word in path.read_text().split()[:4])
        yield 0, box_mask((x0, y0, x1, y1), *image.shape[:2]) * np.uint8(255)
    except FileNotFoundError:
        yield 0, Reject(NO_MASK, f"There is neither a mask nor {path}.")
    except (OSError, ValueError, InputError) as error:
        yield 0, Reject("unreadable mask", f"{path}: {error}")


def coco_masks(objects: list, image: np.ndarray, *, size: Any = None) -> Iterator:
    """The objects of a picture as COCO lists them.

    Args:
        objects: Number, segmentation and whether it is a crowd, of each.
        image: The picture.
        size: Height and width that COCO gives it, which polygons are drawn for; None: not given.
    """
    if not objects:
        yield 0, Reject(NO_MASK, "No object is marked.")
    for number, segmentation, crowd in objects:
        try:
            if abs(number) > MAX_INSTANCE:
                raise Reject("number too large", f"Object {number}: records hold 64 bits.")
            if crowd:
                raise Reject("crowd", "Its mask is of many objects.")
            if size not in (None, image.shape[:2]):
                raise Reject("mask of another size", f"It is for {size}, not {image.shape[:2]}.")
            yield number, _coco_mask(segmentation, *image.shape[:2])
        except Reject as reject:
            yield number, reject


def _coco_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A mask (height width) of polygons or of run lengths, which go down the columns."""
    try:
        if isinstance(segmentation, list):
            mask = Image.new("L", (width, height))
            for polygon in segmentation:
                points = [float(x) for x in polygon]
                if not all(abs(x) < MAX_COORDINATE for x in points):  # NaN is not
                    raise ValueError("a polygon has a point that is nowhere near the picture")
                ImageDraw.Draw(mask).polygon(points, fill=255)
            return np.asarray(mask)
        if tuple(segmentation["size"]) != (height, width):
            raise Reject(
                "mask of another size", f"It is for {segmentation['size']}, not {height, width}."
            )
        counts = segmentation["counts"]
        runs = _coco_runs(counts) if isinstance(counts, str) else counts
        if sum(runs) != height * width:  # before memory is taken for it
            raise ValueError(f"its runs count {sum(runs)} pixels of {height * width}")
        values = np.arange(len(runs)) % 2 * 255
        return np.repeat(values, runs).reshape(width, height).T.astype(np.uint8)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise Reject("unreadable mask", f"Its segmentation is not COCO's: {error}.") from error


def _coco_runs(text: str) -> list[int]:
    """COCO's compressed run lengths (cocodataset/cocoapi, common/maskApi.c, rleFrString).

    A number is digits of 5 bits, lowest first, each a character from "0" on; bit 6 says that
    another follows, bit 5 of the last is the sign. From the third on, numbers are differences to
    the one two before.
    """
    runs: list[int] = []
    number, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        number |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            number -= (1 << shift) * bool(digit & 16)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, shift = 0, 0
    return runs
