"""Takes docs/pictures/page.png: the page of `imprint ui`, a drawn hole and what mini makes of it.

    python scripts/screenshot.py [--model MODEL] [--out OUT]

Needs the extra [browser] and Chromium.
"""

import argparse
import shutil
from contextlib import closing
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from imprint_jax.ui import page
from imprint_jax.ui.studio import Studio

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data" / "samples"
OBJECT, PHOTO = SAMPLES / "objects/cap/030.webp", SAMPLES / "photos/mountains.jpg"
HOLE = (0.36, 0.62, 0.62, 0.84)  # left, top, right, bottom, as shares of the photo's sides
STROKES = 8
WAIT = 300_000  # milliseconds, for composing on a busy machine
COLOURS = 256  # of the picture, to keep the file small


def draw(tab: Page) -> None:
    """Strokes from left to right over the hole, on the photo that lies in the board's middle."""
    board = tab.locator("#board canvas").first.bounding_box()
    width, height = Image.open(PHOTO).size
    scale = min(board["width"] / width, board["height"] / height)
    left = board["x"] + (board["width"] - scale * width) / 2
    top = board["y"] + (board["height"] - scale * height) / 2
    x0, y0, x1, y1 = HOLE
    for k in range(STROKES):
        y = top + scale * height * (y0 + (y1 - y0) * k / (STROKES - 1))
        tab.mouse.move(left + scale * width * x0, y)
        tab.mouse.down()
        tab.mouse.move(left + scale * width * x1, y, steps=12)
        tab.mouse.up()


def main(model: str, out: Path) -> None:
    """Composes on the page as a visitor would, and takes its picture."""
    with closing(Studio(model)) as studio, sync_playwright() as library:
        address = page.serve(page.build(studio, SAMPLES), host="127.0.0.1", port=None)
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = library.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 860})
        tab.set_default_timeout(WAIT)
        tab.goto(address)
        tab.set_input_files("#object input[type=file]", OBJECT)
        tab.set_input_files("#photo input[type=file]", PHOTO)
        tab.wait_for_selector("#board canvas")
        tab.wait_for_selector("#photo img")
        tab.wait_for_timeout(3000)  # the photo is laid on the board after it is shown
        draw(tab)
        tab.click("#compose")
        tab.wait_for_selector("#results img[src*='picture_1']")
        tab.wait_for_timeout(1000)
        out.parent.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=out)
        browser.close()
    Image.open(out).convert("RGB").quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "page.png")
    options = parser.parse_args()
    main(options.model, options.out)
