"""Draws the best and the worst pictures of an evaluation, by a measure.

    python scripts/best_and_worst.py EVALUATION OUT [--measure mini_encoder] [--num 6]

EVALUATION is what `imprint evaluate --out` made, with all its pictures (`--show`). One column a
composition, from the best to the worst on the two halves of the sheet: object, background with its
hole, result, truth.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TILE, GAP, CAPTION = 112, 24, 16
COLOURS = 256  # of the sheet, to keep the file small


def ranked(folder: Path, measure: str, method: str) -> list[dict[str, str]]:
    """The rows of metrics.csv that have the measure, best first."""
    about = json.loads((folder / "summary.json").read_text())["measures"][measure]
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["method"] == method and r[measure]]
    return sorted(rows, key=lambda r: float(r[measure]), reverse=about["better"] == "higher")


def column(folder: Path, row: dict[str, str], measure: str) -> np.ndarray:
    """A composition from top to bottom, its score under it."""
    stem = folder / "pictures" / f"{row['id']}_{row['picture']}"
    tiles = []
    for kind in ("object", "hole", f"method.{row['method']}", "target"):
        picture = Image.open(f"{stem}.{kind}.jpg").convert("RGB")
        picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        square = Image.new("RGB", (TILE, TILE), (64, 64, 64))  # as the object stands on
        square.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
        tiles.append(np.asarray(square))
    caption = Image.new("RGB", (TILE, CAPTION), "white")
    ImageDraw.Draw(caption).text((4, 2), f"{measure} {float(row[measure]):.3g}", fill="black")
    return np.concatenate([*tiles, np.asarray(caption)])


def main() -> None:
    """Reads the command line, writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--measure", default="mini_encoder")
    parser.add_argument("--method", default="mini")
    parser.add_argument("--num", type=int, default=6)
    options = parser.parse_args()
    rows = ranked(options.evaluation, options.measure, options.method)
    if len(rows) < 2 * options.num:
        parser.error(f"only {len(rows)} pictures of {options.method} have {options.measure}")
    best, worst = (
        np.concatenate([column(options.evaluation, r, options.measure) for r in half], axis=1)
        for half in (rows[: options.num], rows[-options.num :])
    )
    gap = np.full((len(best), GAP, 3), 255, np.uint8)
    sheet = np.concatenate([best, gap, worst], axis=1)
    Image.fromarray(sheet).quantize(COLOURS).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
