"""Test sets: what they hold, that they are the same each time, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint_jax import config, images
from imprint_jax.composing import manifest
from imprint_jax.config.fields import Config, DataConfig
from imprint_jax.data.preparation.prepare import Options, prepare
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from imprint_jax.evaluation import test_sets
from tests.commands import run
from tests.tiny import write_photos, write_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    objects, photos = write_records(tmp_path_factory.mktemp("records"))
    return RecordSource(objects, "train"), RecordSource(photos, "train")


@pytest.fixture(scope="module")
def folder_of_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "src", photos=3)
    (folder / "src" / "masks").mkdir()
    for k in range(3):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:50, 10 + k : 40] = 255
        Image.fromarray(mask).save(folder / "src" / "masks" / f"photo{k}.png")
    options = ["min_sharpness=0"]
    prepare("photos", folder / "src", folder / "records", options=Options(filters=options))
    return folder / "records"


@pytest.fixture(scope="module")
def photos_with_masks(folder_of_photos):
    return RecordSource(folder_of_photos, "train")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_perturbed_objects_are_to_be_put_back(photos_with_masks, tmp_path):
    c = DataConfig()
    assert test_sets.perturbed(c, photos_with_masks, tmp_path / "a", num=2, mask_level=3) == 3
    entries = manifest.read(tmp_path / "a" / "manifest.jsonl")
    assert [entry.num for entry in entries] == [2, 2, 2]
    for entry in entries:
        request = entry.request()
        hole, target = request.parts[0].hole, images.read_image(entry.target)
        np.testing.assert_array_equal(request.photo[~hole], target[~hole])
        assert (request.photo[hole] == 128).all()
        assert hole.sum() == 30 * (40 - np.flatnonzero(hole.any(axis=0))[0])  # a box
        assert (request.parts[0].views[0][1] >= 128).sum() > 500
    test_sets.perturbed(c, photos_with_masks, tmp_path / "b", num=2, mask_level=3)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    test_sets.perturbed(c, photos_with_masks, tmp_path / "c", num=2, mask_level=3, seed=1)
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_pasted_views_show_the_truth_only_in_the_hole(records, tmp_path):
    c = Config.of(config.load("mini_stage2")).data
    assert test_sets.pasted(c, *records, tmp_path / "set", size=64, limit=5) == 5
    for entry in manifest.read(tmp_path / "set" / "manifest.jsonl"):
        request = entry.request()
        hole, target = request.parts[0].hole, images.read_image(entry.target)
        # What the object's edge covers by less than 5 % is no part of the hole.
        np.testing.assert_allclose(request.photo[~hole], target[~hole], atol=13)
        assert (request.photo[hole] != target[hole]).any(axis=1).mean() > 0.5


def test_frames_of_a_video_are_the_truth_for_other_frames(records, tmp_path):
    c, videos = DataConfig(), records[0]  # objects before a moving camera, as videos are
    assert test_sets.video(c, videos, tmp_path / "a", apart=4, limit=6, mask_level=3) == 6
    for entry in manifest.read(tmp_path / "a" / "manifest.jsonl"):
        request = entry.request()
        hole, target = request.parts[0].hole, images.read_image(entry.target)
        assert int(entry.id.rpartition("_")[2].removesuffix("frames")) >= 4
        assert entry.objects[0].object_id == entry.id.rsplit("_", 2)[0]
        np.testing.assert_array_equal(request.photo[~hole], target[~hole])
        assert (request.photo[hole] == 128).all()
        view, coverage = request.parts[0].views[0]
        # A disc of one colour: the object is the target's, whole, in its own box.
        assert coverage.shape == (23, 23)
        np.testing.assert_array_equal(view[11, 11], target[20, hole.nonzero()[1].min() + 11])
    test_sets.video(c, videos, tmp_path / "b", apart=4, limit=6, mask_level=3)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with pytest.raises(InputError, match="in two frames that are 10 or more apart"):
        test_sets.video(c, videos, tmp_path / "c", apart=10)


def test_the_commands_make_them(folder_of_photos, tmp_path):
    objects, photos = write_records(tmp_path / "records")
    for name, sources in {
        "pasted": [objects, photos, tmp_path / "pasted", "--config", "mini_stage2", "--size", 64],
        "video": [objects, tmp_path / "video", "--apart", 4],
        "perturbed": [folder_of_photos, tmp_path / "perturbed"],
    }.items():
        code, said = run("testset", name, *sources, "--split", "train", "--limit", 2)
        assert code == 0 and f"{name}/manifest.jsonl: 2 entries" in said.replace("\n", ""), said
        assert len(manifest.read(tmp_path / name / "manifest.jsonl")) == 2


def test_a_set_is_written_whole_or_not_at_all(records, tmp_path, monkeypatch):
    c = DataConfig()
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(test_sets.transforms, "paste", lambda *_: 1 / 0)
        test_sets.pasted(c, *records, tmp_path / "set", size=64)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(InputError, match="exists already"):
        test_sets.pasted(c, *records, tmp_path / "used")
    with pytest.raises(InputError, match=r"data\.share is empty.*such as stage2"):
        test_sets.pasted(replace(c, share=()), *records, tmp_path / "none")


@pytest.fixture
def dreambooth(tmp_path):
    """Objects with masks of their own, backgrounds, and a list of two pairs."""
    for name in ("mug", "toy"):
        for folder in ("objects", "masks"):
            (tmp_path / folder / name).mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "objects" / name / "00.jpg")
        mask = np.zeros((40, 50), np.uint8)
        mask[5:35, 10:40] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / name / "00.png")
    write_photos(tmp_path / "backgrounds")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "object,background,x0,y0,x1,y1\n"
        "mug/00.jpg,photo0.png,10,10,40,50\n"
        "toy/00.jpg,photo1.png,0,0,64,30\n"
    )
    return tmp_path


def run_dreambooth(folder, **options):
    folders = (folder / "objects", folder / "backgrounds", folder / "set")
    options = {"pairs": folder / "pairs.csv", "masks": None} | options
    return test_sets.dreambooth(*folders, **options)


def test_pairs_become_entries(dreambooth):
    assert run_dreambooth(dreambooth, masks=dreambooth / "masks", num=4) == 2
    lines = (dreambooth / "set" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["box"] for line in lines] == [[10, 10, 40, 50], [0, 0, 64, 30]]
    first, second = manifest.read(dreambooth / "set" / "manifest.jsonl")
    assert (first.id, second.id, first.num) == ("000_mug_00", "001_toy_00", 4)
    part = first.request().parts[0]
    assert part.hole.sum() == 30 * 40
    assert (part.views[0][1] == 255).sum() == 30 * 30


def test_a_channel_that_is_nowhere_transparent_is_no_mask(dreambooth):
    for path in sorted((dreambooth / "objects").rglob("*.jpg")):
        picture = Image.open(path).convert("RGBA")
        picture.putpixel((3, 3), (0, 0, 0, 250))  # one pixel is no cut-out, either
        picture.save(path, "PNG")
    with pytest.raises(InputError, match="has no transparency: give --masks"):
        run_dreambooth(dreambooth)
    run_dreambooth(dreambooth, masks=dreambooth / "masks")
    for entry in manifest.read(dreambooth / "set" / "manifest.jsonl"):
        assert (entry.request().parts[0].views[0][1] == 255).sum() == 30 * 30


@pytest.mark.parametrize(
    "text, message",
    [
        ("object,background\n", "must begin with the line object,background,x0"),
        ("object,background,x0,y0,x1,y1\n", "lists no pairs"),
        ("object,background,x0,y0,x1,y1\nmug/00.jpg,photo0.png,1,2,3\n", "line 2"),
        ("object,background,x0,y0,x1,y1\nmug/00.jpg,photo0.png,1,2,3,a\n", "line 2"),
        ("object,background,x0,y0,x1,y1\nmug/00.jpg,photo0.png,1,2,3,--80\n", "line 2"),
        ("object,background,x0,y0,x1,y1\nmug/00.jpg,photo0.png,1,2,300,4\n", "line 2: The box"),
        ("object,background,x0,y0,x1,y1\nno/00.jpg,photo0.png,1,2,30,40\n", "Cannot read"),
    ],
)
def test_wrong_lists_are_refused(dreambooth, text, message):
    (dreambooth / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run_dreambooth(dreambooth, masks=dreambooth / "masks")
    assert not (dreambooth / "set").exists()


def test_masks_fit_larger_copies_of_their_pictures(dreambooth):
    for path in (dreambooth / "objects").rglob("*.jpg"):
        Image.open(path).resize((125, 100)).save(path)
    run_dreambooth(dreambooth, masks=dreambooth / "masks")
    for entry in manifest.read(dreambooth / "set" / "manifest.jsonl"):
        picture, coverage = entry.request().parts[0].views[0]
        assert picture.shape == (100, 125, 3)
        assert (coverage == 255).sum() == pytest.approx(75 * 75, rel=0.03)
    Image.new("RGB", (100, 100)).save(dreambooth / "objects" / "mug" / "00.jpg")
    shutil.rmtree(dreambooth / "set")
    with pytest.raises(InputError, match=r"50x40 pixels .* another shape than its picture's 100x1"):
        run_dreambooth(dreambooth, masks=dreambooth / "masks")


def test_the_published_list_is_whole(tmp_path):
    rows = test_sets.read_pairs(test_sets.DREAMBOOTH / "pairs.csv")
    names = lambda folder: {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
    backgrounds = Path("data/benchmark/backgrounds")
    assert len(rows) == 113
    assert len({Path(row["object"]).parent for row in rows}) == 25
    assert {row["background"] for row in rows} == names(backgrounds)
    assert len(names(backgrounds)) == 59
    masks = {Path(row["object"]).with_suffix(".png").as_posix() for row in rows}
    assert masks == names(test_sets.DREAMBOOTH / "masks")
    for name in masks:  # stand-ins for the photos, which are not ours to ship
        mask = Image.open(test_sets.DREAMBOOTH / "masks" / name)
        assert 0.01 < np.asarray(mask).mean() < 0.7
        picture = tmp_path / "objects" / Path(name).with_suffix(".jpg")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.size).save(picture)
    assert test_sets.dreambooth(tmp_path / "objects", backgrounds, tmp_path / "set") == 113
    for entry in manifest.read(tmp_path / "set" / "manifest.jsonl")[::20]:
        hole = entry.request().parts[0].hole
        assert 0.01 < hole.mean() < 0.4


def test_objects_need_masks(dreambooth):
    with pytest.raises(InputError, match="no transparency: give --masks"):
        run_dreambooth(dreambooth)


def write_renders(folder):
    """Views of a model all around, 45 degrees apart, and one scene of it with two views."""
    views, scene = folder / "views" / "cup", folder / "scenes" / "cup" / "000"
    views.mkdir(parents=True)
    scene.mkdir(parents=True)
    turns = np.arange(8) * 45.0
    for k in range(8):
        Image.new("RGBA", (20, 20), (k, 0, 0, 255)).save(views / f"{k:03d}.png")
    about = {"azimuth": turns.tolist(), "elevation": [0.0] * 8}
    (views / "views.json").write_text(json.dumps(about))
    hole = np.zeros((32, 32), np.uint8)
    hole[8:24, 8:24] = 255
    for k in range(2):
        Image.new("RGB", (32, 32), (0, 0, 200)).save(scene / f"{k:03d}_background.png")
        Image.new("RGB", (32, 32), (0, 200, 0)).save(scene / f"{k:03d}_target.png")
        Image.fromarray(hole).save(scene / f"{k:03d}_mask.png")
    # The model is turned by as much as the camera: it is seen from the front.
    about = {"azimuth": [70.0, 70.0], "elevation": [0.0, 0.0], "model_turn": 70.0}
    (scene / "scene.json").write_text(json.dumps(about))
    return folder / "views", folder / "scenes"


def test_rendered_scenes_are_asked_for_from_another_side(tmp_path):
    c = DataConfig()
    renders = write_renders(tmp_path)
    written = []
    for seed in range(6):
        out = tmp_path / f"set{seed}"
        assert test_sets.rendered(c, *renders, out, apart=(80, 100), seed=seed) == 1
        (entry,) = manifest.read(out / "manifest.jsonl")
        assert entry.id == "cup_000_90deg"
        request = entry.request()
        written.append(int(request.parts[0].views[0][0][0, 0, 0]))
        assert request.parts[0].hole.sum() == 16 * 16
        assert (request.photo == (0, 0, 200)).all()
        assert (images.read_image(entry.target) == (0, 200, 0)).all()
    assert set(written) == {2, 6}  # 90 degrees to either side
    with pytest.raises(InputError, match="181 to 190 degrees apart"):
        test_sets.rendered(c, *renders, tmp_path / "none", apart=(181, 190))
