"""Draws docs/mini.png: held-out objects composed by `mini` into held-out and known photos.

    python scripts/mini_sheet.py [OUT]

One row an object: the object, the photo with its hole, three composites by seeds 0, 1, 2.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from imprint_jax import Compositor, geometry, images

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data" / "samples"
TILE = 176

# object, view, photo, hole: a box in pixels of the photo, or the outline of another of its views
# put into that box.
ROWS = (
    ("puzzle_cube", 6, "fig", (140, 240, 390, 490), None),
    ("cap", 30, "mountains", (250, 300, 560, 560), 20),
    ("doll", 2, "room", (20, 370, 320, 620), 20),
    ("bulldog", 22, "meadow", (280, 230, 560, 480), 12),
    ("cardboard_box", 10, "creek", (220, 200, 520, 480), None),
)


def hole_mask(name: str, outline: int | None, box: geometry.Box, shape: tuple[int, int]):
    """The hole (h w) bool: the box, or a view's outline fitted into it, with level 1's slack."""
    if outline is None:
        return geometry.box_mask(box, *shape)
    return geometry.mask_level(outline_mask(name, outline, box, shape), 1, (0.04, 0.12))


def outline_mask(name: str, view: int, box: geometry.Box, shape: tuple[int, int]) -> np.ndarray:
    """The outline of a view (h w) bool, as large as fits into the box, at its upper left corner."""
    alpha = images.read_image(SAMPLES / "objects" / name / f"{view:03d}.webp")[..., 3]
    x0, y0, x1, y1 = geometry.bounding_box(alpha >= 128)
    scale = min((box[2] - box[0]) / (x1 - x0), (box[3] - box[1]) / (y1 - y0))
    size = round((x1 - x0) * scale), round((y1 - y0) * scale)
    drawn = Image.fromarray(alpha[y0:y1, x0:x1]).resize(size)
    hole = np.zeros(shape, bool)
    hole[box[1] : box[1] + size[1], box[0] : box[0] + size[0]] = np.asarray(drawn) >= 128
    return hole


def tile(image: np.ndarray) -> np.ndarray:
    """The middle square of an image, or an RGBA object on grey, at the sheet's size."""
    if image.shape[2] == 4:
        alpha = image[..., 3:] / 255
        image = np.rint(image[..., :3] * alpha + 64 * (1 - alpha)).astype(np.uint8)
    side = min(image.shape[:2])
    y, x = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = Image.fromarray(image[y : y + side, x : x + side])
    return np.asarray(square.resize((TILE, TILE), Image.Resampling.LANCZOS))


def main(out: Path) -> None:
    """Composes every row and writes the sheet."""
    compositor = Compositor.from_pretrained("mini")
    rows = []
    for name, view, photo_name, box, outline in ROWS:
        image = images.read_image(SAMPLES / "objects" / name / f"{view:03d}.webp")
        photo = images.read_image(SAMPLES / "photos" / f"{photo_name}.jpg")
        hole = hole_mask(name, outline, box, photo.shape[:2])
        pictures = [np.asarray(compositor(image, photo, hole, seed=seed)) for seed in range(3)]
        marked = geometry.fill_hole(photo, hole[..., None], "grey", grey=128)
        rows.append(np.concatenate([tile(x) for x in (image, marked, *pictures)], axis=1))
    images.write_png(out, np.concatenate(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "mini.png")
