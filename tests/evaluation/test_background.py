"""Preservation, overlap, and whether an object was copied; the baselines without a model."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from imprint_jax import geometry
from imprint_jax.config import default
from imprint_jax.evaluation import background
from imprint_jax.evaluation.baselines import BASELINES


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photo():
    return smooth(0, 120, 160)


@pytest.fixture
def hole():
    mask = np.zeros((120, 160), bool)
    mask[30:90, 40:120] = True
    return mask


@pytest.fixture
def view():
    """An object half as high as wide, and its mask."""
    mask = np.zeros((60, 100), bool)
    mask[10:50, 10:90] = True
    return smooth(1, 60, 100), mask


def test_an_untouched_photo_is_preserved(photo, hole):
    result = photo.copy()
    result[hole] = 0
    assert background.preserved(result, photo, hole) == (1.0, 0.0)


def test_a_shifted_photo_is_not(photo, hole):
    kept, drift = background.preserved(np.roll(photo, 5, axis=1), photo, hole)
    assert kept < 0.5 and drift > 1


def test_drift_counts_grey_levels(photo, hole):
    result = np.minimum(photo, 250) + np.uint8(5)
    assert background.preserved(result, np.minimum(photo, 250), hole) == (0.0, 5.0)


def test_the_rim_does_not_count(photo, hole):
    result = photo.copy()
    result[28:92, 38:122] = 0
    assert background.preserved(result, photo, hole) == (1.0, 0.0)


def test_a_hole_without_a_photo_around_it_tells_nothing(photo):
    assert all(map(math.isnan, background.preserved(photo, photo, np.ones((120, 160), bool))))


def test_what_changed_is_compared_with_the_hole(photo, hole):
    result = photo.copy()
    result[hole] = 255 - (result[hole] > 127) * np.uint8(255)
    assert background.changed_overlap(result, photo, hole) > 0.95
    assert background.changed_overlap(photo, photo, hole) == 0


def test_a_copy_scores_as_a_copy_in_any_light(photo, hole, view):
    plain = BASELINES["paste"](photo, *view, hole)
    assert background.pose(plain, hole, *view)[0] > 0.99
    darker = (plain * 0.6).astype(np.uint8)
    assert background.pose(darker, hole, *view)[0] >= background.COPY
    moved = np.roll(plain, 2, axis=1)
    assert background.pose(moved, hole, *view)[0] >= background.COPY
    from_left = (plain * np.linspace(0.3, 1, 160)[:, None]).astype(np.uint8)
    assert background.pose(from_left, hole, *view)[0] >= background.COPY
    blended = BASELINES["poisson"](photo, *view, hole)
    assert background.pose(blended, hole, *view)[0] >= background.COPY


def test_another_pose_does_not(photo, hole, view):
    image, mask = view
    for other in (image[::-1], image[:, ::-1], 255 - image):
        result = BASELINES["paste"](photo, other, mask, hole)
        assert background.pose(result, hole, image, mask)[0] < background.COPY


def test_a_mask_of_another_shape_asks_for_another_pose(photo, view):
    tall = np.zeros((120, 160), bool)
    tall[10:110, 60:85] = True
    assert background.pose(photo, tall, *view)[1] < background.SAME_POSE
    fitting = np.zeros((120, 160), bool)
    fitting[30:70, 40:120] = True
    assert background.pose(photo, fitting, *view)[1] > 0.95


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_objects_own_outline_asks_for_no_other_pose_however_coarse(photo, level):
    # A star with thin rays: coarsened, it overlaps with itself by little.
    rows, columns = np.mgrid[-50:51, -50:51]
    angle, far = np.arctan2(rows, columns), np.hypot(rows, columns)
    star = far < 12 + 36 * (np.cos(2.5 * angle) ** 2) ** 8
    x0, y0, x1, y1 = geometry.bounding_box(star)
    hole = np.zeros((120, 160), bool)
    hole[10 : 10 + y1 - y0, 30 : 30 + x1 - x0] = star[y0:y1, x0:x1]
    coarse = geometry.mask_level(hole, level, default().data.mask_sigmas)
    if level == 2:
        assert background.overlap(hole, coarse) < background.SAME_POSE
    picture = np.full((101, 101, 3), 90, np.uint8)
    assert background.pose(photo, coarse, picture, star)[1] > 0.9


def test_an_object_without_a_pattern_has_no_pose(photo, hole, view):
    flat = np.full_like(view[0], 90)
    assert math.isnan(background.pose(photo, hole, flat, view[1])[0])


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("place", [np.s_[30:90, 40:120], np.s_[0:60, 0:80], np.s_[60:, 80:]])
def test_baselines_stay_in_the_hole(photo, view, name, place):
    hole = np.zeros((120, 160), bool)
    hole[place] = True
    result = BASELINES[name](photo, *view, hole)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[~hole], photo[~hole])
    assert (result[hole] != photo[hole]).any(axis=1).mean() > 0.4


def test_poisson_takes_the_photos_colours(view):
    photo = np.full((120, 160, 3), 200, np.uint8)
    hole = np.zeros((120, 160), bool)
    hole[30:90, 40:120] = True
    dark = view[0] // 4
    plain, blended = (BASELINES[name](photo, dark, view[1], hole) for name in ("paste", "poisson"))
    distance = lambda x: abs(x[hole].mean() - 200)
    assert distance(blended) < 0.5 * distance(plain)


def test_what_is_too_thin_to_blend_is_pasted():
    photo = np.full((60, 60, 3), 200, np.uint8)
    ring = np.zeros((500, 500), np.uint8)
    cv2.circle(ring, (250, 250), 240, 255, 2)
    picture = np.zeros((500, 500, 3), np.uint8)
    hole = np.zeros((60, 60), bool)
    hole[10:50, 10:50] = True
    plain, blended = (BASELINES[name](photo, picture, ring, hole) for name in ("paste", "poisson"))
    np.testing.assert_array_equal(plain, blended)
    assert (plain != photo).any()


def test_colour_transfer_goes_halfway_to_what_is_around():
    photo = np.full((80, 80, 3), (40, 60, 200), np.uint8)
    view = np.full((20, 20, 3), (200, 60, 40), np.uint8)
    hole = np.zeros((80, 80), bool)
    hole[30:50, 30:50] = True
    result = BASELINES["color"](photo, view, np.ones((20, 20), bool), hole)
    np.testing.assert_array_equal(result[~hole], photo[~hole])
    to_lab = lambda x: cv2.cvtColor(np.float32(x)[None, None] / 255, cv2.COLOR_RGB2LAB)[0, 0]
    middle = (to_lab(photo[0, 0]) + to_lab(view[0, 0])) / 2
    np.testing.assert_allclose(to_lab(result[40, 40]), middle, atol=1)
