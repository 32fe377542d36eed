"""The model that ships, on objects and photos it was never trained on."""

import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from imprint_jax import Compositor, config
from imprint_jax.config import Config
from imprint_jax.data.preparation.prepare import prepare
from imprint_jax.data.records import RecordSource
from imprint_jax.data.transforms import Pasted
from imprint_jax.diffusion import losses, process
from imprint_jax.evaluation.background import overlap
from imprint_jax.geometry import fill_hole, ring_around
from imprint_jax.models import imprint
from imprint_jax.training import sharding
from imprint_jax.weights import release

SAMPLES = Path(__file__).parent.parent / "data" / "samples"


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """Hundreds of pictures by a real model: here running takes longer than compiling."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def mini():
    settings, params = release.load(release.model_folder("mini"))
    return settings, imprint.split(settings.model)[0], params


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Stage-2 samples of the held-out objects in the held-out photos: 200, and their objects."""
    folder = tmp_path_factory.mktemp("records")
    splits = SAMPLES / "splits.json"
    for name, source in (("objaverse", "objects"), ("photos", "photos")):
        prepare(name, SAMPLES / source, folder / name, splits)
    settings = Config.of(config.load("mini144_stage2"))
    records = RecordSource(folder / "objaverse", "test")
    samples = Pasted(settings, records, RecordSource(folder / "photos", "test"))
    rng = np.random.default_rng(0)
    numbers = rng.choice(len(samples), 200)
    groups = records.index["group"][samples.pairs.records[numbers]]
    drawn = [samples.random_map(int(k), np.random.default_rng(k)) for k in numbers]
    batch = {key: np.stack([sample[key] for sample in drawn]) for key in drawn[0]}
    return batch | {"index": np.arange(200, dtype=np.int32)}, groups


@pytest.mark.slow
def test_the_right_objects_tokens_help(mini, held_out):
    settings, graphdef, params = mini
    batch, groups = held_out
    assert len(set(groups)) >= 4
    rng = np.random.default_rng(1)
    other = np.array([rng.choice(np.flatnonzero(groups != group)) for group in groups])
    schedule = jnp.asarray(process.noise_schedule(settings.diffusion))

    @jax.jit
    def loss(params, batch):
        model = imprint.bind(graphdef, params)
        shape = jax.eval_shape(model.vae.encode, batch["target"]).shape[1:]
        draws = losses.draw(jax.random.key(0), batch["index"], shape, 1000, 0.0)
        draws = draws._replace(timesteps=700 + draws.timesteps * 3 // 10)
        return losses.stage_loss(2, model, batch, draws, schedule, settings.diffusion, 0.0)

    def total(batch):
        parts = [{k: v[i : i + 50] for k, v in batch.items()} for i in range(0, 200, 50)]
        return np.concatenate([loss(params, part) for part in parts])

    right, wrong = total(batch), total(batch | {"object": batch["object"][other]})
    share = np.mean(right < wrong)
    print(f"right tokens win {share:.1%} of 200 draws; loss {right.mean():.4f} {wrong.mean():.4f}")
    assert share >= 0.8


def test_the_codec_keeps_photographs(mini):
    """At least 28 dB on crops of the held-out photos at its own size."""
    settings, *_ = mini
    codec, size = imprint.build(settings.model.vae), settings.image_size
    names = json.loads((SAMPLES / "splits.json").read_text())["photos"]["test"]
    rng = np.random.default_rng(0)
    crops = []
    for name in names:
        photo = Image.open(SAMPLES / "photos" / f"{name}.jpg")
        for _ in range(8):
            side = int(rng.uniform(size, min(photo.size)))
            x, y = rng.integers(photo.width - side + 1), rng.integers(photo.height - side + 1)
            crop = photo.crop((x, y, x + side, y + side)).resize((size, size))
            crops.append(np.asarray(crop))
    images = imprint.to_float(jnp.asarray(np.stack(crops)))
    decoded = jnp.clip(codec.decode(codec.encode(images)), -1, 1)
    psnr = 10 * np.log10(4 / np.mean((np.asarray(decoded) - images) ** 2, axis=(1, 2, 3)))
    print(f"codec: {psnr.mean():.1f} dB on average, {psnr.min():.1f} dB at worst")
    assert psnr.mean() >= 28


def test_mini_composes_in_the_hole(mini):
    compositor = Compositor.from_pretrained("mini")
    names = json.loads((SAMPLES / "splits.json").read_text())
    view = sorted((SAMPLES / "objects" / names["objaverse"]["test"][0]).glob("*.webp"))[0]
    photo = np.asarray(Image.open(SAMPLES / "photos" / f"{names['photos']['test'][0]}.jpg"))
    hole = np.zeros(photo.shape[:2], bool)
    hole[120:280, 200:360] = True
    picture = np.asarray(compositor(Image.open(view), photo, hole, num_steps=20))
    np.testing.assert_array_equal(picture[:100], photo[:100])
    assert np.mean(np.any(picture != photo, axis=-1)[hole]) > 0.9


def looks_like(picture, view, photo, hole):
    """The pixels near the hole that are coloured like the object rather than like the photo.

    In whichever light: the object's lit and shaded sides are as bright as the scene makes them.
    """
    lights = np.array([0.5, 0.75, 1, 1.25])[:, None, None]
    own = KDTree(np.minimum(lights * view[view[..., 3] > 250][:, :3], 255).reshape(-1, 3))
    around = KDTree(photo[ring_around(hole, 70)])
    colours = picture.reshape(-1, 3)
    nearer = own.query(colours)[0] < around.query(colours)[0]
    return nearer.reshape(hole.shape) & (hole | ring_around(hole, 40))


@pytest.mark.parametrize(
    "name, view", [("cap", "030"), pytest.param("chicken", "004", marks=pytest.mark.slow)]
)
def test_the_hole_decides_the_shape(name, view):
    """One object in a wide and in a tall hole, from pure noise: its colours fill it each time."""
    compositor = Compositor.from_pretrained("mini")
    view = np.asarray(Image.open(SAMPLES / "objects" / name / f"{view}.webp"))
    photo = np.asarray(Image.open(SAMPLES / "photos" / "mountains.jpg"))
    rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]] - np.array([[[420]], [[390]]])
    for height, width in ((60, 140), (140, 60)):
        hole = (rows / height) ** 2 + (columns / width) ** 2 < 1
        picture = np.asarray(compositor(view, photo, hole, num_steps=20, strength=1.0))
        assert overlap(looks_like(picture, view, photo, hole), hole) >= 0.7
        # Neither the photo nor a hole that is merely filled passes for the object.
        for other in (photo, fill_hole(photo, hole[..., None], "grey", grey=128)):
            assert overlap(looks_like(other, view, photo, hole), hole) < 0.1


