"""Every reader on a small tree in the set's own layout."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from imprint_jax.data.preparation.masks import coco_masks
from imprint_jax.data.preparation.prepare import Options, prepare
from imprint_jax.data.preparation.sources import READERS, in_order
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from imprint_jax.images import decode_image

HEIGHT, WIDTH = 60, 80


def pixels(seed=0, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(x=40, y=30, radius=15):
    """(60 80) bool."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(rows - y, columns - x) < radius


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def white(mask):
    return mask.astype(np.uint8) * 255


def prepared(name, src, tmp_path, **options):
    """Records of the train split and rejects as (path, reason)."""
    counts = prepare(name, src, tmp_path / "records", options=Options(**options))
    lines = (tmp_path / "records" / "rejects.jsonl").read_text().splitlines()
    rejects = [(r["path"], r["reason"]) for r in map(json.loads, lines)]
    assert counts["rejects"] == {
        reason: sum(r == reason for _, r in rejects) for reason in {r for _, r in rejects}
    }
    source = RecordSource(tmp_path / "records", "train")
    return [source[i] for i in range(len(source))], rejects


def ids(records):
    return [(r["group"], r["instance"], r["frame"]) for r in records]


def mask_of(record):
    return decode_image(record["mask"], "")[..., 0]


def test_names_are_sorted_by_their_numbers():
    names = ["10.jpg", "2.jpg", "1.jpg", "a10", "a9", "a9b", "b", "\u0661\u0660", "02.jpg"]
    assert in_order(names) == [
        "1.jpg", "02.jpg", "2.jpg", "10.jpg", "a9", "a9b", "a10", "b", "\u0661\u0660",
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["masks", "mask tree", "bg_removed"])
def test_mvimgnet(tmp_path, layout):
    src = tmp_path / "mvimgnet"
    images = src / "image" if layout == "mask tree" else src
    for number in (1, 2, 10):
        folder = images / "7" / "0a00 01"
        save(folder / "images" / f"{number:03d}.jpg", pixels(number))
        mask = white(disc(x=20 + number))
        if layout == "masks":
            save(folder / "masks" / f"{number:03d}.png", mask)
        elif layout == "mask tree":  # half the size, as some are
            save(src / "mask" / "7" / "0a00 01" / f"{number:03d}.jpg.png", mask[::2, ::2])
        else:
            rgba = np.dstack([pixels(number), mask])
            save(folder / "images" / f"{number:03d}_bg_removed.png", rgba)
    save(images / "7" / "0b000002" / "images" / "001.jpg", pixels())
    save(images / "7" / "0e000005" / "images" / "001.jpg", pixels())
    save(images / "7" / "0e000005" / "images" / "001_bg_removed.png", pixels())
    (images / "7" / "0c000003" / "images").mkdir(parents=True)
    (images / "7" / "0d000004").mkdir()
    (images / "mvi_00.zip").write_bytes(b"PK")
    (images / "7" / "loop").symlink_to("loop")
    records, rejects = prepared("mvimgnet", src, tmp_path)
    assert ids(records) == [("7/0a00 01", 0, number) for number in (1, 2, 10)]
    assert records[2]["image"] == (images / "7/0a00 01/images/010.jpg").read_bytes()
    assert np.mean((mask_of(records[2]) >= 128) != disc(x=30)) < 0.02
    below = "image/" if layout == "mask tree" else ""
    assert sorted(rejects) == [
        (f"{below}7/0b000002/images/001.jpg", "no mask"),
        (f"{below}7/0c000003/images", "empty folder"),
        (f"{below}7/0d000004", "empty folder"),
        (f"{below}7/0e000005/images/001.jpg", "no alpha"),
        (f"{below}7/loop", "broken link"),
        (f"{below}mvi_00.zip", "archive"),
    ]


