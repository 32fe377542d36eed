"""Picture files and callers' pictures: any common one to plain uint8 arrays, and to PNG.

Arrays are (h w 3) or (h w 4) uint8, upright (EXIF orientation applied), 0 to 255, sRGB: pictures
with another colour profile are converted.
"""

import functools
import io
import logging
import os
import re
import struct
import warnings
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, features

from imprint_jax.errors import InputError

log = logging.getLogger(__name__)

# A mask pixel from this value on (half of full scale) is hole, or object.
MASK_THRESHOLD = 128
# A picture whose transparent part is smaller than this share has no object cut out: rounded
# corners, a stray pixel. Ours.
CUT_OUT = 0.02
# Channels of grey, and colours of one paint, are at most so many levels apart. Ours.
ALIKE = 32
# A mask with a larger share of colours is no mask. Ours.
COLORED = 0.0005
# Values of labels, as far as they can be told from those of a mask: few, and dark. Ours.
MOST_LABELS = 40

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_HEADER = b"Exif\0\0"  # before EXIF in a JPEG file, and often elsewhere
_CHANNELS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

# What callers hand over beside arrays.
PathOrImage = str | os.PathLike | Image.Image


def read_image(path: str | os.PathLike, least: int | None = None) -> np.ndarray:
    """Reads a picture file; see `decode_image`."""
    return decode_image(read_bytes(path), str(path), least)


def decode_image(data: bytes, name: str, least: int | None = None) -> np.ndarray:
    """Decodes a picture: grey, palette, 16-bit, CMYK and the like become 8-bit sRGB.

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
    return plain(open_upright(data, name, least), name)


def open_upright(data: bytes, name: str, least: int | None = None) -> Image.Image:
    """A picture as its file has it, decoded and upright; arguments and errors as `open_image`."""
    try:
        image = Image.open(io.BytesIO(data))
        if least is not None:
            shrink = max(min(image.size) // least, 1)
            image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
    except Image.UnidentifiedImageError:
        format = _unread_format(data)
        hint = f": Pillow does not read {format} here, save it as JPEG or PNG" if format else ""
        raise InputError(f"{name} is not a picture of a known format{hint}.") from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise InputError(f"{name} cannot be read as a picture: {_reason(error)}.") from error
    return upright(image, name)


def _unread_format(data: bytes) -> str | None:
    """HEIC or AVIF, by the brands at a file's beginning, if Pillow has no decoder of it."""
    if data[4:8] != b"ftyp":
        return None
    (length,) = struct.unpack_from(">I", data)
    brands = data[8 : min(length, 256)]  # the file's own, and those it is compatible with
    if b"avif" in brands or b"avis" in brands:
        return None if features.check("avif") else "AVIF"
    return "HEIC" if re.search(rb"hei[cxms]|hev[cxms]|mif1|msf1", brands) else None


def upright(image: Image.Image, name: str) -> Image.Image:
    """A picture turned as its EXIF orientation says; nothing else of its EXIF matters.

    Args:
        image: Any picture of Pillow's.
        name: What to call it where that is said: its EXIF is too damaged to tell.
    """
    orientation = _orientation(image, name)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image, name: str) -> int | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # what is wrong with other tags says nothing about the pixels
        orientation = None
    exif = image.info.get("exif")
    # An AVIF file has a field of its own for it, which Pillow has put in the place of EXIF's.
    if orientation is not None or not isinstance(exif, bytes) or image.format == "AVIF":
        return orientation
    exif = exif.removeprefix(EXIF_HEADER)
    try:  # Pillow stops reading at the first tag whose value lies outside of the file
        order, entries = exif_entries(exif)
        for entry in entries:
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, entry)
            if (tag, kind, count) == (ExifTags.Base.Orientation, 3, 1):  # one SHORT
                return value
    except (ValueError, struct.error):
        if exif:
            log.warning("the EXIF of %s is damaged: whether to turn it cannot be told", name)
    return None


