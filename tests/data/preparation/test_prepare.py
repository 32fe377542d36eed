"""`prepare`: rejects, filters, splits, processes, and going on after a stop."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from imprint_jax.data.preparation import chunks as chunks_module
from imprint_jax.data.preparation import prepare as prepare_module
from imprint_jax.data.preparation.filters import Filters, Reject, largest_part, sharpness
from imprint_jax.data.preparation.prepare import Options, prepare
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from imprint_jax.images import decode_image
from tests.data.preparation.test_sources import disc, pixels, prepared, save, white
from tests.data.test_records import contents, view


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
    options = dict(split_by="photo", fractions=(0.5, 0.3, 0.2))
    for workers in (1, 3):
        prepare(
            "objaverse",
            renders,
            tmp_path / f"{workers}",
            options=Options(**options),
            workers=workers,
        )
    one = contents(tmp_path / "1")
    assert one == contents(tmp_path / "3")
    assert {"SHA256SUMS", "splits.json", "rejects.jsonl", "dataset_info.json"} <= set(one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "renders"]
    assert sum("array_record" in name for name in one) > 3


def test_checksums_are_as_sha256sum_reads_them(tmp_path, renders):
    prepare("objaverse", renders, tmp_path / "d")
    subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "d", check=True
    )
    listed = (tmp_path / "d" / "SHA256SUMS").read_text()
    assert {line.split("  ")[1] for line in listed.splitlines()} == {*contents(tmp_path / "d")} - {
        "SHA256SUMS"
    }


KILLED = """
import os, signal, sys
from imprint_jax.data.preparation.prepare import Options, prepare

def die(done, total):
    if done >= 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    prepare("objaverse", sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), progress=die)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, workers):
    src = tmp_path / "views"
    for number in range(24):
        for frame in range(6):
            save(src / f"object {number}" / f"{frame}.png", view(number + frame, side=200))
    prepare("objaverse", src, tmp_path / "whole")
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    command = [sys.executable, script, src, tmp_path / "killed", str(workers)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    chunks = tmp_path / ".killed.building" / "chunks"
    done = list(chunks.glob("[0-9]*"))
    assert 3 <= len(done) < 24 and not (tmp_path / "killed").exists()
    before = {path: (path / "about.json").stat().st_mtime_ns for path in done}
    (chunks / ".0123.tmp").mkdir(exist_ok=True)  # as a process killed in its work leaves
    merge_shards = prepare_module.merge_shards

    def stop(*arguments):
        """Ends in the middle of the merge, too."""
        after = {path: (path / "about.json").stat().st_mtime_ns for path in done}
        assert after == before  # finished chunks are not done again
        final, name, stems = arguments
        merge_shards(final, name, {"train": stems["train"]})
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "merge_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare("objaverse", src, tmp_path / "killed")
    prepare("objaverse", src, tmp_path / "killed", workers=workers)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / ".killed.building").exists()


