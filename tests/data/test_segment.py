"""Masks by a network: a tiny one, whose coverage is sigmoid(20 (mean of the channels - 0.1))."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest

from imprint_jax.composing import manifest
from imprint_jax.data.preparation.filters import Reject
from imprint_jax.data.preparation.prepare import Options, prepare
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from tests.data.preparation.test_sources import disc, ids, mask_of, pixels, prepared, save, white

# Made with onnx 1.23: ReduceMean, Sub, Mul, Sigmoid from 1 x 3 x 320 x 320; opset 13.
U2NET = base64.b64decode(
    "CAg6wgEKMAoBeBIBbSIKUmVkdWNlTWVhbioLCgRheGVzQAGgAQcqDwoIa2VlcGRpbXMYAaABAgoOCgFtCgF0EgFkIgNT"
    "dWIKDgoBZAoBcxIBZSIDTXVsCg8KAWUSAXkiB1NpZ21vaWQSAWcqDQgBEAEiBM3MzD1CAXQqDQgBEAEiBAAAoEFCAXNa"
    "HQoBeBIYChYIARISCgIIAQoCCAMKAwjAAgoDCMACYh0KAXkSGAoWCAESEgoCCAEKAggBCgMIwAIKAwjAAkIECgAQDQ=="
)
SIDE = b"\xc0\x02"  # 320, as protobuf writes it
ISNET = U2NET.replace(SIDE, b"\x80\x08")  # 1024
OTHER = U2NET.replace(SIDE, b"\x80\x04")  # 512


@pytest.fixture
def weights(tmp_path):
    for name, data in (("u2net", U2NET), ("isnet", ISNET), ("other", OTHER), ("broken", b"x")):
        (tmp_path / f"{name}.onnx").write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("name", ["u2net", "isnet"])
def test_it_finds_what_the_network_finds(weights, name):
    image = np.full((60, 80, 3), 100, np.uint8)
    image[disc()] = 200
    mask = Segmenter(weights / f"{name}.onnx")(image)
    assert mask.shape == (60, 80) and mask.dtype == np.uint8
    assert np.mean((mask >= 128) != disc()) < 0.02
    # Where the channels' mean, normalized, is 0.1 above the mean, coverage is a half.
    grey = 0.1 * 0.2247 + 0.449 if name == "u2net" else 0.6
    near = [Segmenter(weights / f"{name}.onnx")(np.full((9, 9, 3), v, np.uint8)).mean()
            for v in (int(grey * 255) + 1, int(grey * 255) + 3)]  # fmt: skip
    assert 125 < near[0] < near[1] < 200


def test_nothing_found_is_a_reject(weights):
    with pytest.raises(Reject, match="nothing segmented"):
        Segmenter(weights / "isnet.onnx")(np.zeros((20, 30, 3), np.uint8))


def test_composing_segments_only_what_has_no_mask(weights, tmp_path):
    image = np.full((60, 80, 3), 100, np.uint8)
    image[disc()] = 200
    own = np.dstack([image, white(~disc())])
    for name, picture in (("bare", image), ("cut", own), ("dark", image // 20)):
        save(tmp_path / f"{name}.png", picture)
    lines = [
        {"id": name, "object": f"{name}.png", "background": "bare.png", "box": [5, 5, 40, 40]}
        for name in ("bare", "cut", "dark")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bare, cut, dark = manifest.read(tmp_path / "pairs.jsonl")
    segmenter = Segmenter(weights / "isnet.onnx")
    coverage = lambda entry: entry.request(segmenter=segmenter).parts[0].views[0][1]
    assert np.mean((coverage(bare) >= 128) != disc()) < 0.02
    np.testing.assert_array_equal(coverage(cut), own[..., 3])
    with pytest.raises(InputError, match=r"dark\.png: The network finds no object"):
        coverage(dark)


def test_prepare_segments_only_what_has_no_mask(weights, tmp_path):
    src = tmp_path / "photos"
    for number in range(3):
        image = pixels(number) // 3
        image[disc(20 + 20 * number)] += 150
        save(src / f"{number}.png", image)
    save(src / "masks" / "1.png", white(disc(radius=20)))
    save(src / "dark.png", pixels() // 8)
    options = dict(segment=weights / "isnet.onnx", filters=["min_component=0.5"])
    records, rejects = prepared("photos", src, tmp_path, **options)
    assert ids(records) == [("0", 0, 0), ("1", 0, 0), ("2", 0, 0)]
    for record, truth in zip(records, (disc(20), disc(radius=20), disc(60)), strict=True):
        assert np.mean((mask_of(record) >= 128) != truth) < 0.03
    assert rejects == [("dark.png", "nothing segmented")]
    for number in range(2, 5):  # the same in processes
        save(src / f"{number}.png", pixels(number))
    one = prepare("photos", src, tmp_path / "one", options=Options(**options), workers=1)
    assert one == prepare("photos", src, tmp_path / "two", options=Options(**options), workers=2)


@pytest.mark.parametrize("name", ["youtubevos", "vipseg"])
def test_sets_whose_objects_have_numbers_are_not_segmented(weights, tmp_path, name):
    (tmp_path / "video").mkdir()
    with pytest.raises(InputError, match="cannot tell which object"):
        prepare(
            name,
            tmp_path / "video",
            tmp_path / "d",
            options=Options(segment=weights / "isnet.onnx"),
        )


@pytest.mark.parametrize(
    "name, message",
    [("gone", "no file .*gone.onnx"), ("broken", "cannot load"), ("other", "must be 1 x 3")],
)
def test_unusable_weights_are_refused_before_any_work(weights, tmp_path, name, message):
    save(tmp_path / "photos" / "a.png", pixels())
    with pytest.raises(InputError, match=message):
        prepare(
            "photos",
            tmp_path / "photos",
            tmp_path / "d",
            options=Options(segment=weights / f"{name}.onnx"),
        )
    assert not [p.name for p in tmp_path.iterdir() if "d" in p.suffixes or p.name == "d"]


def test_a_missing_library_is_a_clear_message(weights, tmp_path):
    save(tmp_path / "photos" / "a.png", pixels())
    script = f"""
import sys
sys.modules["onnxruntime"] = None
from imprint_jax.errors import InputError
from imprint_jax.data.preparation.prepare import Options, prepare
try:
    prepare("photos", {str(tmp_path / "photos")!r}, {str(tmp_path / "d")!r},
            options=Options(segment={str(weights / "isnet.onnx")!r}))
except InputError as error:
    assert "pip install" in str(error) and "imprint_jax[segment]" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
