import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from imprint_jax.errors import InputError
from imprint_jax.geometry import (
    Crop,
    bounding_box,
    box_mask,
    close_scribble,
    context_crop,
    cut_out,
    extract,
    fill_hole,
    latent_mask,
    looks_inverted,
    main_box,
    mask_level,
    match_colors,
    object_crop,
    paste_back,
    ring_around,
    surroundings,
    without_specks,
)

SIGMAS = (0.05, 0.15)


def photo(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def blob(rng, height, width):
    """A random shape of one or more pieces, anywhere, down to a single pixel."""
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), rng.uniform(1, 8))
    noise += rng.uniform(0, 2) * noise.std() * np.linspace(-1, 1, width)
    return noise >= np.quantile(noise, rng.uniform(0.3, 1))


def test_bounding_box_is_half_open_and_undone_by_box_mask():
    mask = np.zeros((7, 9), bool)
    mask[2, 3] = mask[4, 8] = True
    assert bounding_box(mask) == (3, 2, 9, 5)
    assert bounding_box(box_mask((3, 2, 9, 5), 7, 9)) == (3, 2, 9, 5)
    assert box_mask((3, 2, 9, 5), 7, 9).sum() == 6 * 3
    with pytest.raises(InputError, match="empty"):
        bounding_box(np.zeros((3, 3), bool))


@pytest.mark.parametrize(
    "box", [(-1, 0, 3, 3), (0, 0, 10, 3), (0, 0, 3, 8), (3, 0, 3, 3), (0, 5, 3, 2)]
)
def test_boxes_outside_or_without_area_are_refused(box):
    with pytest.raises(InputError, match="this picture of 9x7 pixels"):
        box_mask(box, 7, 9)


def test_cut_out_takes_masks_and_coverage(rng):
    image = photo(rng, 5, 6)
    mask = rng.random((5, 6)) < 0.5
    expected = np.where(mask[..., None], image, 0)
    np.testing.assert_array_equal(cut_out(image, mask), expected)
    np.testing.assert_array_equal(cut_out(image, mask.astype(np.uint8) * 255), expected)
    half = cut_out(image, np.full((5, 6), 128, np.uint8))
    np.testing.assert_array_equal(half, np.rint(image * (128 / 255)).astype(np.uint8))


def test_object_crop_fills_its_square_but_for_the_margin():
    image = np.full((60, 80, 3), 200, np.uint8)
    mask = box_mask((10, 5, 50, 25), 60, 80)  # twice as wide as high
    crop = object_crop(image, mask, 220)
    assert crop.shape == (220, 220, 3) and crop.dtype == np.uint8
    assert bounding_box(crop.any(axis=-1)) == (10, 60, 210, 160)
    assert (crop[60:160, 10:210] == 200).all()


def test_object_crop_at_its_own_size_is_exact_and_ignores_the_rest(rng, monkeypatch):
    monkeypatch.setattr("imprint_jax.geometry.OBJECT_MARGIN", 0.0)
    image = photo(rng, 40, 50)
    mask = np.zeros((40, 50), bool)
    mask[4:36, 10:42] = rng.random((32, 32)) < 0.7
    mask[4, 10] = mask[35, 41] = True
    crop = object_crop(image, mask, 32)
    np.testing.assert_array_equal(crop, cut_out(image, mask)[4:36, 10:42])
    other = np.where(mask[..., None], image, 255 - image)
    np.testing.assert_array_equal(object_crop(other, mask, 32), crop)


