"""Facts for a bug report."""

import platform
import shutil

import jax

from imprint_jax.runtime import doctor
from tests.commands import run


def test_the_screen_has_what_a_report_needs():
    code, text = run("doctor")
    assert code == 0
    for word in (platform.python_version(), jax.__version__, "cpu", "plain and chunked", "free"):
        assert word in text, word


def test_memory_and_disk_are_plausible(tmp_path):
    total, free = doctor.memory()
    assert 1e8 < free <= total < 1e14
    assert doctor.disk(tmp_path / "not" / "there") == shutil.disk_usage(tmp_path).free


def test_advice_names_what_is_short_and_nothing_else():
    rich = dict(free_memory=1e12, free_disk=1e12)
    assert doctor.advice("gpu", **rich) == []
    assert "No accelerator" in doctor.advice("cpu", **rich)[0]
    (memory,) = doctor.advice("tpu", free_memory=4e9, free_disk=1e12)
    assert memory.startswith("4 GB of memory")
    (disk,) = doctor.advice("tpu", free_memory=1e12, free_disk=7e9)
    assert disk.startswith("7 GB of disk")
