"""What `--strength` is worth: identity, copies and seams of a model's composites along the dial.

    python scripts/strength_curve.py OUT

Held-out objects of data/samples pasted into held-out photos, their outlines the holes; another view
is composed. OUT gets the pictures and `strength.svg`; the table is printed.

    --model M      ("mini")
    --limit N      compositions (16)
    --steps N      denoising steps (20)
    --strengths    (0.2 0.4 0.6 0.8 1.0)
"""

import argparse
from pathlib import Path

from imprint_jax import config
from imprint_jax.composing import manifest
from imprint_jax.composing.settings import Settings
from imprint_jax.data.preparation.prepare import prepare
from imprint_jax.data.records import RecordSource
from imprint_jax.evaluation import evaluate, report, test_sets

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
# The columns of the table, and what the axis of each says.
COLUMNS = {
    "encoder": "identity, 100 cos",
    "copied": "copied, share",
    "seam": "seam, ratio",
}
WIDTH, HEIGHT, MARGIN, LETTER = 260, 200, 44, 12  # pixels of one panel


def test_set(folder: Path, limit: int) -> Path:
    """Writes the set of compositions once; returns its manifest."""
    if not (folder / "set" / "manifest.jsonl").exists():
        for kind, name in (("objaverse", "objects"), ("photos", "photos")):
            prepare(kind, SAMPLES / name, folder / name, SAMPLES / "splits.json")
        sources = (RecordSource(folder / name, "test") for name in ("objects", "photos"))
        data = config.Config.of(config.load("mini_stage2")).data
        test_sets.pasted(data, *sources, folder / "set", size=256, num=1, limit=limit)
    return folder / "set" / "manifest.jsonl"


def draw(strengths: list[float], values: dict[str, list[float]]) -> str:
    """A panel for each column: strength to the right, from 0 to 1."""
    parts = []
    for panel, (name, row) in enumerate(values.items()):
        left, low, high = panel * WIDTH, min(row), max(row)
        x = lambda s, left=left: left + MARGIN + (WIDTH - 1.5 * MARGIN) * s
        y = lambda v, low=low, high=high: (
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (v - low) / (high - low or 1)
        )
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(strengths, row, strict=True))
        word = lambda at, below, text: f'<text x="{at:.0f}" y="{below:.0f}">{text}</text>'
        parts += [
            f'<polyline fill="none" stroke="crimson" points="{points}"/>',
            f'<path fill="none" stroke="silver" d="M{x(0):.0f},{MARGIN // 2} V{HEIGHT - MARGIN}'
            f' H{x(1):.0f}"/>',
            word(left + 8, LETTER + 2, COLUMNS[name]),
            word(left + 4, y(high) + 4, f"{high:.3g}"),
            word(left + 4, y(low) + 4, f"{low:.3g}"),
            *(word(x(s) - 8, HEIGHT - MARGIN + 16, f"{s:g}") for s in strengths),
            word(x(0.4), HEIGHT - 8, "strength"),
        ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(values)}"'
            f' height="{HEIGHT}" font-family="sans-serif" font-size="{LETTER}">',
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8, 1.0])
    arguments = parser.parse_args()
    path = test_set(arguments.out, arguments.limit)
    entries = manifest.read(path)
    measures = evaluate.load_measures(encoder=arguments.model)
    track = lambda items, about, total: items
    folders = {}
    for strength in arguments.strengths:
        folder = arguments.out / f"strength_{strength:g}"
        settings = Settings(num_steps=arguments.steps, strength=strength)
        evaluate.compose_results(arguments.model, entries, folder, settings, track)
        folders[f"{strength:g}"] = folder
    for baseline in ("truth", "paste"):
        folders[baseline] = arguments.out / baseline
        evaluate.baseline_results(baseline, entries, folders[baseline], track)
    result = evaluate.evaluate(entries, folders, measures, arguments.out / "cache", track=track)
    described = manifest.describe(path, entries)
    methods = report.summarize(result, command="strength_curve.py", manifest=described)["methods"]
    names = {column: next(n for n in methods["truth"] if n.endswith(column)) for column in COLUMNS}
    print("| strength |", " | ".join(COLUMNS.values()), "|")
    print("|" + "---|" * (1 + len(COLUMNS)))
    mean = lambda method, column: methods[method][names[column]]["mean"]
    for method in folders:
        print("|", " | ".join([method, *(f"{mean(method, c):.3g}" for c in COLUMNS)]), "|")
    values = {c: [mean(f"{s:g}", c) for s in arguments.strengths] for c in COLUMNS}
    (arguments.out / "strength.svg").write_text(draw(arguments.strengths, values))


if __name__ == "__main__":
    main()
