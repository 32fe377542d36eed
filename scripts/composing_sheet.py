"""Draws docs/composing.png: objects that mini has never seen, composed at its own strength.

    python scripts/composing_sheet.py [--model MODEL] [--out OUT]

Under headings, two compositions a row: the object, the photo with its hole, the result with seed 0.
"""

import argparse
from pathlib import Path

import mini_sheet
import numpy as np
from PIL import Image

from imprint_jax import Compositor, geometry, images

TILE = 144
SHOWN = 1.8  # times the hole's longer side, of the photo
HEADINGS = ("object", "hole", "result")

# Object, its view, the view whose outline is the hole, photo, and a box in its pixels for the hole.
# Objects, photos and panoramas are of mini's test and validation splits.
COMPOSITIONS = (
    ("puzzle_cube", 6, 20, "samples/photos/fig", (140, 240, 390, 490)),
    ("cap", 30, 28, "samples/photos/mountains", (250, 330, 530, 540)),
    ("chicken", 8, 10, "benchmark/backgrounds/rooitou_park_060", (130, 200, 240, 330)),
    ("bulldog", 22, 20, "benchmark/backgrounds/rooitou_park_120", (120, 200, 280, 340)),
    ("doll", 2, 4, "benchmark/backgrounds/st_fagans_interior_180", (150, 190, 270, 320)),
    ("cardboard_box", 10, 12, "benchmark/backgrounds/st_fagans_interior_000", (120, 220, 280, 340)),
)


def tiles(
    compositor: Compositor, name: str, view: int, outline: int, photo_name: str, box: geometry.Box
) -> list[np.ndarray]:
    """A composition: object, photo with its hole and result, (TILE TILE 3) uint8 each."""
    thing = images.read_image(mini_sheet.SAMPLES / "objects" / name / f"{view:03d}.webp")
    photo = images.read_image(mini_sheet.ROOT / "data" / f"{photo_name}.jpg")
    hole = mini_sheet.outline_mask(name, outline, box, photo.shape[:2])
    marked = geometry.fill_hole(photo, hole[..., None], "grey", grey=128)
    result = np.asarray(compositor(thing, photo, hole, seed=0))
    crop = geometry.context_crop(hole, SHOWN)
    shown = [geometry.extract(picture, crop, TILE) for picture in (marked, result)]
    return [mini_sheet.object_tile(thing, TILE), *shown]


def main(model: str, out: Path) -> None:
    """Composes everything and writes the sheet."""
    compositor = Compositor.from_pretrained(model)
    sheets = [tiles(compositor, *composition) for composition in COMPOSITIONS]
    pairs = zip(sheets[::2], sheets[1::2], strict=True)
    rows = [np.concatenate(left + right, axis=1) for left, right in pairs]
    sheet = np.concatenate([mini_sheet.headings(HEADINGS * 2, TILE), *rows])
    Image.fromarray(sheet).quantize(mini_sheet.COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--out", type=Path, default=mini_sheet.ROOT / "docs" / "composing.png")
    options = parser.parse_args()
    main(options.model, options.out)
