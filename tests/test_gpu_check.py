"""`scripts/gpu_check.py`: its clock, its files, and all of its parts at small size."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from imprint_jax import config
from imprint_jax.config import Config
from imprint_jax.training import sharding
from imprint_jax.training.state import Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import check_part
import check_sampling
import gpu_check

SCRIPTS = Path(gpu_check.__file__).parent

PART = """
import subprocess, sys, time
import check_part

def good():
    check_part.report(rate=1.0)

def bad():
    sys.exit("Broken: why")

def late():
    check_part.report(child=subprocess.Popen(["sleep", "100"]).pid)
    time.sleep(100)

def quiet():
    time.sleep(0.5)
    with check_part.alone():
        start = time.monotonic()
        time.sleep(1.0)
        check_part.report(span=[start, time.monotonic()])

def ticks():
    clock, times = check_part.clock(), [time.monotonic()]
    while times[-1] < times[0] + 3.0:
        time.sleep(0.01)
        times.append(time.monotonic())
    check_part.report(clock=check_part.clock() - clock, times=times)

def memory():
    check_part.take_memory()
    start = time.monotonic()
    time.sleep(2.0)
    check_part.report(span=[start, time.monotonic()])

functions = {f.__name__: f for f in (good, bad, late, quiet, ticks, memory)}
check_part.main(functions | {"torch": memory})
"""


@pytest.fixture
def part(tmp_path):
    """Makes parts of a script with the functions above."""
    script = tmp_path / "part.py"
    script.write_text(PART)
    return lambda function, name=None, time=1.0, memory=0.9: gpu_check.Part(
        name or function, str(script), function, {}, time, memory
    )


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A check that has half a minute."""
    monkeypatch.setattr(gpu_check, "LEAST", 0.5)
    monkeypatch.setattr(gpu_check, "RESERVE", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    (tmp_path / "out").mkdir()
    return gpu_check.Check(tmp_path / "out", {"parts": {}}, 0.5)


def ended(pid: int) -> bool:
    """Whether a process that nobody has waited for does nothing any more."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_part_that_fails_or_is_late_costs_only_itself(check, part):
    check.run_all(([part("bad"), part("late", time=0.1), part("good")], 1))
    file = json.loads((check.out / "results.json").read_text())
    states = {name: entry["state"] for name, entry in file["parts"].items()}
    assert states == {"bad": "failed: Broken: why", "late": "not done in 3 s", "good": "done"}
    assert file["parts"]["good"]["results"] == [{"rate": 1.0}]
    assert ended(file["parts"]["late"]["results"][0]["child"])
    assert "| late | not done in 3 s |" in (check.out / "results.md").read_text()


def test_the_time_is_kept(check, part):
    start = time.monotonic()
    check.end = start + 4.0
    check.run_all(([part("late"), part("good")], 1), ([part("late", "late too")], 1))
    assert time.monotonic() - start < 4.0 + gpu_check.RESERVE
    states = {name: entry["state"] for name, entry in check.record["parts"].items()}
    assert states == {
        "late": "not done in 4 s",
        "late too": "not done in 4 s",
        "good": "no time left",
    }


def test_what_is_done_is_not_done_again(check, part):
    check.record["parts"] = {
        "good": {"state": "done", "seconds": 7.0, "results": []},
        "second": {"state": "not done in 3 s", "seconds": 3.0, "results": [{"rate": 0.0}]},
    }
    check.run_all(([part("good"), part("good", "second")], 1))
    assert check.record["parts"]["good"]["seconds"] == 7.0
    assert check.record["parts"]["second"]["results"] == [{"rate": 1.0}]


def test_while_one_measures_the_others_stand_still(check, part):
    check.run_all(([part("quiet")], 1), ([part("ticks")], 1))
    results = {name: entry["results"][0] for name, entry in check.record["parts"].items()}
    start, end = results["quiet"]["span"]
    times = results["ticks"]["times"]
    assert not any(start + 0.1 < t < end - 0.1 for t in times)
    assert times[0] < start < end < times[-1]
    # Its own clock stood still, too.
    assert results["ticks"]["clock"] < times[-1] - times[0] - 0.9


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (("memory", 0.45), ("torch", 0.45), True),
        (("memory", 0.9), ("torch", 0.45), False),
    ],
)
def test_libraries_share_the_memory_unless_a_part_wants_all(check, part, first, second, together):
    one, other = part(first[0], "1", memory=first[1]), part(second[0], "2", memory=second[1])
    check.run_all(([one, other], 2))
    spans = sorted(x["results"][0]["span"] for x in check.record["parts"].values())
    assert (spans[0][1] > spans[1][0]) == together


def test_the_tables(tmp_path):
    rate = {"rate": 2.0, "memory": 1.0, "compile": 3.0, "batch": 4}
    jax_side = rate | {"flops": 494.5e12, "planned": 1.5, "loss": 0.25, "host": 12.0}
    record = {
        "size": "full",
        "parts": {
            "smoke test": {"results": [{"device": "NVIDIA H200", "memory": 126.0}]},
            "numerics, stage 1": {
                "results": [
                    {"what": "loss", "bfloat16": 0.99, "float32": 1.0},
                    {"what": "gradient norm", "bfloat16": 2.0, "float32": 2.0, "difference": 0.01},
                ]
            },
            "sampling": {"results": [jax_side]},
            "sampling, PyTorch": {"results": [{"batch": 4, "out_of_memory": True}]},
            "training, stage 2": {"results": [{"batch": 8, "out_of_memory": True}, jax_side]},
            "training, stage 2, PyTorch": {"results": [rate | {"rate": 1.0, "loss": 0.25}]},
        },
    }
    for entry in record["parts"].values():
        entry |= {"state": "done", "seconds": 1.0}
    lines = gpu_check.markdown(record, tmp_path).splitlines()
    assert "| 1 | loss | 0.99 | 1 | 0.9900 |  |" in lines
    assert "| 1 | gradient norm | 2 | 2 | 1.0000 | 1.00% |" in lines
    row = "| 4 | 2 / out of memory | - | 100% / - | 1.00 / - | 1.50 | 3 / - | - |"
    assert row in lines
    row = "| 2 | 4 / 4 | 2 / 1 | 2.00 | 100% / 50% | 1.00 / 1.00 | 1.50 | 3 / 3"
    assert f"{row} | 0.25000 / 0.25000 | 12.0 |" in lines


def test_the_batch_that_fits_grows_with_memory():
    sizes = [gpu_check.training_batch(stage, memory) for stage in (1, 2) for memory in (1, 40, 80)]
    assert sizes[0] == sizes[3] == 1
    assert sizes[1] < sizes[2] and sizes[4] < sizes[5]


def test_the_deep_case_trains_as_many_tensors_as_full_size_does():
    c = Config.of(config.load("stage2", check_part.overrides("deep", "float32")))
    trainer = Trainer(c, sharding.make_mesh(1))
    assert len(jax.tree.leaves(trainer.abstract_state.trained)) == pytest.approx(690, abs=20)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


@pytest.mark.parametrize(
    ("error", "used_up"),
    [
        (OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"), True),
        (RuntimeError("INTERNAL: cuDNN"), False),
    ],
)
def test_only_used_up_memory_counts_as_such(error, used_up):
    assert check_part.is_out_of_memory(error) == used_up


def test_the_sampler_takes_what_it_is_measured_with():
    devices = sharding.make_mesh(1).devices[:1, 0]
    sampler = check_sampling.trace("mini", 2, 4, "bfloat16", jax.sharding.Mesh(devices, "data"))
    _, *inputs = sampler.arguments
    arrays = (np.float32(3), check_sampling.draws(2))
    arrays += tuple(check_sampling.inputs(sampler.config, 2).values())
    assert [(x.shape, x.dtype) for x in inputs] == [(x.shape, x.dtype) for x in arrays]
    assert sampler.program.out_info[0].shape == (2, 32, 32, 3)


@pytest.mark.long
def test_every_part_at_small_size(tmp_path):
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--minutes", "30", "--size", "mini"]
    command += ["--eager", "--out", tmp_path]
    # It is only to run.
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    subprocess.run(command, env=os.environ | quick, check=True)
    record = json.loads((tmp_path / "results.json").read_text())
    assert {entry["state"] for entry in record["parts"].values()} == {"done"}
    results = {name: entry["results"] for name, entry in record["parts"].items()}
    assert results["smoke test"][0]["backend"] == "cpu"
    for stage in (1, 2):
        numerics = results[f"numerics, stage {stage}"]
        assert numerics[0]["bfloat16"] == pytest.approx(numerics[0]["float32"], rel=0.01)
        assert all(0 < x["difference"] < 0.05 for x in numerics[1:])
        # The same step on both sides: equal weights, noise and timesteps.
        jax_side, torch_side = (
            results[f"training, stage {stage}{x}"][0] for x in ("", ", PyTorch")
        )
        assert jax_side["loss"] == pytest.approx(torch_side["loss"], rel=1e-5)
    assert [x["batch"] for x in results["sampling"]] == [1, 2]
    for batch in (1, 2):
        assert gpu_check.largest_difference(tmp_path / "pictures", batch) < 1e-4
