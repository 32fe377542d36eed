"""`scripts/soak.py`: what it reads of a run, what counts as equal, and a short one."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.commands import ROOT
from tests.tiny import write_scale

sys.path.insert(0, str(ROOT / "scripts"))
import soak


def test_a_start_is_known_by_its_log(tmp_path):
    log = tmp_path / "0.log"
    start = soak.Start([SimpleNamespace(exitcode=None), SimpleNamespace(exitcode=-9)], [log])
    assert (start.resumed(), start.step(), start.running()) == (None, None, False)
    log.write_text("unet starts at random\nstep 1 of 40  loss 2.9\nstep 2 of 40  loss 2.8\n")
    assert (start.resumed(), start.step()) == (0, 2)
    log.write_text("resumed from step 12 of runs/a\n")
    assert (start.resumed(), start.step()) == (12, None)


def test_equal_is_bit_for_bit():
    want = {"loss 1": np.float64(0.5), "position": np.int64(80)}
    assert soak.differing(want, dict(want)) == []
    assert soak.differing(want, want | {"loss 1": np.nextafter(0.5, 1)}) == ["loss 1"]
    assert soak.differing(want, {"loss 1": want["loss 1"]}) == ["position"]


def test_another_number_of_processes_may_round_otherwise():
    want = {"loss 1": np.float64(0.5), "position": np.int64(80), "unet": np.float32(1)}
    differing = lambda **changes: soak.differing(want, want | changes, moved=True)
    assert differing(**{"loss 1": np.float64(0.500004), "unet": np.float32(1.1)}) == []
    assert differing(**{"loss 1": np.float64(0.50001)}) == ["loss 1"]
    assert differing(position=np.int64(79), unet=np.float32(np.nan)) == ["position", "unet"]


def test_what_happens_follows_from_the_seed():
    plans = [soak.planned(list(soak.EVENTS), random.Random(7)) for _ in range(2)]
    assert plans[0] == plans[1]
    endings = {event.__name__ for event in soak.ENDING}
    rng = random.Random(0)
    for _ in range(50):
        at_work, at_rest = soak.planned(["clock", "terminate", "cut_shard"], rng)
        assert at_work[-1] == "terminate" and not endings & {*at_work[:-1], *at_rest}


def test_the_table_counts_what_happened():
    events = [
        {"kind": "clock", "processes": 2},
        {"kind": "kill_one", "processes": 2, "seconds": 18.2},
        {"resumed": 8, "processes": 4, "steps_again": 3},
        {"kind": "kill_one", "processes": 4, "seconds": 2.5},
        {"resumed": 12, "processes": 4, "steps_again": 1},
        {"end": True, "differing": []},
        {"end": True, "differing": ["loss 3"], "lost": True},
        {"end": True, "differing": [], "moved": True},
    ]
    table = soak.table(events)
    assert "SIGKILL of one process: the others end within a minute, and say why | 2 |" in table
    assert "3 events, after which runs went on 2 times; at most 3 steps were made again;" in table
    assert "1 of 2 runs ended equal, bit for bit; 1 of 1 that changed the number" in table
    assert "same losses to 1e-05; something was lost: 1." in table


@pytest.mark.long
def test_a_short_soak_loses_nothing(tmp_path):
    recipe = write_scale(tmp_path) / "stage1.py"
    command = [sys.executable, ROOT / "scripts/soak.py", recipe, tmp_path / "soak"]
    command += ["--events", "3", "--processes", "2", "--only", "kill_all,kill_one,cut_shard"]
    steps = ["--config.total_steps=12", "--config.save_every=2"]
    done = subprocess.run([*command, *steps], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "soak/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert sum("kind" in event for event in events) >= 3
    assert Path(tmp_path / "soak/alone-2/checkpoints/12").is_dir()
