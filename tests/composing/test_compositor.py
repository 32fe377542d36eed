"""Composing with a tiny random model: what must hold whatever the weights are."""

import io
import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imprint_jax import Compositor, Placement, Request, Settings, geometry, images
from imprint_jax.composing import compositor as composing
from imprint_jax.composing.compositor import FEATHER
from imprint_jax.composing.start import paste_object
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError
from imprint_jax.models.unet import UNet
from imprint_jax.weights import release
from tests.pictures import display_p3

RNG = np.random.default_rng(0)
OBJECT = np.dstack([RNG.integers(0, 256, (30, 20, 3)), np.full((30, 20), 255)]).astype(np.uint8)
OTHER = np.dstack([RNG.integers(0, 256, (20, 30, 3)), np.full((20, 30), 255)]).astype(np.uint8)
PHOTO = RNG.integers(0, 256, (90, 140, 3), dtype=np.uint8)
HOLE = geometry.box_mask((60, 30, 100, 55), 90, 140)


@pytest.fixture(scope="module")
def compositor(tiny_release):
    return Compositor.from_pretrained(tiny_release)


def request_of(seed=0, num=1, **changes) -> Request:
    """A request whose pictures depend on its seed, of another size each."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(50, 120, 2)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hole = geometry.box_mask((10, 12, 40, 36), height, width)
    return Request(photo, [Placement(OBJECT, hole)], seed=seed, num=num, **changes)


def changed(picture, photo=PHOTO) -> np.ndarray:
    return np.any(np.asarray(picture) != photo, axis=-1)


def test_only_the_hole_and_its_feather_change(compositor):
    picture = compositor(OBJECT, PHOTO, HOLE)
    assert isinstance(picture, Image.Image) and picture.size == (140, 90)
    crop = geometry.context_crop(HOLE, compositor.config.context)
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


def far(first, second) -> int:
    """The largest difference of two pictures in grey levels."""
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second)).max())


def test_a_batch_is_what_each_request_is_alone(compositor):
    """20 pictures of 11 requests of 11 sizes, on 8 devices, in two batches and alone."""
    requests = [request_of(seed, num=1 + seed % 3) for seed in range(11)]
    compositor.batching.per_device = 2
    results = list(compositor.run(iter(requests)))
    compositor.batching.per_device = 8
    assert [(result.request, result.number) for result in results] == [
        (request, number) for request in requests for number in range(request.num)
    ]
    for request in requests:
        pictures = [result.picture for result in results if result.request is request]
        assert [picture.size for picture in pictures] == [request.photo.shape[1::-1]] * request.num
        alone = [result.picture for result in compositor.run([request])]
        assert max(far(*pair) for pair in zip(pictures, alone, strict=True)) <= 1
        assert len({picture.tobytes() for picture in pictures}) == request.num


def test_bitwise_at_the_same_place_whatever_the_neighbours(compositor):
    request = request_of(3)
    others, strangers = ([request_of(s) for s in range(i, i + 15)] for i in (20, 40))
    first = next(compositor.run([request, *others])).picture
    assert far(next(compositor.run([request, *strangers])).picture, first) == 0
    # At another place by rounding: a CPU's kernels take the last rows of a batch in another way.
    for place in (1, 9, 15):
        results = list(compositor.run([*others[:place], request, *others[place:]]))
        assert far(results[place].picture, first) <= 1, place


def test_the_networks_output_in_a_batch_is_what_it_is_alone(compositor):
    """Before it is rounded to grey levels: 1e-4 of a range of 2."""
    config = compositor.config
    choices = sampling.Choices(4, "ddim", config.sampling.spacing)
    rng = np.random.default_rng(0)
    b, size = 5, config.image_size
    square = lambda s: rng.integers(0, 256, (b, s, s, 3), dtype=np.uint8)
    batch = [np.array([(7, k, 0) for k in range(b)], np.uint32), square(28)[:, None], square(size)]
    batch.append(rng.random((b, size, size, 1)) < 0.5)

    @jax.jit
    def run(*batch):
        bound = compositor.graphdef, config.diffusion, choices, compositor.params
        return composing.generate(*bound, 3.0, *batch)[0]

    together = run(*batch)
    for i in (0, 3):
        alone = run(*(x[i : i + 1] for x in batch))
        assert float(jnp.abs(alone - together[i : i + 1]).max()) < 1e-4


def test_nothing_recompiles_in_a_long_job(compositor, monkeypatch):
    traced = []
    original = composing.generate

    def counted(graphdef, diffusion, choices, params, scale, draws, objects, *args):
        traced.append(objects.shape[:2])
        return original(graphdef, diffusion, choices, params, scale, draws, objects, *args)

    monkeypatch.setattr(composing, "generate", counted)
    fresh = Compositor(compositor.config, compositor.params, max_batch=2)
    list(fresh.run(request_of(seed) for seed in range(3 * 16 + 5)))
    assert traced == [(2, 1), (1, 1)]  # two full batches of 16 on 8 devices, then 5
    list(fresh.run(request_of(seed) for seed in range(16 + 8)))
    assert len(traced) == 2


def test_requests_are_taken_as_they_are_needed(compositor):
    taken = []

    def requests():
        for seed in range(40):
            taken.append(seed)
            yield request_of(seed)

    compositor.batching.per_device = 1
    results = compositor.run(requests())
    next(results)
    compositor.batching.per_device = 8
    assert len(taken) == 16  # one batch of 8, and the next while it is computed


def test_several_objects_each_see_the_ones_before(compositor):
    left = geometry.box_mask((10, 30, 60, 60), 90, 140)
    right = geometry.box_mask((50, 30, 110, 60), 90, 140)  # overlaps with the left one
    both = Request(PHOTO, [Placement(OBJECT, left), Placement(OTHER, right)], seed=5)
    (result,) = compositor.run([both])
    (first,) = compositor.run([Request(PHOTO, [Placement(OBJECT, left)], seed=5)])
    after = np.asarray(result.picture)
    before = np.asarray(first.picture)
    crop = geometry.context_crop(right, compositor.config.context)
    untouched = ~geometry.ring_around(right, crop.side * FEATHER + 1) & ~right
    assert changed(before)[left].mean() > 0.9
    assert far(after[untouched], before[untouched]) <= 1  # the first object stays ...
    assert changed(after, before)[left & right].mean() > 0.9  # ... but where the second covers it
    # The second object's surroundings are the first's picture, not the photo.
    (second,) = compositor.run([Request(PHOTO, [Placement(OTHER, right)], seed=5)])
    assert changed(after, np.asarray(second.picture))[right & ~left].mean() > 0.5


def test_objects_and_views_of_all_numbers_in_one_batch(compositor):
    hole = lambda x: geometry.box_mask((x, 30, x + 30, 60), 90, 140)
    one, two = Placement(OBJECT, hole(5)), Placement([OBJECT, OTHER], hole(50))
    three = Placement(OTHER, hole(95))
    requests = [
        Request(PHOTO, placements, seed=seed, num=num)
        for seed, (placements, num) in enumerate(
            [([one], 2), ([two], 1), ([one, two], 2), ([two, one, three], 1), ([three], 1)]
        )
    ]
    for request, number, picture in compositor.run(requests):
        alone = list(compositor.run([request]))
        assert far(picture, alone[number].picture) <= 1


def test_views_of_one_object_are_all_seen(compositor):
    single = compositor(OBJECT, PHOTO, HOLE)
    several = compositor([OBJECT, OTHER], PHOTO, HOLE)
    assert changed(several, np.asarray(single))[HOLE].any()
    # Attention does not care for twins: the same view twice is the view.
    assert far(compositor([OBJECT, OBJECT], PHOTO, HOLE), single) <= 1
    masks = [np.ones(OBJECT.shape[:2], bool), np.ones(OTHER.shape[:2], bool)]
    masked = compositor([OBJECT[..., :3], OTHER[..., :3]], PHOTO, HOLE, object_mask=masks)
    assert far(masked, several) == 0


def test_samplers_and_eta_are_obeyed(compositor):
    base = np.asarray(compositor(OBJECT, PHOTO, HOLE))
    assert changed(compositor(OBJECT, PHOTO, HOLE, sampler="dpm++2m"), base).any()
    assert changed(compositor(OBJECT, PHOTO, HOLE, eta=1.0), base).any()


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_low_strength_keeps_the_object_as_it_is(compositor, sampler):
    """The random network of the tests knows no objects: what is recognised is the paste."""
    at = lambda strength: np.asarray(
        compositor(OBJECT, PHOTO, HOLE, sampler=sampler, strength=strength, num_steps=4)
    )
    crop = geometry.context_crop(HOLE, compositor.config.context)
    hole = geometry.extract(HOLE, crop, 32)
    pasted = paste_object(geometry.extract(PHOTO, crop, 32), hole, OBJECT[..., :3], OBJECT[..., 3])
    apart = [
        np.abs(geometry.extract(at(s), crop, 32).astype(float) - pasted)[hole].mean()
        for s in (0.01, 0.2, 1.0)
    ]
    assert apart == sorted(apart) and apart[0] < 0.4 * apart[2], apart
    outside = ~geometry.ring_around(HOLE, crop.side * FEATHER + 1) & ~HOLE
    np.testing.assert_array_equal(at(0.2)[outside], PHOTO[outside])
    # What was in the hole does not matter at any strength.
    other = PHOTO.copy()
    other[HOLE] = 255 - other[HOLE]
    again = compositor(OBJECT, other, HOLE, sampler=sampler, strength=0.2, num_steps=4)
    np.testing.assert_array_equal(np.asarray(again)[HOLE], at(0.2)[HOLE])


def test_a_model_may_have_its_own_strength(compositor):
    assert Settings().filled(compositor.config).strength == 1.0
    sampling = replace(compositor.config.sampling, strength=0.5)
    own = replace(compositor.config, sampling=sampling)
    assert Settings().filled(own).strength == 0.5
    assert Settings(strength=1.0).filled(own).strength == 1.0


def test_mask_levels_grow_the_hole(compositor):
    ellipse = np.zeros((90, 140), np.uint8)
    y, x = np.mgrid[:90, :140]
    ellipse[((y - 45) / 20) ** 2 + ((x - 70) / 30) ** 2 <= 1] = 255
    areas = [
        changed(compositor(OBJECT, PHOTO, ellipse, mask_level=level)).sum() for level in range(4)
    ]
    assert areas == sorted(areas) and areas[3] > 1.1 * areas[0]
    box = geometry.box_mask(geometry.bounding_box(ellipse > 0), 90, 140)
    assert (
        far(compositor(OBJECT, PHOTO, box), compositor(OBJECT, PHOTO, ellipse, mask_level=3)) == 0
    )


def test_matched_colours_are_nearer_to_the_photo_around_the_hole(compositor):
    flat = np.full((90, 140, 3), 90, np.uint8)
    drifted = np.full((32, 32, 3), 110, np.uint8)
    crop = geometry.context_crop(HOLE, compositor.config.context)
    hole = geometry.extract(HOLE, crop, 32)[..., None]
    square = geometry.extract(flat, crop, 32)
    np.testing.assert_array_equal(compositor._match_colors(drifted, square, hole), 90)
    plain = np.asarray(compositor(OBJECT, PHOTO, HOLE))
    matched = np.asarray(compositor(OBJECT, PHOTO, HOLE, match_colors=True))
    assert changed(matched, plain)[HOLE].any()
    assert not changed(matched)[:20].any()


@pytest.mark.parametrize(
    "box, words",
    [
        ((70, 40, 71, 41), "too small"),
        ((0, 0, 140, 88), "little is left"),
        ((0, 0, 140, 90), "little is left"),
    ],
)
def test_very_small_and_very_large_holes_are_composed_and_said(compositor, caplog, box, words):
    hole = geometry.box_mask(box, 90, 140)
    assert changed(compositor(OBJECT, PHOTO, hole))[hole].mean() > 0.5
    assert words in caplog.text


def test_the_first_large_crop_is_said_to_be_enlarged(tiny_release, caplog):
    caplog.set_level(logging.INFO)
    compositor = Compositor.from_pretrained(tiny_release)
    for _ in range(2):
        compositor(OBJECT, PHOTO, HOLE)
    assert caplog.text.count("composed at 32 pixels, enlarged to 70") == 1


def test_jax_arrays_are_taken_too(compositor):
    expected = compositor(OBJECT, PHOTO, HOLE)
    given = compositor(jnp.asarray(OBJECT), jnp.asarray(PHOTO), jnp.asarray(HOLE))
    assert far(given, expected) == 0


def test_half_precision_is_near_and_the_codec_stays_whole(tiny_release, compositor, caplog):
    caplog.set_level(logging.INFO)
    half = Compositor.from_pretrained(tiny_release, dtype=jnp.bfloat16)
    assert "bfloat16" in caplog.text and "no faster" in caplog.text
    dtypes = {x.dtype for part in ("dinov2", "adapter", "unet") for x in leaves(half.params[part])}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in leaves(half.params["vae"])} <= {jnp.dtype(jnp.float32)}
    full = np.asarray(compositor(OBJECT, PHOTO, HOLE)).astype(int)
    difference = np.abs(np.asarray(half(OBJECT, PHOTO, HOLE)).astype(int) - full)[HOLE]
    assert 0 < difference.mean() < 8


def leaves(tree):
    return jax.tree.leaves(tree)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_steps=0), "steps must be 1 to 1000"),
        (dict(num_steps=1001), "steps must be 1 to 1000"),
        (dict(sampler="euler"), "must be ddim or"),
        (dict(eta=2.0), "eta must be 0 to 1"),
        (dict(strength=0.0), "strength must be above 0 and at most 1"),
        (dict(strength=1.5), "strength must be above 0 and at most 1"),
        (dict(strength=0.5, num_steps=501), "1 to 500 at a strength of 0.5"),
        (dict(sampler="dpm++2m", eta=0.1), "wants the sampler ddim"),
        (dict(guidance_scale=float("nan")), "guidance scale must be 0 to 100"),
        (dict(guidance_scale=1e38), "guidance scale must be 0 to 100"),
        (dict(guidance_scale=-1.0), "guidance scale must be 0 to 100"),
        (dict(guidance_scale="3"), "guidance_scale must be a number, not '3'"),
        (dict(num_steps=20.0), "num_steps must be a whole number, not 20.0"),
        (dict(num_steps="20"), "num_steps must be a whole number, not '20'"),
        (dict(eta=None), "eta must be a number"),
        (dict(match_colors="no"), "match_colors must be true or false"),
    ],
)
def test_impossible_settings_are_refused_before_any_request_is_taken(compositor, settings, message):
    requests = (pytest.fail("a request was taken") for _ in range(1))
    with pytest.raises(InputError, match=message):
        next(compositor.run(requests, Settings(**settings)))


@pytest.mark.parametrize(
    "component, stage", [("adapter", "the object's tokens"), ("unet", "the denoising")]
)
def test_numbers_that_are_not_finite_are_no_picture(compositor, component, stage):
    broken = jax.tree.map(lambda x: x * float("nan"), compositor.params[component])
    damaged = Compositor(compositor.config, compositor.params | {component: broken})
    with pytest.raises(InputError, match=f"not finite, from {stage} on"):
        damaged(OBJECT, PHOTO, HOLE, num_steps=1)
    outcomes = [outcome for _, _, outcome in damaged.attempt([request_of(1), request_of(2)])]
    assert [stage in outcome for outcome in outcomes] == [True, True]


@pytest.mark.parametrize(
    "setting, value",
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_enable_x64", True),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_threefry_partitionable", False),
    ],
)
def test_process_wide_settings_change_nothing(compositor, setting, value):
    expected = compositor(OBJECT, PHOTO, HOLE, seed=3, eta=0.5)
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        again = Compositor(compositor.config, compositor.params)
        picture = again(OBJECT, PHOTO, HOLE, seed=3, eta=0.5)
    finally:
        jax.config.update(setting, before)
    assert far(picture, expected) == 0


def test_without_guidance_the_network_runs_once_a_step(compositor, monkeypatch):
    batches = []
    denoise = UNet.denoise

    def counted(self, latents, *args):
        batches.append(len(latents))
        return denoise(self, latents, *args)

    monkeypatch.setattr(UNet, "denoise", counted)
    fresh = Compositor(compositor.config, compositor.params)
    plain = fresh(OBJECT, PHOTO, HOLE, guidance_scale=1)
    assert batches == [1]
    nearly = fresh(OBJECT, PHOTO, HOLE, guidance_scale=1 + 1e-6)
    assert batches == [1, 2] and far(plain, nearly) <= 1


def test_mask_levels_are_those_the_model_was_trained_with(compositor):
    """Nothing outside the hole changes, however the model's own levels are."""
    ellipse = np.zeros((90, 140), np.uint8)
    rows, columns = np.mgrid[:90, :140]
    ellipse[((rows - 45) / 20) ** 2 + ((columns - 70) / 30) ** 2 <= 1] = 255
    own = replace(compositor.config, mask_sigmas=(0.1, 0.3))
    wider = Compositor(own, compositor.params)
    areas = [changed(c(OBJECT, PHOTO, ellipse, mask_level=2)).sum() for c in (compositor, wider)]
    assert areas[1] > 1.05 * areas[0]


