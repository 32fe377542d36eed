"""Draws a run's loss curves as SVG.

    python scripts/curves.py RUN/metrics.jsonl OUT.svg

Grey: the training loss, a mean over `log_every` steps. Red: the averaged weights' loss on the
validation split, where there is one. The axis of losses ends at the largest validation loss, or at
the training loss that 98 % of the steps stay below: the first steps would squeeze all others.
"""

import argparse
import json
import math
from pathlib import Path

WIDTH, HEIGHT, LETTER = 640, 320, 12  # pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 36, 44  # around the curves
TICKS = 5  # marks on an axis, about
TRAINING, VALIDATION = "#999", "crimson"

Points = list[tuple[int, float]]  # of steps and values


def read(path: Path, key: str) -> Points:
    """The lines that have `key`; of a step that was repeated, the last."""
    lines = map(json.loads, path.read_text().splitlines())
    return sorted({line["step"]: line[key] for line in lines if key in line}.items())


def ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end`."""
    power = 10.0 ** math.floor(math.log10(end / TICKS))
    step = next(power * k for k in (1, 2, 5, 10) if power * k * TICKS >= end)
    return [k * step for k in range(int(end / step + 1e-9) + 1)]


def draw(training: Points, validation: Points, title: str) -> str:
    """The text of the SVG."""
    last = training[-1][0]
    values = sorted(value for _, value in validation or training)
    top = values[-1] if validation else values[int(0.98 * (len(values) - 1))]
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / last
    y = lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value / top, 1.0)

    def text(at: float, below: float, words: str, anchor: str = "middle", more: str = "") -> str:
        place = f'x="{at:.1f}" y="{below:.1f}" text-anchor="{anchor}"'
        return f"<text {place}{more}>{words}</text>"

    def curve(points: Points, colour: str) -> str:
        places = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{places}"/>'

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for value in ticks(top):
        parts.append(f'<path stroke="#ddd" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 6, y(value) + LETTER / 3, f"{value:g}", "end"))
    for step in ticks(last):
        parts.append(f'<path stroke="#999" d="M{x(step):.1f} {HEIGHT - BOTTOM}v5"/>')
        parts.append(text(x(step), HEIGHT - BOTTOM + 5 + LETTER, f"{step:,.0f}"))
    parts.append(f'<path stroke="#999" fill="none" d="M{LEFT} {TOP}V{y(0)}H{WIDTH - RIGHT}"/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "step"))
    middle = (TOP + y(0)) / 2
    parts.append(text(14, middle, "loss", more=f' transform="rotate(-90 14 {middle:.1f})"'))
    parts.append(text(LEFT, LETTER + 6, title, "start"))
    parts.append(curve(training, TRAINING))
    legend = [("training", TRAINING, training)]
    if validation:
        parts.append(curve(validation, VALIDATION))
        legend.append(("validation, averaged weights", VALIDATION, validation))
    for row, (name, colour, points) in enumerate(legend):
        below = TOP + LETTER + row * 1.5 * LETTER
        line = f"M{WIDTH - RIGHT - 20} {below - LETTER / 3:.1f}h20"
        parts.append(f'<path stroke="{colour}" stroke-width="2" d="{line}"/>')
        words = f"{name}: {points[-1][1]:.4f} at the end"
        parts.append(text(WIDTH - RIGHT - 26, below, words, "end"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
            f' font-family="sans-serif" font-size="{LETTER}">',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Reads the command line, writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    training = read(options.metrics, "loss")
    validation = read(options.metrics, "validation_loss")
    options.out.write_text(draw(training, validation, options.metrics.parent.name))


if __name__ == "__main__":
    main()
