"""Composing with a tiny random model: what must hold whatever the weights are."""

import numpy as np
import pytest
from PIL import Image

from imprint_jax import geometry, pretrained
from imprint_jax.compose import CONTEXT, FEATHER, Compositor
from imprint_jax.errors import InputError
from imprint_jax.models import initial
from tests.tiny import tiny_config

RNG = np.random.default_rng(0)
OBJECT = np.dstack([RNG.integers(0, 256, (30, 20, 3)), np.full((30, 20), 255)]).astype(np.uint8)
PHOTO = RNG.integers(0, 256, (90, 140, 3), dtype=np.uint8)
HOLE = np.zeros((90, 140), bool)
HOLE[30:55, 60:100] = True


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    c = tiny_config(2)
    c.sampling.num_steps = 3
    folder = tmp_path_factory.mktemp("model")
    params = initial.draw_all(c.model, 0)
    pretrained.save(folder, c, params)
    return folder


@pytest.fixture(scope="module")
def compositor(model_folder):
    return Compositor.from_pretrained(model_folder)


def changed(picture, photo=PHOTO) -> np.ndarray:
    return np.any(np.asarray(picture) != photo, axis=-1)


def test_only_the_hole_and_its_feather_change(compositor):
    picture = compositor(OBJECT, PHOTO, HOLE)
    assert isinstance(picture, Image.Image) and picture.size == (140, 90)
    crop = geometry.context_crop(HOLE, CONTEXT)
    feather = max(2, round(crop.side * FEATHER))
    reach = np.zeros_like(HOLE)
    reach[30 - feather : 55 + feather, 60 - feather : 100 + feather] = True
    assert not changed(picture)[~reach].any()
    assert changed(picture)[HOLE].mean() > 0.9


def test_the_same_seed_gives_the_same_picture_and_another_another(compositor):
    first, again, other = (np.asarray(compositor(OBJECT, PHOTO, HOLE, seed=s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert changed(first, other)[HOLE].mean() > 0.5


def test_samples_are_different_and_the_first_is_the_single_one(compositor):
    pictures = compositor.samples(OBJECT, PHOTO, HOLE, num=3, seed=4)
    assert len(pictures) == 3
    single = np.asarray(compositor(OBJECT, PHOTO, HOLE, seed=4)).astype(int)
    # Other batch sizes round differently in float32, by one grey level at most.
    assert np.abs(np.asarray(pictures[0]).astype(int) - single).max() <= 1
    assert changed(pictures[0], np.asarray(pictures[1]))[HOLE].mean() > 0.5


def test_what_is_in_the_hole_does_not_matter(compositor):
    other = PHOTO.copy()
    other[HOLE] = 255 - other[HOLE]
    first = np.asarray(compositor(OBJECT, PHOTO, HOLE))
    second = np.asarray(compositor(OBJECT, other, HOLE))
    np.testing.assert_array_equal(first, second)


def test_the_object_and_its_mask_matter(compositor):
    base = compositor(OBJECT, PHOTO, HOLE)
    assert changed(compositor(OBJECT[::-1], PHOTO, HOLE), np.asarray(base)).any()
    half = np.zeros(OBJECT.shape[:2], bool)
    half[:15] = True
    assert changed(compositor(OBJECT, PHOTO, HOLE, object_mask=half), np.asarray(base)).any()


def test_pil_and_numpy_give_the_same(compositor):
    from_pil = compositor(Image.fromarray(OBJECT), Image.fromarray(PHOTO), Image.fromarray(HOLE))
    np.testing.assert_array_equal(from_pil, compositor(OBJECT, PHOTO, HOLE))


@pytest.mark.parametrize(
    "y0, y1, x0, x1", [(0, 10, 0, 140), (0, 90, 0, 140), (88, 90, 138, 140), (0, 90, 60, 62)]
)
def test_holes_of_any_shape_and_place(compositor, y0, y1, x0, x1):
    hole = np.zeros_like(HOLE)
    hole[y0:y1, x0:x1] = True
    assert changed(compositor(OBJECT, PHOTO, hole))[hole].mean() > 0.5


def test_steps_and_guidance_are_obeyed(compositor):
    base = np.asarray(compositor(OBJECT, PHOTO, HOLE))
    assert changed(compositor(OBJECT, PHOTO, HOLE, num_steps=2), base).any()
    assert changed(compositor(OBJECT, PHOTO, HOLE, guidance_scale=7.0), base).any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(object_image=OBJECT[..., :3]), "no transparency"),
        (dict(object_image=OBJECT * np.array([1, 1, 1, 0], np.uint8)), "mask is empty"),
        (dict(object_image=OBJECT / 255.0), "must be uint8"),
        (dict(object_mask=np.ones((3, 3), bool)), "object mask has shape"),
        (dict(background=PHOTO[..., :2]), "must be .h w 3."),
        (dict(mask=HOLE[:-1]), "has shape"),
        (dict(mask=HOLE & False), "mask is empty"),
        (dict(mask=HOLE * 1.0), "must be bool, or uint8"),
        (dict(num=0), "1 or more"),
        (dict(num_steps=0), "1 or more"),
        (dict(num_steps=1001), "1 to 1000"),
    ],
)
def test_bad_input_is_named(compositor, change, message):
    arguments = dict(object_image=OBJECT, background=PHOTO, mask=HOLE) | change
    with pytest.raises(InputError, match=message):
        compositor.samples(**arguments)


def test_a_released_folder_must_be_whole(model_folder, tmp_path):
    config, params = pretrained.load(model_folder)
    pretrained.save(tmp_path, config, params)
    unet = tmp_path / "unet.safetensors"
    unet.write_bytes(unet.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        pretrained.load(tmp_path)
    unet.unlink()
    with pytest.raises(InputError, match=r"unet\.safetensors missing"):
        pretrained.load(tmp_path)
    pretrained.save(tmp_path, config, params | {"unet": params["adapter"]})
    with pytest.raises(InputError, match=r"does not fit.*norm_in\.scale"):
        pretrained.load(tmp_path)
    with pytest.raises(InputError, match="no model 'nothing'"):
        pretrained.model_folder("nothing")
