"""Picture files: read any common one to plain uint8 arrays, encode PNG.

Arrays are (h w 3) or (h w 4) uint8, upright (EXIF orientation applied), 0 to 255.
"""

import io
import logging
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from imprint_jax.errors import InputError

log = logging.getLogger(__name__)

# What Pillow raises for damaged files, found by damaging some of each format: EOFError and
# struct.error for short headers, SyntaxError for broken PNG chunks, RuntimeError for AVIF,
# ValueError also for colour spaces it cannot convert.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)

# A mask pixel from this value on (half of full scale) is hole, or object.
MASK_THRESHOLD = 128


def read_image(path: str | os.PathLike, least: int | None = None) -> np.ndarray:
    """Reads a picture file; see `decode_image`."""
    return decode_image(_read_bytes(path), str(path), least)


def decode_image(data: bytes, name: str, least: int | None = None) -> np.ndarray:
    """Decodes a picture: grey, palette, 16-bit, CMYK and the like become 8-bit RGB.

    Args:
        data: As in `open_image`.
        name: As in `open_image`.
        least: As in `open_image`.

    Returns:
        (h w 4) uint8 where the file has transparency (straight, not premultiplied), else (h w 3);
        not writable.

    Raises:
        InputError: It is no picture, damaged, cut short, too large, or of an unknown range.
    """
    image = open_image(data, name, least)
    return np.asarray(image.convert("RGB") if image.mode == "L" else image)


def open_image(data: bytes, name: str, least: int | None = None) -> Image.Image:
    """As `decode_image`, as Pillow's image of mode "RGBA", "RGB", or "L" if it is grey.

    Args:
        data: The encoded file (any format of Pillow's; the first frame of an animation).
        name: What to call it in an error.
        least: Allows a JPEG to be decoded at half, a quarter or an eighth of its size, which is
            faster, as long as its shorter side keeps this many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if least is not None:
            shrink = max(min(image.size) // least, 1)
            image.draft(None, (image.width // shrink, image.height // shrink))
        ImageOps.exif_transpose(image, in_place=True)
        return _to_plain(image)
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not a picture of a known format.") from None
    except _DAMAGED as error:
        raise InputError(f"{name} cannot be read as a picture: {error}.") from error


def read_mask(path: str | os.PathLike, size_hw: tuple[int, int]) -> np.ndarray:
    """Reads a mask file; see `decode_mask`.

    Args:
        path: The file.
        size_hw: Height and width the mask must have.

    Raises:
        InputError: As `decode_mask`, or the size differs.
    """
    mask = decode_mask(_read_bytes(path), str(path))
    if mask.shape != tuple(size_hw):
        (height, width), (wanted_height, wanted_width) = mask.shape, size_hw
        raise InputError(
            f"The mask {path} is {width}x{height} pixels (width x height) but its picture is "
            f"{wanted_width}x{wanted_height}; resize the mask to the picture."
        )
    return mask


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decodes a mask: the alpha channel where one is in use, else the luminance, cut at half.

    Returns:
        (h w) bool, true = hole or object.

    Raises:
        InputError: As `decode_coverage`.
    """
    return _cut_at_half(_mask_values(decode_image(data, name)), name)


def decode_coverage(data: bytes, name: str) -> np.ndarray:
    """Decodes a soft mask: the alpha channel where one is in use, else the luminance.

    Returns:
        (h w) uint8 coverage, 255 = hole or object.

    Raises:
        InputError: As `decode_image`; or something is drawn but nothing reaches half of white, as
            in a mask of 0 and 1.
    """
    values = _mask_values(decode_image(data, name))
    _check_drawn(values, name)
    return values


def _mask_values(image: np.ndarray) -> np.ndarray:
    """(h w) uint8 of a picture: its alpha channel where one is in use, else its luminance."""
    if image.shape[2] == 4 and image[..., 3].min() < 255:
        return image[..., 3]
    return np.asarray(Image.fromarray(image[..., :3]).convert("L"))


def _check_drawn(values: np.ndarray, name: str) -> None:
    if values.any() and values.max() < MASK_THRESHOLD:
        raise InputError(
            f"The mask {name} is nowhere brighter than {values.max()} of 255; paint it white."
        )


