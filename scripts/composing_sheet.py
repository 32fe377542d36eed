"""Draws docs/composing.png: mini's composites by mask level and seed.

    python scripts/composing_sheet.py docs/composing.png [STRENGTH]

One row an object that mini has never seen: the object; the photo with its four holes, the finest
brightest; composites of mask levels 0, 1, 2 and 3, all of seed 0; level 1 with seeds 1 and 2.
"""

import sys
from pathlib import Path

import mini_sheet
import numpy as np
from PIL import Image

from imprint_jax import Compositor, Placement, Request, Settings, geometry, images
from imprint_jax.config.fields import DataConfig

TILE = 112
COLOURS = 256  # of the sheet, to keep the file small

# object, its view, photo, box in pixels of the photo, view whose outline is the hole.
ROWS = (
    ("puzzle_cube", 6, "fig", (140, 240, 390, 490), 22),
    ("cap", 30, "mountains", (250, 300, 560, 560), 20),
    ("doll", 2, "room", (40, 370, 300, 620), 20),
    ("bulldog", 22, "meadow", (280, 230, 560, 480), 12),
    ("cardboard_box", 10, "creek", (220, 200, 520, 480), 16),
    ("chicken", 8, "coffee", (330, 150, 540, 370), 14),
)


def tile(image: np.ndarray, crop: geometry.Crop) -> np.ndarray:
    """What lies in a square of an image, at the sheet's size."""
    return geometry.extract(image, crop, TILE)


def main(out: Path, strength: float) -> None:
    """Composes every row and writes the sheet."""
    compositor = Compositor.from_pretrained("mini")
    samples = mini_sheet.SAMPLES
    rows = []
    for name, view, photo_name, box, outline in ROWS:
        thing = images.read_image(samples / "objects" / name / f"{view:03d}.webp")
        photo = images.read_image(samples / "photos" / f"{photo_name}.jpg")
        hole = mini_sheet.outline_mask(name, outline, box, photo.shape[:2])
        choices = [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (1, 2)]
        requests = [
            Request(photo, [Placement(thing, hole)], mask_level=level, seed=seed)
            for level, seed in choices
        ]
        marked = photo
        for level, grey in ((3, 90), (2, 130), (1, 170), (0, 210)):
            shape = geometry.mask_level(hole, level, DataConfig.mask_sigmas)
            marked = geometry.fill_hole(marked, shape[..., None], "grey", grey)
        crop = geometry.context_crop(geometry.mask_level(hole, 3, ()), 1.6)
        side = max(thing.shape[:2])
        tiles = [
            tile(geometry.on_grey(thing[..., :3], thing[..., 3]), geometry.Crop(0, 0, side)),
            tile(marked, crop),
        ]
        for result in compositor.run(requests, Settings(strength=strength)):
            tiles.append(tile(np.asarray(result.picture), crop))
        rows.append(np.concatenate(tiles, axis=1))
    Image.fromarray(np.concatenate(rows)).quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