def test_object_crop_stretched_on_its_own_photo(rng):
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask = box_mask((10, 20, 50, 40), 60, 80)
    see = lambda **how: object_crop(image, mask, 32, fit="stretch", **how)
    # The margin is 10 % of the longer side, which has 40 pixels.
    want = Image.fromarray(image[16:44, 6:54]).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        see(margin=0.1, background="photo", resample="bicubic"), np.asarray(want)
    )
    want = Image.fromarray(image[20:40, 10:50]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(see(margin=0.0, resample="bilinear"), np.asarray(want))
    with pytest.raises(InputError, match=r"object_view.background is 'white'; it may be black"):
        see(background="white")


def test_object_crop_of_a_sliver_keeps_a_pixel_of_it():
    image = np.full((400, 400, 3), 255, np.uint8)
    crop = object_crop(image, box_mask((0, 200, 400, 201), 400, 400), 32)
    x0, y0, x1, y1 = bounding_box(crop.any(axis=-1))
    assert (x1 - x0, y1 - y0) == (29, 1)


def test_context_crop_is_centred_then_shifted_inside():
    mask = box_mask((40, 50, 60, 60), 100, 200)
    assert context_crop(mask, 2.0) == Crop(30, 35, 40)
    assert context_crop(box_mask((0, 0, 20, 10), 100, 200), 2.0) == Crop(0, 0, 40)
    assert context_crop(box_mask((180, 90, 200, 100), 100, 200), 2.0) == Crop(160, 60, 40)
    # No larger than the image's shorter side ...
    assert context_crop(mask, 20.0) == Crop(0, 0, 100)
    # ... unless the hole needs more: then it reaches outside by as much above as below.
    assert context_crop(box_mask((20, 40, 140, 60), 100, 200), 2.0) == Crop(8, -22, 144)
    # Nothing but the hole.
    assert context_crop(np.ones((100, 200), bool), 2.0) == Crop(0, -50, 200)
    with pytest.raises(InputError, match="use 1 or more"):
        context_crop(mask, 0.5)


def test_context_crop_always_holds_the_hole(rng):
    for _ in range(200):
        height, width = rng.integers(8, 80, 2)
        mask = blob(rng, height, width)
        crop = context_crop(mask, rng.uniform(1, 4))
        x0, y0, x1, y1 = bounding_box(mask)
        assert crop.x0 <= x0 and crop.y0 <= y0
        assert x1 <= crop.x0 + crop.side and y1 <= crop.y0 + crop.side
        for start, length in ((crop.x0, width), (crop.y0, height)):
            if crop.side <= length:
                assert 0 <= start <= length - crop.side


def test_extract_repeats_the_edge_outside(rng):
    image = photo(rng, 10, 20)
    square = extract(image, Crop(0, -5, 20), 20)
    np.testing.assert_array_equal(square[5:15], image)
    np.testing.assert_array_equal(square[:5], np.broadcast_to(image[:1], (5, 20, 3)))
    np.testing.assert_array_equal(square[15:], np.broadcast_to(image[-1:], (5, 20, 3)))


def test_extract_loses_no_pixel_of_a_mask(rng):
    for size in (8, 13, 40, 64):
        for _ in range(20):
            mask = np.zeros((40, 40), bool)
            mask[rng.integers(40), rng.integers(40)] = True
            small = extract(mask, Crop(0, 0, 40), size)
            assert small.dtype == bool and small.any()
    # One pixel in a cell of 900.
    mask = np.zeros((1200, 1200), bool)
    mask[37, 70] = True
    small = extract(mask, Crop(0, 0, 1200), 40)
    assert small[1, 2] and small.sum() == 1


@pytest.mark.parametrize("feather", [0, 3, 8])
def test_paste_back_changes_hole_and_feather_only(rng, feather):
    background, generated = photo(rng, 90, 120), photo(rng, 64, 64)
    mask = np.zeros((90, 120), bool)
    mask[40:60, 50:70] = blob(rng, 20, 20)
    crop = context_crop(mask, 2.5)
    result = paste_back(background, generated, mask, crop, feather)
    distance = ndimage.distance_transform_edt(~mask)
    np.testing.assert_array_equal(result[distance > feather], background[distance > feather])

    # Inside the hole it is what was generated, resized.
    white = paste_back(background, np.full((64, 64, 3), 255, np.uint8), mask, crop, feather)
    assert (white[mask] == 255).all()
    # It fades: over black, brightness falls with the distance, strictly between black and white.
    black = np.zeros_like(background)
    faded = paste_back(black, np.full((64, 64, 3), 255, np.uint8), mask, crop, feather)[..., 0]
    ring = (distance > 0) & (distance < feather - 0.5)
    if feather:
        assert faded[ring].min() > 0 and faded[ring].max() < 255
        near, far = distance[ring] < feather / 2, distance[ring] > feather / 2
        assert faded[ring][near].min() > faded[ring][far].max()


def test_paste_back_of_what_was_there_is_the_identity(rng):
    background = photo(rng, 50, 70)
    for box in ((30, 20, 40, 32), (0, 0, 9, 9), (5, 10, 65, 40)):
        mask = box_mask(box, 50, 70)
        crop = context_crop(mask, 2.0)
        same = extract(background, crop, crop.side)
        np.testing.assert_array_equal(paste_back(background, same, mask, crop, 6), background)


def test_paste_back_shows_no_seam_where_the_crop_ends_near_the_hole():
    background = np.zeros((40, 40, 3), np.uint8)
    mask = box_mask((10, 10, 30, 30), 40, 40)
    crop = Crop(8, 8, 24)  # two pixels of rim, and the photo goes on
    white = np.full((24, 24, 3), 255, np.uint8)
    result = paste_back(background, white, mask, crop, 10)[..., 0]
    assert (result[mask] == 255).all()
    outside = np.ones((40, 40), bool)
    outside[8:32, 8:32] = False
    assert not result[outside].any()
    assert 0 == result[20, 8] < result[20, 9] < 255


def test_paste_back_outside_of_the_crop_is_refused():
    mask = box_mask((0, 0, 10, 10), 20, 20)
    with pytest.raises(InputError, match="outside of the crop"):
        paste_back(np.zeros((20, 20, 3), np.uint8), np.zeros((8, 8, 3)), mask, Crop(2, 0, 12), 0)


def test_mask_levels_are_nested_and_inside_the_box(rng):
    grew = np.zeros(3, int)
    for _ in range(150):
        mask = blob(rng, *rng.integers(4, 90, 2))
        before = mask.copy()
        levels = [mask_level(mask, level, SIGMAS) for level in range(4)]
        np.testing.assert_array_equal(mask, before)  # the argument is left alone
        np.testing.assert_array_equal(levels[0], mask)
        np.testing.assert_array_equal(levels[3], box_mask(bounding_box(mask), *mask.shape))
        for k, (finer, coarser) in enumerate(itertools.pairwise(levels)):
            assert not (finer & ~coarser).any()
            grew[k] += coarser.sum() > finer.sum()
    assert (grew > 100).all()  # the levels differ, too


def test_mask_levels_scale_with_the_mask():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:20] = mask[40:50, 10:50] = True  # an L
    large = mask.repeat(4, axis=0).repeat(4, axis=1)
    for level in (1, 2):
        small = mask_level(mask, level, SIGMAS).repeat(4, axis=0).repeat(4, axis=1)
        union, common = small | mask_level(large, level, SIGMAS), small & large
        assert (small ^ mask_level(large, level, SIGMAS)).sum() < 0.06 * union.sum()
        assert common.any()


