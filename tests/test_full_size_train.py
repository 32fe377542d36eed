"""The rehearsal of `scripts/full_size_train.py` by a tiny model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RECIPE = """
from tests.tiny import tiny_recipe


def get_config():
    c = tiny_recipe(2)
    c.groups = (
        ("adapter", "adapter/", 1e-5),
        ("cross_attention", r"unet/.*/attn2/", 1e-5),
        ("frozen", "(dinov2|unet|vae)/", None),
    )
    return c
"""


@pytest.mark.slow
def test_trains_is_killed_goes_on_exports_and_composes(tiny_release, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    command = [sys.executable, ROOT / "scripts/full_size_train.py", tmp_path / "out"]
    command += ["--recipe", recipe, "--model", tiny_release, "--size", "32"]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    one_device = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=one_device
    )
    assert process.returncode == 0, process.stderr[-3000:]
    rows = [line for line in process.stdout.splitlines() if re.match(r"\| \w.* \d", line)]
    assert [row.split("|")[1].split(",")[0].strip() for row in rows] == [
        "training",
        "resumed",
        "export",
        "composite",
    ]
    assert "saved step 2" in rows[0] and "validation" in rows[1]
