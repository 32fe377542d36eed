"""Weight files with random damage: they are refused in a sentence, or read whole and finite."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint_jax.errors import InputError
from imprint_jax.weights import mapping
from imprint_jax.weights.tensors import open_tensors, read_json, write_tensors

SHAPES = {"a": {"kernel": (4, 6), "bias": (6,)}, "norm": {"scale": (6,), "bias": (6,)}}
ABSTRACT = {
    layer: {name: np.zeros(shape, np.float32) for name, shape in kinds.items()}
    for layer, kinds in SHAPES.items()
}
TABLE = mapping.own_table(ABSTRACT)

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8)
CUTS = st.one_of(st.just(1.0), st.floats(0, 1))
ZEROS = st.one_of(st.just(1.0), st.floats(0, 1))
THOROUGH = settings(max_examples=1000, deadline=None, database=None)


def damaged(content: bytes, edits, cut: float, zeros: float) -> bytes:
    """Single bytes changed, the end cut off, the end overwritten by zeros."""
    data = bytearray(content)
    for place, value in edits:
        data[min(int(place * len(data)), len(data) - 1)] = value
    kept = int(zeros * len(data))
    data[kept:] = bytes(len(data) - kept)
    return bytes(data[: int(cut * len(data))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def contents(folder) -> dict[str, bytes]:
    """The bytes of a whole file of each kind."""
    rng = np.random.default_rng(0)
    tensors = {
        f"{layer}.{name}": rng.normal(1, 0.1, shape).astype(np.float32)
        for layer, kinds in SHAPES.items()
        for name, shape in kinds.items()
    }
    write_tensors(folder / "whole.safetensors", tensors)
    state = {key: torch.from_numpy(x) for key, x in tensors.items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "whole.ckpt")
    torch.save(state, folder / "whole.pth", _use_new_zipfile_serialization=False)
    return {path.suffix: path.read_bytes() for path in folder.glob("whole.*")}


def read(path) -> None:
    """Reads all of a file; what passes must be whole and finite."""
    try:
        tensors = open_tensors(path)
        params = dict(mapping.parameters(TABLE, tensors, ABSTRACT, str(path)))
    except InputError:
        return
    assert params.keys() == {piece.path for piece in TABLE.pieces}
    assert all(np.isfinite(x).all() for x in params.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of pickles
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth"])
def test_damaged_weights(folder, contents, suffix):
    @THOROUGH
    @given(edits=EDITS, cut=CUTS, zeros=ZEROS)
    def run(edits, cut, zeros):
        path = folder / f"damaged{suffix}"
        path.write_bytes(damaged(contents[suffix], edits, cut, zeros))
        read(path)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_any_bytes(folder, suffix):
    @THOROUGH
    @given(content=st.binary(max_size=200))
    def run(content):
        path = folder / f"bytes{suffix}"
        path.write_bytes(content)
        read(path)

    run()


@pytest.mark.slow
def test_any_json(folder):
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
    values = st.recursive(
        leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10
    )

    @THOROUGH
    @given(content=st.one_of(st.binary(max_size=80), values.map(lambda x: json.dumps(x).encode())))
    def run(content):
        path = folder / "config.json"
        path.write_bytes(content)
        try:
            assert isinstance(read_json(path), dict)
        except InputError:
            pass

    run()