def exif_entries(exif: bytes | bytearray) -> tuple[str, range]:
    """Where the tags of a picture's EXIF are, however damaged their values are.

    Args:
        exif: Without `EXIF_HEADER`.

    Returns:
        The byte order as `struct` writes it, and the places of the first directory's entries of 12
        bytes: tag, kind, count and value (or the value's place).

    Raises:
        ValueError: It is no EXIF.
        struct.error: It ends before the directory.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    if order is None:
        raise ValueError("no EXIF")
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, directory)
    return order, range(directory + 2, directory + 2 + 12 * count, 12)


def plain(image: Image.Image, name: str, *, convert: bool = True) -> Image.Image:
    """Mode "RGBA" of an image with transparency, "L" of a grey one, "RGB" of any other.

    Args:
        image: Of any mode.
        name: What to call it in an error.
        convert: By its colour profile to sRGB, if it has one.

    Raises:
        InputError: Its pixels are of an unknown range.
    """
    try:
        profile = image.info.get("icc_profile") if convert else None
        image = _to_8_bit(image)
        if not (profile and profile_channels(profile) == image.mode == "CMYK"):
            image = _to_plain(image)
        return to_srgb(image, profile, name) if profile else image
    except Exception as error:  # Pillow's conversions, of modes that they do not know
        raise InputError(f"{name} cannot be read as a picture: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


@functools.lru_cache(maxsize=64)
def profile_channels(profile: bytes) -> str | None:
    """The mode ("RGB", "L" or "CMYK") of an ICC profile's colours; None if it is damaged."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
        mode = _CHANNELS.get(space.strip())
        if mode is not None:
            _transform(profile, mode, to_srgb=True)
        if mode == "RGB":
            _transform(profile, mode, to_srgb=False)
    except (OSError, UnicodeDecodeError, ImageCms.PyCMSError):
        return None
    return mode


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str, *, to_srgb: bool) -> ImageCms.ImageCmsTransform | None:
    """Pillow's transform of a profile's colours; None where they are sRGB's to a grey level."""
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    source, target = (own, srgb) if to_srgb else (srgb, own)
    transform = ImageCms.buildTransform(
        source,
        target,
        mode if to_srgb else "RGB",
        "RGB" if to_srgb else mode,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "RGB":
        steps = np.linspace(0, 255, 6).astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        changed = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
        if np.abs(changed.astype(int) - cube).max() <= 1:
            return None
    return transform


def to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """A picture's colours by their ICC profile in sRGB (relative colorimetric).

    Args:
        image: Of mode "L", "RGB", "RGBA" or "CMYK".
        profile: If it cannot be read or is of other channels, that is logged and nothing happens.
        name: What to call the picture.
    """
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    image = image.convert("RGB") if alpha else image
    channels = profile_channels(profile)
    if {channels, image.mode} == {"L", "RGB"}:  # grey with the profile of colours, or the reverse
        image = image.convert(channels)
    if channels != image.mode:
        _warn_of_profile(profile, name)
        image = image.convert("RGB")
    elif (transform := _transform(profile, image.mode, to_srgb=True)) is not None:
        image = cast(Image.Image, ImageCms.applyTransform(image, transform))  # not in place
    return _with_alpha(image, alpha)


@functools.lru_cache(maxsize=64)
def _warn_of_profile(profile: bytes, name: str) -> None:
    """Once for each picture, however often it is read."""
    log.warning("the colour profile of %s cannot be used: it is taken as sRGB", name)


def from_srgb(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """sRGB (h w 3) uint8 in the colours of an RGB profile that `to_srgb` can use."""
    transform = _transform(profile, "RGB", to_srgb=False)
    if transform is None:
        return pixels
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))


