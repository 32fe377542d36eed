"""`check` and `show`, on prepared sets whole and damaged."""

import html.parser
import itertools
import shutil

import numpy as np
import pytest
from PIL import Image

from imprint_jax.config import Config
from imprint_jax.data.preparation.check import check
from imprint_jax.data.preparation.prepare import Options, prepare
from imprint_jax.data.preparation.show import show
from imprint_jax.data.records import RecordWriter
from imprint_jax.errors import InputError
from imprint_jax.geometry import bounding_box
from imprint_jax.images import encode_png
from tests.data.preparation.test_prepare import video_set
from tests.data.test_records import contents, record, write
from tests.tiny import write_objects, write_photos


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Prepared objects, videos and backgrounds."""
    folder = tmp_path_factory.mktemp("sets")
    write_objects(folder / "objects", objects=3, views=6)
    write_photos(folder / "photos", size=96)
    (folder / "photos" / "text.png").write_text("<b>no picture")
    video_set(folder / "videos", videos=6)
    split = dict(split_by="video", fractions=(0.5, 0.0, 0.5))
    prepare("objaverse", folder / "objects", folder / "object_records")
    prepare("photos", folder / "photos", folder / "photo_records")
    prepare("youtubevos", folder / "videos", folder / "video_records", options=Options(**split))
    return folder


def test_whole_sets_have_no_problems(sets):
    report = check(sets / "video_records", workers=2)
    assert report.problems == [] and report.rejects == {}
    assert set(report.splits) == {"train", "test"}
    assert sum(s.records for s in report.splits.values()) == 24
    train = report.splits["train"]
    assert train.objects == 2 * train.groups == train.records / 2
    assert set(train.sides) == {80} and train.backgrounds == 0
    np.testing.assert_allclose(train.areas, np.pi * 15**2 / 4800, rtol=0.02)

    seen = []
    photos = check(sets / "photo_records", progress=lambda *now: seen.append(now))
    assert photos.rejects == {"unreadable": 1} and photos.splits["train"].backgrounds == 2
    assert seen == [(2, 2)] and photos.splits["train"].areas == []


def copy(sets, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(sets / "object_records", folder)
    return folder


def test_every_changed_byte_is_found(sets, tmp_path):
    rng = np.random.default_rng(0)
    for name, whole in contents(sets / "object_records").items():
        folder = copy(sets, tmp_path)
        place = int(rng.integers(len(whole))) if whole else 0
        changed = bytes([whole[place] ^ 0xFF]) if whole else b"?"
        (folder / name).write_bytes(whole[:place] + changed + whole[place + 1 :])
        assert check(folder).problems, name
        shutil.rmtree(folder)


def test_missing_files_are_found(sets, tmp_path):
    for name in contents(sets / "object_records"):
        folder = copy(sets, tmp_path)
        (folder / name).unlink()
        if name.endswith("index.npz"):
            with pytest.raises(InputError, match="no prepared data set"):
                check(folder)
        else:
            assert check(folder).problems, name
        shutil.rmtree(folder)
    folder = copy(sets, tmp_path)
    (folder / "notes.txt").write_text("mine")
    assert check(folder).problems == ["notes.txt is not in SHA256SUMS."]


def test_checksums_that_lack_their_last_byte_are_found(sets, tmp_path):
    folder = copy(sets, tmp_path)
    path = folder / "SHA256SUMS"
    path.write_bytes(path.read_bytes()[:-1])
    assert check(folder).problems == ["SHA256SUMS is cut short."]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mask=encode_png(np.full((9, 9), 255, np.uint8))), r"mask is \(9, 9\), its image"),
        (dict(mask=encode_png(np.zeros((64, 64, 3), np.uint8))), "no PNG with one channel"),
        (dict(background=encode_png(np.zeros((9, 9, 3), np.uint8))), r"background is \(9, 9\)"),
        (dict(image=b"nothing"), "cannot be read: its image is not a picture"),
        (dict(background=b"nothing"), "cannot be read: its background is not"),
    ],
)
def test_records_against_the_schema(tmp_path, changes, message):
    write(tmp_path / "d", {"train": [record(0), record(1, **changes)]})
    (problem,) = check(tmp_path / "d").problems
    assert problem.startswith("Record 1 of train: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_an_index_of_other_records_is_found(tmp_path):
    for name, frame in (("a", 0), ("b", 7)):
        with RecordWriter(tmp_path / name, "things") as writer:
            writer.write("train", record(frame=frame, group=name))
    shutil.copy(tmp_path / "b" / "things-train.index.npz", tmp_path / "a")
    (tmp_path / "a" / "SHA256SUMS").unlink()
    problems = check(tmp_path / "a").problems
    assert problems[0].startswith("There is no SHA256SUMS")
    assert problems[1:] == [
        "Record 0 of train: its group is a, in the index b.",
        "Record 0 of train: its frame is 0, in the index 7.",
    ]


class Images(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.text += data


def read_page(path):
    page = Images()
    page.feed(path.read_text(encoding="utf-8"))
    files = {p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*.*")}
    assert {*page.sources} == files - {"index.html"}  # all there, nothing else, no link outside
    return page


def test_page_of_views(sets, tmp_path):
    page = read_page(show(Config(), sets / "object_records", tmp_path / "page", num=4))
    assert len(page.sources) == 4 + 4 * 2
    assert "stage 1, kind views" in page.text
    assert "record 0: object0, instance 0, frame 0; 40x40, object 27.3%" in page.text
    assert "pair 0: object from record 0 (object0, instance 0, frame 0)" in page.text


def test_page_of_composites(sets, tmp_path):
    for name, kind, backgrounds in [
        ("video_records", "video", None),
        ("object_records", "pasted", sets / "photo_records"),
    ]:
        path = show(Config(), sets / name, tmp_path / name, num=3, backgrounds=backgrounds)
        page = read_page(path)
        assert len(page.sources) == 3 + 3 * 7 and f"stage 2, kind {kind}" in page.text
        load = lambda n, path=path: np.asarray(Image.open(path.parent / f"images/sample_0_{n}"))
        masks = [load(f"mask{level}.png") >= 128 for level in range(4)]
        for finer, coarser in itertools.pairwise(masks):
            assert (coarser | ~finer).all() and coarser.sum() > finer.sum()
        x0, y0, x1, y1 = bounding_box(masks[0])
        assert abs(masks[3].sum() - (x1 - x0) * (y1 - y0)) < 0.05 * masks[3].sum()
        hole, target = load("hole.jpg").astype(int), load("target.jpg").astype(int)
        assert np.abs(hole[masks[0]] - 128).mean() < 8
        assert np.abs(hole - target)[~masks[3]].mean() < 8


def test_page_of_backgrounds_shows_rejects_harmlessly(sets, tmp_path):
    path = show(Config(), sets / "photo_records", tmp_path / "page")
    page = read_page(path)
    assert len(page.sources) == 2 and "None: No picture has an object marked." in page.text
    assert "text.png is not a picture" in page.text and "<b>" not in path.read_text()


def test_show_refuses_what_it_cannot_do(sets, tmp_path):
    write(tmp_path / "own", {"train": [record()]})
    photos = sets / "photo_records"
    for folder, options, message in [
        (tmp_path / "own", {}, "of a set of one's own; say how"),
        (sets / "object_records", dict(kind="pasted"), "needs --backgrounds"),
        (sets / "object_records", dict(kind="views", backgrounds=photos), "needs --backgrounds"),
        (sets / "object_records", dict(split="test"), "has no split 'test', only train"),
    ]:
        with pytest.raises(InputError, match=message):
            show(Config(), folder, tmp_path / "page", **options)
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        show(Config(), sets / "object_records", tmp_path / "page")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own", "page"]
