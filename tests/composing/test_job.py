"""What a job may write to and replace, and how it goes on. No model is needed for that."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from imprint_jax.composing import job, manifest
from imprint_jax.composing.settings import Settings
from imprint_jax.errors import InputError
from tests.pictures import display_p3, write_png

HOW = {"model": "m", "model_sha256": "0", "dtype": "float32", "settings": {"num_steps": 2}}
LINE = {"id": "a", "object": "o.png", "background": "b.png", "box": [5, 6, 15, 16]}
PHOTO = np.full((20, 30, 3), 90, np.uint8)


@pytest.fixture
def folder(tmp_path):
    write_png(tmp_path / "o.png", np.full((9, 7, 4), 200, np.uint8))
    Image.fromarray(PHOTO).save(tmp_path / "b.png", icc_profile=display_p3())
    return tmp_path


def entries(folder, *changes):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(LINE | change) + "\n" for change in changes or [{}]))
    return manifest.read(path)


class Painter:
    """Composes grey; a request whose seed is 13 fails in its first picture."""

    def __init__(self):
        self.on_disk = []  # what was there when the next picture was wanted

    def attempt(self, requests, settings):
        for request in requests:
            for number in range(request.num):
                failed = request.seed == 13 and number == 0
                yield request, number, "not finite" if failed else Image.fromarray(PHOTO)


def compose(folder, todo, out):
    todo = job.unfinished(todo, out, HOW, [folder / "pairs.jsonl"])
    return list(job.compose_entries(Painter(), todo, out, Settings(), HOW))


def test_pictures_are_written_one_by_one_with_what_the_photo_carries(folder):
    todo = job.unfinished(entries(folder, {"num": 3}), folder / "out", HOW)
    painter = Painter()
    original = painter.attempt

    def watched(*args):
        for outcome in original(*args):
            painter.on_disk.append(len(list((folder / "out").glob("*.png"))))
            yield outcome

    painter.attempt = watched
    list(job.compose_entries(painter, todo, folder / "out", Settings(), HOW))
    assert painter.on_disk == [0, 1, 2]
    with Image.open(folder / "out" / "a_2.png") as picture:
        assert picture.info["icc_profile"] == display_p3()
        assert json.loads(picture.text["imprint_jax"]) == HOW | {"seed": 0, "sample": 2}
    assert job.unfinished(entries(folder, {"num": 3}), folder / "out", HOW) == []
    assert job.recorded(folder / "out") == HOW


def test_the_failure_of_one_entry_is_its_own(folder):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    todo = entries(
        folder,
        {"id": "bad", "background": "bad.png"},
        {"id": "nan", "seed": 13, "num": 2},
        {"id": "good", "num": 2},
    )
    outcomes = {entry.id: error for entry, error in compose(folder, todo, folder / "out")}
    assert outcomes["good"] is None and "not finite" in outcomes["nan"]
    assert "bad.png" in outcomes["bad"]
    failures = (folder / "out" / "failures.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in failures} == {"bad", "nan"}
    # Only what failed is done again.
    again = job.unfinished(todo, folder / "out", HOW)
    assert [entry.id for entry in again] == ["bad", "nan"]


def test_a_run_that_was_stopped_may_replace_its_own_pictures(folder):
    todo = entries(folder, {"num": 2})
    compose(folder, todo, folder / "out")
    (folder / "out" / "results.jsonl").unlink()  # stopped before the line was written
    assert job.unfinished(todo, folder / "out", HOW) == todo
    with pytest.raises(InputError, match=r"a_0\.png exists and is not a result"):
        job.unfinished(todo, folder / "out", HOW | {"model_sha256": "1"})


def test_processes_share_a_manifest_and_go_on_in_another_number(folder):
    every = entries(folder, *({"id": name, "seed": 13 * (name == "e")} for name in "abcdefg"))
    out = folder / "out"

    def work(number, count, most=None):
        todo = job.unfinished(every, out, HOW, shard=(number, count))
        painting = job.compose_entries(
            Painter(), todo[:most], out, Settings(), HOW, (number, count)
        )
        return [entry.id for entry, _ in painting]

    assert work(1, 3) == ["a", "d", "g"] and work(2, 3, most=1) == ["b"]
    # The third never began, the second was stopped. Two go on.
    assert work(1, 2) == ["c", "e"] and work(2, 2) == ["f"]
    lists = {path.name for path in out.glob("*.jsonl")}
    results = {f"results.{part}.jsonl" for part in ("1-of-3", "2-of-3", "1-of-2", "2-of-2")}
    assert lists == results | {"failures.1-of-2.jsonl"}
    # One alone does again what failed, and leaves no old list of failures.
    assert work(1, 1) == ["e"]
    assert {path.name for path in out.glob("failures*")} == {"failures.jsonl"}
    assert len(list(out.glob("*.png"))) == 6
    with pytest.raises(InputError, match="pictures made with different"):
        job.unfinished(every, out, HOW | {"model_sha256": "1"}, shard=(2, 5))
    # One alone also takes lines that do not hold out of the others' lists: they might hold again.
    photo = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes((folder / "o.png").read_bytes())
    assert work(1, 1) == list("abcdefg")
    (folder / "b.png").write_bytes(photo)
    assert [entry.id for entry in job.unfinished(every, out, HOW)] == list("abcdefg")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="--shard wants I/N"):
        job.parse_shard(text)


def refuse(folder, todo, out, message):
    """Nothing on the disk changes."""
    content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        job.unfinished(todo, out, HOW, [folder / "pairs.jsonl"])
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == content


def test_inputs_are_never_replaced(folder):
    refuse(
        folder, entries(folder, {"id": "b"}), folder, "b.png would be replaced, but is also read"
    )
    os.symlink(folder, folder / "link")
    todo = entries(folder, {"id": "o"})
    refuse(folder, todo, folder / "link", "o.png would be replaced, but is also read")
    os.symlink(folder / "b.png", folder / "other.png")
    todo = entries(folder, {"id": "other"})
    refuse(folder, todo, folder, "other.png would be replaced, but is also read")
    os.link(folder / "o.png", folder / "hard.png")
    refuse(folder, entries(folder, {"id": "hard"}), folder, "would be replaced, but is also read")


@pytest.mark.parametrize("name", ["a.png", "results.jsonl", "failures.jsonl"])
@pytest.mark.parametrize("content", [b"", b"my notes\n", b'{"a": 1}\n', b"\xff\xfe\n", b"[1]\n"])
def test_files_of_others_are_never_replaced(folder, name, content):
    todo = entries(folder)
    (folder / "out").mkdir()
    (folder / "out" / name).write_bytes(content)
    if (name, content) in [("results.jsonl", b""), ("failures.jsonl", b"")]:
        return  # as an interrupted run of ours leaves them
    refuse(folder, todo, folder / "out", rf"{name}.* (not a |not written)")


def test_folders_and_links_are_never_replaced(folder):
    (folder / "out" / "a.png").mkdir(parents=True)
    refuse(folder, entries(folder), folder / "out", "a.png exists and is not a result")
    (folder / "out" / "a.png").rmdir()
    os.symlink(folder / "nowhere", folder / "out" / "a.png")
    refuse(folder, entries(folder), folder / "out", "a.png exists and is not a result")
    refuse(folder, entries(folder), folder / "b.png", "Cannot make the folder")


def test_the_longest_names_are_written(folder):
    todo = entries(folder, {"id": "商" * 66, "num": 2}, {"id": "last"})
    assert [error for _, error in compose(folder, todo, folder / "out")] == [None, None]


@pytest.mark.parametrize(
    "out, message",
    [
        ("out.jpg", "must end in .png"),
        ("", "is a folder"),
        ("gone/out.png", "folder .*gone of --out does not exist"),
        ("b.png", "b.png would be replaced, but is also read"),
        ("link.png", "link.png would be replaced, but is also read"),
        ("photo.png", "photo.png exists and is not a result"),
        ("x" * 252 + ".png", "too long"),
    ],
)
def test_single_outputs_are_checked_before_anything_is_loaded(folder, out, message):
    os.symlink(folder / "b.png", folder / "link.png")
    write_png(folder / "photo.png", PHOTO)
    path = folder / out
    with pytest.raises(InputError, match=message):
        job.check_single(path, [path.name], [folder / "b.png"])


def test_an_earlier_result_may_be_replaced(folder):
    path = folder / "out.png"
    photo = SimpleNamespace(metadata={})
    job.check_single(path, [path.name], [folder / "b.png"])
    job.write_picture(path, Image.fromarray(PHOTO), photo, HOW, seed=1, number=0)
    job.check_single(path, [path.name], [folder / "b.png"])
    with pytest.raises(InputError, match="is also read"):  # composing onto a result, in place
        job.check_single(path, [path.name], [path])