def _with_alpha(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is not None:
        image.putalpha(alpha)
    return image


def has_cut_out(image: np.ndarray) -> bool:
    """Whether the transparency of (h w 3 or 4) uint8 separates an object from its surroundings."""
    return image.shape[2] == 4 and float(np.mean(image[..., 3] < MASK_THRESHOLD)) >= CUT_OUT


def read_mask(
    path: str | os.PathLike, size_hw: tuple[int, int], *, of_object: bool = False
) -> np.ndarray:
    """Reads a mask file; see `decode_mask`.

    Args:
        path: The file.
        size_hw: Height and width the mask must have.
        of_object: As in `decode_mask`.

    Raises:
        InputError: As `decode_mask`, or the size differs.
    """
    mask = decode_mask(read_bytes(path), str(path), of_object=of_object)
    if mask.shape != tuple(size_hw):
        (height, width), (wanted_height, wanted_width) = mask.shape, size_hw
        raise InputError(
            f"The mask {path} is {width}x{height} pixels (width x height) but its picture is "
            f"{wanted_width}x{wanted_height}; resize the mask to the picture."
        )
    return mask


def decode_mask(data: bytes, name: str, *, of_object: bool = False) -> np.ndarray:
    """Decodes a mask: white on black, or drawn on a transparent layer; cut at half.

    Args:
        data: As in `open_image`.
        name: As in `open_image`.
        of_object: It may also be the object itself on transparent ground. As a hole, that might as
            well be a photo with the hole erased.

    Returns:
        (h w) bool, true = hole or object.

    Raises:
        InputError: As `decode_coverage`.
    """
    return _cut_at_half(_mask_values(decode_image(data, name), name, of_object), name)


def decode_coverage(data: bytes, name: str) -> np.ndarray:
    """Decodes an object's soft mask: as `decode_mask` with `of_object`, not cut.

    Returns:
        (h w) uint8 coverage, 255 = object.

    Raises:
        InputError: As `decode_image`; or it can be read in more than one way; or something is drawn
            but nothing reaches half of white, as in a mask of 0 and 1.
    """
    values = _mask_values(decode_image(data, name), name, of_object=True)
    _check_values(values, name)
    return values


def _mask_values(image: np.ndarray, name: str, of_object: bool) -> np.ndarray:
    """(h w) uint8 of a picture: its luminance, or its transparency where that is the mask."""
    colors = image[..., :3]
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(colors)).convert("L"))
    alpha = image[..., 3] if image.shape[2] == 4 else np.full_like(grey, 255)
    opaque = alpha >= MASK_THRESHOLD
    if not opaque.any() and np.ptp(alpha) > ALIKE:
        return alpha  # drawn, but faintly
    if opaque.all() or not opaque.any():
        if _is_grey(colors):
            return grey
        raise InputError(
            f"The mask {name} has colours, which do not say what is marked: paint it white on"
            " black."
        )
    one_paint = np.ptp(colors[opaque], axis=0).max() <= ALIKE
    black_and_white = not one_paint and _is_black_and_white(colors[opaque])
    if one_paint or (of_object and (has_cut_out(image) or not black_and_white)):
        return alpha
    if black_and_white and not has_cut_out(image):  # little is transparent, such as rounded corners
        return np.where(opaque, grey, 0).astype(np.uint8)
    raise InputError(
        f"The mask {name} can be read in two ways, by its colours and by its transparency: save it"
        " as white on black, without transparency."
    )


def _is_grey(colors: np.ndarray) -> bool:
    return float(np.mean(np.ptp(colors, axis=-1) > ALIKE)) <= COLORED


def _is_black_and_white(colors: np.ndarray) -> bool:
    """Whether nearly all of (n 3) is nearly black or nearly white."""
    between = (colors > 2 * ALIKE) & (colors < 255 - 2 * ALIKE)
    return _is_grey(colors) and float(between.any(axis=-1).mean()) <= 0.05