def test_mvimgnet_as_downloaded(tmp_path):
    src = tmp_path / "mvimgnet"
    for part, name in (("mvi_00", "7/0a000001"), ("mvi_01", "8/0b000002")):
        save(src / "MVImgNet_origin" / part / name / "images" / "001.jpg", pixels())
        save(src / "MVImgNet_mask" / name / "001.jpg.png", white(disc()))
    records, rejects = prepared("mvimgnet", src, tmp_path)
    assert (ids(records), rejects) == ([("7/0a000001", 0, 1), ("8/0b000002", 0, 1)], [])


def test_youtubevos(tmp_path):
    src = tmp_path / "train"
    labels = disc(20).astype(np.uint8) + 2 * disc(60).astype(np.uint8)
    for name in ("00000", "00005", "00100"):
        save(src / "JPEGImages" / "ab12" / f"{name}.jpg", pixels())
        image = Image.fromarray(disc(20).astype(np.uint8) if name == "00005" else labels)
        image.putpalette([i % 256 for i in range(768)])
        (src / "Annotations" / "ab12").mkdir(parents=True, exist_ok=True)
        image.save(src / "Annotations" / "ab12" / f"{name}.png")
    (src / "Annotations" / "ab12" / "00100.png").unlink()
    save(src / "Annotations" / "ab12" / "00100.png", (labels + 3 * disc(40, 5, 5)).astype(np.uint8))
    videos = {
        "ab12": {
            "objects": {
                "1": {"category": "cat", "frames": ["00000", "00005", "00100", "00105"]},
                "2": {"category": "dog", "frames": ["00005", "00000", "00100"]},
            }
        },
        "gone": {"objects": {}},
        "odd": {"objects": {"one": {}}},
        "odd frames": {"objects": {"1": {"frames": [0, 5]}}},
        "bare": {"objects": {}},
    }
    for name in ("odd", "odd frames", "bare", "unlisted"):
        (src / "JPEGImages" / name).mkdir()
    (src / "meta.json").write_text(json.dumps({"videos": videos}))
    records, rejects = prepared("youtubevos", src, tmp_path)
    assert ids(records) == [
        ("ab12", 1, 0), ("ab12", 2, 0), ("ab12", 1, 5), ("ab12", 1, 100), ("ab12", 2, 100),
    ]  # fmt: skip
    np.testing.assert_array_equal(mask_of(records[1]), white(disc(60)))
    assert records[0]["image"] == records[1]["image"]
    assert rejects == [
        ("JPEGImages/ab12/00005.jpg", "object not in mask"),
        ("JPEGImages/ab12/00100.jpg", "object not in meta.json"),
        ("JPEGImages/ab12/00105.jpg", "missing picture"),
        ("JPEGImages/bare", "no object"),
        ("JPEGImages/gone", "missing folder"),
        ("JPEGImages/odd", "bad description"),
        ("JPEGImages/odd frames", "bad description"),
        ("JPEGImages/unlisted", "video not in meta.json"),
    ]


def test_youtubevos_without_a_description(tmp_path):
    src = tmp_path / "train"
    save(src / "JPEGImages" / "ab" / "00000.jpg", pixels())
    save(src / "JPEGImages" / "ab" / "00005.jpg", pixels())
    save(src / "Annotations" / "ab" / "00000.png", disc(20) + 2 * disc(60).astype(np.uint8))
    records, rejects = prepared("youtubevos", src, tmp_path)
    assert ids(records) == [("ab", 1, 0), ("ab", 2, 0)]
    assert rejects == [("JPEGImages/ab/00005.jpg", "no mask")]


