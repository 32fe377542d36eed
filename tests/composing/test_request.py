"""What a request is made of, and what it says of pictures that do not fit."""

import logging

import numpy as np
import pytest
from PIL import Image

from imprint_jax import Placement, Request, geometry
from imprint_jax.errors import InputError
from tests.pictures import write_png

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)
OBJECT = np.dstack([RGB, np.full((30, 20), 255, np.uint8)])
PHOTO = RNG.integers(0, 256, (90, 140, 3), dtype=np.uint8)
HOLE = geometry.box_mask((60, 30, 100, 55), 90, 140)


def make(object=OBJECT, background=PHOTO, mask=HOLE, object_mask=None, **fields) -> Request:
    return Request(background, [Placement(object, mask, object_mask)], **fields)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(object=RGB), "no transparency: give an object mask"),
        (dict(object=OBJECT * np.array([1, 1, 1, 0], np.uint8)), "object's mask is empty"),
        (dict(object=np.dstack([RGB, RGB[..., 0] % 103])), "nowhere more than 40 % opaque"),
        (dict(object="gone.png"), r"Cannot read gone\.png"),
        (dict(mask=None), "either a mask or a box"),
        (dict(object=OBJECT / 255.0), "object's picture is float64; it must be uint8"),
        (dict(object=OBJECT.astype(np.int32)), "is int32; it must be uint8"),
        (dict(object=OBJECT[:0]), r"must be .h w 3. or .h w 4."),
        (dict(object=OBJECT[None]), r"must be .h w 3. or .h w 4."),
        (dict(object=[]), "0 pictures of the object"),
        (dict(object=[OBJECT, RGB]), "no transparency"),
        (dict(object=Image.new("F", (20, 30))), "floating-point pixels"),
        (dict(object_mask=np.ones((3, 3), bool)), r"object mask has shape \(3, 3\)"),
        (dict(object_mask=np.zeros((30, 20), bool)), "object's mask is empty"),
        (dict(object_mask=np.ones((30, 20))), "object mask is float64"),
        (dict(object_mask=np.eye(30, 20, dtype=np.uint8)), "nowhere brighter than 1 of 255"),
        (dict(object_mask=[np.ones((30, 20), bool)] * 2), "1 pictures .* but 2 masks"),
        (dict(background=PHOTO[..., :2]), r"must be .h w 3."),
        (dict(background=PHOTO / 255), "background is float64"),
        (dict(background=PHOTO[:, :0]), r"must be .h w 3."),
        (dict(mask=HOLE[:-1]), r"mask has shape \(89, 140\)"),
        (dict(mask=HOLE.T), r"mask has shape \(140, 90\)"),
        (dict(mask=np.dstack([HOLE] * 3)), r"mask has shape \(90, 140, 3\)"),
        (dict(mask=HOLE & False), "mask is empty: mark .* in white"),
        (dict(mask=HOLE | True, invert_mask=True), "mask is empty: mark .* in black"),
        (dict(mask=HOLE * 1.0), "mask is float64; it must be bool, or uint8"),
        (dict(mask=HOLE.astype(np.uint8)), "nowhere brighter than 1 of 255; paint it white"),
        (dict(mask=Image.fromarray(HOLE[:50])), "give a mask of the picture's size"),
        (dict(num=0), "number of pictures must be a whole number 1 to"),
        (dict(num=2.0), "number of pictures must be a whole number"),
        (dict(num=10**9), "number of pictures must be a whole number"),
        (dict(seed=-1), "seed must be a whole number 0 to 4294967295"),
        (dict(seed=2**32), "seed must be a whole number"),
        (dict(seed=None), "seed must be a whole number"),
        (dict(mask_level=4), "mask level must be a whole number 0 to 3"),
        (dict(mask_level=True), "mask level must be a whole number"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(InputError, match=message):
        make(**change)


def test_boxes_are_holes():
    request = Request(PHOTO, [Placement(OBJECT, box=(60, 30, 100, 55))], invert_mask=True)
    np.testing.assert_array_equal(request.parts[0].hole, HOLE)
    for box in [(1, 2, 3), (1, 2, 3.0, 4), "1234", None, (5, 5, 5, 9), (0, 0, 141, 9)]:
        with pytest.raises(InputError, match="box"):
            Request(PHOTO, [Placement(OBJECT, box=box)])
    with pytest.raises(InputError, match="either a mask or a box"):
        Request(PHOTO, [Placement(OBJECT, HOLE, box=(60, 30, 100, 55))])


def test_files_are_read(tmp_path):
    for name, array in dict(o=OBJECT, b=PHOTO, m=HOLE).items():
        write_png(tmp_path / f"{name}.png", array)
    request = make(tmp_path / "o.png", str(tmp_path / "b.png"), tmp_path / "m.png")
    np.testing.assert_array_equal(request.photo, PHOTO)
    np.testing.assert_array_equal(request.parts[0].hole, HOLE)
    np.testing.assert_array_equal(request.parts[0].views[0][0], RGB)


def test_a_request_owns_its_pixels():
    """A generator that reads every frame of a video into the same array."""
    object, photo, hole = OBJECT.copy(), PHOTO.copy(), HOLE.copy()
    request = make(object, photo, hole)
    for array in (object, photo, hole):
        array[:] = 0
    np.testing.assert_array_equal(request.photo, PHOTO)
    np.testing.assert_array_equal(request.parts[0].hole, HOLE)
    np.testing.assert_array_equal(request.parts[0].views[0][0], RGB)


def test_specks_do_not_decide_and_are_said(caplog):
    hole = HOLE.copy()
    hole[0, 139] = True
    np.testing.assert_array_equal(make(mask=hole).parts[0].hole, HOLE)
    assert "mask has specks far from the rest, 1 pixels" in caplog.text
    caplog.clear()
    mask = np.zeros((30, 20), np.uint8)
    mask[5:25, 2:14] = 255
    with_speck = mask.copy()
    with_speck[29, 19] = 40
    view = np.dstack([RGB, with_speck])
    np.testing.assert_array_equal(make(object=view).parts[0].views[0][1], mask)
    assert "object's mask has specks" in caplog.text


def test_the_mask_level_is_the_models():
    ellipse = np.zeros((90, 140), np.uint8)
    rows, columns = np.mgrid[:90, :140]
    ellipse[((rows - 45) / 20) ** 2 + ((columns - 70) / 30) ** 2 <= 1] = 255
    request = make(mask=ellipse, mask_level=2)
    (own,), (wider,) = (request.holes(sigmas) for sigmas in (request.mask_sigmas, (0.1, 0.3)))
    assert own is request.parts[0].hole and wider.sum() > own.sum()
    np.testing.assert_array_equal(
        wider, make(mask=ellipse, mask_level=2, mask_sigmas=(0.1, 0.3)).parts[0].hole
    )


def test_transparent_backgrounds_show_white_and_are_said(caplog):
    photo = np.dstack([PHOTO, np.full((90, 140), 255, np.uint8)])
    assert make(background=photo).original.pixels.shape == (90, 140, 3)
    assert "white" not in caplog.text
    photo[:10, :, 3] = 0
    request = make(background=photo)
    assert (request.photo[:10] == 255).all() and "fitted to white" in caplog.text


def test_of_several_objects_the_wrong_one_is_named():
    with pytest.raises(InputError, match="object 2's picture has no transparency"):
        Request(PHOTO, [Placement(OBJECT, HOLE), Placement(RGB, HOLE)])
    with pytest.raises(InputError, match="mask 2 is empty"):
        Request(PHOTO, [Placement(OBJECT, HOLE), Placement(OBJECT, HOLE & False)])
    with pytest.raises(InputError, match="no object"):
        Request(PHOTO, [])


def test_numpy_integers_are_whole_numbers():
    assert make(seed=np.uint32(7), num=np.int64(2)).seed == 7


def test_pil_and_numpy_give_the_same_request():
    ours = make()
    pil = make(Image.fromarray(OBJECT), Image.fromarray(PHOTO), Image.fromarray(HOLE))
    np.testing.assert_array_equal(pil.photo, ours.photo)
    np.testing.assert_array_equal(pil.parts[0].hole, ours.parts[0].hole)
    for mine, theirs in zip(pil.parts[0].views[0], ours.parts[0].views[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_mask_drawn_as_transparency_is_read():
    drawn = np.zeros((90, 140, 4), np.uint8)
    drawn[HOLE] = 255
    drawn[..., :3] = 7
    np.testing.assert_array_equal(make(mask=Image.fromarray(drawn)).parts[0].hole, HOLE)


def test_inverted_masks_are_warned_of_and_flipped(caplog):
    make()
    assert "inverted" not in caplog.text
    make(mask=~HOLE)
    assert "mask looks inverted" in caplog.text and "give --invert-mask" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(make(mask=~HOLE, invert_mask=True).parts[0].hole, HOLE)
    assert "inverted" not in caplog.text
    make(invert_mask=True)
    assert "leave out --invert-mask" in caplog.text


def test_a_picture_that_is_all_object_is_said_so(caplog):
    make(object=np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)]))
    assert "object's picture is nowhere transparent and has no mask" in caplog.text
    caplog.clear()
    make(object=RGB, object_mask=np.ones(RGB.shape[:2], bool))
    assert not caplog.text