def test_a_photo_of_another_colour_space_stays_outside_the_hole(compositor, tmp_path):
    path, photo = tmp_path / "p3.png", PHOTO // 4 + 90  # no colours that sRGB lacks
    Image.fromarray(photo).save(path, icc_profile=display_p3())
    picture = compositor(OBJECT, path, HOLE)
    assert picture.info["icc_profile"] == display_p3()
    assert not changed(picture, photo)[:20].any() and changed(picture, photo)[HOLE].mean() > 0.9
    # In the hole it shows what the photo's sRGB version would.
    srgb = np.asarray(compositor(OBJECT, images.read_image(path), HOLE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    shown = images.decode_image(buffer.getvalue(), "x").astype(int)
    assert np.abs(shown - srgb)[HOLE].mean() < 4


def test_batches_of_nothing_are_refused(compositor):
    with pytest.raises(InputError, match="batch size must be 1 or more"):
        Compositor(compositor.config, compositor.params, max_batch=0)


def test_a_released_folder_must_be_whole(tiny_release, tmp_path):
    config, params = release.load(tiny_release)
    release.save(tmp_path, config, params)
    unet = tmp_path / "unet.safetensors"
    unet.write_bytes(unet.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        release.load(tmp_path)
    unet.unlink()
    with pytest.raises(InputError, match=r"unet\.safetensors missing"):
        release.load(tmp_path)
    release.save(tmp_path, config, params | {"unet": params["adapter"]})
    with pytest.raises(InputError, match=r"does not fit.*norm_in\.scale"):
        release.load(tmp_path)
    with pytest.raises(InputError, match="no model 'nothing'"):
        release.model_folder("nothing")
