import json

import numpy as np
import pytest

from imprint_jax import geometry
from imprint_jax.composing import manifest
from imprint_jax.errors import InputError
from tests.pictures import write_png

RNG = np.random.default_rng(0)
LINE = {"id": "a", "object": "o.png", "background": "b.png", "mask": "m.png"}


def write(folder, *lines) -> manifest.Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return path


@pytest.fixture
def pictures(tmp_path):
    write_png(tmp_path / "o.png", RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8) | 128)
    write_png(tmp_path / "rgb.png", RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    write_png(tmp_path / "rgb_mask.png", np.ones((9, 7), bool))
    write_png(tmp_path / "b.png", RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    write_png(tmp_path / "m.png", geometry.box_mask((5, 6, 15, 16), 20, 30))
    return tmp_path


def test_every_field_is_read(pictures):
    several = [
        {"object": "o.png", "box": [1, 2, 8, 9]},
        {"object": ["rgb.png", "rgb.png"], "object_mask": ["rgb_mask.png"] * 2, "mask": "m.png"},
    ]
    path = write(
        pictures,
        LINE,
        "\n",
        LINE | {"id": "b", "seed": 7, "num": 2, "mask_level": 3, "target": "t.png"},
        {"id": "c ü", "background": "b.png", "objects": several},
    )
    first, second, third = manifest.read(path)
    assert first.names() == ["a.png"] and second.names() == ["b_0.png", "b_1.png"]
    assert (first.seed, first.num, first.mask_level, first.target) == (0, 1, 0, None)
    assert second.target == pictures / "t.png" and second.line["seed"] == 7

    request = second.request()
    assert (request.seed, request.num, request.mask_level) == (7, 2, 3)
    assert second.request(mask_level=1).mask_level == 1
    np.testing.assert_array_equal(request.parts[0].hole, geometry.box_mask((5, 6, 15, 16), 20, 30))
    one, two = third.request().parts
    assert geometry.bounding_box(one.hole) == (1, 2, 8, 9)
    assert len(one.views) == 1 and len(two.views) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ([1], "line 2: must be a JSON object"),
        ({"id": "b", "object": "o.png", "mask": "m.png"}, "line 2: background is missing"),
        ({key: LINE[key] for key in ("object", "background", "mask")}, "id is missing"),
        (LINE | {"id": "b", "mask": None}, "mask must be a path"),
        (LINE | {"id": "../b"}, "something a file can be called"),
        (LINE | {"id": ".b"}, "something a file can be called"),
        (LINE | {"id": ""}, "something a file can be called"),
        (LINE | {"id": 3}, "something a file can be called"),
        (LINE | {"id": "/b"}, "something a file can be called"),
        (LINE | {"id": "b\0"}, "something a file can be called"),
        (LINE | {"id": "b "}, "something a file can be called"),
        (LINE | {"id": "商" * 76}, "has 228 bytes; a file's name leaves room for 200"),
        (LINE | {"id": "\ud800"}, "characters that no file can be called"),
        (LINE | {"id": "b", "object": "o\0.png"}, "object must be a path"),
        (LINE | {"id": "b", "background": "\udc80.png"}, "characters that no file can be called"),
        ('{"id": ' + "[" * 100_000, "line 2: not JSON"),
        ('{"seed": ' + "1" * 5000 + "}", "line 2: not JSON"),
        (LINE | {"id": "A"}, "'a' and 'A' would both write"),
        (LINE, "'a' and 'a' would both write a.png"),
        (LINE | {"id": "b", "stpes": 3}, "unknown field 'stpes'; known are background"),
        (LINE | {"id": "b", "box": [1, 2, 3, 4]}, "either mask or box"),
        ({"id": "b", "object": "o.png", "background": "b.png"}, "either mask or box"),
        (LINE | {"id": "b", "num": 0}, "number of pictures must be"),
        (LINE | {"id": "b", "seed": "1"}, "seed must be a whole number"),
        (LINE | {"id": "b", "mask_level": 9}, "mask level must be"),
        (LINE | {"id": "b", "object": []}, "object is an empty list"),
        (LINE | {"id": "b", "object": ["o.png", 3]}, "object must be a path"),
        (LINE | {"id": "b", "object_mask": ["m.png"] * 2}, "1 pictures of the object but 2 masks"),
        (LINE | {"id": "b", "object_id": 3}, "object_id must be text"),
        (LINE | {"id": "b", "objects": []}, "either objects, or object"),
        ({"id": "b", "background": "b.png", "objects": []}, "objects must be a list"),
        ({"id": "b", "background": "b.png", "objects": [3]}, "must be a JSON object"),
    ],
)
def test_wrong_lines_are_named_before_anything_is_read(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        manifest.read(write(tmp_path, LINE, line))


@pytest.mark.parametrize("text", ["\u2028", "\x85", "\u2029", "\x0b"])
def test_only_line_feeds_end_lines(tmp_path, text):
    line = json.dumps(LINE | {"object_id": f"a{text}b"}, ensure_ascii=False).replace(
        "\x0b", "\\u000b"
    )
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(f"\ufeff{line}\r\n\r\n".encode())
    (entry,) = manifest.read(path)
    assert entry.objects[0].object_id == f"a{text}b" and entry.id == "a"


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4.5], "1,2,3,4", [True, 2, 3, 4], None])
def test_wrong_boxes_are_named(tmp_path, box):
    line = {"id": "b", "object": "o.png", "background": "b.png", "box": box}
    with pytest.raises(InputError, match="box must be four whole numbers"):
        manifest.read(write(tmp_path, line))


