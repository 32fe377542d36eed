"""The object pasted into a hole, where sampling starts below strength 1."""

import numpy as np
import pytest

from imprint_jax import geometry
from imprint_jax.composing.start import STRETCH, paste_object

SQUARE = np.full((64, 64, 3), 90, np.uint8)
RED = np.zeros((40, 40, 3), np.uint8) + np.array([250, 0, 0], np.uint8)
TALL = geometry.box_mask((15, 5, 25, 35), 40, 40)  # 10 x 30


def reds(picture) -> tuple[int, int, int, int]:
    """The box of what is red."""
    return geometry.bounding_box(picture[..., 0] > 200)


def test_in_a_box_the_object_keeps_its_shape_and_stands_on_the_ground():
    hole = geometry.box_mask((8, 10, 58, 40), 64, 64)
    picture = paste_object(SQUARE, hole, RED, TALL)
    assert reds(picture) == (28, 10, 38, 40)
    np.testing.assert_array_equal(picture[~hole], SQUARE[~hole])
    assert np.abs(picture[hole & (picture[..., 0] < 200)].astype(int) - 90).max() <= 1
    low = geometry.box_mask((8, 10, 13, 60), 64, 64)
    assert reds(paste_object(SQUARE, low, RED, TALL)) == (8, 45, 13, 60)


def test_an_outline_is_filled_as_far_as_the_object_may_be_stretched():
    rows, columns = np.mgrid[:64, :64]
    ellipse = ((columns - 32) / 7) ** 2 + ((rows - 32) / 15) ** 2 <= 1
    x0, y0, x1, y1 = reds(paste_object(SQUARE, ellipse, RED, TALL))
    assert (x0, y0, x1, y1) == geometry.bounding_box(ellipse)
    wide = ((columns - 32) / 30) ** 2 + ((rows - 32) / 15) ** 2 <= 1
    x0, y0, x1, y1 = reds(paste_object(SQUARE, wide, RED, TALL))
    _, top, _, bottom = geometry.bounding_box(wide)
    assert (y0, y1) == (top, bottom) and x1 - x0 == round(STRETCH * 10 * (bottom - top) / 30)


@pytest.mark.parametrize("soft", [False, True])
def test_what_was_in_the_hole_and_around_the_object_does_not_show(soft):
    rng = np.random.default_rng(0)
    hole = geometry.box_mask((10, 10, 50, 50), 64, 64)
    other = np.where(hole[..., None], rng.integers(0, 256, (64, 64, 3), np.uint8), SQUARE)
    mask = TALL * np.uint8(255) if soft else TALL
    picture = paste_object(SQUARE, hole, RED, mask)
    np.testing.assert_array_equal(paste_object(other, hole, RED, mask), picture)
    green = np.where(TALL[..., None], RED, np.array([0, 250, 0], np.uint8))
    np.testing.assert_array_equal(paste_object(SQUARE, hole, green, mask), picture)


def test_a_hole_without_surroundings_is_filled_too():
    picture = paste_object(SQUARE, np.ones((64, 64), bool), RED, TALL)
    assert reds(picture)[3] == 64 and picture.shape == SQUARE.shape
