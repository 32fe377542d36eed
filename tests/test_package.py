"""What ships: the wheel holds all that the command needs outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_is_complete(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for recipe in (ROOT / "configs").rglob("*.py"):
        assert f"imprint_jax/configs/{recipe.relative_to(ROOT / 'configs').as_posix()}" in names
    for module in (ROOT / "imprint_jax").rglob("*.py"):
        assert module.relative_to(ROOT).as_posix() in names
    assert "imprint_jax/released/mini/unet.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "data/", "configs/"))]