def _cut_at_half(values: np.ndarray, name: str) -> np.ndarray:
    """(h w) bool of (h w) uint8; says so where that is a choice."""
    _check_drawn(values, name)
    soft = np.mean((values > 0) & (values < 255))
    if soft:
        log.info("the mask %s is soft (%.1f %% of it is grey): cut at half", name, 100 * soft)
    return values >= MASK_THRESHOLD


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """Decodes a picture whose pixels are numbers, not colours.

    Args:
        data: The encoded file: a palette's or grey numbers of 8 or 16 bits; or RGB, which stands
            for R + 256 G + 65536 B (rgb2id of cocodataset/panopticapi, panopticapi/utils.py).
        name: What to call it in an error.

    Returns:
        (h w) int64.

    Raises:
        InputError: As `decode_image`, or another kind of picture.
    """
    try:
        image = Image.open(io.BytesIO(data))
        pixels = np.asarray(image).astype(np.int64)
    except _DAMAGED as error:
        raise InputError(f"{name} cannot be read as a picture of labels: {error}.") from error
    if image.mode == "RGB":
        return pixels @ np.array([1, 256, 65536])
    if image.mode in ("P", "L") or image.mode.startswith("I"):
        return pixels
    raise InputError(f"{name} has the mode {image.mode}; labels are palette, grey or RGB pictures.")


def too_large(data: bytes) -> bool:
    """Whether a picture has more pixels than Pillow opens without a warning, 89 million."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return True
    except _DAMAGED:
        return False
    return False


def encode_png(array: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """Encodes (h w), (h w 3) or (h w 4) uint8, or (h w) bool as 0 and 255, as PNG.

    Args:
        array: The pixels.
        text: Metadata, stored as PNG text chunks.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, which Pillow's own conversion would clip at 255."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its integers are not 16-bit")
        return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("it holds floating-point pixels; save it with 8 or 16 bits a channel")
    return image


def _to_plain(image: Image.Image) -> Image.Image:
    """Mode "RGBA" of an image with transparency, "L" of a grey one, "RGB" of any other; loaded."""
    image = _to_8_bit(image)
    image.load()
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def as_rgb_or_rgba(picture: np.ndarray | Image.Image, name: str) -> np.ndarray:
    """A caller's picture as (h w 3) or (h w 4) uint8.

    Args:
        picture: PIL image of any mode, or a uint8 array (h w), (h w 3) or (h w 4), NumPy's or
            JAX's.
        name: What to call it in an error.

    Raises:
        InputError: Another dtype or shape.
    """
    if isinstance(picture, Image.Image):
        return _from_pil(picture, name)
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        raise InputError(f"The {name} is {array.dtype}; it must be uint8, 0 to 255.")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise InputError(f"The {name} has shape {array.shape}; it must be (h w 3) or (h w 4).")
    return array


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    try:
        plain = _to_plain(ImageOps.exif_transpose(image))
        return np.asarray(plain.convert("RGB") if plain.mode == "L" else plain)
    except _DAMAGED as error:
        raise InputError(f"The {name} cannot be read as a picture: {error}.") from error


def as_rgb(picture: np.ndarray | Image.Image, name: str) -> np.ndarray:
    """As `as_rgb_or_rgba`, with transparency dropped: (h w 3) uint8."""
    return as_rgb_or_rgba(picture, name)[..., :3]


def as_mask(mask: np.ndarray | Image.Image, size_hw: tuple[int, int], name: str) -> np.ndarray:
    """A caller's mask as (h w) bool.

    Args:
        mask: PIL image (its alpha where one is in use, else its luminance), or a bool or uint8
            array (h w) or (h w 1), NumPy's or JAX's; uint8 is cut at half.
        size_hw: The height and width it must have.
        name: What to call it in an error.

    Raises:
        InputError: Another dtype or size; or uint8 of which nothing reaches half of white.
    """
    if isinstance(mask, Image.Image):
        mask = _mask_values(_from_pil(mask, name))
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.shape != tuple(size_hw):
        raise InputError(
            f"The {name} has shape {array.shape} but its picture is {tuple(size_hw)} (height,"
            " width): give a mask of the picture's size."
        )
    if array.dtype not in (np.bool_, np.uint8):
        raise InputError(f"The {name} is {array.dtype}; it must be bool, or uint8 0 to 255.")
    return array if array.dtype == bool else _cut_at_half(array, name)
