"""Eight fake devices for every test, and one small model to test with."""

import os
import tempfile
from dataclasses import replace

# Programs run for milliseconds and are compiled for seconds: without LLVM's passes, and without
# a compiler of its own for what is fused, in a third of the time.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# The same small programs are compiled in many tests, and in processes that tests start. Where tests
# run in several processes, the first makes the folder for all.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="imprint_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

from imprint_jax.config import Config
from imprint_jax.models import imprint, init
from imprint_jax.weights import release
from tests.tiny import tiny_config

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    assert len(jax.devices()) == 8, "the tests must run on 8 fake devices"


@pytest.fixture(scope="session")
def full_size():
    """The shapes of the paper's model; takes a while, once."""
    return imprint.split(Config().model)[1]


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory):
    """The folder of a released model, tiny and random."""
    c = tiny_config(2)
    released = replace(c.released(), sampling=replace(c.sampling, num_steps=4))
    folder = tmp_path_factory.mktemp("released") / "tiny"
    release.save(folder, released, init.draw_all(c.model, 0))
    return folder


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


# These take a minute or more a test. Started last, one of them would keep a core busy while the
# other has nothing left to do.
LONGEST = ("training/test_train.py", "training/test_state.py", "evaluation/test_ablations.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))
