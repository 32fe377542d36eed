import io

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from imprint_jax.config.fields import DataConfig
from imprint_jax.data.pairs import WindowPartners, make_pairs
from imprint_jax.data.transforms import (
    AsComposed,
    context_side,
    decode_coverage,
    decode_view,
    object_of,
    object_on_black,
    open_shrunk,
    outline,
    paste,
    random_affine,
    random_colors,
    random_context,
    random_perturbation,
    random_square,
    recolor,
    view_on_black,
    warp,
)
from imprint_jax.errors import InputError
from imprint_jax.geometry import bounding_box, context_crop, cut_out
from imprint_jax.images import encode_png
from tests.data.preparation.test_sources import white
from tests.data.test_records import record, view

AFFINE = dict(rotate=15.0, scale=0.1, shear=5.0, flip=0.5)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def index_of(rows):
    """The arrays of an index file from (group, instance, frame, has_mask) rows."""
    columns = zip(*rows, strict=True)
    keys = ("group", "instance", "frame", "has_mask")
    return {key: np.array(column) for key, column in zip(keys, columns, strict=True)}


def test_partners_equal_the_definition(rng):
    rows = [
        (
            int(rng.integers(4)),
            int(rng.integers(3)) - 1,
            int(rng.integers(-9, 9)),
            rng.random() < 0.8,
        )
        for _ in range(150)
    ]  # frames occur twice, too
    pairs = WindowPartners(index_of(rows), window=3)
    expected = {}
    for i, (group, instance, frame, has_mask) in enumerate(rows):
        partners = {
            j
            for j, (g, k, f, m) in enumerate(rows)
            if (g, k) == (group, instance) and 0 < abs(f - frame) <= 3 and m and has_mask
        }
        if partners:
            expected[i] = partners
    assert pairs.records.tolist() == sorted(expected)
    assert len(pairs) == len(expected)
    for k, i in enumerate(pairs.records):
        assert set(pairs.partners(k).tolist()) == expected[i]
        drawn = [pairs.draw(k, rng) for _ in range(40)]
        assert {first for first, _ in drawn} == {i}
        assert {second for _, second in drawn} <= expected[i]


@pytest.mark.parametrize("kind", ["views", "video"])
def test_frames_may_have_numbers_of_any_size(kind):
    """As time stamps have: 18 digits, in many objects."""
    small = [(k, 0, frame, True) for k in range(200) for frame in (0, 5, 9, 90)]
    large = [(k, 0, 10**18 - 1 - frame, True) for k, _, frame, _ in small]
    expected, got = (make_pairs(kind, index_of(rows), 7) for rows in (small, large))
    assert got.records.tolist() == expected.records.tolist()
    for k in range(len(got)):
        assert set(got.partners(k)) == set(expected.partners(k))


def test_every_partner_is_drawn_equally_often(rng):
    pairs = WindowPartners(index_of([(0, 0, f, True) for f in range(5)]), window=7)
    drawn = [pairs.draw(2, rng)[1] for _ in range(4000)]
    assert np.bincount(drawn, minlength=5)[2] == 0
    np.testing.assert_allclose(np.bincount(drawn)[[0, 1, 3, 4]], 1000, atol=110)


def test_no_pair_is_refused():
    rows = [(0, 0, 0, True), (0, 0, 9, True), (0, 1, 1, True), (0, 0, 1, False)]
    with pytest.raises(InputError, match="at most 7 frames apart"):
        WindowPartners(index_of(rows), window=7)
    with pytest.raises(InputError, match="at most 7 frames apart"):
        WindowPartners({key: np.array([], int) for key in index_of(rows)}, window=7)


def test_pair_rules_of_photos_and_videos(rng):
    rows = [(0, 1, 5, True), (0, 1, 95, True), (0, 2, 5, True), (1, 1, 0, True), (1, 1, 3, True),
            (1, 1, 9, False)]  # fmt: skip
    drawn = lambda kind: {
        pairs.draw(k, rng)
        for pairs in [make_pairs(kind, index_of(rows), 7)]
        for k in range(len(pairs))
    }
    assert drawn("video") == {(0, 1), (1, 0), (3, 4), (4, 3)}
    assert drawn("photo") == {(i, i) for i in range(5)}
    assert drawn("pair") == {(3, 4)}
    assert drawn("views") == {(3, 4), (4, 3)}
    with pytest.raises(ValueError, match="no pair rule"):
        make_pairs("film", index_of(rows), 7)


def test_a_window_of_0_pairs_each_view_with_itself():
    rows = [(0, 0, 0, True), (0, 0, 1, True), (1, 0, 0, False)]
    for kind in ("views", "pasted"):
        pairs = make_pairs(kind, index_of(rows), 0)
        drawn = [pairs.draw(k, np.random.default_rng(0)) for k in range(len(pairs))]
        assert drawn == [(0, 0), (1, 1)]