def test_the_listing_is_the_same_in_every_process(tmp_path):
    names = [f"{frame:05d}" for frame in range(0, 100, 5)]
    for folder in ("JPEGImages/cat", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    content = {"videos": {"cat": {"objects": {"1": {"frames": names}}}}}
    (tmp_path / "meta.json").write_text(json.dumps(content))
    script = """
import pathlib, sys
from imprint_jax.data.preparation.sources import youtubevos_groups

print(list(youtubevos_groups(pathlib.Path(sys.argv[1]))))
"""
    listings = {
        subprocess.check_output(
            [sys.executable, "-c", script, tmp_path], env=os.environ | {"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    }
    assert len(listings) == 1


def test_davis_2016(tmp_path):
    src = tmp_path / "DAVIS"
    for name in ("00000", "00001", "00010"):
        save(src / "JPEGImages" / "480p" / "swan" / f"{name}.jpg", pixels())
        save(src / "Annotations" / "480p" / "swan" / f"{name}.png", disc(20)[::2, ::2])
    (src / "Annotations" / "480p" / "swan" / "00001.png").unlink()
    save(src / "JPEGImages" / "1080p" / "swan" / "00000.jpg", pixels())
    records, rejects = prepared("davis", src, tmp_path)
    assert ids(records) == [("swan", 0, 0), ("swan", 0, 10)]
    assert np.mean((mask_of(records[1]) >= 128) != disc(20)) < 0.02
    assert rejects == [("JPEGImages/480p/swan/00001.jpg", "no mask")]


def test_davis_2017(tmp_path):
    src = tmp_path / "DAVIS"
    labels = disc(20).astype(np.uint8) + 2 * disc(60).astype(np.uint8)
    labels[:2] = 255  # void
    image = Image.fromarray(labels)
    image.putpalette([i % 256 for i in range(768)])
    save(src / "JPEGImages" / "Full-Resolution" / "dogs" / "00000.jpg", pixels())
    (src / "Annotations" / "Full-Resolution" / "dogs").mkdir(parents=True)
    image.save(src / "Annotations" / "Full-Resolution" / "dogs" / "00000.png")
    records, rejects = prepared("davis", src, tmp_path)
    assert (ids(records), rejects) == ([("dogs", 1, 0), ("dogs", 2, 0)], [])
    np.testing.assert_array_equal(mask_of(records[1]), white(disc(60)))


def vipseg_labels():
    """Stuff 15, a person 6100 and another 6101, void elsewhere."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[40:] = 15
    labels[disc(20)], labels[disc(60)] = 6100, 6101
    labels[:15, 30:50] = 200  # void, by an error of the set
    return labels


def test_vipseg(tmp_path):
    src = tmp_path / "VIPSeg"
    for name in ("00000001", "00000010", "00000002"):
        save(src / "imgs" / "0_w" / f"{name}.jpg", pixels())
        save(src / "panomasks" / "0_w" / f"{name}.png", vipseg_labels())
    save(src / "imgs" / "test_video" / "00000001.jpg", pixels())
    save(src / "panomasks" / "0_w" / "00000010.png", vipseg_labels()[:-1])
    save(src / "imgs" / "0_w" / "00000011.jpg", pixels())
    save(src / "panomasks" / "0_w" / "00000011.png", np.minimum(vipseg_labels(), 15))
    records, rejects = prepared("vipseg", src, tmp_path)
    assert ids(records) == [("0_w", k, frame) for frame in (1, 2) for k in (6100, 6101)]
    np.testing.assert_array_equal(mask_of(records[1]), white(disc(60)))
    assert rejects == [
        ("imgs/0_w/00000010.jpg", "mask of another size"),
        ("imgs/0_w/00000011.jpg", "no object"),
        ("imgs/test_video/00000001.jpg", "no mask"),
    ]


@pytest.mark.parametrize("split", ["", "_train", "_val"])
def test_vipseg_with_coloured_masks(tmp_path, split):
    src = tmp_path / "VIPSeg_720P"
    labels = vipseg_labels()
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for value, colour in ((15, (8, 255, 51)), (6100, (11, 200, 200)), (6101, (1, 2, 3))):
        colours[labels == value] = colour
    save(src / "images" / "v" / "1.jpg", pixels())
    save(src / "panomasksRGB" / "v" / "1.png", colours)
    number = lambda r, g, b: r + 256 * g + 65536 * b
    segments = [
        {"id": number(8, 255, 51), "category_id": 14},
        {"id": number(11, 200, 200), "category_id": 60},
        {"id": number(9, 9, 9), "category_id": 60},
    ]
    annotation = {"file_name": "1.png", "image_id": "1", "segments_info": segments}
    content = {
        "videos": [],
        "annotations": [{"video_id": "v", "annotations": [annotation]}],
        "categories": [{"id": 14, "isthing": 0}, {"id": 60, "isthing": 1}],
    }
    (src / f"panoptic_gt_VIPSeg{split}.json").write_text(json.dumps(content))
    records, rejects = prepared("vipseg", src, tmp_path)
    assert ids(records) == [("v", number(11, 200, 200), 1)]
    np.testing.assert_array_equal(mask_of(records[0]), white(disc(20)))
    assert rejects == [("images/v/1.jpg", "object not in mask")]


def test_ppr10k(tmp_path):
    src = tmp_path / "ppr10k"
    for part, name in (("train", "0_0"), ("train", "0_12"), ("train", "0_2"), ("val", "1356_1")):
        save(src / part / "target_a" / f"{name}.tif", pixels())
        save(src / part / "masks" / f"{name}.png", white(disc()))
    save(src / "train" / "target_a" / "0_0_1.tif", pixels())
    records, rejects = prepared("ppr10k", src, tmp_path)
    assert ids(records) == [("0", 0, 0), ("0", 0, 2), ("0", 0, 12), ("1356", 0, 1)]
    assert records[0]["image"].startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode_image(records[0]["image"], ""), pixels())
    assert rejects == [("train/target_a/0_0_1.tif", "unknown name")]


@pytest.mark.parametrize("below", ["", "train"])
def test_ppr10k_as_downloaded(tmp_path, below):
    src = tmp_path / "PPR10K-dataset"
    for part in ("source", "target_a"):
        save(src / "train_val_images_tif_360p" / below / part / "0_0.tif", pixels())
    save(src / "masks_360p" / "0_0.png", white(disc()))
    save(src / "masks_full" / "0_0.png", white(np.ones((HEIGHT * 2, WIDTH * 2), bool)))
    records, rejects = prepared("ppr10k", src, tmp_path)
    assert (ids(records), rejects) == ([("0", 0, 0)], [])


def test_photos_with_masks(tmp_path):
    src = tmp_path / "photos"
    for name in ("one.jpg", "zwei Katzen ä.png", "plain.webp", "small.png"):
        save(src / name, pixels())
    save(src / "masks" / "one.png", white(disc()))
    for number, x in ((1, 20), (2, 60)):
        save(src / "masks" / "zwei Katzen ä" / f"{number}.png", white(disc(x)))
    save(src / "masks" / "small.png", white(disc(radius=1)))
    save(src / "masks" / "one_mask.png", white(disc()))
    (src / "more").mkdir()
    (src / "phone.HEIC").write_bytes(b"")
    records, rejects = prepared("photos", src, tmp_path)
    assert ids(records) == [
        ("one", 0, 0), ("plain", 0, 0), ("zwei Katzen ä", 1, 0), ("zwei Katzen ä", 2, 0),
    ]  # fmt: skip
    assert [bool(mask_of(r).any()) for r in records] == [True, False, True, True]
    assert rejects == [
        ("small.png", "object too small"),
        ("masks/one_mask.png", "no photo"),
        ("phone.HEIC", "unknown format"),
        ("more", "folder among photos"),
    ]


def test_photos_of_other_formats(tmp_path):
    src = tmp_path / "photos"
    formats = ["bmp", "gif", *(["avif"] if features.check("avif") else [])]
    for suffix in formats:
        save(src / f"{suffix}.{suffix}", np.full((HEIGHT, WIDTH, 3), (200, 30, 60), np.uint8))
    records, rejects = prepared("photos", src, tmp_path)
    assert ([r["group"] for r in records], rejects) == (sorted(formats), [])
    for record in records:
        assert record["image"].startswith(b"\x89PNG")
        off = decode_image(record["image"], "").astype(int) - (200, 30, 60)
        assert np.abs(off).max() <= 8  # a palette of GIF, AVIF's compression


def test_a_photo_whose_mask_cannot_be_told_is_no_background(tmp_path):
    src = tmp_path / "photos"
    for name in ("upper.jpg", "bmp.jpg", "empty.jpg", "twice.jpg", "pair.jpg", "pair.png"):
        save(src / name, pixels())
    for name in ("upper.PNG", "bmp.bmp", "twice.png", "twice/1.png", "pair.png"):
        save(src / "masks" / name, white(disc()))
    (src / "masks" / "empty").mkdir()
    records, rejects = prepared("photos", src, tmp_path)
    assert ids(records) == [("bmp", 0, 0), ("upper", 0, 0)]
    assert all(mask_of(r).any() for r in records)
    assert sorted(rejects) == [
        ("empty.jpg", "empty folder"),
        ("pair.jpg", "two of one name"),
        ("pair.png", "two of one name"),
        ("twice.jpg", "two of one name"),
    ]


def test_maps_beside_views_are_no_views(tmp_path):
    src = tmp_path / "views"
    view = np.dstack([pixels(), white(disc())])
    for name in ("000", "001", "000_normal", "depth_0000", "001_albedo"):
        save(src / "lamp" / f"{name}.png", view)
    for name in ("rgb_000_front", "normals_000_front", "rgb_000_right", "masks_000_front"):
        save(src / "normal chair" / f"{name}.png", view)
    records, rejects = prepared("objaverse", src, tmp_path)
    assert ids(records) == [
        ("lamp", 0, 0), ("lamp", 0, 1), ("normal chair", 0, 0), ("normal chair", 0, 1),
    ]  # fmt: skip
    assert {Path(path).stem for path, reason in rejects if reason == "no view"} == {
        *("000_normal", "depth_0000", "001_albedo", "normals_000_front", "masks_000_front")
    }


def test_objaverse_views_of_others(tmp_path):
    src = tmp_path / "views"
    view = np.dstack([pixels(), white(disc())])
    for number in (0, 1, 10):
        save(src / "0" / "10010" / "campos_512_v4" / f"{number:05d}" / f"{number:05d}.png", view)
        save(src / "ab12" / "rgba" / f"{number:03d}.png", view)
    save(src / "0" / "10010" / "campos_512_v4" / "00000" / "00000_normal.png", view)
    (src / "ab12" / "pose").mkdir()
    records, rejects = prepared("objaverse", src, tmp_path)
    assert ids(records) == [(group, 0, k) for group in ("0/10010", "ab12") for k in (0, 1, 10)]
    assert rejects == [("0/10010/campos_512_v4/00000/00000_normal.png", "no view")]


def test_views_of_other_formats_and_loose_ones_are_listed(tmp_path):
    src = tmp_path / "views"
    save(src / "lamp" / "000.png", np.dstack([pixels(), white(disc())]))
    save(src / "lamp" / "001.jpg", pixels())
    save(src / "loose.png", pixels())
    records, rejects = prepared("objaverse", src, tmp_path)
    assert ids(records) == [("lamp", 0, 0)]
    assert rejects == [("lamp/001.jpg", "unknown format"), ("loose.png", "loose picture")]


def runs(mask):
    """Run lengths down the columns, the first of zeros."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff(edges, prepend=0).tolist()


def compressed(counts):
    """COCO's characters for run lengths."""
    text = ""
    for position, count in enumerate(counts):
        number = count - counts[position - 2] if position > 2 else count
        while True:
            digit, number = number & 31, number >> 5
            last = number == (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * (not last))
            if last:
                break
    return text


def test_run_lengths_are_read_as_they_were_written():
    mask = disc(30, 25, 14) | disc(70, 50, 6)
    for counts in (runs(mask), compressed(runs(mask))):
        segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
        ((number, got),) = coco_masks([(3, segmentation, 0)], pixels())
        assert number == 3
        np.testing.assert_array_equal(got, white(mask))


def test_compressed_run_lengths_of_the_coco_kit():
    # pycocotools 2.0: mask.encode(np.asfortranarray([[0, 1, 1, 0], [0, 1, 0, 0]], np.uint8))
    segmentation = {"size": [2, 4], "counts": "233"}
    ((_, got),) = coco_masks([(1, segmentation, 0)], np.zeros((2, 4, 3), np.uint8))
    np.testing.assert_array_equal(got > 0, [[0, 1, 1, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize("nested", [True, False])
def test_photos_in_coco_format(tmp_path, nested):
    src = tmp_path / "coco"
    folder = src / "val2017" if nested else src
    for name in ("000000000009.jpg", "000000000010.jpg", "000000000011.jpg"):
        save(folder / name, pixels())
    square = [20, 15, 59, 15, 59, 44, 20, 44]
    annotations = [
        {"id": 5, "image_id": 9, "segmentation": [square], "iscrowd": 0},
        {"id": 6, "image_id": 9, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(disc())}},
        {"id": 7, "image_id": 9, "segmentation": {"size": [1, 1], "counts": [1]}, "iscrowd": 1},
        {"id": 8, "image_id": 10, "segmentation": {"size": [9, 9], "counts": [81]}},
        {"id": 9, "image_id": 10, "segmentation": [[1, "x"]]},
        {"id": 10, "image_id": 99, "segmentation": []},
        {"id": 11, "image_id": 10, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [10**13]}},
        {"id": 12, "image_id": 13, "segmentation": [square]},
        {"id": 2**63 + 5, "image_id": 9, "segmentation": [square]},
        {"id": 13, "image_id": 9, "segmentation": [[math.nan, *square[1:]]]},
        {"id": 14, "image_id": 9, "segmentation": [[math.inf, *square[1:]]]},
        {"id": 15, "image_id": 9, "segmentation": [[1e300, *square[1:]]]},
    ]
    save(folder / "000000000013.jpg", pixels())
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (9, 10, 11, 12, 13)]
    images[0] |= {"height": HEIGHT, "width": WIDTH}
    images[4] |= {"height": 2 * HEIGHT, "width": 2 * WIDTH}
    content = {"images": images, "annotations": annotations, "categories": []}
    (src / "annotations").mkdir()
    (src / "annotations" / "captions_val2017.json").write_text("{}")
    place = src / "annotations" / "instances_val2017.json" if nested else src / "labels.json"
    place.write_text(json.dumps(content))
    (src / "captions.json").write_text('["a cup", "a desk"]')
    if nested:  # the archive of annotations also describes pictures that were not fetched
        (src / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    records, rejects = prepared("photos", src, tmp_path)
    below = "val2017/" if nested else ""
    assert ids(records) == [
        (f"{below}000000000009", 5, 0), (f"{below}000000000009", 6, 0),
        (f"{below}000000000011", 0, 0),
    ]  # fmt: skip
    assert (mask_of(records[0])[15:45, 20:60] == 255).all() and mask_of(records[0]).mean() < 70
    np.testing.assert_array_equal(mask_of(records[1]), white(disc()))
    assert not mask_of(records[2]).any()
    assert sorted(reason for _, reason in rejects) == [
        "crowd", "mask of another size", "mask of another size", *["missing folder"] * nested,
        "missing picture", "missing picture", "number too large", *["unreadable mask"] * 5,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        {"images": [{"id": 1, "file_name": None}], "annotations": []},
        {"images": [], "annotations": [{"id": 1e999, "image_id": 1, "segmentation": []}]},
    ],
)
def test_descriptions_not_in_cocos_format_are_refused(tmp_path, content):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "labels.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"labels\.json is not in COCO's format"):
        prepare("photos", tmp_path / "src", tmp_path / "records")


def test_folder(tmp_path):
    src = tmp_path / "pairs"
    for name in ("a", "b", "c"):
        save(src / "foreground" / f"{name}.png", pixels(1))
        save(src / "foreground_mask" / f"{name}.png", white(disc()))
        save(src / "background" / f"{name}.jpg", pixels(2))
    for name in ("a", "b"):
        save(src / "target" / f"{name}.png", pixels(3))
    save(src / "mask" / "a.png", white(disc(20)))
    (src / "bbox").mkdir()
    (src / "bbox" / "b.txt").write_text("10 20 40 50 b_GT.png\n")
    save(src / "background" / "nobody.jpg", pixels(2))
    save(src / "foreground" / "d.png", pixels(1))
    for suffix in ("jpg", "PNG"):
        save(src / "target" / f"d.{suffix}", pixels(3))
    (src / "background" / "c.heic").write_bytes(b"")
    records, rejects = prepared("folder", src, tmp_path)
    assert ids(records) == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("b", 0, 1), ("c", 0, 0)]
    assert records[1]["background"] == (src / "background" / "a.jpg").read_bytes()
    np.testing.assert_array_equal(mask_of(records[1]), white(disc(20)))
    box = mask_of(records[3])
    assert (box[20:50, 10:40] == 255).all() and np.count_nonzero(box) == 900
    assert rejects == [
        ("target/c.png", "no target"),
        ("foreground/d.png", "two of one name"),
        ("background/c.heic", "unknown format"),
        ("background/nobody.jpg", "no foreground"),
    ]


def test_pairs_of_a_folder_fit_and_stay_together(tmp_path):
    src = tmp_path / "pairs"
    names = [f"{k:02d}" for k in range(20)]
    for name in names:
        save(src / "foreground" / f"{name}.png", pixels(1))
        save(src / "foreground_mask" / f"{name}.png", white(np.ones((HEIGHT, WIDTH), bool)))
        save(src / "target" / f"{name}.png", pixels(3))
        save(src / "mask" / f"{name}.png", white(disc()))
    save(src / "background" / "03.jpg", pixels(2, height=HEIGHT - 8))
    records, rejects = prepared(
        "folder", src, tmp_path, split_by="photo", fractions=(0.5, 0.5, 0.0)
    )
    splits = json.loads((tmp_path / "records" / "splits.json").read_text())
    assert sorted(splits["train"] + splits["validation"]) == names and splits["validation"]
    whole = [pair for name in splits["train"] for pair in ((name, 0, 0), (name, 0, 1))]
    assert ids(records) == [pair for pair in whole if pair != ("03", 0, 1)]
    assert rejects == [("background/03.jpg", "background of another size")]


@pytest.mark.parametrize(
    "name, message",
    [
        ("youtubevos", "lacks JPEGImages, Annotations"),
        ("vipseg", "lacks imgs, panomasksRGB"),
        ("ppr10k", "no folder target_a or source"),
        ("folder", "lacks foreground, foreground_mask, background"),
        ("mvimgnet", "no usable picture but archives .mvi_00.zip.*unpack"),
        ("objaverse", "no usable picture but archives"),
        ("photos", "no usable picture but archives"),
    ],
)
def test_another_layout_is_refused(tmp_path, name, message):
    src = tmp_path / "src"
    src.mkdir()
    (src / "mvi_00.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=message):
        prepare(name, src, tmp_path / "records")
    assert {*os.listdir(tmp_path)} <= {"src", "records.rejects.jsonl"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"videos": []}'])
def test_a_broken_description_is_refused(tmp_path, text):
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / "src" / folder).mkdir(parents=True)
    (tmp_path / "src" / "meta.json").write_text(text)
    with pytest.raises(InputError, match=r"meta\.json"):
        prepare("youtubevos", tmp_path / "src", tmp_path / "records")


def test_every_reader_says_where_its_layout_is_from():
    for name, reader in READERS.items():
        assert "Source:" in reader.groups.__doc__ or name in ("mvimgnet", "photos")
        assert "SRC/" in reader.groups.__doc__
