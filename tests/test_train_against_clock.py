"""`scripts/train_against_clock.py`: steps that fit the time, and runs that go on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import write_scale

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import train_against_clock
from train_against_clock import Speed


def test_steps_fit_into_the_time():
    speed = Speed(start=20.0, step=0.5, save=5.0)
    steps = train_against_clock.steps_in(200.0, speed)
    assert 200.0 * 0.9 < speed.start + steps * speed.step + speed.save < 200.0
    assert train_against_clock.steps_in(20.0, speed) < 0


def test_a_run_is_done_when_its_last_step_is_saved(tmp_path):
    assert not train_against_clock.is_done(tmp_path)
    (tmp_path / "config.json").write_text('{"total_steps": 30}')
    (tmp_path / "checkpoints/20").mkdir(parents=True)
    assert not train_against_clock.is_done(tmp_path)
    (tmp_path / "checkpoints/30").mkdir()
    assert train_against_clock.is_done(tmp_path)


@pytest.mark.long
def test_both_stages_in_the_time_there_is(tmp_path):
    recipes = write_scale(tmp_path)
    stage2 = (recipes / "stage2.py").read_text()
    (recipes / "stage2.py").write_text(stage2.replace('"stage 1"', '"runs/stage1"'))
    root = Path(__file__).parent.parent
    script = root / "scripts/train_against_clock.py"
    command = [sys.executable, script, recipes / "stage1.py", recipes / "stage2.py"]
    environment = os.environ | {"PYTHONPATH": str(root)}

    def run(minutes: float) -> tuple[int, float]:
        start = time.monotonic()
        arguments = [*command, "--minutes", str(minutes)]
        code = subprocess.run(arguments, cwd=tmp_path, env=environment).returncode
        return code, time.monotonic() - start

    code, seconds = run(4.0)
    assert seconds < 240.0
    while code:  # on a machine with other work a run may be slower than its trial
        steps = json.loads((tmp_path / "runs/stage1/config.json").read_text())["total_steps"]
        code, _ = run(4.0)
        again = json.loads((tmp_path / "runs/stage1/config.json").read_text())["total_steps"]
        assert steps == again
    for stage in (1, 2):
        workdir = tmp_path / f"runs/stage{stage}"
        assert train_against_clock.is_done(workdir)
        c = json.loads((workdir / "config.json").read_text())
        assert c["optim"]["warmup_steps"] <= 0.05 * c["total_steps"]
        assert not workdir.with_name(f"stage{stage}.trial").exists()
    assert run(0.1)[0] == 0  # nothing is left to do