def test_partners_of_a_million_records_take_a_moment():
    count = 1_000_000
    index = {
        "group": np.arange(count) // 30,
        "instance": np.zeros(count, int),
        "frame": np.arange(count) % 30,
        "has_mask": np.ones(count, bool),
    }
    pairs = WindowPartners(index, window=7)
    assert len(pairs) == count
    assert sorted(pairs.partners(count - 1)) == list(range(count - 8, count - 1))


def test_colors_of_no_strength_change_nothing(rng):
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(recolor(image, random_colors(rng, 0.0)), image)


def test_colors_are_smooth_and_rise_and_keep_black_and_grey(rng):
    ramp = np.arange(256, dtype=np.uint8)
    greys = np.repeat(ramp[None, :, None], 3, axis=2)
    changed = []
    for _ in range(50):
        out = recolor(greys, random_colors(rng, 1.0))[0].astype(int)
        assert (out[0] == 0).all()
        # Brighter stays brighter; Pillow rounds each of the three interpolations.
        assert (np.diff(out, axis=0) >= -1).all()
        assert np.abs(np.diff(out, n=2, axis=0)).max() <= 4  # no steps
        assert np.ptp(out, axis=1).max() < 110
        changed.append(np.abs(out - ramp[:, None]).mean())
    assert 5 < np.mean(changed) < 45
    weak = [
        np.abs(recolor(greys, random_colors(rng, 0.2))[0].astype(int) - ramp[:, None]).mean()
        for _ in range(50)
    ]
    assert np.mean(weak) < 0.4 * np.mean(changed)


