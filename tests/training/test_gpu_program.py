"""What XLA:GPU makes of a training step: needs its compiler (extra [plan-gpu]), but no GPU."""

import collections
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imprint_jax.planning import compile as compiling
from imprint_jax.planning.plan import Request

MESH = {"data": 2, "fsdp": 4}
COLLECTIVE = r"= (.*?) (all-gather|all-reduce|reduce-scatter)(?:-start)?\("


@pytest.mark.long
def test_gradients_are_summed_in_float32():
    if compiling.installed_compiler("h100") is None:
        pytest.skip("XLA:GPU is not installed")
    process = subprocess.run(
        [sys.executable, "-m", "tests.training.gpu_program"],
        cwd=Path(__file__).parents[2],
        env=os.environ | compiling.environment(Request("", (), MESH, MESH, "h100")),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    dtypes = collections.defaultdict(set)
    for result, kind in re.findall(COLLECTIVE, process.stdout):
        dtypes[kind] |= set(re.findall(r"\b([a-z]+\d+)\[", result))
    assert dtypes["all-gather"] == {"bf16", "f32"}  # kernels; other parameters
    assert dtypes["reduce-scatter"] == {"f32"}
    assert dtypes["all-reduce"] == {"f32", "s32"}  # s32: how many samples a range of timesteps has
