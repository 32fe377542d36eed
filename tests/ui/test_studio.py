"""What the page does, without a browser."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from imprint_jax.composing.compositor import Result
from imprint_jax.errors import InputError
from imprint_jax.ui.studio import (
    DRAWING_SIDE,
    KEPT_SECONDS,
    Choices,
    Studio,
    drawing_board,
    hole_of,
)

CHOICES = Choices(mask_level=0, num=2, seed=5, num_steps=2, guidance_scale=3.0, strength=1.0)


@pytest.fixture(scope="module")
def studio(tiny_release):
    with closing(Studio(str(tiny_release))) as studio:
        yield studio


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An object (RGBA), a photo larger than the drawing board, and a drawing on the board."""
    folder = tmp_path_factory.mktemp("uploads")
    rng = np.random.default_rng(0)
    thing = np.zeros((40, 40, 4), np.uint8)
    thing[8:32, 8:32] = (200, 30, 30, 255)
    Image.fromarray(thing).save(folder / "object.png")
    photo = rng.integers(0, 256, (600, 1200, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    layer = np.zeros((384, DRAWING_SIDE, 4), np.uint8)
    layer[100:200, 300:450] = (255, 59, 48, 255)
    return folder, photo, layer


def test_the_board_is_small_and_the_hole_large(pictures):
    folder, photo, layer = pictures
    assert drawing_board(folder / "photo.png").shape == (*layer.shape[:2], 3)
    hole = hole_of([layer], photo.shape[:2])
    rows, columns = np.nonzero(hole)
    scale = 1200 / DRAWING_SIDE
    for value, expected in (
        (rows.min(), 100),
        (rows.max() + 1, 200),
        (columns.min(), 300),
        (columns.max() + 1, 450),
    ):
        assert abs(value - expected * scale) <= 1


def test_pictures_are_those_of_the_command_and_carry_how(studio, pictures):
    folder, photo, layer = pictures
    arguments = folder / "object.png", None, folder / "photo.png", [layer], CHOICES
    files = list(studio.compose(*arguments))
    assert [file.name for file in files] == ["picture_0.png", "picture_1.png"]
    hole = hole_of([layer], photo.shape[:2])
    rows, columns = np.nonzero(hole)
    # Outside the hole and the feather around it nothing changes.
    near = np.zeros_like(hole)
    near[rows.min() - 30 : rows.max() + 30, columns.min() - 30 : columns.max() + 30] = True
    for number, file in enumerate(files):
        made = Image.open(file)
        how = json.loads(made.text["imprint_jax"])
        assert (how["seed"], how["sample"]) == (5, number)
        assert how["settings"]["num_steps"] == 2
        made = np.asarray(made)
        np.testing.assert_array_equal(made[~near], photo[~near])
        assert (made[hole] != photo[hole]).any()
    first, second = (np.asarray(Image.open(file)) for file in files)
    assert (first != second).any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(layers=[]), "Draw on the photo"),
        (dict(photo="object.txt"), "the photo"),
        (dict(object="object.txt"), "the object's picture"),
        (dict(choices=Choices(0, 99, 0, 2, 3.0, 1.0)), "1 to 8 pictures"),
        (dict(choices=Choices(0, 1, 0, 0, 3.0, 1.0)), "number of steps"),
    ],
)
def test_what_does_not_fit_is_said_without_paths(studio, pictures, change, message):
    folder, _, layer = pictures
    (folder / "object.txt").write_text("no picture")
    with pytest.raises(InputError, match=message) as error:
        next(
            studio.compose(
                folder / change.get("object", "object.png"),
                None,
                folder / change.get("photo", "photo.png"),
                change.get("layers", [layer]),
                change.get("choices", CHOICES),
            )
        )
    assert str(folder) not in str(error.value)


def test_one_picture_is_composed_at_a_time(studio, pictures, monkeypatch):
    folder, _, layer = pictures
    at_work, most = [], []

    def run(requests, settings):
        for number in range(2):
            at_work.append(number)
            time.sleep(0.05)  # long enough for the other to begin, if nothing kept it from it
            most.append(len(at_work))
            at_work.pop()
            yield Result(requests[0], number, Image.new("RGB", (1200, 600)))

    monkeypatch.setattr(studio.compositor, "run", run)
    arguments = folder / "object.png", None, folder / "photo.png", [layer], CHOICES
    cancelled = studio.compose(*arguments)
    assert next(cancelled).is_file()  # shown before the second is there
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: len(list(studio.compose(*arguments))), range(3)))
    assert made == [2, 2, 2] and set(most) == {1}


def test_old_pictures_are_deleted(studio, pictures):
    folder, _, layer = pictures
    arguments = folder / "object.png", None, folder / "photo.png", [layer], CHOICES
    old, recent = (list(studio.compose(*arguments)) for _ in range(2))
    long_ago = time.time() - KEPT_SECONDS - 1
    os.utime(old[0].parent, (long_ago, long_ago))
    next(studio.compose(*arguments))
    assert not old[0].parent.exists() and recent[0].is_file()