def test_colors_are_interpolated_linearly_between_the_tables_points(rng):
    table = random_colors(rng, 1.0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    axes = (np.linspace(0, 255, len(table)),) * 3
    linear = RegularGridInterpolator(axes, 255 * table.astype(float))
    expected = linear(image[..., ::-1]).clip(0, 255)
    np.testing.assert_allclose(recolor(image, table), expected, atol=1.5)
    mixed = np.diff(np.diff(table, axis=0), axis=1)
    assert np.abs(mixed).max() > 1e-3  # no sum of a function a channel


def test_colors_depend_on_the_rng_only():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    once, again, other = (
        recolor(image, random_colors(np.random.default_rng(seed), 1.0)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_affine_without_range_is_the_identity_and_stays_in_range_with_one(rng):
    np.testing.assert_array_equal(random_affine(rng, 0, 0, 0, 0), np.eye(2))
    np.testing.assert_array_equal(random_affine(rng, 0, 0, 0, 1), np.diag([-1, 1]))
    flips = 0
    for _ in range(300):
        matrix = random_affine(rng, rotate=30, scale=0.2, shear=10, flip=0.5)
        determinant = np.linalg.det(matrix)
        flips += determinant < 0
        assert np.exp(-0.4) <= abs(determinant) <= np.exp(0.4)
        first = matrix[:, 0] * np.sign(determinant)  # where the x axis goes
        assert abs(np.degrees(np.arctan2(first[1], first[0]))) <= 30
    assert 100 < flips < 200


def test_warp_holds_all_of_the_object_and_does_not_dull_its_edge(rng):
    rgba = view(1)
    rgba[..., :3] = 250  # also where it is transparent in part
    rgba[rgba[..., 3] == 0] = 0
    for _ in range(20):
        matrix = random_affine(rng, rotate=180, scale=0.3, shear=20, flip=0.5)
        image, mask = warp(rgba[..., :3], rgba[..., 3], matrix)
        area = rgba[..., 3].sum() * abs(np.linalg.det(matrix))
        assert abs(mask.sum() / area - 1) < 0.01  # nothing is cut off
        assert image[mask > 40].min() >= 240
    _, mask = warp(rgba[..., :3], rgba[..., 3], np.eye(2))
    x0, y0, x1, y1 = bounding_box(rgba[..., 3] >= 13)
    np.testing.assert_array_equal(mask, rgba[y0:y1, x0:x1, 3])


def test_warp_turns_the_way_the_matrix_says():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 30:] = 255  # the right end is white
    quarter = np.array([[0, -1], [1, 0]])  # right goes to below: y points down
    turned, _ = warp(image, np.full((20, 40), 255, np.uint8), quarter)
    assert turned.shape == (40, 20, 3)
    assert (turned[31:] == 255).all() and (turned[:29] == 0).all()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_paste_is_inside_and_leaves_the_rest_of_the_photo(rng, share):
    photo = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    rgba = view(3)
    places = set()
    for _ in range(20):
        composite, hole = paste(photo, (rgba[..., :3], rgba[..., 3]), share, 0.0, rng)
        x0, y0, x1, y1 = bounding_box(hole)
        places.add((x0, y0))
        assert max(x1 - x0, y1 - y0) <= 96 / 1.2 + 1
        assert hole.mean() <= share * 1.5  # the soft edge comes on top
        if share < 0.5:
            assert hole.mean() >= share * 0.9
        # What is left outside of the hole is fainter than can be seen.
        difference = np.abs(composite.astype(int) - photo)
        assert difference[~hole].max() <= 13
        # Its middle is the object's colour.
        middle = composite[(y0 + y1) // 2, (x0 + x1) // 2]
        np.testing.assert_allclose(middle, rgba[32, 32, :3], atol=2)
    assert len(places) > 10 or share == 0.9


def test_paste_matches_brightness_as_far_as_asked(rng):
    dark = np.full((96, 96, 3), 60, np.uint8)
    rgba = view(3)
    rgba[..., :3] = 120
    means = []
    for match in (0.0, 0.5, 1.0):
        composite, hole = paste(dark, (rgba[..., :3], rgba[..., 3]), 0.2, match, rng)
        means.append(composite[hole].max())
    assert means[0] == 120
    assert means[0] > means[1] > means[2] > 60
    assert abs(means[1] - 120 * (61 / 121) ** 0.5) <= 1
    assert abs(means[2] - 120 / 1.6) <= 1  # the limit


@pytest.mark.parametrize("size", [(300, 200), (80, 200), (40, 60), (1000, 700)])
def test_random_square_is_a_square_of_the_photo(rng, size):
    # Colour tells the place: red rises with x, green with y, one step every pixel of 256.
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    photo = Image.fromarray(np.dstack([x, y, 0 * x]).astype(np.uint8))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=98, subsampling=0)
    photo = record(image=buffer.getvalue())
    sides, lefts = [], []
    for _ in range(30):
        square = random_square(photo, 48, rng)
        assert square.shape == (48, 48, 3) and square.dtype == np.uint8
        row, column = square[24, :, 0].astype(int), square[:, 24, 1].astype(int)
        width = (row[-2] - row[1]) / 45 * 48 / 255 * size[0]
        height = (column[-2] - column[1]) / 45 * 48 / 255 * size[1]
        assert abs(width - height) < 0.1 * max(size) / 4 + 2  # not stretched
        assert width >= 0.28 * min(size) - 3
        sides.append(width)
        lefts.append(row[0])
    if min(size) > 48:
        assert max(sides) - min(sides) > 0.3 * min(size)
        assert np.ptp(lefts) > 40


def test_view_on_black_is_whole_and_keeps_its_proportions(rng):
    wide = np.full((20, 40, 3), 200, np.uint8)
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 255
    both = record(image=encode_png(wide), mask=encode_png(mask))
    target = view_on_black(both, random_colors(rng, 0.0), 80)
    assert bounding_box(target.max(axis=-1) > 100) == (20, 30, 60, 50)
    assert (target[40, 40] == 200).all() and not target[:28].any()
    line = record(image=encode_png(wide[:1]), mask=encode_png(mask[7:8]))
    assert view_on_black(line, random_colors(rng, 0.0), 10).shape == (10, 10, 3)


def test_decode_view_gives_colour_and_coverage():
    image, mask = decode_view(record(4))
    np.testing.assert_array_equal(np.dstack([image, mask]), view(4))
    assert cut_out(image, mask)[0, 0].sum() == 0


@pytest.mark.parametrize("share", [0.03, 0.2, 0.9])
def test_random_context_holds_the_object_anywhere(rng, share):
    inside = 0
    for _ in range(200):
        height, width = rng.integers(40, 200, 2)
        x, y = rng.integers(width - 9), rng.integers(height - 9)
        w, h = rng.integers(9, width - x + 1), rng.integers(9, height - y + 1)
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w] = True
        there = outline(white(mask))
        side = context_side(there, share, 32)
        crop = random_context(there, side, rng)
        assert crop.side == side <= min(height, width)
        assert 0 <= crop.x0 <= width - side and 0 <= crop.y0 <= height - side
        for start, low, length in ((crop.x0, x, w), (crop.y0, y, h)):
            end = start + side
            if length <= side:
                assert start <= low and low + length <= end
            else:  # nothing but the object
                assert low <= start and end <= low + length
        if side < min(height, width):  # the photo is large enough
            inside += 1
            assert side >= 1.2 * max(w, h) and mask.sum() / side**2 <= share * 1.1
    assert inside > 20
    mask = np.zeros((100, 100), bool)
    mask[40:50, 40:50] = True
    there = outline(white(mask))
    left = [random_context(there, 30, rng).x0 for _ in range(3000)]
    np.testing.assert_allclose(np.bincount(left)[20:41], 3000 / 21, atol=60)
    assert min(left) == 20 and max(left) == 40


def test_a_sample_as_composed_is_cut_as_composing_cuts(rng):
    mask = np.zeros((200, 300), bool)
    mask[60:100, 100:160] = True
    there = outline(white(mask))
    assert AsComposed(1.3).box(there) is None
    assert AsComposed(1.3).square(there, rng) == context_crop(mask, 1.3)
    # Twice as wide, three quarters of the room on the left; 1.5 times as tall, on the same ground.
    assert AsComposed(1.3, wider=2.0, left=0.75).box(there) == (55, 60, 175, 100)
    assert AsComposed(1.3, taller=1.5).box(there) == (100, 40, 160, 100)
    assert AsComposed(1.3, taller=9.0).box(there) == (100, 0, 160, 100)  # inside the photo
    wide = np.zeros_like(mask)
    wide[60:100, 55:175] = True
    assert AsComposed(1.3, wider=2.0, left=0.75).square(there, rng) == context_crop(wide, 1.3)


def test_a_pasted_object_is_as_large_as_composed():
    place, box = AsComposed(1.25, wider=2.0, left=0.0).place(30, 20, 100)
    assert box == (10, 36, 90, 63) and place == (10, 36, 50, 63)
    place, box = AsComposed(1.25, taller=2.0).place(30, 20, 100)
    assert box == (20, 10, 80, 90) and place == (20, 50, 80, 90)


def test_an_object_on_black_is_as_large_as_composed(rng):
    made = object_on_black(record(view(3)), random_colors(rng, 0.0), 50, 1.25)
    x0, y0, x1, y1 = bounding_box(made.any(axis=-1))
    assert 39 <= max(x1 - x0, y1 - y0) <= 40
    assert abs(x0 + x1 - 50) <= 1 and abs(y0 + y1 - 50) <= 1


def test_nothing_is_enlarged_more_than_twice():
    mask = np.zeros((600, 800), bool)
    mask[300:310, 400:410] = True
    there = outline(white(mask))
    assert context_side(there, 0.1, 512) == 256  # 32 by the share
    assert context_side(outline(white(mask[250:450, 300:500])), 0.1, 512) == 200  # all there is
    on_black = view_on_black(record(4), random_colors(np.random.default_rng(0), 0.0), 512)
    rows = np.flatnonzero(on_black.any(axis=(1, 2)))
    height = np.ptp(np.flatnonzero(view(4)[..., 3].any(axis=1)))
    assert 2 * height - 2 <= np.ptp(rows) <= 2 * height + 4  # of 64 px: not 8 times
    photo = np.zeros((512, 512, 3), np.uint8)
    _, hole = paste(photo, decode_view(record(4)), 0.3, 0.0, np.random.default_rng(0))
    assert hole.any(axis=1).sum() <= 2 * height + 4


def test_random_context_is_never_empty(rng):
    mask = np.zeros((40, 200), bool)
    mask[5:30, [3, 4, 190]] = True  # two pieces, further apart than the photo is high
    there = outline(white(mask))
    seen = set()
    for _ in range(200):
        crop = random_context(there, context_side(there, 0.1, 32), rng)
        square = mask[crop.y0 : crop.y0 + 40, crop.x0 : crop.x0 + 40]
        assert crop.side == 40 and square.shape == (40, 40) and square.any()
        seen.add(crop.x0 > 100)
    assert seen == {False, True}


def jpeg_record(width, height):
    """A large smooth photo with a disc in it."""
    y, x = np.mgrid[:height, :width]
    mask = np.hypot(x - width * 0.6, y - height / 2) < height / 3
    image = np.dstack([x * 255 // width, y * 255 // height, 200 * mask]).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return record(image=buffer.getvalue(), mask=encode_png(mask)), image


def test_large_photos_are_decoded_smaller_to_the_same_object(rng):
    large, image = jpeg_record(1200, 900)
    mask = decode_coverage(large)
    for scale, factor in [(1, 1), (0.6, 1), (0.5, 2), (0.3, 2), (0.2, 4), (3, 1)]:
        small, small_mask = open_shrunk(large, mask, scale)
        assert small.size[::-1] == small_mask.shape == (900 // factor, 1200 // factor)
    np.testing.assert_allclose(small.getpixel((700, 450)), image[450, 700], atol=6)
    data = DataConfig(color=0.7, affine=AFFINE)
    change = random_perturbation(data, np.random.default_rng(3))
    crop = object_of(large, change, 28)
    png = large | {"image": encode_png(image)}  # never decoded smaller
    whole = object_of(png, change, 28)
    assert np.abs(crop.astype(int) - whole).mean() < 5  # edges differ a little
    assert crop.max() > 100 and not crop[0].any()
