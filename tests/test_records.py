import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.images import decode_image, encode_png
from imprint_jax.inputs import records as records_module
from imprint_jax.inputs.prepare import prepare
from imprint_jax.inputs.records import Record, RecordSource, RecordWriter, decode, encode

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


@pytest.fixture
def renders(tmp_path):
    """SRC/<object>/NNN.webp as `imprint data render` leaves it, with damaged and useless views."""
    src = tmp_path / "renders"
    for number, name in enumerate(["lamp", "chair", "mug"]):
        (src / name).mkdir(parents=True)
        for frame in range(4):
            rgba = Image.fromarray(view(10 * number + frame))
            rgba.save(src / name / f"{frame:03d}.webp", lossless=True)
        (src / name / "views.json").write_text("{}")
    (src / ".mug.part").mkdir()
    (src / ".mug.part" / "000.png").write_bytes(b"unfinished")
    (src / "rejects.jsonl").write_text("")
    cut_short = src / "chair" / "001.webp"
    cut_short.write_bytes(cut_short.read_bytes()[:60])
    Image.fromarray(view()[..., :3]).save(src / "chair" / "002.webp")
    Image.new("RGBA", (64, 64)).save(src / "lamp" / "000.webp")
    Image.fromarray(view(side=20)).save(src / "lamp" / "001.webp", lossless=True)
    Image.fromarray(np.pad(view(side=16), ((24, 24), (24, 24), (0, 0)))).save(
        src / "lamp" / "002.webp", lossless=True
    )
    return src


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
    for folder, split in ((tmp_path / "d", "test"), (tmp_path / "nothing", "train")):
        with pytest.raises(InputError, match="no prepared data set with a split"):
            RecordSource(folder, split)


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


def test_prepare_objaverse(tmp_path, renders):
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["mug", "chair"], "validation": ["lamp", "gone"]}))
    seen = []
    counts = prepare(
        "objaverse", renders, tmp_path / "d", splits, progress=lambda *now: seen.append(now)
    )
    assert counts == {
        "records": {"train": 6, "validation": 1},
        "rejects": {
            "unreadable": 1,
            "no alpha": 1,
            "empty mask": 1,
            "picture too small": 1,
            "object too small": 1,
        },
    }
    assert seen == [(i, 3) for i in range(1, 4)]
    lines = (tmp_path / "d" / "rejects.jsonl").read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert [r["path"] for r in rejects] == [
        "chair/001.webp", "chair/002.webp", "lamp/000.webp", "lamp/001.webp", "lamp/002.webp",
    ]  # fmt: skip
    source = RecordSource(tmp_path / "d", "train")
    # In order of name; numbers count the views of the folder, rejected ones too.
    names = source.index["group_names"][source.index["group"]].tolist()
    assert names == ["chair"] * 2 + ["mug"] * 4
    assert source.index["frame"].tolist() == [0, 3, 0, 1, 2, 3]
    first = source[0]
    assert first["image"] == (renders / "chair" / "000.webp").read_bytes()
    np.testing.assert_array_equal(decode_image(first["mask"], "")[..., 0], view(10)[..., 3])


def test_prepare_does_not_depend_on_workers(tmp_path, renders):
    for workers in (1, 4):
        prepare("objaverse", renders, tmp_path / f"{workers}", None, workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


def test_prepare_photos_takes_its_own_part_of_the_splits(tmp_path):
    src = tmp_path / "photos"
    src.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("b.jpg", "a.png", "c.JPG"):
        Image.new("RGB", (60, 40), "green").save(src / name, exif=exif)
    (src / "notes.txt").write_text("not a picture")
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["lamp"], "photos": {"train": ["a"], "test": ["b"]}}))
    counts = prepare("photos", src, tmp_path / "d", splits)
    assert counts == {"records": {"train": 1, "test": 1}, "rejects": {"in no split": 1}}
    photo = RecordSource(tmp_path / "d", "train")[0]
    assert photo["group"] == "a"
    mask = decode_image(photo["mask"], "")
    assert mask.shape == (60, 40, 3) and not mask.any()  # of the upright picture's size


def test_prepare_shrinks_on_request(tmp_path, renders):
    prepare("objaverse", renders, tmp_path / "d", max_side=32)
    shrunk = RecordSource(tmp_path / "d", "train")[0]
    image, mask = decode_image(shrunk["image"], ""), decode_image(shrunk["mask"], "")[..., 0]
    assert Image.open(io.BytesIO(shrunk["image"])).format == "JPEG"
    assert image.shape == (32, 32, 3) and mask.shape == (32, 32)
    original = Image.fromarray(view(10)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(image[12:20, 12:20], np.asarray(original)[12:20, 12:20, :3], atol=3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "Cannot read the splits file"),
        ("[1]", "must be a JSON object"),
        ('{"dev": ["mug"]}', "names nothing"),
        ('{"train": ["mug"], "test": ["mug"]}', "mug in train and in test"),
        ('{"train": ["nobody"]}', "no usable picture"),
    ],
)
def test_prepare_refuses_bad_splits(tmp_path, renders, text, message):
    splits = tmp_path / "splits.json"
    splits.write_text(text)
    with pytest.raises(InputError, match=message):
        prepare("objaverse", renders, tmp_path / "d", splits)
    assert not (tmp_path / "d").exists()


def test_prepare_refuses_unknown_names_and_folders(tmp_path):
    with pytest.raises(InputError, match="no reader 'imagenet'; known are objaverse, photos"):
        prepare("imagenet", tmp_path, tmp_path / "d")
    with pytest.raises(InputError, match="no folder"):
        prepare("photos", tmp_path / "gone", tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no usable picture"):
        prepare("photos", tmp_path / "empty", tmp_path / "d")
