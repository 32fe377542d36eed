import ast
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import imprint_jax
from imprint_jax.config.fields import DataConfig
from imprint_jax.data import batch as batches
from imprint_jax.data.pipeline import check_sources, make_dataset, make_stream
from imprint_jax.data.records import RecordWriter
from imprint_jax.errors import InputError
from imprint_jax.images import encode_png
from tests.data.test_records import record, view
from tests.tiny import tiny_config

OBJECTS, FRAMES = 5, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Objects whose red says which they are, green which frame, blue which set; and photos."""
    folder = tmp_path_factory.mktemp("data")
    for name, blue in (("views", 200), ("other", 100)):
        with RecordWriter(folder / name, name) as writer:
            for number, frame in itertools.product(range(OBJECTS), range(FRAMES)):
                rgba = view(number)
                rgba[..., :3] = 40 + 40 * number, 40 + 30 * frame, blue
                changes = dict(image=encode_png(rgba), mask=encode_png(rgba[..., 3]))
                writer.write("train", record(group=f"{number}", frame=frame, **changes))
    with RecordWriter(folder / "photos", "photos") as writer:
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
            empty = encode_png(np.zeros((90, 120), np.uint8))
            writer.write("train", record(group=f"p{number}", image=encode_png(pixels), mask=empty))
    with RecordWriter(folder / "clips", "clips") as writer:
        y, x = np.mgrid[:64, :96]
        for video, instance, frame in itertools.product(range(2), range(2), range(4)):
            noise = np.random.default_rng(frame).integers(200, 256, (64, 96, 3), dtype=np.uint8)
            mask = np.hypot(x - 20 - 10 * frame - 30 * instance, y - 30) < 12
            noise[mask] = 40 + 80 * video + 40 * instance, 40 + 30 * frame, 0
            changes = dict(instance=instance, image=encode_png(noise), mask=encode_png(mask))
            writer.write("train", record(group=f"v{video}", frame=frame, **changes))
    return folder


@pytest.fixture
def stage1(data):
    data = DataConfig(
        sources=(dict(kind="views", records=str(data / "views"), weight=1.0),),
        num_workers=0,
        window=2,
        affine=dict(rotate=15.0, scale=0.1, shear=5.0, flip=0.5),
        share=(0.05, 0.4),
        mask_sigmas=(0.05, 0.15),
    )
    return replace(tiny_config(1), data=data)


@pytest.fixture
def stage2(data, stage1):
    source = dict(kind="pasted", records=str(data / "views"), weight=1.0)
    source |= dict(backgrounds=str(data / "photos"))
    return replace(stage1, stage=2, data=replace(stage1.data, color=0.5, sources=(source,)))


def with_data(config, **changes):
    return replace(config, data=replace(config.data, **changes))


@pytest.fixture
def mixed(data, stage2):
    """Stage 2 of photos, videos and pasted views."""
    clips = str(data / "clips")
    sources = (
        dict(kind="photo", records=clips, weight=2.0),
        dict(kind="video", records=clips, weight=1.0),
        *stage2.data.sources,
    )
    return with_data(stage2, sources=sources)


def take(config, count, **options):
    with closing(iter(make_dataset(config, **options))) as iterator:
        return list(itertools.islice(iterator, count))


def samples(host_batches):
    """{index: the sample's arrays as bytes}."""
    found = {}
    for batch in host_batches:
        for row, index in enumerate(batch["index"].tolist()):
            assert index not in found
            found[index] = b"".join(batch[key][row].tobytes() for key in sorted(batch))
    return found


def identity(images):
    """Object and frame numbers of (b h w 3), by the middle of each image."""
    middle = images[:, images.shape[1] // 2, images.shape[2] // 2].astype(float)
    return (middle[:, 0] - 40) / 40, (middle[:, 1] - 40) / 30


def test_stage_1_pairs_two_views_of_one_object(stage1):
    taken = take(stage1, 10)
    for batch in taken:
        batches.check_batch(batch, stage1)
        objects, frames = identity(batch["object"])
        targets, target_frames = identity(batch["target"])
        np.testing.assert_array_equal(objects, targets)
        apart = np.abs(frames - target_frames)
        assert (apart >= 1).all() and (apart <= 2).all()
    # As many first views as records: one epoch, each once.
    objects, frames = identity(np.concatenate([b["object"] for b in taken])[: OBJECTS * FRAMES])
    seen = {(round(o), round(f)) for o, f in zip(objects, frames, strict=True)}
    assert len(seen) == OBJECTS * FRAMES


def test_stage_1_gives_both_views_the_same_colours(stage1):
    (batch,) = take(with_data(stage1, color=1.0), 1)
    for sample in range(8):
        blue_in, blue_out = (
            batch[key][sample, 14:17, 14:17, 2].mean() for key in ("object", "target")
        )
        assert abs(blue_in - blue_out) < 12  # the frame's green mixes in
    assert np.ptp(batch["object"][:, 14, 14, 2].astype(int)) > 20


def test_stage_2_pastes_the_other_view(stage2):
    shares = []
    for batch in take(stage2, 12):
        batches.check_batch(batch, stage2)
        for target, mask in zip(batch["target"], batch["mask"][..., 0], strict=True):
            shares.append(mask.mean())
            assert (target[mask == 0] != target[mask == 0][0]).any()  # a photo, not black
        assert (batch["object"][:, 0, 0] == 0).all()
    assert 0.03 < min(shares) < 0.2 and 0.3 < max(shares) < 0.75


def test_stage_2_draws_every_mask_level(stage2):
    fills = []  # of their boxes, by discs: 0.79 exactly, more when blurred, 1 for the box
    for batch in take(replace(stage2, image_size=128), 20):
        for mask in batch["mask"][..., 0]:
            fills.append(mask.sum() / (mask.any(axis=1).sum() * mask.any(axis=0).sum()))
    counts, _ = np.histogram(fills, [0.7, 0.84, 0.999, 1.001])
    np.testing.assert_allclose(counts, [40, 80, 40], atol=20)
    assert np.std([fill for fill in fills if 0.84 < fill < 0.999]) > 0.01


@pytest.mark.parametrize("kind", ["video", "pair", "photo"])
def test_stage_2_finds_the_object_in_place(stage2, data, kind):
    affine = replace(stage2.data.affine, rotate=0.0)
    source = dict(kind=kind, records=str(data / "clips"), weight=1.0)
    stage2 = with_data(stage2, color=0.0, affine=affine, sources=(source,))
    seen = set()
    for batch in take(stage2, 12):
        batches.check_batch(batch, stage2)
        for crop, target, mask in zip(
            batch["object"], batch["target"], batch["mask"][..., 0] > 0, strict=True
        ):
            which, frame = (float(v[0]) for v in identity(crop[None]))
            middle = target[mask & (target[..., 2] < 30)].mean(axis=0)
            assert abs((middle[0] - 40) / 40 - which) < 0.2  # the same object
            other = (middle[1] - 40) / 30
            seen.add((round(which), round(frame), round(other)))
            # All of it is in the hole, but for a rim that resizing mixes.
            assert not (target[~mask] < 100).all(axis=-1).any()
            assert 0.02 < mask.mean() < 0.75
    frames = {(frame, other) for _, frame, other in seen}
    assert {which for which, _, _ in seen} == {0, 1, 2, 3}
    every = set(itertools.product(range(4), repeat=2))
    same = {(frame, frame) for frame in range(4)}
    assert frames == {"video": every - same, "photo": same, "pair": {(0, 1), (0, 2), (0, 3)}}[kind]


def test_kinds_mix_by_weight_and_keep_every_epoch_whole(mixed):
    kinds = []
    for batch in take(with_data(mixed, color=0.0), 16):
        blue = batch["object"][:, 14, 14, 2]
        kinds += (blue > 100).tolist()  # a pasted view; else of the clips
    counts = [sum(kinds[start : start + 4]) for start in range(0, 128, 4)]
    assert counts == [1] * 32


@pytest.mark.parametrize("stage", ["stage1", "stage2", "mixed"])
def test_resume_is_exact_from_any_position(request, stage):
    config = request.getfixturevalue(stage)
    whole = samples(take(config, 9))
    assert sorted(whole) == list(range(72))
    for start in (8, 40, 43):
        resumed = samples(take(config, 3, start=start))
        assert resumed == {index: whole[index] for index in range(start, start + 24)}


@pytest.mark.parametrize("hosts", [2, 4])
def test_every_number_of_hosts_sees_the_same_batches(mixed, hosts):
    one = take(mixed, 3, start=16)
    many = [take(mixed, 3, start=16, process_index=i, process_count=hosts) for i in range(hosts)]
    for k in range(3):
        parts = [host[k] for host in many]
        assert {len(part["index"]) for part in parts} == {8 // hosts}
        assert samples(parts) == samples([one[k]])


def test_workers_change_nothing_and_end_with_the_iterator(mixed):
    expected = take(mixed, 4, start=8)
    before = set(multiprocessing.active_children())
    iterator = iter(make_dataset(with_data(mixed, num_workers=2), start=8))
    got = [next(iterator), next(iterator)]  # one of each worker: both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)  # as schedulers send it to every process
    got += [next(iterator) for _ in range(2)]
    iterator.close()
    assert not any(worker.is_alive() for worker in workers)
    for ours, theirs in zip(got, expected, strict=True):
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_seed_and_epoch_change_order_and_perturbation(stage1):
    stage1 = with_data(stage1, color=1.0)
    first = take(stage1, 1)[0]
    second = take(replace(stage1, seed=1), 1)[0]
    assert (first["object"] != second["object"]).any()
    one, two = take(replace(stage1, batch_size=OBJECTS * FRAMES), 2)
    assert (one["target"] != two["target"]).any(axis=(1, 2, 3)).all()


def test_sources_mix_by_weight(stage1, data):
    names = ("views", "other")
    sources = tuple(
        dict(kind="views", records=str(data / name), weight=weight)
        for name, weight in zip(names, (3.0, 1.0), strict=True)
    )
    taken = take(with_data(stage1, sources=sources), 8)
    blue = np.concatenate([batch["target"][:, 16, 16, 2] for batch in taken])
    for start in range(0, 64, 4):
        assert sorted(blue[start : start + 4]) == [100, 200, 200, 200]


def test_the_stream_is_endless_and_far_away_is_near(stage1):
    stream = make_stream(stage1)
    far = 3 * 2**40 + 5
    assert stream[far]["index"] == 5 and stream[far]["index"].dtype == np.int32
    begin = time.monotonic()
    (batch,) = take(stage1, 1, start=far)
    assert batch["index"].tolist() == list(range(5, 13))
    assert time.monotonic() - begin < 2


def test_mistakes_in_the_config_are_refused(stage1, stage2, data, tmp_path):
    with pytest.raises(InputError, match="does not divide by 3"):
        make_dataset(stage2, process_count=3)
    (good,) = stage2.data.sources
    for change, message in [
        (dict(kind="views"), r"'views' in stage 2"),
        (dict(kind="film"), r"'film' in stage 2"),
        (dict(kind="photo", records=str(data / "photos")), "No picture has an object"),
        (dict(kind="video", records=str(data / "photos")), r"No object has two views\."),
        (dict(records=str(tmp_path)), "no prepared data set"),
        (dict(backgrounds=str(tmp_path)), "no prepared data set"),
        (dict(records=str(data / "photos")), "No object has two views"),
    ]:
        with pytest.raises(InputError, match=message):
            check_sources(with_data(stage2, sources=(replace(good, **change),)))
    with pytest.raises(InputError, match="sources is empty"):
        check_sources(with_data(stage2, sources=()))
    idle = tuple(replace(source, weight=0.0) for source in stage2.data.sources)
    with pytest.raises(InputError, match="all weights in it are 0"):
        check_sources(with_data(stage2, sources=idle))
    check_sources(with_data(stage2, sources=(*idle, *stage2.data.sources)))


def test_check_batch_names_what_is_wrong(stage1):
    (batch,) = take(stage1, 1)
    batches.check_batch(batch, stage1)
    for key, value, message in [
        ("object", batch["object"][:4], r"batch\['object'\] is uint8\(4, 28, 28, 3\)"),
        ("target", batch["target"] / 255, r"batch\['target'\] is float64"),
        ("mask", batch["mask"] * 255, "other than 0 and 1"),
        ("mask", batch["mask"] * 0, "all ones in stage 1"),
        ("index", -batch["index"] - 1, "negative"),
        ("extra", batch["mask"], "has keys"),
    ]:
        with pytest.raises(InputError, match=message):
            batches.check_batch(batch | {key: value}, stage1)


def test_one_sample_a_process(stage1):
    wanted = take(stage1, 2)
    alone = replace(stage1, batch_size=1)
    for k, batch in enumerate(take(alone, 3)):
        np.testing.assert_array_equal(batch["target"][0], wanted[0]["target"][k])
    (third,) = take(stage1, 1, process_index=3, process_count=8)
    assert third["index"] == [3]
    np.testing.assert_array_equal(third["target"][0], wanted[0]["target"][3])


def test_to_device_lays_samples_over_the_devices(stage1):
    (batch,) = take(stage1, 1)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    on_device = batches.to_device(batch, sharding)
    spec = batches.batch_spec(stage1, 8)
    for key, array in on_device.items():
        assert (array.shape, array.dtype) == (spec[key].shape, spec[key].dtype)
        assert len(array.addressable_shards) == 8
        assert array.addressable_shards[0].data.shape[0] == 1
        np.testing.assert_array_equal(array, batch[key])


def test_picture_shows_samples_in_rows(stage2):
    (batch,) = take(stage2, 1)
    picture = batches.picture(batch, rows=3)
    assert picture.shape == (batches.HEADING + 3 * 32, 3 * 32, 3) and picture.dtype == np.uint8
    heading, picture = np.split(picture, [batches.HEADING])
    assert all((part < 128).any() for part in np.split(heading, 3, axis=1))  # letters
    np.testing.assert_array_equal(picture[32:60, :28], batch["object"][1])
    np.testing.assert_array_equal(picture[32:64, 32:64], batch["target"][1])
    hole = batch["mask"][1, ..., 0] > 0
    marked = picture[32:64, 64:]
    np.testing.assert_array_equal(marked[~hole], batch["target"][1][~hole])
    assert (marked[hole][:, 0] >= 127).all()


def test_data_and_rendering_need_no_jax():
    package = Path(imprint_jax.__path__[0])
    files = [*(package / "data").rglob("*.py"), *(package / "rendering").rglob("*.py")]
    files += [package / "images.py", package / "geometry.py"]
    files.remove(package / "data" / "batch.py")
    assert len(files) >= 16
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert not [n for n in names if n.split(".")[0] in ("jax", "flax", "optax")], file
    script = """
import sys
import imprint_jax.data.preparation.check
import imprint_jax.data.preparation.prepare
import imprint_jax.data.preparation.show

loaded = {name.split(".")[1] for name in sys.modules if name.startswith("imprint_jax.")}
assert loaded == {"config", "errors", "geometry", "images", "data", "runtime"}, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)
