"""Compiled for chips that are not there: what the extras plan-gpu and plan-tpu do."""

import os
import subprocess
import sys

import pytest

from imprint_jax.planning import compile as compiling
from imprint_jax.planning import hlo
from imprint_jax.planning.plan import Request
from tests.commands import ROOT
from tests.planning import small_program


@pytest.mark.long
@pytest.mark.parametrize("accelerator", ["h100", "tpu-v5e"])
def test_a_small_program_compiles(accelerator):
    if compiling.installed_compiler(accelerator) is None:
        pytest.skip(f"the compiler for {accelerator} is not installed")
    request = Request("", (), small_program.MESH, small_program.MESH, accelerator)
    process = subprocess.run(
        [sys.executable, "-m", "tests.planning.small_program", accelerator],
        cwd=ROOT,
        env=os.environ | compiling.environment(request),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    program = hlo.Program(process.stdout)
    sent = {(c.kind, c.axes): c.count for c in hlo.collectives(program, small_program.MESH)}
    assert sent[("all-gather", ("fsdp",))] == small_program.BLOCKS
    flash = [name for name in hlo.library_calls(program) if "fmha" in name]
    assert len(flash) == (2 if accelerator == "h100" else 0)
