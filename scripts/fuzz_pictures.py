"""Damages the bytes of pictures of all formats and reads them: python scripts/fuzz_pictures.py

Each damaged file must be read or refused with `InputError`; whatever else is raised is printed with
the seed that leads to it. Exit code 1 if there was any.

    --minutes M   how long (2)
    --seed S      of the damage (0)
"""

import argparse
import collections
import io
import logging
import sys
import time
import traceback
import warnings

import numpy as np
from PIL import Image, ImageCms

from imprint_jax import images
from imprint_jax.composing.photo import open_photo
from imprint_jax.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM")


def originals() -> dict[str, bytes]:
    """Sound files: {format and mode: bytes}, with EXIF, resolution and a colour profile."""
    rng = np.random.default_rng(0)
    colors = Image.fromarray(rng.integers(0, 256, (24, 40, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {}
    for format in FORMATS:
        for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I;16"):
            buffer = io.BytesIO()
            try:
                picture = (
                    colors.convert("I").convert(mode) if mode == "I;16" else (colors.convert(mode))
                )
                picture.save(buffer, format, exif=exif, icc_profile=profile, dpi=(300, 300))
            except (OSError, ValueError, KeyError):  # a format without this mode
                continue
            files[f"{format} {mode}"] = buffer.getvalue()
    return files


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut, doubled or inserted; more often near the beginning, where headers are."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        place = int(len(damaged) * rng.random() ** 3)
        length = int(rng.integers(1, 9))
        match rng.integers(5):
            case 0:
                damaged[place : place + length] = rng.bytes(length)
            case 1:
                damaged[place : place + length] = (
                    bytes([int(rng.choice([0, 1, 127, 255]))]) * length
                )
            case 2:
                del damaged[place : place + length]
            case 3:
                damaged[place:place] = damaged[place : place + length]
            case 4:
                del damaged[int(len(damaged) * (1 - rng.random() ** 4)) :]
    return bytes(damaged)


def open_file(data: bytes, name: str) -> None:
    """The photo that a result is composed into, and the file of that result."""
    photo = open_photo(images.open_upright(data, name))
    images.decode_image(images.encode_png(photo.pixels, **photo.metadata), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    files = list(originals().items())
    counts, faults = collections.Counter(), collections.Counter()
    end = time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed
    while time.monotonic() < end:
        rng = np.random.default_rng(seed)
        name, data = files[seed % len(files)]
        damaged = damage(data, rng)
        for way in (images.decode_image, images.decode_mask, images.decode_labels, open_file):
            try:
                way(damaged, "the file")
                counts[way.__name__, "read"] += 1
            except InputError:
                counts[way.__name__, "refused"] += 1
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1].name
                fault = way.__name__, name, type(error).__name__, where
                if fault not in faults:
                    print(f"seed {seed}: {fault}: {error}")
                faults[fault] += 1
        seed += 1
    print(f"{seed - arguments.seed} files of {len(files)} kinds")
    for (way, outcome), count in sorted(counts.items()):
        print(f"{way:15} {outcome:8} {count:8}")
    print(f"{sum(faults.values())} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
