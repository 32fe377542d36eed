"""The photo that objects go into: what its file holds beside pixels, and how it comes out again.

The networks know sRGB. A photo stays in its own colour space, so that outside the holes its numbers
and their meaning are what they were; squares are converted on their way to and from the networks.
"""

import functools
import math
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import ExifTags, Image

from imprint_jax import images

# Pixels of the longer side of a row of pictures in a notebook. Ours.
SHOWN = 1600


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo, upright, in its own colour space.

    Attributes:
        pixels: (h w 3) uint8, or (h w 4) where anything is transparent.
        metadata: What a result carries over, as `images.encode_png` takes it: `icc_profile`,
            `exif` (upright, without thumbnail), `dpi`; as far as there are any.
    """

    pixels: np.ndarray
    metadata: dict = field(default_factory=dict)

    @property
    def profile(self) -> bytes | None:
        """The ICC profile of its colours; None if they are sRGB's."""
        return self.metadata.get("icc_profile")

    @functools.cached_property
    def visible(self) -> np.ndarray:
        """(h w 3) or (h w 4) uint8 to compose on: transparent parts show white, as a page would."""
        if self.pixels.shape[2] == 3:
            return self.pixels
        alpha = self.pixels[..., 3:].astype(np.float32) / 255
        colors = 255 + alpha * (self.pixels[..., :3].astype(np.float32) - 255)
        return np.dstack([np.rint(colors).astype(np.uint8), self.pixels[..., 3]])

    def to_srgb(self, square: np.ndarray) -> np.ndarray:
        """Colours of this photo (h w 3) uint8 in sRGB."""
        if self.profile is None:
            return square
        return np.asarray(images.to_srgb(Image.fromarray(square), self.profile, "the background"))

    def from_srgb(self, square: np.ndarray) -> np.ndarray:
        """sRGB (h w 3) uint8 in the colours of this photo, opaque where it has transparency."""
        if self.profile is not None:
            square = images.from_srgb(square, self.profile)
        if self.pixels.shape[2] == 4:
            square = np.dstack([square, np.full(square.shape[:2], 255, np.uint8)])
        return square

    def finished(self, composed: np.ndarray) -> Image.Image:
        """The picture of what was composed on `visible`; untouched pixels are the photo's own."""
        if self.pixels.shape[2] == 4:
            same = (composed == self.visible).all(axis=-1, keepdims=True)
            composed = np.where(same, self.pixels, composed)
        picture = Image.fromarray(composed)
        picture.info.update(self.metadata)
        return picture


class Pictures(list):
    """Pictures of one size, which a notebook shows side by side."""

    def _repr_png_(self) -> bytes:
        row = Image.fromarray(np.concatenate([picture.convert("RGB") for picture in self], axis=1))
        row.thumbnail((SHOWN, SHOWN))
        profile = self[0].info.get("icc_profile")
        return images.encode_png(np.asarray(row), **({"icc_profile": profile} if profile else {}))


def open_photo(picture: ArrayLike | images.PathOrImage, name: str = "background") -> Photo:
    """A file's path, a PIL image, or a uint8 array (h w), (h w 3) or (h w 4), as a `Photo`.

    Args:
        picture: The photo; an array is sRGB.
        name: What to call it in an error.

    Raises:
        InputError: As `images.as_rgb_or_rgba`.
    """
    if isinstance(picture, str | os.PathLike):
        path = picture
        return _from_pil(images.open_upright(images.read_bytes(path), str(path)), str(path))
    if isinstance(picture, Image.Image):
        return _from_pil(images.upright(images.loaded(picture, name), f"the {name}"), f"the {name}")
    return Photo(_without_idle_alpha(images.as_rgb_or_rgba(picture, name)))


def _from_pil(image: Image.Image, name: str) -> Photo:
    metadata = {}
    profile = image.info.get("icc_profile")
    own_colors = bool(profile) and images.profile_channels(profile) == "RGB"
    if own_colors:
        metadata["icc_profile"] = profile
    if exif := _exif_of_a_result(image.info.get("exif")):
        metadata["exif"] = exif
    if dpi := _sound_dpi(image.info.get("dpi")):
        metadata["dpi"] = dpi
    image = images.plain(image, name, convert=not own_colors)
    pixels = np.array(image.convert("RGB") if image.mode == "L" else image)
    return Photo(_without_idle_alpha(pixels), metadata)


def _without_idle_alpha(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[2] == 4 and pixels[..., 3].min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    return pixels


def _exif_of_a_result(exif: object) -> bytes | None:
    """EXIF with its orientation upright and no thumbnail, which would show the photo of before.

    Nothing else in it is understood, so that nothing else can be lost or go wrong.

    Returns:
        None where it cannot be read.
    """
    if not isinstance(exif, bytes):
        return None
    data = bytearray(exif.removeprefix(images.EXIF_HEADER))
    try:
        order, entries = images.exif_entries(data)
        for entry in entries:
            (tag,) = struct.unpack_from(order + "H", data, entry)
            if tag == ExifTags.Base.Orientation:
                struct.pack_into(order + "HIHH", data, entry + 2, 3, 1, 1, 0)  # SHORT, one: 1
        struct.pack_into(order + "I", data, entries.stop, 0)  # no second directory
    except (ValueError, struct.error):
        return None
    return bytes(data)


def _sound_dpi(dpi: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(x) for x in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    # What a PNG can hold: pixels a metre in 31 bits.
    sound = all(math.isfinite(x) and 0 < x < 2**31 * 0.0254 for x in (across, down))
    return (across, down) if sound else None
