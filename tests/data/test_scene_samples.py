import itertools
import json

import numpy as np
import pytest
from PIL import Image

from imprint_jax.config.fields import Config, SourceConfig
from imprint_jax.data import batch as batches
from imprint_jax.data.pairs import make_pairs
from imprint_jax.data.pipeline import make_dataset, make_stream, make_transform
from imprint_jax.data.preparation.prepare import Options, prepare
from imprint_jax.data.records import RecordSource
from imprint_jax.data.transforms import with_shadow
from imprint_jax.errors import InputError
from imprint_jax.images import decode_image
from tests.tiny import tiny_recipe

SIDE, SHADOW = 64, 120


def write_scenes(folder, objects=2, scenes=2, views=3):
    """Discs with a shadow on their right, in scenes of one grey each."""
    y, x = np.mgrid[:SIDE, :SIDE]
    for number, scene, view in itertools.product(range(objects), range(scenes), range(views)):
        path = folder / f"object{number}" / f"{scene:03d}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "scene.json").write_text("{}")
        disc = (y - 32) ** 2 + (x - 24 - 3 * view) ** 2 < 12**2
        background = np.full((SIDE, SIDE, 3), 150 + 20 * scene, np.uint8)
        target = background.copy()
        target[32:44, 24 + 3 * view : 52 + 3 * view] = SHADOW
        target[disc] = 40 + 80 * number % 200, 50 * scene, 60 * view
        mask = disc.astype(np.uint8) * 255
        for name, picture in (("target", target), ("background", background), ("mask", mask)):
            Image.fromarray(picture).save(path / f"{view:03d}_{name}.png")


@pytest.fixture
def records(tmp_path):
    write_scenes(tmp_path / "scenes")
    prepare("scenes", tmp_path / "scenes", tmp_path / "records")
    return tmp_path / "records"


@pytest.fixture
def settings(records):
    c = tiny_recipe(2)
    c.image_size, c.batch_size = 64, 16
    c.data.color, c.data.share = 0.0, (0.1, 0.2)
    c.data.sources = (dict(kind="scenes", records=str(records), weight=1.0),)
    return Config.of(c)


def test_scenes_become_records(tmp_path, records):
    source = RecordSource(records, "train")
    assert source.index["group_names"].tolist() == ["object0", "object1"]
    assert source.index["instance"].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert source.index["frame"].tolist() == [0, 1, 2] * 4
    folder = tmp_path / "scenes" / "object1" / "001"
    assert source[11]["image"] == (folder / "002_target.png").read_bytes()
    assert source[11]["background"] == (folder / "002_background.png").read_bytes()
    mask = decode_image(source[11]["mask"], "")[..., 0]
    np.testing.assert_array_equal(mask, np.asarray(Image.open(folder / "002_mask.png")))


def test_scenes_are_split_by_object(tmp_path):
    write_scenes(tmp_path / "scenes")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["object1"], "test": ["object0"]}))
    prepare("scenes", tmp_path / "scenes", tmp_path / "records", tmp_path / "splits.json")
    for split, name in (("train", "object1"), ("test", "object0")):
        source = RecordSource(tmp_path / "records", split)
        assert len(source) == 6 and {source[i]["group"] for i in range(6)} == {name}


@pytest.mark.parametrize("unit", ["object", "video"])
def test_an_object_stays_together_with_all_its_scenes(tmp_path, unit):
    write_scenes(tmp_path / "scenes", objects=12, scenes=3, views=1)
    options = dict(split_by=unit, fractions=(0.5, 0.0, 0.5))
    counts = prepare(
        "scenes", tmp_path / "scenes", tmp_path / "records", options=Options(**options)
    )["records"]
    assert min(counts.values()) >= 3 and sum(counts.values()) == 36
    groups = [RecordSource(tmp_path / "records", s).index["group_names"] for s in counts]
    assert not set(groups[0]) & set(groups[1])
    splits = json.loads((tmp_path / "records" / "splits.json").read_text())
    assert {*splits["train"], *splits["test"]} == {f"object{k}" for k in range(12)}


