"""The page in a real browser: needs the extra `[ui]`, Playwright and Chromium."""

import shutil
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
    pytest.mark.slow,
]

WAIT = 120_000  # milliseconds; compiling on busy cores


@pytest.fixture(scope="module")
def address(tiny_release):
    from imprint_jax.ui import page
    from imprint_jax.ui.studio import Studio

    with closing(Studio(str(tiny_release))) as studio:
        built = page.build(studio)
        yield page.serve(built, host="127.0.0.1", port=None)
        built.close()


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    rng = np.random.default_rng(0)
    thing = np.zeros((40, 40, 4), np.uint8)
    thing[8:32, 8:32] = (200, 30, 30, 255)
    Image.fromarray(thing).save(folder / "object.png")
    photo = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    return folder


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, address):
    tab = browser.new_page(viewport={"width": 1500, "height": 1000})
    tab.set_default_timeout(WAIT)
    tab.goto(address)
    tab.wait_for_selector("#board")
    yield tab
    tab.close()


def test_a_drawing_becomes_a_composite(tab, uploads, tmp_path):
    tab.set_input_files("#object input[type=file]", uploads / "object.png")
    tab.set_input_files("#photo input[type=file]", uploads / "photo.png")
    tab.wait_for_selector("#board canvas")
    tab.wait_for_selector("#photo img")
    tab.wait_for_timeout(2000)  # the photo is laid on the board after it is shown
    board = tab.locator("#board canvas").first.bounding_box()
    centre = board["x"] + board["width"] / 2, board["y"] + board["height"] / 2
    tab.mouse.move(*centre)
    tab.mouse.down()
    tab.mouse.move(centre[0] + 30, centre[1] + 20, steps=8)
    tab.mouse.up()
    tab.click("#compose")
    tab.wait_for_selector("#results img[src*='picture_1']")
    assert tab.locator("#results img").count() >= 3  # the photo and two pictures
    source = tab.locator("#results img[src*='picture_0']").first.get_attribute("src")
    (tmp_path / "result.png").write_bytes(tab.request.get(source).body())

    result = Image.open(tmp_path / "result.png")
    assert "imprint_jax" in result.text
    changed = (np.asarray(result) != np.asarray(Image.open(uploads / "photo.png"))).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed.any() and changed.mean() < 0.2
    # The stroke starts in the middle of the board, which is the middle of the photo.
    assert rows.min() < 150 < rows.max() and columns.min() < 200 < columns.max()
    assert str(uploads) not in tab.content()


def test_what_is_missing_is_said(tab):
    tab.click("#compose")
    tab.wait_for_selector("text=Pick an object and a photo first")


def test_with_no_result_selected_the_photo_stays(tab, uploads):
    tab.set_input_files("#photo input[type=file]", uploads / "photo.png")
    tab.wait_for_selector("#photo img")
    tab.click("#onto")
    tab.wait_for_timeout(2000)
    assert tab.locator("#photo img").count() == 1


def test_a_picture_of_100_megapixels_is_refused(tab, uploads):
    tab.set_input_files("#photo input[type=file]", uploads / "huge.png")
    tab.wait_for_selector("text=the photo has more than 89 million pixels")


def test_twenty_clicks_at_once_are_all_answered(address, uploads):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    layer = np.zeros((300, 400, 4), np.uint8)
    layer[100:200, 100:250] = 255
    Image.fromarray(layer).save(uploads / "layer.png")
    drawing = {
        "background": handle_file(uploads / "photo.png"),
        "layers": [handle_file(uploads / "layer.png")],
        "composite": None,
    }
    object_file, photo = (handle_file(uploads / name) for name in ("object.png", "photo.png"))
    jobs = [
        client.submit(
            object_file, None, photo, drawing, 0, 1, seed, False, 2, 3.0, 1.0, api_name="/compose"
        )
        for seed in range(20)
    ]
    seeds = [job.result(timeout=WAIT / 1000)[-1] for job in jobs]
    assert seeds == list(range(20))
