import cv2
import numpy as np
import pytest
from PIL import Image

from imprint_jax.data.resample import resize, resize_cut, warp_framed
from imprint_jax.geometry import FAINT, bounding_box, object_crop
from tests.data.test_records import view


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_resize_is_near_to_lanczos(rng):
    waves = np.cumsum(rng.normal(size=(240, 300, 3)), axis=1).cumsum(axis=0)
    waves = (waves - waves.min()) / np.ptp(waves)
    image = np.uint8(255 * waves)
    for width, height in ((300, 240), (240, 200), (170, 130), (100, 80), (40, 33), (400, 320)):
        lanczos = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        difference = resize(image, width, height).astype(float) - np.asarray(lanczos)
        assert difference.shape == (height, width, 3)
        assert np.sqrt((difference**2).mean()) < 2


@pytest.mark.parametrize("factor", [1.6, 1.95, 3.3])
def test_resize_has_no_aliasing(factor):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255  # far finer than the result can show
    size = round(256 / factor)
    plain = cv2.resize(stripes, (size, size), interpolation=cv2.INTER_CUBIC)
    assert resize(stripes, size, size)[8:-8, 8:-8].std() < 0.65 * plain.std()


def test_resize_cut_lets_no_colour_in_and_leaves_no_rim():
    image, mask = np.full((120, 120, 3), 255, np.uint8), np.zeros((120, 120), np.uint8)
    mask[30:90, 30:90] = 255
    image[30:90, 30:90] = 100
    for side in (200, 100, 71, 40):
        color, coverage = resize_cut(image, mask, side, side)
        assert np.abs(color[coverage >= FAINT].astype(int) - 100).max() <= 5
        assert abs(coverage.mean() - mask.mean()) < 2


def test_warp_framed_is_object_crop_where_nothing_turns():
    rgba = view(1)
    cut = rgba[..., :3] * (rgba[..., 3:] >= FAINT)
    for size in (40, 64, 100):
        framed = warp_framed(cut, rgba[..., 3] >= FAINT, np.eye(2), size)
        plain = object_crop(cut, rgba[..., 3] >= FAINT, size)
        assert np.abs(framed.astype(int) - plain).mean() < 4
        boxes = [bounding_box(x.max(axis=-1) > 40) for x in (framed, plain)]
        assert np.abs(np.subtract(*boxes)).max() <= 2


def test_warp_framed_turns_the_way_the_matrix_says_and_fills_the_frame():
    cut = np.full((20, 40, 3), 50, np.uint8)
    cut[:, 30:] = 255  # the right end is white
    outline = np.ones((20, 40), bool)
    quarter = 3 * np.array([[0, -1], [1, 0]])  # right goes to below: y points down
    framed = warp_framed(cut, outline, quarter, 110)
    np.testing.assert_allclose(bounding_box(framed.max(axis=-1) > 25), (30, 5, 80, 105), atol=1)
    assert (framed[82:102, 35:75] > 245).all() and (framed[10:76, 35:75] < 60).all()
    turned = warp_framed(cut, outline, np.array([[0.8, -0.6], [0.6, 0.8]]), 110)
    x0, y0, x1, y1 = bounding_box(turned.max(axis=-1) > 25)
    assert 96 <= max(x1 - x0, y1 - y0) <= 101 and abs(x0 + x1 - 110) <= 2
