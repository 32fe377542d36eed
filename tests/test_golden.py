"""What must not change unseen: every recipe's parameters, one a line, and pictures of samples.

After a change that is meant: pytest tests/test_golden.py --update-golden
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from imprint_jax import config
from imprint_jax.config import Config
from imprint_jax.data.pipeline import make_stream
from imprint_jax.data.preparation.prepare import prepare
from imprint_jax.images import read_image
from imprint_jax.training import optimizer, sharding
from imprint_jax.training.state import Trainer

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).parent.parent / "data" / "samples"


@pytest.mark.parametrize("recipe", ["stage1", "stage2", "finetune", "mini_stage1", "mini_stage2"])
def test_parameter_table(recipe, request):
    """Path, shape, dtype in the training state, group, and where it is cut over 8 devices."""
    trainer = Trainer(Config.of(config.load(recipe)), sharding.make_mesh(8))
    state, where = trainer.abstract_state, trainer.state_sharding
    params = traverse_util.flatten_dict(optimizer.merge(state.trained, state.frozen), sep="/")
    specs = traverse_util.flatten_dict(optimizer.merge(where.trained, where.frozen), sep="/")
    lines = [
        f"{path} {x.shape} {x.dtype} {trainer.labels[path]} {tuple(specs[path].spec)}\n"
        for path, x in sorted(params.items())
    ]
    file = GOLDEN / f"{recipe}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text("".join(lines))
    assert file.read_text().splitlines(keepends=True) == lines


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Prepared views and photos, shipped ones, and a video of an object before a photo."""
    folder = tmp_path_factory.mktemp("sets")
    video = folder / "video"
    for part in ("imgs", "panomasks"):
        (video / part / "kettle").mkdir(parents=True)
    photo = Image.open(SAMPLES / "photos" / "room.jpg").convert("RGB").resize((320, 240))
    for frame in range(0, 12, 3):
        view = Image.open(SAMPLES / "objects" / "kettle" / f"{frame:03d}.webp")
        scene, labels = photo.copy(), np.zeros((240, 320), np.uint16)
        scene.paste(view, (60 + 5 * frame, 40), view)
        inside = np.asarray(view)[..., 3] >= 128
        labels[40 : 40 + 192, 60 + 5 * frame : 252 + 5 * frame][inside] = 8401
        scene.save(video / "imgs" / "kettle" / f"{frame:08d}.jpg", quality=95)
        Image.fromarray(labels).save(video / "panomasks" / "kettle" / f"{frame:08d}.png")
    for name, scene in itertools.product(("kettle", "cactus"), range(2)):
        path = folder / "scenes" / name / f"{scene:03d}"
        path.mkdir(parents=True)
        background = photo.crop((40 * scene, 0, 40 * scene + 240, 240))
        for frame in range(3):
            view = Image.open(SAMPLES / "objects" / name / f"{5 * scene + frame:03d}.webp")
            view = view.resize((140, 140))
            shadow = view.getchannel("A").resize((180, 60)).point(lambda x: x // 2)
            target = background.copy()
            target.paste((0, 0, 0), (60, 150), shadow)
            target.paste(view, (40 + 15 * frame, 60), view)
            mask = Image.new("L", background.size)
            mask.paste(view.getchannel("A"), (40 + 15 * frame, 60))
            for what, picture in dict(target=target, background=background, mask=mask).items():
                picture.save(path / f"{frame:03d}_{what}.png")
    prepare("scenes", folder / "scenes", folder / "scene_records")
    prepare("vipseg", video, folder / "frames")
    prepare("objaverse", SAMPLES / "objects", folder / "views", SAMPLES / "splits.json")
    prepare("photos", SAMPLES / "photos", folder / "photos", SAMPLES / "splits.json")
    return folder


KINDS = {
    "views": "views",
    "pasted": "views",
    "video": "frames",
    "photo": "frames",
    "scenes": "scene_records",
}


@pytest.mark.parametrize("kind, records", KINDS.items())
def test_samples(kind, records, sets, request):
    """Four samples: object, target, the target with a grey hole, and the mask, exact."""
    settings = config.default()
    settings.stage = 1 if kind == "views" else 2
    settings.data.color = 0.0 if kind == "views" else 0.5
    settings.image_size, settings.object_size = 64, 48
    settings.model.dinov2.patch_size = 8
    source = dict(kind=kind, records=str(sets / records), weight=1.0)
    settings.data.sources = (source | dict(backgrounds=str(sets / "photos")),)
    stream = make_stream(Config.of(settings))
    rows = []
    for number in range(4):
        sample = stream[number]
        crop = np.pad(sample["object"], ((8, 8), (8, 8), (0, 0)))
        hole = np.where(sample["mask"] > 0, np.uint8(128), sample["target"])
        mask = np.repeat(sample["mask"] * np.uint8(255), 3, axis=2)
        rows.append(np.hstack([crop, sample["target"], hole, mask]))
    got = np.vstack(rows)
    file = GOLDEN / f"samples_{kind}.png"
    if request.config.getoption("--update-golden"):
        Image.fromarray(got).save(file)
    wanted, size = read_image(file), settings.image_size
    np.testing.assert_array_equal(got[:, -size:], wanted[:, -size:])
    # Other versions of Pillow and of its JPEG library round otherwise.
    assert np.abs(wanted.astype(int) - got)[:, :-size].mean() < 1
