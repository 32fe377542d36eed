"""Draws pictures of an evaluation: a row a composition, with headings.

    python scripts/evaluation_sheet.py EVALUATION OUT [--pick best|worst|spread] [--num 8]
        [--measure imagenet] [--method mini]... [--ids ID,ID,...]

EVALUATION is what `imprint evaluate --out` made, with all its pictures (`--show`). The columns are
the object, the background with its hole, the methods and the truth. `best`, `worst` and `spread`
(evenly from best to worst) go by the measure of the first method; the default judge is AlexNet,
which knows nothing of mini. `--ids` names the entries instead.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TILE, GAP, CAPTION = 128, 4, 16
COLOURS = 256  # of the sheet, to keep the file small


def rows_of(folder: Path, measure: str, method: str) -> list[dict[str, str]]:
    """The rows of metrics.csv that have the measure, best first."""
    about = json.loads((folder / "summary.json").read_text())["measures"][measure]
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["method"] == method and r[measure]]
    return sorted(rows, key=lambda r: float(r[measure]), reverse=about["better"] == "higher")


def picked(rows: list[dict], pick: str, num: int) -> list[dict]:
    """`num` of the rows, which are sorted."""
    match pick:
        case "best":
            return rows[:num]
        case "worst":
            return rows[-num:]
        case _:
            return [rows[i] for i in np.linspace(0, len(rows) - 1, num).round().astype(int)]


def tile(path: Path) -> np.ndarray:
    """A picture in the middle of a square."""
    picture = Image.open(path).convert("RGB")
    scale = TILE / max(picture.size)
    size = [max(round(side * scale), 1) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (TILE, TILE), (64, 64, 64))  # as the object stands on
    square.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return np.asarray(square)


def caption(text: str) -> np.ndarray:
    """A heading as wide as a tile."""
    image = Image.new("RGB", (TILE, CAPTION), "white")
    ImageDraw.Draw(image).text((4, 2), text, fill="black")
    return np.asarray(image)


def beside(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles in a row, with white gaps."""
    gap = np.full((len(tiles[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([x for one in tiles for x in (one, gap)][:-1], axis=1)


def main() -> None:
    """Reads the command line, writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pick", choices=("best", "worst", "spread"), default="spread")
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument("--measure", default="imagenet")
    parser.add_argument("--method", action="append", help="a column each; default mini")
    parser.add_argument("--ids", help="entries to show, separated by commas")
    options = parser.parse_args()
    methods = options.method or ["mini"]
    rows = rows_of(options.evaluation, options.measure, methods[0])
    if options.ids:
        by_id = {row["id"]: row for row in rows}
        chosen = [by_id[name] for name in options.ids.split(",")]
    elif len(rows) < options.num:
        parser.error(f"only {len(rows)} pictures of {methods[0]} have {options.measure}")
    else:
        chosen = picked(rows, options.pick, options.num)
    kinds = ["object", "hole", *(f"method.{name}" for name in methods), "target"]
    lines = [beside([caption(x) for x in ("object", "hole", *methods, "truth")])]
    for row in chosen:
        stem = options.evaluation / "pictures" / f"{row['id']}_{row['picture']}"
        lines.append(beside([tile(Path(f"{stem}.{kind}.jpg")) for kind in kinds]))
    sheet = Image.fromarray(np.concatenate(lines))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLOURS).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
