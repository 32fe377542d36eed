"""Where the object goes: boxes, crops with context, paste-back, mask levels, mask to latent grid.

NumPy in, NumPy out. Images are (h w 3) uint8, masks (h w) bool with true = the hole or the object.
Boxes are (x0, y0, x1, y1) in pixels, half-open. Resizing is Lanczos with antialiasing.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

from imprint_jax.errors import InputError

Box = tuple[int, int, int, int]

# A crop is at least this many times as wide as its hole: the paste-back needs a rim to fade in.
MIN_CONTEXT = 1.2

# Black rim on each side of the object's crop, as a share of the object's longer side.
OBJECT_MARGIN = 0.05

# The blurred mask is cut here: a straight edge moves outwards by 0.84 sigma (the normal
# distribution's 20 % point), so that the levels between outline and box grow visibly.
LEVEL_THRESHOLD = 0.2

# Gaps of a scribble up to twice this share of its box's longer side are closed. Ours.
SCRIBBLE_REACH = 1 / 12

# Coverage from which on a pixel of a soft mask counts, about 5 % of 255: below lie noise and the
# ripples that resizing leaves.
FAINT = 13

# Connected parts of a mask smaller than this share of the largest are specks: they do not decide
# where a box is. Ours.
SPECK = 0.005

# Where this share of what is around an object is of one colour, within so many levels, the object
# is cut out. Ours.
FLAT, SAME_COLOR = 0.95, 16


@dataclass(frozen=True)
class Crop:
    """A square of an image; it may reach outside of it.

    Attributes:
        x0: Left edge, in pixels, may be negative.
        y0: Upper edge, likewise.
        side: Width and height, in pixels.
    """

    x0: int
    y0: int
    side: int


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box around the true pixels of (h w).

    Raises:
        InputError: The mask is empty.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        raise InputError("The mask is empty; mark at least one pixel.")
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def main_box(mask: np.ndarray) -> Box:
    """The smallest box around the parts of (h w) bool that are no specks (`SPECK`).

    Raises:
        InputError: The mask is empty.
    """
    x0, y0, x1, y1 = whole = bounding_box(mask)
    window = mask[y0:y1, x0:x1].astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(window, connectivity=8)
    if count <= 2:  # the background and one part
        return whole
    parts = stats[1:]
    areas = parts[:, cv2.CC_STAT_AREA]
    left, top, width, height, _ = parts[areas >= SPECK * areas.max()].T
    return (
        x0 + int(left.min()),
        y0 + int(top.min()),
        x0 + int((left + width).max()),
        y0 + int((top + height).max()),
    )


def without_specks(mask: np.ndarray) -> np.ndarray:
    """A mask (h w), bool or coverage, without the specks that lie outside of its `main_box`."""
    x0, y0, x1, y1 = main_box(mask if mask.dtype == bool else mask >= FAINT)
    result = np.zeros_like(mask)
    result[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
    return result


def box_mask(box: Box, height: int, width: int) -> np.ndarray:
    """The mask (height width) bool that is true inside the box.

    Raises:
        InputError: The box has no area or leaves the image.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"The box {x0},{y0},{x1},{y1} must satisfy 0 <= X0 < X1 <= {width} and "
            f"0 <= Y0 < Y1 <= {height} for this picture of {width}x{height} pixels."
        )
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The object on black, `image * mask`.

    Args:
        image: (h w 3) uint8.
        mask: (h w) bool, or uint8 coverage (255 = all object) for soft edges.

    Returns:
        (h w 3) uint8.
    """
    if mask.dtype == bool:
        return image * mask[..., None]
    return cv2.multiply(image, cv2.merge([mask] * 3), scale=1 / 255)


def object_crop(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    *,
    fit: str = "pad",
    margin: float | None = None,
    background: str = "black",
    resample: str = "lanczos",
) -> np.ndarray:
    """An object as an image encoder sees it: in a square, usually on black.

    Args:
        image: (h w 3) uint8.
        mask: (h w) bool, or uint8 coverage, of which `FAINT` and more counts for the box. Specks
            do not count (`main_box`).
        size: Side of the result, in pixels.
        fit: "pad" centres the object in a square with a black rim, "stretch" makes its box a
            square, grown by the margin as far as the image goes.
        margin: On each side, as a share of the box's longer side; None is `OBJECT_MARGIN`.
        background: What is around the object in its box: "black", or "photo" for the image.
        resample: "lanczos", "bicubic" or "bilinear", with antialiasing.

    Returns:
        (size size 3) uint8.

    Raises:
        InputError: The mask is empty, or a choice that does not exist.
    """
    check_object_view(fit, background, resample)
    margin = OBJECT_MARGIN if margin is None else margin
    x0, y0, x1, y1 = main_box(mask if mask.dtype == bool else mask >= FAINT)
    longer = max(x1 - x0, y1 - y0)
    if fit == "stretch":
        grow = round(margin * longer)
        x0, y0, x1, y1 = max(x0 - grow, 0), max(y0 - grow, 0), x1 + grow, y1 + grow
    cut = image[y0:y1, x0:x1]
    if background == "black":
        cut = cut_out(cut, mask[y0:y1, x0:x1])
    if fit == "stretch":
        return _resize(cut, size, size, resample)
    scale = size / (longer * (1 + 2 * margin))
    width, height = round((x1 - x0) * scale), round((y1 - y0) * scale)
    return centre(_resize(cut, width, height, resample), size)


def surroundings(image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """The one colour around an object that was cut out; None around one in its photo.

    Args:
        image: (h w 3) uint8.
        mask: As `object_crop`.

    Returns:
        (3,) uint8; None also where the object fills the picture.
    """
    around = image[mask == 0]
    if not len(around):
        return None
    around = around[:: max(len(around) // 10_000, 1)].astype(int)  # enough to tell
    color = np.median(around, axis=0)
    flat = np.abs(around - color).max(axis=1) <= SAME_COLOR
    return color.astype(np.uint8) if flat.mean() >= FLAT else None


def check_object_view(fit: str, background: str, resample: str) -> None:
    """Checks the choices of `object_crop`.

    Raises:
        InputError: One does not exist.
    """
    for name, value, choices in (
        ("fit", fit, ("pad", "stretch")),
        ("background", background, ("black", "photo")),
        ("resample", resample, ("lanczos", "bicubic", "bilinear")),
    ):
        if value not in choices:
            raise InputError(f"object_view.{name} is {value!r}; it may be {', '.join(choices)}.")


def on_grey(image: np.ndarray, mask: np.ndarray, grey: int = 64) -> np.ndarray:
    """An object on grey, for people: on black dark ones would vanish.

    Args:
        image: (h w 3) uint8.
        mask: (h w) bool, or uint8 coverage.
        grey: 0 to 255.

    Returns:
        (h w 3) uint8.
    """
    alpha = (mask.astype(np.float32) / (1 if mask.dtype == bool else 255))[..., None]
    return np.rint(grey + alpha * (image.astype(np.float32) - grey)).astype(np.uint8)


def centre(image: np.ndarray, size: int) -> np.ndarray:
    """Puts (h w 3), at most `size` high and wide, in the middle of a black (size size 3)."""
    height, width = image.shape[:2]
    y0, x0 = (size - height) // 2, (size - width) // 2
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[y0 : y0 + height, x0 : x0 + width] = image
    return canvas


def context_crop(mask: np.ndarray, context: float, least_side: int = 1) -> Crop:
    """The square around a hole that the network sees.

    It is centred on the hole's bounding box, shrunk to the image's shorter side where that leaves
    `MIN_CONTEXT`, then shifted into the image. Only where it is larger than the image does it
    reach outside, by as much on both sides.

    Args:
        mask: (h w) bool, the hole.
        context: Side of the crop over the longer side of the hole's bounding box, 1 or more.
        least_side: The crop's side in pixels at least, as far as the image's shorter side goes.

    Raises:
        InputError: The mask is empty, or `context` is below 1.
    """
    height, width = mask.shape
    return crop_around(bounding_box(mask), height, width, context, least_side)


def crop_around(box: Box, height: int, width: int, context: float, least_side: int = 1) -> Crop:
    """As `context_crop`, of a hole's bounding box in an image of that height and width."""
    if context < 1:
        raise InputError(
            f"The context is {context} but the crop must hold the hole; use 1 or more."
        )
    x0, y0, x1, y1 = box
    hole = max(x1 - x0, y1 - y0)
    least = min(math.ceil(hole * MIN_CONTEXT), max(height, width))
    side = max(min(max(round(hole * context), least_side), min(height, width)), least)

    def start(low: int, high: int, length: int) -> int:
        if side > length:
            return (length - side) // 2
        return min(max((low + high - side) // 2, 0), length - side)

    return Crop(start(x0, x1, width), start(y0, y1, height), side)


def extract(image: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Cuts a crop out and resizes it; outside of the image the edge pixels are repeated.

    Fill the hole (`fill_hole`) before, where its content must not show: Lanczos spreads it by
    three pixels, and the repeated edge may be part of it.

    Args:
        image: (h w 3) uint8, or (h w) bool, whose edge is repeated in the same way.
        crop: What to cut out.
        size: Side of the result, in pixels.

    Returns:
        (size size 3) uint8; or (size size) bool, true where any pixel below is.
    """
    height, width = image.shape[:2]
    right, bottom = crop.x0 + crop.side, crop.y0 + crop.side
    if crop.x0 >= 0 and crop.y0 >= 0 and right <= width and bottom <= height:
        square = image[crop.y0 : bottom, crop.x0 : right]  # ten times as fast as by numbers
    else:
        rows = np.clip(np.arange(crop.y0, bottom), 0, height - 1)
        columns = np.clip(np.arange(crop.x0, right), 0, width - 1)
        square = image[rows[:, None], columns]
    if image.dtype != bool:
        return _resize(square, size, size)
    return _transposed(_reduce_rows(_transposed(_reduce_rows(square, size)), size))


def _transposed(mask: np.ndarray) -> np.ndarray:
    """(h w) bool, copied many times faster than NumPy copies a transposed view."""
    return cv2.transpose(mask.view(np.uint8)).view(bool)


def _reduce_rows(mask: np.ndarray, count: int) -> np.ndarray:
    """(h w) bool to (count w), true where any pixel is that a new row touches."""
    places = np.arange(count)
    first, last = places * len(mask) // count, -(-(places + 1) * len(mask) // count) - 1
    result = mask[first]
    for offset in range(1, (last - first).max() + 1):
        result |= mask[np.minimum(first + offset, last)]
    return result


def paste_back(
    background: np.ndarray, generated: np.ndarray, mask: np.ndarray, crop: Crop, feather: int
) -> np.ndarray:
    """Puts the generated square back into the photo.

    Inside the hole the result is the generated image; over `feather` pixels outside of it, it
    fades smoothly to the photo (over fewer where the crop's edge is nearer, so that no seam shows
    there); everywhere else it is the photo, bit for bit.

    Args:
        background: (h w 3) uint8.
        generated: (s s c) uint8, the network's picture of `extract(background, crop, s)`.
        mask: (h w) bool, the hole.
        crop: The square it was extracted from.
        feather: Width of the transition in pixels of the photo; 0 = none.

    Returns:
        (h w 3) uint8.

    Raises:
        InputError: The mask is empty or not inside the crop.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = bounding_box(mask)
    right, bottom = crop.x0 + crop.side, crop.y0 + crop.side
    if x0 < crop.x0 or y0 < crop.y0 or x1 > right or y1 > bottom:
        raise InputError("The mask reaches outside of the crop that was generated.")
    # Room between the hole and those edges of the crop beyond which the photo goes on.
    room = [x0 - crop.x0] * (crop.x0 > 0) + [y0 - crop.y0] * (crop.y0 > 0)
    room += [right - x1] * (right < width) + [bottom - y1] * (bottom < height)
    feather = min([feather, *room])

    # Only this window can change: the hole and its rim, inside the image.
    x0, y0 = max(x0 - feather, 0), max(y0 - feather, 0)
    x1, y1 = min(x1 + feather, width), min(y1 + feather, height)
    distance = ndimage.distance_transform_edt(~mask[y0:y1, x0:x1])
    alpha = np.clip(1 - distance / max(feather, 1), 0, 1)[..., None].astype(np.float32)
    alpha = alpha * alpha * (3 - 2 * alpha)

    new = _resize(generated, crop.side, crop.side)
    new = new[y0 - crop.y0 : y1 - crop.y0, x0 - crop.x0 : x1 - crop.x0]
    result = background.copy()
    old = result[y0:y1, x0:x1]
    result[y0:y1, x0:x1] = np.rint(old + alpha * (new.astype(np.float32) - old))
    return result


def mask_level(mask: np.ndarray, level: int, sigmas: tuple[float, float]) -> np.ndarray:
    """One of the four precisions of a mask (paper, Sec. 3.2, after SmartBrush).

    0 is the mask itself, 3 its bounding box; 1 and 2 lie between: the mask blurred by a Gaussian,
    cut at `LEVEL_THRESHOLD`, joined with the level before, inside the box. Each holds the one
    before.

    Args:
        mask: (h w) bool.
        level: 0 to 3.
        sigmas: Standard deviations of levels 1 and 2 over the square root of the box's area
            (SmartBrush's are not published).

    Returns:
        (h w) bool.

    Raises:
        InputError: The mask is empty, or there is no such level.
    """
    if level not in (0, 1, 2, 3):
        raise InputError(f"Mask level {level} does not exist; use 0, 1, 2 or 3.")
    x0, y0, x1, y1 = box = bounding_box(mask)
    if level == 0:
        return mask.copy()
    if level == 3:
        return box_mask(box, *mask.shape)
    inside = mask[y0:y1, x0:x1]
    grown = inside
    for sigma in sigmas[:level]:
        grown = grown | (_blur(inside, sigma * math.sqrt(inside.size)) >= 255 * LEVEL_THRESHOLD)
    result = np.zeros_like(mask)
    result[y0:y1, x0:x1] = grown
    return result


def close_scribble(mask: np.ndarray) -> np.ndarray:
    """Strokes made into a shape: gaps between them closed, what they enclose filled.

    The strokes are grown by `SCRIBBLE_REACH` of their box's longer side, filled, and shrunk back.

    Args:
        mask: (h w) bool, the strokes.

    Returns:
        (h w) bool, which holds the strokes.

    Raises:
        InputError: The mask is empty.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    reach = math.ceil(SCRIBBLE_REACH * max(x1 - x0, y1 - y0))
    strokes = np.pad(mask[y0:y1, x0:x1], reach + 1)
    grown = ndimage.distance_transform_edt(~strokes) <= reach
    filled = ndimage.binary_fill_holes(grown)
    shape = strokes | (ndimage.distance_transform_edt(filled) > reach)
    result = mask.copy()
    result[y0:y1, x0:x1] = shape[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
    return result


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether a mask (h w) bool may have hole and background the wrong way round.

    Such a hole covers more than half of the picture and more than half of its border, but not the
    whole picture. Ours.
    """
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(mask.mean() > 0.5 and border.mean() > 0.5 and not mask.all())


def match_colors(generated: np.ndarray, original: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Shifts each channel so that its mean over a ring is the original's.

    Around the hole the generated image shows the photo through the autoencoder, whose colours
    drift; inside it is assumed to drift by as much.

    Args:
        generated: (h w 3) uint8.
        original: (h w 3) uint8, the same square of the photo.
        ring: (h w) bool, where both should be alike; if it is empty nothing is shifted.

    Returns:
        (h w 3) uint8.
    """
    if not ring.any():
        return generated
    generated = generated.astype(np.float32)
    drift = (generated[ring] - original[ring]).mean(axis=0)
    return np.rint(np.clip(generated - drift, 0, 255)).astype(np.uint8)


def ring_around(mask: np.ndarray, width: float) -> np.ndarray:
    """The pixels outside of a mask (h w) bool that are at most `width` pixels away from it."""
    distance = ndimage.distance_transform_edt(~mask)
    return (distance > 0) & (distance <= width)


def latent_mask(mask: Any, factor: int) -> Any:
    """Masks on the latent grid: a cell is hole if any of its pixels is. NumPy or JAX arrays.

    Args:
        mask: (b h w 1), 1 or true = the hole; h and w multiples of `factor`.
        factor: Pixels a cell, in each direction.

    Returns:
        (b h/factor w/factor 1), of the mask's dtype.
    """
    b, height, width, _ = mask.shape
    cells = mask.reshape(b, height // factor, factor, width // factor, factor, 1)
    return cells.max(axis=(2, 4))


def fill_hole(images: Any, mask: Any, mode: str, grey: float) -> Any:
    """Takes the hole's content away, by arithmetic that serves NumPy and JAX arrays alike.

    Args:
        images: (... c), uint8 or floating point.
        mask: What broadcasts to `images`, 1 or true = the hole; every value 0 or 1.
        mode: "grey" or "none" (leaves the images as they are).
        grey: The value to fill with: 128 for uint8, 0 for images in [-1, 1].

    Returns:
        Like `images`.

    Raises:
        InputError: There is no such mode.
    """
    if mode == "none":
        return images
    if mode not in ("grey", "exact"):
        raise InputError(f'hole_fill is {mode!r}; use "grey", "exact" or "none".')
    mask = mask.astype(images.dtype)
    return images * (1 - mask) + grey * mask


def _resize(image: np.ndarray, width: int, height: int, resample: str = "lanczos") -> np.ndarray:
    size = (max(width, 1), max(height, 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling[resample.upper()]))


def _blur(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (h w) bool, false beyond its edges, as uint8 coverage.

    Wide ones are three means over boxes, which take the same time at any sigma; a mask of a large
    photo has sigmas of hundreds.
    """
    image: np.ndarray = mask.astype(np.uint8) * 255
    edge = cv2.BORDER_CONSTANT
    if sigma < 4:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=edge)
    pad = math.ceil(3 * sigma)  # what leaves the mask in a pass may come back in the next
    image = np.pad(image, pad)
    side = 2 * round((math.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1  # of the same variance
    for _ in range(3):
        image = cv2.blur(image, (side, side), borderType=edge)
    return image[pad:-pad, pad:-pad]
