"""Draws a run's loss curves as SVG.

    python scripts/curves.py RUN/metrics.jsonl OUT.svg

Grey: the training loss, a mean over `log_every` steps. Red: the averaged weights' loss on the
validation split. Steps to the right, losses upwards from 0 to the largest validation loss.
"""

import argparse
import json
from pathlib import Path

WIDTH, HEIGHT, MARGIN, LETTER = 480, 240, 40, 12  # pixels


def read(path: Path, key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines that have `key`; of a step that was repeated, the last."""
    lines = map(json.loads, path.read_text().splitlines())
    return sorted({line["step"]: line[key] for line in lines if key in line}.items())


def draw(training: list[tuple[int, float]], validation: list[tuple[int, float]]) -> str:
    """The text of the SVG."""
    steps = training[-1][0]
    top = max(value for _, value in validation)
    x = lambda step: MARGIN + (WIDTH - 2 * MARGIN) * step / steps
    y = lambda value: HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(value / top, 1.0)
    line = lambda points, colour: (
        f'<polyline fill="none" stroke="{colour}" points="'
        + " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        + '"/>'
    )
    words = lambda at, below, text: f'<text x="{at:.0f}" y="{below:.0f}">{text}</text>'
    bottom = HEIGHT - MARGIN + 1.5 * LETTER
    marks = [words(x(0), bottom, "0"), words(x(steps) - 3 * LETTER, bottom, f"step {steps}")]
    marks += [words(2, y(top) + LETTER / 2, f"{top:.2f}"), words(2, y(0), "0")]
    marks += [words(x(validation[-1][0]) - 2 * LETTER, y(validation[-1][1]) - LETTER / 2,
                    f"{validation[-1][1]:.3f}")]  # fmt: skip
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
            f' font-family="sans-serif" font-size="{LETTER}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            line(training, "silver"),
            line(validation, "crimson"),
            *marks,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Reads the command line, writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.write_text(
        draw(read(options.metrics, "loss"), read(options.metrics, "validation_loss"))
    )


if __name__ == "__main__":
    main()
