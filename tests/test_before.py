"""Records, a run and released weights as an earlier version left them (commit 898fd98).

`before/898fd98.tar.xz` holds records of two objects, a run of the tests' tiny stage 1 stopped after
step 4 of 6, and what that version exported of it after steps 4 and 6.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from imprint_jax import Compositor
from imprint_jax.data.records import RecordSource
from tests.commands import run, run_alone

PACKED = Path(__file__).parent / "before" / "898fd98.tar.xz"
COMPONENTS = ("dinov2", "adapter", "unet", "vae")


@pytest.fixture
def before(tmp_path, monkeypatch):
    with tarfile.open(PACKED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # the run names its records by a relative path
    return tmp_path


def test_records_are_read_and_verify(before):
    assert len(RecordSource("records", split="train")) == 8
    code, text = run("data", "check", "records")
    assert code == 0, text


def test_a_run_exports_the_same_bits_and_goes_on(before):
    code, text = run("export", "run", "exported")
    assert code == 0, text
    for name in COMPONENTS:
        file = f"{name}.safetensors"
        assert (before / "exported" / file).read_bytes() == (
            before / "released_at_4" / file
        ).read_bytes()

    done = run_alone("train", "--workdir", "run", "--resume", devices=1, folder=before)
    assert done.returncode == 0, done.stderr
    assert run("export", "run", "finished")[0] == 0
    for name in COMPONENTS:
        here = load_file(before / "finished" / f"{name}.safetensors")
        then = load_file(before / "released_at_6" / f"{name}.safetensors")
        assert here.keys() == then.keys()
        for key, value in here.items():
            # Two more steps, exported in half precision: float32's rounding may differ, and so
            # move a value to its neighbour in float16.
            np.testing.assert_allclose(value, then[key], rtol=2**-10, atol=1e-6, err_msg=key)


def test_a_released_folder_composes(before):
    compositor = Compositor.from_pretrained(before / "released_at_6")
    photo = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    mask = np.zeros((48, 48), bool)
    mask[12:36, 12:36] = True
    picture = np.asarray(compositor(photo, photo, mask, object_mask=mask, num_steps=2))
    assert picture.shape == photo.shape
    assert (picture[mask] != photo[mask]).any() and (picture[:8] == photo[:8]).all()
