"""What must hold whatever comes in: masks, boxes, manifests, pictures and their metadata.

A few draws each in the default suite, a thousand in the slow one.
"""

import io
import json
import string
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from imprint_jax import Placement, Request, geometry, images
from imprint_jax.composing import manifest
from imprint_jax.composing.photo import open_photo
from imprint_jax.errors import InputError

FEW, MANY = 15, 1000


def draws(**strategies):
    """A test of drawn arguments, as two: a few draws, and many marked slow."""

    def decorate(function):
        def check(count):
            settings = hypothesis.settings(max_examples=count, deadline=None, database=None)
            settings(hypothesis.given(**strategies)(lambda **drawn: function(**drawn)))()

        counts = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
        return pytest.mark.parametrize("count", counts)(check)

    return decorate


sides = st.integers(1, 40)
masks = hnp.arrays(bool, st.tuples(sides, sides))
pixels = st.one_of(
    hnp.arrays(np.uint8, st.tuples(sides, sides)),
    hnp.arrays(np.uint8, st.tuples(sides, sides, st.sampled_from([3, 4]))),
)
coordinates = st.integers(-5, 45)
boxes = st.tuples(*[coordinates] * 4)
odd_values = st.sampled_from(
    [
        None,
        True,
        3,
        -1,
        1.5,
        float("nan"),
        10**30,
        "",
        "x",
        "a.png",
        "\0",
        "\ud800",
        [],
        {},
        ["a.png"],
    ]
)


@draws(mask=masks, level=st.integers(0, 3))
def test_masks(mask, level):
    """Boxes hold what they should, levels hold the one before and stay inside of the box."""
    if not mask.any():
        with pytest.raises(InputError):
            geometry.bounding_box(mask)
        return
    x0, y0, x1, y1 = box = geometry.bounding_box(mask)
    main = geometry.main_box(mask)
    assert x0 <= main[0] < main[2] <= x1 and y0 <= main[1] < main[3] <= y1
    cleaned = geometry.without_specks(mask)
    assert not (cleaned & ~mask).any() and geometry.bounding_box(cleaned) == main
    assert cleaned.sum() >= (1 - geometry.SPECK * mask.size) * mask.sum()
    sigmas = (0.04, 0.12)
    leveled = geometry.mask_level(mask, level, sigmas)
    before = geometry.mask_level(mask, max(level - 1, 0), sigmas)
    assert not (before & ~leveled).any() and geometry.bounding_box(leveled) == box
    crop = geometry.context_crop(mask, 1.75)
    extracted = geometry.extract(mask, crop, 16)
    assert extracted.shape == (16, 16) and extracted.any()
    generated = np.zeros((16, 16, 3), np.uint8)
    photo = np.full((*mask.shape, 3), 200, np.uint8)
    pasted = geometry.paste_back(photo, generated, mask, crop, 2)
    assert (pasted[mask] == 0).all() and pasted.shape == photo.shape


@draws(box=boxes, height=sides, width=sides)
def test_boxes(box, height, width):
    """A box is a mask of its area, or refused."""
    x0, y0, x1, y1 = box
    if 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height:
        mask = geometry.box_mask(box, height, width)
        assert geometry.bounding_box(mask) == box and mask.sum() == (x1 - x0) * (y1 - y0)
    else:
        with pytest.raises(InputError):
            geometry.box_mask(box, height, width)


@draws(picture=pixels, of_object=st.booleans())
def test_files_of_masks(picture, of_object):
    """A file is a mask of its size, or refused with a sentence."""
    data = images.encode_png(picture)
    try:
        mask = images.decode_mask(data, "the mask", of_object=of_object)
    except InputError as error:
        assert "the mask" in str(error) and str(error).endswith(".")
    else:
        assert mask.shape == picture.shape[:2] and mask.dtype == bool


@draws(photo=pixels, view=pixels, hole=masks, level=st.integers(0, 3))
def test_requests(photo, view, hole, level):
    """Whatever the pictures are, a request is sound or refused."""
    try:
        request = Request(photo, [Placement(view, hole)], mask_level=level)
    except InputError as error:
        assert str(error).endswith(".")
        return
    (part,) = request.parts
    assert part.hole.shape == request.photo.shape[:2] and part.hole.any()
    for image, coverage in part.views:
        assert image.shape[:2] == coverage.shape and coverage.any()
        assert geometry.object_crop(image, coverage, 14).shape == (14, 14, 3)
    original = np.array(photo)
    result = np.asarray(request.original.finished(request.original.visible))
    if original.ndim == 2:
        original = np.dstack([original] * 3)
    np.testing.assert_array_equal(result, original[..., : result.shape[2]])


lines = st.fixed_dictionaries(
    {},
    optional={
        name: odd_values
        for name in (
            *("id", "object", "background", "mask", "box", "object_mask", "object_id"),
            *("mask_level", "seed", "num", "target", "objects"),
        )
    },
)
sound_lines = st.fixed_dictionaries(
    {
        "id": st.text(string.ascii_letters + "äß商 _-", min_size=1, max_size=40),
        "object": st.just("o.png"),
        "background": st.just("b.png"),
        "box": st.lists(st.integers(0, 99), min_size=4, max_size=4),
    },
    optional={"seed": st.integers(0, 9), "num": st.integers(1, 3)},
)


@draws(
    content=st.one_of(
        st.lists(lines.map(json.dumps) | sound_lines.map(json.dumps), max_size=4).map("\n".join),
        st.text(max_size=80),
    ).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=80)
)
def test_manifests(content):
    """A manifest is read, or refused with a sentence; its pictures' names are those of files."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(content)
        file.flush()
        try:
            entries = manifest.read(Path(file.name))
        except InputError:
            return
    names = [name for entry in entries for name in entry.names()]
    assert len(names) == len(set(names))
    for name in names:
        assert len(name.encode()) <= 255 and "/" not in name and not name.startswith(".")


@draws(
    format=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]),
    exif=st.binary(max_size=120)
    | st.binary(max_size=80).map(lambda x: b"Exif\0\0II*\0\x08\0\0\0" + x),
    icc=st.binary(max_size=200),
    dpi=st.tuples(*[st.floats(0, 1e6)] * 2),
)
def test_metadata_of_pictures(format, exif, icc, dpi):
    """Whatever stands beside the pixels, they are read, and what is carried over can be written."""
    colors = np.full((6, 8, 3), 90, np.uint8)
    buffer = io.BytesIO()
    try:
        Image.fromarray(colors).save(buffer, format, exif=exif, icc_profile=icc, dpi=dpi)
    except Exception:  # Pillow does not write such metadata
        hypothesis.assume(False)
    image = images.open_upright(buffer.getvalue(), "x")
    assert sorted(image.size) == [6, 8]
    photo = open_photo(Image.open(io.BytesIO(buffer.getvalue())))
    again = images.decode_image(images.encode_png(photo.pixels, **photo.metadata), "x")
    np.testing.assert_array_equal(again, photo.to_srgb(photo.pixels))
    assert abs(photo.pixels.astype(int) - 90).max() < 8