def test_mask_level_refuses_others():
    with pytest.raises(InputError, match="use 0, 1, 2 or 3"):
        mask_level(np.ones((4, 4), bool), 4, SIGMAS)


def test_specks_do_not_decide_the_box_of_an_object():
    mask = box_mask((20, 40, 60, 80), 100, 200)
    chair = mask.copy()
    chair[30:40, 25] = True  # a leg, 1 % of the seat
    noisy = chair.copy()
    noisy[0, 199] = noisy[99, 0] = noisy[50, 100] = True
    assert main_box(mask) == (20, 40, 60, 80)
    assert main_box(chair) == main_box(noisy) == (20, 30, 60, 80)
    np.testing.assert_array_equal(without_specks(noisy), chair)
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    np.testing.assert_array_equal(object_crop(image, noisy, 64), object_crop(image, chair, 64))
    with pytest.raises(InputError, match="empty"):
        main_box(mask & False)


@pytest.mark.parametrize("xp", [np, jnp])
def test_latent_mask_is_hole_where_any_pixel_is(rng, xp):
    mask = (rng.random((2, 24, 16, 1)) < 0.02).astype(np.uint8)
    got = np.asarray(latent_mask(xp.asarray(mask), 8))
    assert got.shape == (2, 3, 2, 1) and got.dtype == np.uint8
    for b, y, x in np.ndindex(2, 3, 2):
        assert got[b, y, x, 0] == mask[b, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].any()


