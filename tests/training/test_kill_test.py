"""`scripts/kill_test.py`: when runs are killed, and what counts as equal."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import kill_test

# A run of three checkpoints after a long start, as a compilation makes it; then nothing to resume.
SLOW = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1]) / "checkpoints"
if not folder.exists():
    time.sleep(1.0)
    for step in (1, 2, 3):
        (folder / str(step)).mkdir(parents=True)
        time.sleep(0.2)
"""


def begin(workdir: Path, part: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-S", "-c", SLOW, workdir])


def test_runs_are_killed_between_their_first_checkpoint_and_their_last(tmp_path):
    times = kill_test.watched(begin(tmp_path / "alone", 0), tmp_path / "alone")
    assert 1.0 < times[0] < times[1]
    steps = [
        kill_test.run_with_a_kill(begin, tmp_path / str(i), times, early=False) for i in range(4)
    ]
    assert all(steps)
    assert kill_test.run_with_a_kill(begin, tmp_path / "early", (0.5, 1.0), early=True) == 0


def test_a_run_that_saves_once_has_no_moment_to_be_killed_at(tmp_path):
    once = SLOW.replace("(1, 2, 3)", "(1,)").replace("1.0", "0.1")
    process = subprocess.Popen([sys.executable, "-S", "-c", once, tmp_path])
    with pytest.raises(RuntimeError, match="save twice"):
        kill_test.watched(process, tmp_path)


def test_only_floats_may_be_rounded_otherwise():
    want = {"loss 1": np.float64(0.5), "position 1": np.int64(1_000_000)}
    rounded = want | {"loss 1": np.float64(0.5 + 4e-6)}
    assert kill_test.differing(want, want, 0.0) == []
    assert kill_test.differing(want, rounded, 0.0) == ["loss 1"]
    assert kill_test.differing(want, rounded, 1e-5) == []
    elsewhere = want | {"loss 1": np.float64(0.5001), "position 1": np.int64(1_000_001)}
    assert kill_test.differing(want, elsewhere, 1e-5) == ["loss 1", "position 1"]
    assert kill_test.differing(want, {"loss 1": want["loss 1"]}, 0.0) == ["position 1"]


@pytest.mark.parametrize("text", ["2", "2,4,8", "0,2", "two,4"])
def test_devices_are_two_numbers(text):
    assert kill_test.device_counts("2,4") == (2, 4)
    with pytest.raises(argparse.ArgumentTypeError):
        kill_test.device_counts(text)
