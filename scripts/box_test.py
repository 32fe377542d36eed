"""Does a box twice as wide, or as tall, as the object hold an object, or is it filled like a brick?

    python scripts/box_test.py [--model mini] [--strength 1.0] [--out SHEET.png]

Each held-out sample object is composed into two held-out photos, into a box of its own proportions,
one twice as wide and one twice as tall. Counted is the share of the box whose colour is nearer to
one of the object's than to one of the photo's around the box, over the share that the object would
have if it kept its proportions: 1 is an object of its own shape, 2 and more a brick. Prints the
means over objects with their standard errors.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import KDTree

from imprint_jax import Compositor, Placement, Request, Settings, geometry, images

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"
LONGER = 200  # pixels, the longer side of the object in its own box
SHAPES = {"own": (1, 1), "twice as wide": (2, 1), "twice as tall": (1, 2)}
CENTRES = {"mountains": (390, 420), "coffee": (200, 260)}  # of the boxes in the photos, x and y
TILE = 128


def cut(name: str) -> np.ndarray:
    """The first view of a sample object, without its empty rim: (h w 4) uint8."""
    view = images.read_image(sorted((SAMPLES / "objects" / name).glob("*.webp"))[0])
    x0, y0, x1, y1 = geometry.bounding_box(view[..., 3] >= 128)
    return view[y0:y1, x0:x1]


def box_of(
    view: np.ndarray, shape: tuple[int, int], centre: tuple[int, int], photo
) -> geometry.Box:
    """A box around a point, so many times as wide and as tall as the object, inside the photo."""
    height, width = view.shape[:2]
    scale = LONGER / max(shape[0] * width, shape[1] * height)
    sides = [round(scale * n * side) for n, side in zip(shape, (width, height), strict=True)]
    x0, y0 = (c - side // 2 for c, side in zip(centre, sides, strict=True))
    x0, y0 = max(x0, 0), max(y0, 0)
    return x0, y0, min(x0 + sides[0], photo.shape[1]), min(y0 + sides[1], photo.shape[0])


def share_like(view: np.ndarray, picture: np.ndarray, photo: np.ndarray, hole: np.ndarray) -> float:
    """The share of a hole that is coloured like the object rather than like the photo around."""
    own = KDTree(view[view[..., 3] > 250][:, :3])
    around = KDTree(photo[geometry.ring_around(hole, LONGER / 3)])
    return float((own.query(picture[hole])[0] < around.query(picture[hole])[0]).mean())


def tile(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The surroundings of a hole."""
    return geometry.extract(picture, geometry.context_crop(hole, 1.6), TILE)


def main() -> None:
    """Reads the command line, prints the table, writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--strength", type=float, default=1.0, help="1 is the paper's way")
    parser.add_argument("--out", type=Path, help="also draw the compositions: a row an object")
    options = parser.parse_args()
    compositor = Compositor.from_pretrained(options.model)
    settings = Settings(strength=options.strength)
    names = json.loads((SAMPLES / "splits.json").read_text())["objaverse"]["test"]
    ratios, rows = {shape: [] for shape in SHAPES}, []
    for name in names:
        view = cut(name)
        grey = Image.fromarray(geometry.on_grey(view[..., :3], view[..., 3]))
        grey.thumbnail((TILE, TILE))
        square = Image.new("RGB", (TILE, TILE), (64, 64, 64))
        square.paste(grey, ((TILE - grey.width) // 2, (TILE - grey.height) // 2))
        row = [np.asarray(square)]
        for shape, factors in SHAPES.items():
            shares = []
            for photo_name, centre in CENTRES.items():
                photo = images.read_image(SAMPLES / "photos" / f"{photo_name}.jpg")[..., :3]
                hole = geometry.box_mask(box_of(view, factors, centre, photo), *photo.shape[:2])
                request = Request(photo, [Placement(view, hole)])
                picture = np.asarray(next(compositor.run([request], settings)).picture)
                true = (view[..., 3] >= 128).mean() / np.prod(factors)
                shares.append(share_like(view, picture, photo, hole) / true)
                row.append(tile(picture, hole))
            ratios[shape].append(np.mean(shares))
        rows.append(np.concatenate(row, axis=1))
    for shape, values in ratios.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        print(f"{shape}: {np.mean(values):.2f} ± {error:.2f} times the object's own area")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).quantize(256).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
