import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from imprint_jax.data import records as records_module
from imprint_jax.data.records import Record, RecordSource, RecordWriter, decode, encode
from imprint_jax.errors import InputError
from imprint_jax.images import encode_png

KEYS = set(Record.__annotations__)


def view(seed=0, side=64):
    """(side side 4) uint8: a coloured disc with a soft edge on transparent ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    radius = side * rng.uniform(0.2, 0.4)
    alpha = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1) * 255
    color = rng.integers(40, 256, 3) * np.ones((side, side, 1))
    return np.dstack([color, alpha]).astype(np.uint8)


def record(seed=0, group="a", frame=0, **changes):
    rgba = view(seed)
    values = dict(
        image=encode_png(rgba),
        mask=encode_png(rgba[..., 3]),
        background=b"",
        group=group,
        instance=0,
        frame=frame,
        dataset="test",
    )
    return Record(**(values | changes))


def write(folder, splits):
    with RecordWriter(folder, "things") as writer:
        for split, items in splits.items():
            for item in items:
                writer.write(split, item)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_encode_and_decode_are_inverse():
    before = record(group="grün/7", frame=-3, instance=2**40, background=b"\x00\xff")
    after = decode(encode(before))
    assert after == before
    assert {key: type(value) for key, value in after.items()} == Record.__annotations__


def test_source_gives_back_what_was_written(tmp_path):
    train = [record(i, group="ab"[i // 3], frame=i, instance=i % 2) for i in range(5)]
    empty = record(7, group="photo", mask=encode_png(np.zeros((64, 64), np.uint8)))
    write(tmp_path / "d", {"train": [*train, empty], "test": [record(9)]})
    source = RecordSource(tmp_path / "d", "train")
    assert len(source) == 6
    assert [source[i] for i in (3, 0, 5)] == [train[3], train[0], empty]
    index = source.index
    assert index["group_names"][index["group"]].tolist() == [*"aaabb", "photo"]
    assert index["frame"].tolist() == [0, 1, 2, 3, 4, 0]
    assert index["instance"].tolist() == [0, 1, 0, 1, 0, 0]
    assert index["has_mask"].tolist() == [True] * 5 + [False]
    assert len(RecordSource(tmp_path / "d", "test")) == 1
    assert pickle.loads(pickle.dumps(source))[4] == train[4]  # as Grain sends it to workers


def test_many_shards_are_one_source(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "SHARD_BYTES", 3 * len(encode(record())) - 1)
    items = [record(frame=i) for i in range(8)]
    write(tmp_path / "d", {"train": items})
    names = [p.name for p in sorted((tmp_path / "d").glob("*array_record*"))]
    assert names == [f"things-train.array_record-0000{i}-of-00003" for i in range(3)]
    source = RecordSource(tmp_path / "d", "train")
    assert [source[i]["frame"] for i in range(8)] == list(range(8))

    (tmp_path / "d" / names[1]).unlink()
    with pytest.raises(InputError, match="lacks shards"):
        RecordSource(tmp_path / "d", "train")


def test_the_same_records_give_the_same_bytes(tmp_path):
    items = [record(i, frame=i) for i in range(3)]
    for name in ("one", "two"):
        write(tmp_path / name, {"train": items, "test": items[:1]})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_writer_refuses_what_is_there_and_leaves_nothing_half_done(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        RecordWriter(taken, "things")
    with pytest.raises(RuntimeError, match="stopped"), RecordWriter(tmp_path / "d", "x") as writer:
        writer.write("train", record())
        raise RuntimeError("stopped")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", {"train": [record()]})
    assert len(RecordSource(tmp_path / "empty", "train")) == 1


def test_missing_folder_and_split_are_refused(tmp_path):
    write(tmp_path / "d", {"train": [record()]})
    with pytest.raises(InputError, match=r"has no split 'validation', only train: .*every=0"):
        RecordSource(tmp_path / "d", "validation")
    with pytest.raises(InputError, match="nothing is no prepared data set"):
        RecordSource(tmp_path / "nothing", "train")


def test_a_damaged_shard_is_named(tmp_path):
    """By whichever file it is, and by the record where that can be told."""
    write(tmp_path / "d", {"train": [record(i) for i in range(20)]})
    shard = next((tmp_path / "d").glob("*.array_record-*"))
    index = next((tmp_path / "d").glob("*.index.npz"))
    whole, rows = shard.read_bytes(), index.read_bytes()
    for data, message in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a pointer of git-LFS"),
        (b"", "is damaged"),
        (whole[: len(whole) // 2], "is damaged"),
    ):
        shard.write_bytes(data)
        with pytest.raises(InputError, match=f"{shard.name} {message}"):
            RecordSource(tmp_path / "d", "train")
    image = whole.index(record(7)["image"])
    shard.write_bytes(whole[:image] + bytes(100) + whole[image + 100 :])
    source = RecordSource(tmp_path / "d", "train")
    assert source[6]["frame"] == source[8]["frame"] == 0
    with pytest.raises(InputError, match=f"{shard.name} is damaged: its record 7 cannot be read"):
        source[7]
    shard.write_bytes(whole)
    source = RecordSource(tmp_path / "d", "train")
    os.truncate(shard, len(whole) // 2)  # while it is open
    with pytest.raises(InputError, match=f"{shard.name} is damaged"):
        source[19]
    index.write_bytes(rows[:100])
    with pytest.raises(InputError, match=f"{index.name} is damaged"):
        RecordSource(tmp_path / "d", "train")


def test_tfds_reads_it_without_tensorflow(tmp_path):
    folder = tmp_path / "things" / "1.0.0"  # where tfds.data_source looks
    background = encode_png(view(3)[..., :3])
    write(folder, {"train": [record(0), record(1, background=background)], "test": [record(2)]})
    script = f"""
import sys
import numpy as np
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(folder)!r})
assert builder.info.splits["train"].num_examples == 2
raw = builder.as_data_source("train", decoders={{
    "image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}})
assert set(raw[0]) == {KEYS!r}
assert raw[0]["image"].startswith(b"\\x89PNG") and raw[0]["background"] == b""
assert raw[1]["background"].startswith(b"\\x89PNG")
decoded = builder.as_data_source("train")[1]
assert decoded["image"].shape == (64, 64, 4) and decoded["mask"].shape == (64, 64, 1)
assert decoded["mask"].max() == 255
named = tfds.data_source("things", data_dir={str(tmp_path)!r}, split="test")
assert len(named) == 1 and named[0]["group"] == b"a"
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
