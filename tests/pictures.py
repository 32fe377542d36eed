"""Picture files for tests."""

import functools
import struct
from pathlib import Path

import numpy as np
from PIL import ImageCms

from imprint_jax.images import encode_png


def write_png(path: Path, array: np.ndarray, text: dict[str, str] | None = None) -> None:
    """Writes a PNG; see `encode_png`."""
    Path(path).write_bytes(encode_png(array, text))


@functools.cache  # LittleCMS writes the time into a profile
def display_p3() -> bytes:
    """An ICC profile like Display P3: sRGB's with other primaries (adapted to D50)."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.2412, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.1571, 0.06657, 0.78407),
    }
    (count,) = struct.unpack_from(">I", data, 128)
    for number in range(count):
        name, start, _ = struct.unpack_from(">4sII", data, 132 + 12 * number)
        for place, value in enumerate(primaries.get(name, ())):
            struct.pack_into(">i", data, start + 8 + 4 * place, round(value * 65536))
    return bytes(data)