def test_what_is_not_whole_is_listed(tmp_path):
    folder = tmp_path / "scenes"
    write_scenes(folder)
    (folder / "object0" / "000" / "000_mask.png").unlink()
    (folder / "object0" / "000" / "001_background.png").unlink()
    (folder / "object0" / "one").mkdir()
    (folder / "object0" / "000" / "002_target.png").rename(
        folder / "object0" / "one" / "002_target.png"
    )
    (folder / "object2").mkdir()
    (folder / ".object1.000.part" / "000").mkdir(parents=True)
    (folder / "more.zip").write_bytes(b"PK")
    (folder / "elsewhere").symlink_to("gone")
    counts = prepare("scenes", folder, tmp_path / "records")
    assert counts["records"] == {"train": 9}
    assert counts["rejects"] == {
        "no mask": 1,
        "missing picture": 1,
        "unknown name": 1,
        "empty folder": 1,
        "archive": 1,
        "broken link": 1,
    }


def test_pairs_are_other_views_of_any_scene(records):
    index = RecordSource(records, "train").index
    pairs = make_pairs("scenes", index, 7)
    assert len(pairs) == 12
    for k in range(12):
        first = pairs.records[k]
        same = np.flatnonzero(index["group"] == index["group"][first])
        assert sorted(pairs.partners(k)) == sorted({*same.tolist()} - {first})


def test_samples_hold_the_background_outside_and_the_object_inside(settings):
    stream = make_stream(settings)
    with_its_shadow = 0
    for number in range(60):
        sample = stream[number]
        target, hole = sample["target"].astype(int), sample["mask"][..., 0] == 1
        inner = target[1:-1, 1:-1][~hole[1:-1, 1:-1]]
        assert np.isin(inner, (150, 170)).all()  # not the shadow
        assert np.abs(target[hole] - SHADOW).max() > 30  # the disc
        with_its_shadow += (np.abs(target[hole] - SHADOW).max(-1) <= 3).mean() > 0.1
        assert (sample["object"][0, 0] == 0).all() and sample["object"].max() > 30
    assert 10 < with_its_shadow < 58
    batch = next(iter(make_dataset(settings)))
    batches.check_batch(batch, settings)


def test_object_and_target_are_of_one_object_and_differ(settings):
    transform = make_transform(settings, settings.data.sources[0])
    scenes = set()
    for number in range(30):
        scene = transform.scene(number % 12, np.random.default_rng(number))
        first, second = (transform.records[i] for i in scene.records)
        assert first["group"] == second["group"] and scene.records[0] != scene.records[1]
        scenes.add((first["instance"], second["instance"]))
    assert scenes == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_the_shadow_next_to_the_object_is_found_and_no_other():
    background = np.full((128, 128, 3), 150, np.uint8)
    hole = np.zeros((128, 128), bool)
    hole[40:80, 40:60] = True
    target = background.copy()
    target[70:80, 50:76] = 100  # its shadow
    target[40:50, 70:78] = 100  # one that does not touch it
    target[hole] = 255
    background[::2, ::2] += 4  # noise
    found = with_shadow(target, background, hole)
    assert found[72:78, 40:75].all() and found[hole].all()
    assert not found[:, 80:].any() and not found[40:50, 70:78].any()


def test_records_without_background_are_refused(tmp_path, settings):
    write_scenes(tmp_path / "more", objects=1, scenes=1, views=2)
    source = SourceConfig(kind="scenes", records=str(tmp_path / "bare"), weight=1.0)
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.open(tmp_path / "more" / "object0" / "000" / "000_target.png").save(frames / "0.png")
    (frames / "masks" / "0").mkdir(parents=True)
    for name in ("a", "b"):
        Image.open(tmp_path / "more" / "object0" / "000" / "000_mask.png").save(
            frames / "masks" / "0" / f"{name}.png"
        )
    prepare("photos", frames, tmp_path / "bare")
    with pytest.raises(InputError, match="has no background"):
        make_transform(settings, source).scene(0, np.random.default_rng(0))
