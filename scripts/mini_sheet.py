"""Draws docs/mini/levels.png: held-out objects in held-out photos, in holes of all four levels.

    python scripts/mini_sheet.py [--out OUT] [--model MODEL] [--strength S]

Under headings, one row an object: the object, and for each photo the photo with the outline of
another of the object's views as hole, and what the model composes into it at the mask levels 0 (the
outline) to 3 (its box). The strength is the model's own; 1.0 is pure noise, the paper's way, and
no help from what is pasted.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imprint_jax import Compositor, Placement, Request, Settings, geometry, images

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data" / "samples"
TILE, CAPTION = 112, 16
COLOURS = 256  # of the sheet, to keep the file small

HEADINGS = ("object", *["hole", "outline", "level 1", "level 2", "box"] * 2)

# Held-out objects: the view that is shown, and the one whose outline is the hole.
OBJECTS = (
    ("puzzle_cube", 6, 20),
    ("cap", 30, 20),
    ("doll", 2, 20),
    ("bulldog", 22, 12),
    ("chicken", 4, 24),
    ("cardboard_box", 10, 28),
)
# Held-out photos, and the box in their pixels that the outline is put into.
PHOTOS = (("mountains", (250, 290, 530, 570)), ("coffee", (30, 140, 270, 380)))


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


def object_tile(image: np.ndarray, side: int) -> np.ndarray:
    """An RGBA object on grey: (side side 3) uint8."""
    picture = geometry.on_grey(image[..., :3], image[..., 3])
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def headings(words: Sequence[str], width: int) -> np.ndarray:
    """A line of text with a word over every column, which are `width` pixels wide."""
    line = Image.new("RGB", (width * len(words), CAPTION), "white")
    draw = ImageDraw.Draw(line)
    for column, word in enumerate(words):
        draw.text((width * column + 4, 2), word, fill="black")
    return np.asarray(line)


def compositions() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Object (h w 4), photo (H W 3), and the outline (H W) bool it goes into; object by object."""
    for name, view, seen in OBJECTS:
        image = images.read_image(SAMPLES / "objects" / name / f"{view:03d}.webp")
        for photo_name, box in PHOTOS:
            photo = images.read_image(SAMPLES / "photos" / f"{photo_name}.jpg")
            yield image, photo, outline_mask(name, seen, box, photo.shape[:2])


def main(out: Path, model: str, strength: float | None) -> None:
    """Composes every row and writes the sheet."""
    compositor = Compositor.from_pretrained(model)
    tiles = []
    for number, (image, photo, outline) in enumerate(compositions()):
        if number % len(PHOTOS) == 0:
            tiles.append([object_tile(image, TILE)])
        crop = geometry.context_crop(geometry.mask_level(outline, 3, ()), 1.6)
        marked = geometry.fill_hole(photo, outline[..., None], "grey", grey=128)
        requests = [
            Request(photo, [Placement(image, outline)], mask_level=level) for level in range(4)
        ]
        results = compositor.run(requests, Settings(strength=strength))
        pictures = [np.asarray(result.picture) for result in results]
        tiles[-1] += [geometry.extract(x, crop, TILE) for x in (marked, *pictures)]
    sheet = np.concatenate(
        [headings(HEADINGS, TILE), *(np.concatenate(row, axis=1) for row in tiles)]
    )
    out.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet).quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "mini" / "levels.png")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--strength", type=float)
    options = parser.parse_args()
    main(options.out, options.model, options.strength)