def test_a_stopped_run_with_other_settings_is_refused(tmp_path, renders, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "do_chunk", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare("objaverse", renders, tmp_path / "d")
    with pytest.raises(InputError, match="stopped run with other max_side; start it again"):
        prepare("objaverse", renders, tmp_path / "d", options=Options(max_side=64))
    (renders / "new").mkdir()
    with pytest.raises(InputError, match="stopped run with other files"):
        prepare("objaverse", renders, tmp_path / "d")
    (renders / "new").rmdir()
    assert prepare("objaverse", renders, tmp_path / "d")["records"] == {"train": 7}


def test_two_runs_do_not_work_in_one_folder(tmp_path, renders):
    def second(done, total):
        with pytest.raises(InputError, match="Another `prepare` is at work"):
            prepare("objaverse", renders, tmp_path / "d")

    prepare("objaverse", renders, tmp_path / "d", progress=second)
    assert sorted(os.listdir(tmp_path)) == ["d", "renders"]


def test_too_many_rejects_are_an_error_that_keeps_the_work(tmp_path, renders, monkeypatch):
    with pytest.raises(InputError, match=r"41\.7 % were left out, more than --max-reject 40: 1 "):
        prepare("objaverse", renders, tmp_path / "d", options=Options(max_reject=40))
    assert not (tmp_path / "d").exists()
    monkeypatch.setattr(prepare_module, "do_chunk", None)  # nothing is left to do
    assert prepare("objaverse", renders, tmp_path / "d", options=Options(max_reject=42))[
        "records"
    ] == {"train": 7}


def test_a_run_killed_when_it_had_finished_does_not_end_the_next(tmp_path, renders, monkeypatch):
    replace = os.replace

    def stop(source, target):
        replace(source, target)
        if target == tmp_path / "d":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare("objaverse", renders, tmp_path / "d")
    whole = contents(tmp_path / "d")
    shutil.rmtree(tmp_path / "d")
    prepare("objaverse", renders, tmp_path / "d")
    assert contents(tmp_path / "d") == whole
    assert sorted(os.listdir(tmp_path)) == ["d", "renders"]


def test_limit_takes_the_first_groups(tmp_path, renders):
    (renders / "a.zip").write_bytes(b"PK")  # in order before them
    prepare("objaverse", renders, tmp_path / "d", options=Options(limit=1))
    assert RecordSource(tmp_path / "d", "train").index["group_names"].tolist() == ["chair"]


def video_set(folder, videos=40):
    """A YouTube-VOS tree: two objects in two frames of each video."""
    labels = (disc(20) + 2 * disc(60)).astype(np.uint8)
    described = {}
    for number in range(videos):
        video = f"v{number}"
        for frame in ("00000", "00005"):
            save(folder / "JPEGImages" / video / f"{frame}.jpg", pixels(number))
            save(folder / "Annotations" / video / f"{frame}.png", labels)
        one = {"category": "x", "frames": ["00000", "00005"]}
        described[video] = {"objects": {"1": one, "2": one}}
    (folder / "meta.json").write_text(json.dumps({"videos": described}))


@pytest.mark.parametrize(
    "unit, of",
    [
        ("video", lambda group, instance, frame: group),
        ("object", lambda group, instance, frame: f"{group}/{instance}"),
        ("photo", lambda group, instance, frame: f"JPEGImages/{group}/{frame:05d}"),
    ],
)
def test_splits_do_not_overlap_and_are_written(tmp_path, unit, of):
    src = tmp_path / "train"
    video_set(src)
    counts = prepare(
        "youtubevos", src, tmp_path / "d", options=Options(split_by=unit, fractions=(0.6, 0.2, 0.2))
    )["records"]
    assert sum(counts.values()) == 160 and counts["train"] > 60 and min(counts.values()) > 8
    listed = json.loads((tmp_path / "d" / "splits.json").read_text())
    for split in ("train", "validation", "test"):
        index = RecordSource(tmp_path / "d", split).index
        groups = index["group_names"][index["group"]]
        units = {
            of(str(group), int(instance), int(frame))
            for group, instance, frame in zip(
                groups, index["instance"], index["frame"], strict=True
            )
        }
        assert sorted(units) == listed[split]
    assert len(set().union(*listed.values())) == sum(map(len, listed.values()))

    # The file says the same to another run, and fewer groups stay where they are.
    again = prepare(
        "youtubevos",
        src,
        tmp_path / "e",
        tmp_path / "d" / "splits.json",
        options=Options(split_by=unit),
    )
    assert again["records"] == counts
    prepare(
        "youtubevos",
        src,
        tmp_path / "f",
        options=Options(limit=7, split_by=unit, fractions=(0.6, 0.2, 0.2)),
    )
    fewer = json.loads((tmp_path / "f" / "splits.json").read_text())
    assert all(set(fewer[split]) <= set(listed[split]) for split in listed)


def test_bad_pictures_are_left_out_with_their_reasons(tmp_path):
    src = tmp_path / "photos"
    save(src / "good.png", pixels())
    whole = io.BytesIO()
    Image.fromarray(pixels(0, 300, 400)).save(whole, "JPEG")
    (src / "cut short.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (src / "text.jpg").write_text("not a picture")
    (src / "empty.png").write_bytes(b"")
    (src / "folder.png").mkdir()
    (src / "loop.png").symlink_to("loop.png")
    (src / "nowhere.jpg").symlink_to("gone.jpg")
    (src / "photos.zip").write_bytes(b"PK")
    Image.new("1", (25_000, 20_000)).save(src / "huge.png")  # 500 megapixels in 60 kB
    save(src / "narrow.png", pixels(0, 400, 20))
    grey = (np.arange(60 * 80).reshape(60, 80) * 13).astype(np.uint16)
    save(src / "sixteen.png", grey)
    Image.fromarray(pixels()).convert("CMYK").save(src / "print.tif")
    undecodable = os.fsencode(src) + b"/\xff.png"
    with open(undecodable, "wb") as file:
        file.write((src / "good.png").read_bytes())
    records, rejects = prepared("photos", src, tmp_path)
    assert [r["group"] for r in records] == ["good", "print", "sixteen"]
    assert Image.open(io.BytesIO(records[2]["image"])).mode == "RGB"
    assert decode_image(records[2]["image"], "")[59, 79, 0] == round(62387 / 257)
    assert sorted(rejects) == [
        ("cut short.jpg", "unreadable"),
        ("empty.png", "unreadable"),
        ("folder.png", "unreadable"),
        ("huge.png", "too large"),
        ("loop.png", "unreadable"),
        ("narrow.png", "picture too small"),
        ("nowhere.jpg", "missing picture"),
        ("photos.zip", "archive"),
        ("text.jpg", "unreadable"),
        ("\udcff.png", "name not UTF-8"),
    ]


def test_bad_masks_are_left_out_with_their_reasons(tmp_path):
    src = tmp_path / "photos"
    masks = {
        "dark": disc().astype(np.uint8),
        "empty": white(disc(radius=0)),
        "smaller": white(disc())[:-1],
        "whole": white(disc(radius=100)),
        "pieces": white(disc(20, radius=10) | disc(60, radius=10)),
        "speckled": white(disc() | disc(5, 5, 2)),
    }
    for name, mask in masks.items():
        save(src / f"{name}.png", pixels())
        save(src / "masks" / f"{name}.png", mask)
    save(src / "flat.png", np.full((60, 80, 3), 99, np.uint8))
    save(src / "masks" / "flat.png", white(disc()))
    save(src / "broken.png", pixels())
    (src / "masks" / "broken.png").write_text("nothing")
    Image.new("1", (25_000, 20_000)).save(src / "masks" / "huge.png")
    save(src / "huge.png", pixels())
    records, rejects = prepared("photos", src, tmp_path)
    assert [r["group"] for r in records] == ["speckled"]
    assert rejects == [
        ("broken.png", "unreadable mask"),
        ("dark.png", "unreadable mask"),
        ("empty.png", "empty mask"),
        ("flat.png", "blurred"),
        ("huge.png", "too large"),
        ("pieces.png", "object in pieces"),
        ("smaller.png", "mask of another size"),
        ("whole.png", "object too large"),
    ]
    changed = ["max_area=1", "min_component=0.4", "min_sharpness=0"]
    counts = prepare("photos", src, tmp_path / "more", options=Options(filters=changed))
    assert counts["records"] == {"train": 4}


def test_filters_judge_by_shares():
    filters = Filters()
    y, x = np.mgrid[:500, :1000]
    for share, reason in [(0.009, "object too small"), (0.011, None), (0.63, None),
                          (0.65, "object too large")]:  # fmt: skip
        mask = white(x < share * 1000)
        if reason is None:
            filters.check_object(pixels(0, 500, 1000), mask)
        else:
            with pytest.raises(Reject, match=reason):
                filters.check_object(pixels(0, 500, 1000), mask)
    bridge = (x < 400) | (x > 600) | (y == 250)
    assert largest_part(bridge) == 1.0
    np.testing.assert_allclose(largest_part((x < 300) | (x >= 900)), 0.75, atol=1e-6)


def test_sharpness_falls_with_blur_and_hardly_with_size():
    noise = Image.fromarray(pixels(0, 64, 64)).resize((1024, 1024), Image.Resampling.BICUBIC)
    sharp = sharpness(np.asarray(noise))
    half = sharpness(np.asarray(noise.resize((512, 512), Image.Resampling.BOX)))
    blurred = np.asarray(noise.resize((8, 8)).resize((1024, 1024), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(half, sharp, rtol=0.05)
    assert sharpness(blurred) < Filters().min_sharpness < sharp / 20


def test_bad_options_are_refused(tmp_path, renders):
    for options, message in [
        (dict(split_by="frame"), "must be one of video, object, photo"),
        (dict(split_by="video", fractions=(1, 1, 1)), "add up to 1"),
        (dict(fractions=(0.5, 0.5, 0)), "give that, and no --splits"),
        (dict(filters=["max_aera=1"]), "no filter 'max_aera'; known are min_side"),
        (dict(filters=["max_area=big"]), "must be NAME=NUMBER"),
    ]:
        with pytest.raises(InputError, match=message):
            prepare("objaverse", renders, tmp_path / "d", options=Options(**options))
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"no folder .*set\.zip; unpack it first"):
        prepare("objaverse", tmp_path / "set.zip", tmp_path / "d")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious").write_text("")
    with pytest.raises(InputError, match="exists already"):
        prepare("objaverse", renders, tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == ["d", "renders", "set.zip"]


def test_a_prepared_set_opens_in_tfds_without_tensorflow(tmp_path):
    src = tmp_path / "train"
    video_set(src, videos=5)
    folder = tmp_path / "youtubevos" / "1.0.0"
    prepare("youtubevos", src, folder, options=Options(split_by="video", fractions=(0.5, 0.0, 0.5)))
    script = f"""
import sys
import tensorflow_datasets as tfds
splits = tfds.builder_from_directory({str(folder)!r}).info.splits
assert set(splits) == {{"train", "test"}}, splits
opened = [tfds.data_source("youtubevos", data_dir={str(tmp_path)!r}, split=s) for s in splits]
assert sum(map(len, opened)) == 20
one = opened[-1][0]
assert one["image"].shape == (60, 80, 3) and one["mask"].max() == 255
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_tfds_decodes_grey_and_16_bit_pictures(tmp_path):
    src = tmp_path / "src"
    save(src / "grey.jpg", pixels()[..., 0])
    deep = pixels(1).astype(np.uint16) * 257
    cv2.imwrite(str(src / "deep.png"), deep[..., ::-1])
    prepare("photos", src, tmp_path / "photos" / "1.0.0")
    source = tfds.data_source("photos", data_dir=tmp_path, split="train")
    assert [one["group"] for one in source] == [b"deep", b"grey"]
    np.testing.assert_array_equal(source[0]["image"], pixels(1))
    grey = np.asarray(Image.open(src / "grey.jpg"))
    np.testing.assert_array_equal(source[1]["image"], np.dstack([grey] * 3))


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


def test_masks_are_png_without_filters():
    mask = view()[:50, :, 3]
    png = chunks_module._encode_mask(mask)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG" and picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), mask)
    start = png.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompressobj().decompress(png[start:]), np.uint8).reshape(50, -1)
    assert not rows[:, 0].any()


def test_prepare_shrinks_on_request(tmp_path, renders):
    prepare("objaverse", renders, tmp_path / "d", options=Options(max_side=32))
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
        ('{"train": 3}', "list of names under 'train'"),
        ('{"train": ["mug"], "test": [["chair"]]}', "list of names under 'test'"),
        ('{"objaverse": ["mug"]}', "lists of names by split under 'objaverse'"),
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
    with pytest.raises(InputError, match="no reader 'imagenet'; known are mvimgnet, objaverse"):
        prepare("imagenet", tmp_path, tmp_path / "d")
    with pytest.raises(InputError, match="no folder"):
        prepare("photos", tmp_path / "gone", tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no usable picture"):
        prepare("photos", tmp_path / "empty", tmp_path / "d")


@pytest.mark.parametrize(("mode", "workers"), [("in_memory", 1), ("multi_processing", 2)])
def test_beam_makes_the_same_bytes(tmp_path, renders, mode, workers):
    pytest.importorskip("apache_beam")
    options = dict(split_by="photo", fractions=(0.5, 0.3, 0.2))
    local = prepare("objaverse", renders, tmp_path / "local", options=Options(**options))
    beam = [f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]
    seen = []
    progress = lambda done, total: seen.append((done, total))
    how = dict(progress=progress, beam=["--runner=DirectRunner", *beam])
    assert (
        prepare("objaverse", renders, tmp_path / "beam", options=Options(**options), **how) == local
    )
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert seen[-1][0] == seen[-1][1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beam", "local", "renders"]


def test_beams_portable_runner_makes_the_same_bytes(tmp_path, renders):
    """Through the job service that comes with Beam, as a cluster's would be spoken to."""
    pytest.importorskip("apache_beam")
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    service = "apache_beam.runners.portability.local_job_service_main"
    process = subprocess.Popen([sys.executable, "-m", service, "--port", str(port)])
    try:
        local = prepare("objaverse", renders, tmp_path / "local")
        where = [f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK"]
        options = ["--runner=PortableRunner", *where]
        assert prepare("objaverse", renders, tmp_path / "beam", beam=options) == local
        assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    finally:
        process.terminate()
        process.wait()


def test_a_chunk_that_beam_asks_for_twice_is_done_once(tmp_path, renders, monkeypatch):
    pytest.importorskip("apache_beam")
    from imprint_jax.data.preparation import beam

    def late(job, number, groups):
        chunks_module.chunk_folder(job, number).mkdir(parents=True)
        raise InputError("Directory not empty")

    monkeypatch.setattr(beam, "do_chunk", late)
    job = chunks_module.Job("", renders, tmp_path, None, None, "video", None, (), None)
    beam._do((0, []), job)
    beam._do((0, []), job)
    monkeypatch.setattr(beam, "do_chunk", lambda *a: (_ for _ in ()).throw(InputError("disk full")))
    with pytest.raises(InputError, match="disk full"):
        beam._do((1, []), job)


def test_without_beam_the_user_is_told_how_to_get_it(tmp_path, renders, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "imprint_jax.data.preparation.beam", raising=False)
    monkeypatch.delattr("imprint_jax.data.preparation.beam", raising=False)
    with pytest.raises(InputError, match=r"imprint_jax\[beam\]"):
        prepare("objaverse", renders, tmp_path / "d", beam=[])
    assert not (tmp_path / ".d.building").exists()


@pytest.mark.parametrize("dst", [".", ".."])
def test_the_folder_to_make_needs_a_name(tmp_path, monkeypatch, dst):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="cannot be the folder to make"):
        prepare("photos", tmp_path, dst)