def test_soft_masks_are_cut_at_half_and_said_so(caplog):
    caplog.set_level(logging.INFO)
    make(mask=HOLE.astype(np.uint8) * 255)
    assert "soft" not in caplog.text
    soft = np.where(HOLE, 200, 40).astype(np.uint8)
    np.testing.assert_array_equal(make(mask=soft).parts[0].hole, HOLE)
    assert "mask is soft" in caplog.text and "cut at half" in caplog.text


def test_scribbles_are_filled_and_said_so(caplog):
    caplog.set_level(logging.INFO)
    strokes = HOLE.copy()
    strokes[33:52, 63:97] = False
    filled = make(mask=strokes, scribble=True).parts[0].hole
    np.testing.assert_array_equal(filled, HOLE)
    assert "scribble" in caplog.text


def test_overlaps_are_said(caplog):
    caplog.set_level(logging.INFO)
    other = geometry.box_mask((80, 30, 120, 55), 90, 140)
    Request(PHOTO, [Placement(OBJECT, HOLE), Placement(OBJECT, other)])
    assert caplog.messages[-1] == "object 2 covers 50 % of object 1's hole"


def test_what_is_said_names_the_request(caplog):
    inverted = ~geometry.box_mask((40, 30, 100, 60), 90, 140)
    Request(PHOTO, [Placement(OBJECT, inverted)], name="50%/desk")
    opaque, looks_inverted = caplog.messages
    assert opaque.startswith("50%/desk: the object's picture is nowhere transparent")
    assert looks_inverted.startswith("50%/desk: the mask looks inverted: the hole is 86 %")