def test_names_that_numbered_pictures_would_take(tmp_path):
    path = write(tmp_path, LINE | {"num": 2}, LINE | {"id": "a_1"})
    with pytest.raises(InputError, match=r"'a' and 'a_1' would both write a_1\.png"):
        manifest.read(path)


def test_no_manifest_and_empty_ones(tmp_path):
    with pytest.raises(InputError, match="Cannot read the manifest"):
        manifest.read(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="lists nothing"):
        manifest.read(write(tmp_path, "\n\n"))
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="Cannot read the manifest"):
        manifest.read(tmp_path / "x.jsonl")


@pytest.fixture
def plain(tmp_path):
    for name in ("background", "foreground", "foreground_mask", "mask", "bbox"):
        (tmp_path / name).mkdir()
    for stem in ("one", "two"):
        photo = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        write_png(tmp_path / "background" / f"{stem}.png", photo)
        write_png(tmp_path / "foreground" / f"{stem}.png", photo[:9, :7])
        write_png(tmp_path / "foreground_mask" / f"{stem}.png", np.ones((9, 7), bool))
    write_png(tmp_path / "mask" / "one.png", geometry.box_mask((5, 6, 15, 16), 20, 30))
    (tmp_path / "bbox" / "two.txt").write_text("1 2 8 9\n")
    return tmp_path


def test_the_plain_layout_is_read(plain):
    one, two = manifest.read(plain)
    assert one.line["mask"] == "mask/one.png"
    assert geometry.bounding_box(one.request().parts[0].hole) == (5, 6, 15, 16)
    assert geometry.bounding_box(two.request().parts[0].hole) == (1, 2, 8, 9)


def test_what_the_plain_layout_lacks_is_named(plain):
    (plain / "bbox" / "two.txt").write_text("1 2 8")
    with pytest.raises(InputError, match=r"two\.txt must hold four whole numbers"):
        manifest.read(plain)
    (plain / "bbox" / "two.txt").unlink()
    with pytest.raises(InputError, match="neither a mask nor a bbox"):
        manifest.read(plain)
    (plain / "foreground" / "one.png").rename(plain / "foreground" / "three.png")
    with pytest.raises(InputError, match=r"one\.png has no foreground of its name"):
        manifest.read(plain)
    (plain / "background" / "one.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="have the same name"):
        manifest.read(plain)
    with pytest.raises(InputError, match="not in the plain layout"):
        manifest.read(plain / "foreground")


def test_the_other_object_is_another_one(pictures):
    lines = [LINE | {"id": str(k), "object_id": name} for k, name in enumerate("abab")]
    path = write(pictures, *lines)
    changed = manifest.with_other_objects(manifest.read(path))
    assert [entry.line["object_of"] for entry in changed] == ["3", "0", "1", "2"]
    with pytest.raises(InputError, match="two objects or more"):
        manifest.with_other_objects(manifest.read(write(pictures, LINE, LINE | {"id": "b"})))


def test_boxes_are_never_inverted(pictures):
    box = {name: LINE[name] for name in ("id", "object", "background")} | {"box": [5, 6, 15, 16]}
    boxed, masked = manifest.read(write(pictures, box, LINE | {"id": "b"}))
    holes = [entry.request(invert_mask=True).parts[0].hole for entry in (boxed, masked)]
    np.testing.assert_array_equal(holes[0], geometry.box_mask((5, 6, 15, 16), 20, 30))
    np.testing.assert_array_equal(holes[1], ~holes[0])


def test_files_that_do_not_exist_are_named(pictures):
    entries = manifest.read(write(pictures, LINE, LINE | {"id": "b", "target": "gone.png"}))
    manifest.check_files(entries[:1])
    with pytest.raises(InputError, match=r"b names .*gone\.png, which does not exist"):
        manifest.check_files(entries)