def test_the_recipes_overrides_are_understood():
    script = (SAMPLES.parent / "recipes" / "mini.sh").read_text()
    sources = re.search(r'^sources="(.*?)"$', script, re.M | re.S)[1]
    commands = re.findall(r"^imprint train .*?(?<!\\)\n(?! )", script, re.M | re.S)
    words = [shlex.split(command.replace("$sources", sources)) for command in commands]
    assert [w[w.index("--config") + 1] for w in words] == [
        "mini_stage1",
        "mini_stage2",
        "mini_stage2",
    ]
    for word in words:
        overrides = [part for part in word if part.startswith("--config.")]
        found = Config.of(config.load(word[word.index("--config") + 1], overrides))
        assert found.total_steps > 2000 and len(found.data.sources) == found.stage


def test_the_second_recipe_and_fine_tuning_can_be_run():
    script = (SAMPLES.parent / "recipes" / "mini144.sh").read_text()
    names = re.findall(r"^imprint train --config (\w+)", script, re.M)
    assert names == ["mini144_stage1", "mini144_stage2"]
    one, two, tuned = (Config.of(config.load(name)) for name in [*names, "mini_finetune"])
    for settings in (one, two, tuned):
        sharding.check_batch_size(settings.batch_size, settings.accumulation, 1)
    # An object spans 16 latents and more, and as many tokens.
    assert one.image_size / one.context / one.model.vae.factor >= 16
    assert one.object_size // one.model.dinov2.patch_size == 16
    assert one.released() == two.released()
    # Fine-tuning starts from what ships, so it must be built like it.
    shipped = release.load_config(release.model_folder("mini"))
    assert tuned.model == shipped.model
    assert tuned.context == shipped.context
    assert (tuned.image_size, tuned.object_size) == (shipped.image_size, shipped.object_size)


def test_mini_is_small_and_says_what_it_is():
    folder = release.model_folder("mini")
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"config.json", *(f"{c}.safetensors" for c in imprint.COMPONENTS)}
    assert sum(files.values()) <= 30_000_000