def _check_values(values: np.ndarray, name: str) -> None:
    if values.any() and values.max() < MASK_THRESHOLD:
        raise InputError(
            f"The mask {name} is nowhere brighter than {values.max()} of 255; paint it white."
        )
    counts = np.bincount(values.ravel(), minlength=256)
    labels = counts[1 : MOST_LABELS + 1]
    if counts[255] and not counts[MOST_LABELS + 1 : 255].any() and labels.sum() > counts[255] / 4:
        used = ", ".join(str(value) for value in np.flatnonzero(counts)[:4])
        raise InputError(
            f"The mask {name} holds the values {used} ... as a picture of labels does: paint white"
            " what is marked, and all else black."
        )


def _cut_at_half(values: np.ndarray, name: str) -> np.ndarray:
    """(h w) bool of (h w) uint8; says so where that is a choice."""
    _check_values(values, name)
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
    except Exception as error:  # as in `open_upright`
        reason = _reason(error)
        raise InputError(f"{name} cannot be read as a picture of labels: {reason}.") from error
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
    except Exception:  # who decodes it says what is wrong
        return False
    return False


def encode_png(
    array: np.ndarray,
    text: dict[str, str] | None = None,
    **metadata: bytes | tuple[float, float],
) -> bytes:
    """Encodes (h w), (h w 3) or (h w 4) uint8, or (h w) bool as 0 and 255, as PNG.

    Args:
        array: The pixels.
        text: Stored as PNG text chunks.
        **metadata: `icc_profile`, `exif` (bytes) and `dpi` (horizontal, vertical), as far as there
            are any.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", pnginfo=info, **metadata)
    return buffer.getvalue()


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:  # no file can have such a name
        raise InputError(f"Cannot read {str(path)!r}: {error}.") from error


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
    """Mode "RGBA" of an image with transparency, "L" of a grey one, "RGB" of any other."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def as_rgb_or_rgba(picture: ArrayLike | PathOrImage, name: str) -> np.ndarray:
    """A caller's picture as (h w 3) or (h w 4) uint8 of its own memory.

    Args:
        picture: A file's path, a PIL image of any mode, or a uint8 array (h w), (h w 3) or (h w 4),
            NumPy's or JAX's.
        name: What to call it in an error.

    Raises:
        InputError: A file that cannot be read, another dtype or shape.
    """
    if isinstance(picture, str | os.PathLike):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        image = plain(upright(loaded(picture, name), f"the {name}"), f"the {name}")
        return np.array(image.convert("RGB") if image.mode == "L" else image)
    array = np.array(picture)
    if array.dtype != np.uint8:
        raise InputError(f"The {name} is {array.dtype}; it must be uint8, 0 to 255.")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise InputError(f"The {name} has shape {array.shape}; it must be (h w 3) or (h w 4).")
    return array


def loaded(image: Image.Image, name: str) -> Image.Image:
    """A caller's PIL image, decoded.

    Raises:
        InputError: It is damaged.
    """
    try:
        image.load()
    except Exception as error:  # as in `open_upright`
        raise InputError(f"The {name} cannot be read as a picture: {_reason(error)}.") from error
    return image


def as_mask(
    mask: ArrayLike | PathOrImage,
    size_hw: tuple[int, int],
    name: str,
    *,
    of_object: bool = False,
) -> np.ndarray:
    """A caller's mask as (h w) bool of its own memory.

    Args:
        mask: A file's path, a PIL image (read as `decode_mask` says), or a bool or uint8 array
            (h w) or (h w 1), NumPy's or JAX's; uint8 is cut at half.
        size_hw: The height and width it must have.
        name: What to call it in an error.
        of_object: As in `decode_mask`.

    Raises:
        InputError: A file that cannot be read, another dtype or size; or uint8 of which nothing
            reaches half of white, or which looks like labels.
    """
    if isinstance(mask, str | os.PathLike):
        return read_mask(mask, size_hw, of_object=of_object)
    if isinstance(mask, Image.Image):
        mask = _mask_values(as_rgb_or_rgba(mask, name), name, of_object)
    array = np.array(mask)
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
