"""Draws docs/scenes.png: rendered scenes with the object, without it, its mask, and a later view.

    imprint data render MODELS SCENES --scenes 1 --photos data/samples/photos --limit 60
    python scripts/scenes_sheet.py SCENES [OUT]

MODELS is the folder `models/BlendSwap-CC-0` that data/recipes/sweethome3d.sh makes. The scenes
shown are spread evenly over the folder.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ROWS, COLUMNS = 4, 2  # of scenes
TILE = 144


def strip(folder: Path) -> np.ndarray:
    """Four tiles of a scene, side by side."""
    last = sorted(folder.glob("*_target.webp"))[-1].name
    names = ("000_target.webp", "000_background.webp", "000_mask.png", last)
    tiles = [Image.open(folder / name).convert("RGB").resize((TILE, TILE)) for name in names]
    return np.concatenate([np.asarray(tile) for tile in tiles], axis=1)


def main(scenes: Path, out: Path) -> None:
    """Draws the sheet with a palette of 256 colours, which keeps it small."""
    folders = sorted(path.parent for path in scenes.glob("*/*/scene.json"))
    chosen = np.linspace(0, len(folders) - 1, ROWS * COLUMNS).round().astype(int)
    strips = [strip(folders[number]) for number in chosen]
    rows = [np.concatenate(strips[k : k + COLUMNS], axis=1) for k in range(0, len(strips), COLUMNS)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs/scenes.png")