def test_fill_hole_serves_bytes_and_jax_floats(rng):
    images = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    mask = rng.random((2, 4, 5, 1)) < 0.5
    expected = np.where(mask, 128, images)
    filled = fill_hole(images, mask, "grey", 128)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled, expected)
    floats = jnp.asarray(images / 127.5 - 1, jnp.float32)
    filled = fill_hole(floats, jnp.asarray(mask), "grey", 0)
    assert filled.dtype == jnp.float32
    np.testing.assert_array_equal(filled, np.where(mask, 0, floats))
    np.testing.assert_array_equal(fill_hole(images, mask, "none", 128), images)
    with pytest.raises(InputError, match="hole_fill"):
        fill_hole(images, mask, "gray", 128)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ellipse(height, width, ry, rx):
    y, x = np.mgrid[:height, :width]
    return ((y - height / 2) / ry) ** 2 + ((x - width / 2) / rx) ** 2 <= 1


def test_scribbles_are_closed_and_filled():
    whole = ellipse(120, 160, 40, 60)
    outline = whole & ~ellipse(120, 160, 37, 57)
    gaps = outline.copy()
    gaps[:30, 75:83] = False  # the stroke does not meet its start
    dashes = outline & (np.indices(outline.shape).sum(axis=0) % 16 < 11)
    for strokes in (outline, gaps, dashes, whole):
        shape = close_scribble(strokes)
        assert (shape >= strokes).all()
        assert (shape ^ whole).sum() < 0.03 * whole.sum()
    half = outline.copy()
    half[:, 80:] = False  # encloses nothing: no guess
    assert close_scribble(half).sum() < 0.3 * whole.sum()
    line = box_mask((5, 5, 150, 9), 120, 160)
    np.testing.assert_array_equal(close_scribble(line), line)


def test_inverted_masks_are_recognised():
    hole = box_mask((30, 20, 70, 60), 100, 120)
    assert looks_inverted(~hole)
    assert not looks_inverted(hole)
    assert not looks_inverted(box_mask((2, 2, 118, 98), 100, 120))  # large, but inside
    assert not looks_inverted(box_mask((0, 0, 120, 40), 100, 120))  # at the border, but small
    assert not looks_inverted(np.ones((100, 120), bool))  # nothing to turn round


def test_a_ring_surrounds_the_mask(rng):
    mask = box_mask((10, 10, 20, 20), 40, 40)
    ring = ring_around(mask, 3)
    assert not (ring & mask).any()
    assert bounding_box(ring) == (7, 7, 23, 23)
    assert not ring_around(np.ones((5, 5), bool), 3).any()


def test_matched_colours_take_a_constant_drift_away(rng):
    original = rng.integers(40, 200, (32, 32, 3), dtype=np.uint8)
    drifted = (original + np.array([7, -3, 12])).astype(np.uint8)
    ring = ring_around(box_mask((10, 10, 20, 20), 32, 32), 3)
    np.testing.assert_array_equal(match_colors(drifted, original, ring), original)
    np.testing.assert_array_equal(match_colors(drifted, original, ring & False), drifted)
    white = match_colors(np.full_like(original, 255), original, ring)
    assert white.dtype == np.uint8 and white.max() < 255


def test_the_crop_has_a_least_side_as_far_as_the_picture_goes():
    speck = box_mask((50, 50, 52, 52), 100, 200)
    assert context_crop(speck, 1.75, 12).side == 12
    assert context_crop(speck, 1.75, 500).side == 100


def test_what_is_around_an_object_is_one_colour_or_a_photo():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask = box_mask((20, 20, 50, 40), 60, 80)
    for color in ((0, 0, 0), (255, 255, 255), (90, 120, 60)):
        cut = np.where(mask[..., None], photo, np.array(color, np.uint8))
        for coverage in (mask, mask.astype(np.uint8) * 255):
            assert tuple(surroundings(cut, coverage)) == color
    assert surroundings(photo, mask) is None
    assert surroundings(photo, np.ones_like(mask)) is None
