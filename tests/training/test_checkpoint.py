"""Checkpoints that were damaged, and parts of them."""

import errno
import json
import os
import resource
import shutil
import time
from dataclasses import replace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from imprint_jax.errors import InputError
from imprint_jax.training import checkpoint, sharding
from imprint_jax.training.checkpoint import Checkpoints
from imprint_jax.training.state import Trainer
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with checkpoints of steps 2, 4, 6, whose only trained part is the adapter."""
    groups = (("adapter", "adapter/", 1e-3), ("frozen", "(dinov2|unet|vae)/", None))
    c = replace(tiny_config(1), groups=groups)
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text(json.dumps(c.to_dict()))
    trainer = Trainer(c, sharding.make_mesh(1))
    params = jax.device_get(trainer.initial_params({}))
    checkpoints = Checkpoints(workdir, keep=3)
    frozen = {name: tree for name, tree in params.items() if name != "adapter"}
    checkpoints.save_frozen(frozen)
    state = trainer.init(params)
    for step in (2, 4, 6):
        add = lambda tree, n=step: jax.tree.map(lambda x: x + n, tree)
        new = state.replace(step=np.int32(step), trained=add(state.trained), ema=add(state.ema))
        checkpoints.save(new, position=10 * step)
    checkpoints.close()
    return workdir, trainer, params


def restored(workdir, trainer):
    checkpoints = Checkpoints(workdir, keep=3)
    try:
        state, position = checkpoints.restore(trainer.abstract_state, trainer.state_sharding)
    finally:
        checkpoints.close()
    return int(state.step), position


def test_a_step_before_the_newest_is_not_passed_off_as_saved(run, tmp_path):
    """Of another run in the same folder; Orbax says nothing of it."""
    workdir, trainer, params = run
    shutil.copytree(workdir, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run", keep=3)
    state = trainer.init(params).replace(step=np.int32(3))
    with pytest.raises(RuntimeError, match="holds step 6: step 3 is not saved"):
        checkpoints.save(state, position=30)
    checkpoints.close()


def damage(path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("how", ["missing", "truncated", "overwritten"])
@pytest.mark.parametrize("item", ["ema", "opt", "adapter", "data", "_CHECKPOINT_METADATA"])
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path, run, item, how, caplog):
    workdir, trainer, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    path = copy / "checkpoints/6" / item
    if path.is_dir():
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damage(path, how)
    assert restored(copy, trainer) == (4, 40)
    assert "the checkpoint of step 6 is damaged" in caplog.text
    assert (copy / "damaged/6").is_dir() and not (copy / "checkpoints/6").exists()
    # A run that goes on can write step 6 again.
    assert sorted(p.stem for p in (copy / "checksums").glob("[0-9]*.json")) == ["2", "4"]


def test_the_same_step_can_be_damaged_twice(tmp_path, run):
    workdir, trainer, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.copytree(copy / "checkpoints/6", copy / "damaged/6")  # of the first time
    damage(copy / "checkpoints/6/data/metadata", "overwritten")
    assert restored(copy, trainer) == (4, 40)
    assert not (copy / "checkpoints/6").exists()


@pytest.mark.parametrize("checksums", [None, ""])
def test_a_checkpoint_without_checksums_is_set_aside_if_it_cannot_be_read(tmp_path, run, checksums):
    workdir, trainer, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    file = copy / "checksums/6.json"
    file.unlink() if checksums is None else file.write_text(checksums)
    path = max((copy / "checkpoints/6/opt").rglob("*"), key=lambda p: p.stat().st_size)
    damage(path, "truncated")
    assert restored(copy, trainer) == (4, 40)
    assert (copy / "damaged/6").is_dir()


def test_checksums_are_written_of_what_was_read_and_of_no_other(tmp_path, run):
    workdir, trainer, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for step in (4, 6):
        (copy / f"checksums/{step}.json").unlink()
    assert restored(copy, trainer) == (6, 60)
    assert sorted(p.stem for p in (copy / "checksums").glob("[0-9]*.json")) == ["2", "6"]
    assert (copy / "checksums/6.json").read_text() == (workdir / "checksums/6.json").read_text()


def save_once(workdir, trainer, keep: int = 1) -> Checkpoints:
    """Starts writing the checkpoint of step 1."""
    state = trainer.init(trainer.initial_params({}))
    checkpoints = Checkpoints(workdir, keep)
    checkpoints.save(state.replace(step=np.int32(1)), 1)
    return checkpoints


def test_checksums_that_the_storage_refused_are_written_at_the_next_save(
    tmp_path, run, monkeypatch, caplog
):
    answers = [OSError(errno.ESTALE, "Stale file handle")]
    write = Checkpoints._write_checksums

    def refused_once(*args):
        if answers:
            raise answers.pop()
        write(*args)

    monkeypatch.setattr(Checkpoints, "_write_checksums", refused_once)
    checkpoints = save_once(tmp_path, run[1], keep=2)
    wait_until(lambda: not answers)
    state = run[1].init(run[1].initial_params({}))
    checkpoints.save(state.replace(step=np.int32(2)), 2)
    checkpoints.close()
    assert "no checksums of step 1 until the next save" in caplog.text
    assert {p.stem for p in (tmp_path / "checksums").glob("*.json")} == {"1", "2"}


def wait_until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_goes_wrong_while_writing_is_known_before_the_next_save(tmp_path, run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "rename", full)
    checkpoints = save_once(tmp_path, run[1])

    def known() -> bool:
        try:
            checkpoints.check()
        except OSError as error:
            return "No space left" in str(error)
        return False

    wait_until(known)
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space left"):
        checkpoints.close()


# TensorStore's threads find the event loop of the write that failed gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_the_system_refuses_to_write_is_an_os_error(tmp_path, run):
    """As a full disk would: Orbax raises a ValueError with a long text."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        checkpoints = save_once(tmp_path, run[1])
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/checkpoints'") as caught:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG


def test_all_damaged(tmp_path, run):
    workdir, trainer, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for step in (2, 4, 6):
        shutil.rmtree(copy / f"checkpoints/{step}/ema")
    with pytest.raises(InputError, match=r"All checkpoints of .* are damaged"):
        restored(copy, trainer)
    assert {p.name for p in (copy / "damaged").iterdir()} == {"2", "4", "6"}


@pytest.mark.parametrize("how", ["missing", "truncated", "overwritten"])
def test_damaged_frozen_parameters_are_not_trained_on(tmp_path, run, how):
    workdir, trainer, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    damage(max((copy / "frozen").rglob("*"), key=lambda p: p.stat().st_size), how)
    with pytest.raises(InputError, match=r"frozen is damaged: .* Put back a copy"):
        restored(copy, trainer)
    assert not (copy / "damaged").exists()


def test_a_whole_run_is_restored(run):
    workdir, trainer, _ = run
    assert restored(workdir, trainer) == (6, 60)


@pytest.mark.parametrize("ema", [True, False])
def test_one_component_is_read_alone(tmp_path, run, ema):
    workdir, _, params = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    # What is not asked for need not be there.
    shutil.rmtree(copy / "checkpoints/6/opt")
    shutil.rmtree(copy / "checkpoints/6" / ("adapter" if ema else "ema"))
    got = checkpoint.load_component(copy, "adapter", ema=ema)
    for path, x in traverse_util.flatten_dict(params["adapter"]).items():
        np.testing.assert_array_equal(traverse_util.flatten_dict(got)[path], x + 6)
    frozen = checkpoint.load_component(copy, "unet", ema=ema)
    for path, x in traverse_util.flatten_dict(params["unet"]).items():
        np.testing.assert_array_equal(traverse_util.flatten_dict(frozen)[path], x)


@pytest.mark.parametrize("ema", [True, False])
def test_parameters_are_read_from_the_newest_checkpoint_that_is_whole(tmp_path, run, ema, caplog):
    workdir, _, params = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    item = copy / "checkpoints/6" / ("ema" if ema else "adapter")
    damage(max(item.rglob("*"), key=lambda p: p.stat().st_size), "overwritten")
    _, got = checkpoint.load_params(copy, ema=ema)
    assert "the checkpoint of step 6 is damaged" in caplog.text
    for path, x in traverse_util.flatten_dict(params["adapter"]).items():
        np.testing.assert_array_equal(traverse_util.flatten_dict(got["adapter"])[path], x + 4)
    assert (copy / "checkpoints/6").is_dir() and not (copy / "damaged").exists()

    for step in (2, 4):
        shutil.rmtree(copy / f"checkpoints/{step}" / item.name)
    with pytest.raises(InputError, match=rf"All checkpoints of .* are damaged in {item.name}"):
        checkpoint.load_component(copy, "adapter", ema=ema)
    checkpoint.load_component(copy, "unet", ema=ema)  # which never changes
    damage(max((copy / "frozen").rglob("*"), key=lambda p: p.stat().st_size), "truncated")
    with pytest.raises(InputError, match=r"frozen is damaged: .* Put back a copy"):
        checkpoint.load_component(copy, "unet", ema=ema)


def test_a_run_without_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(1).to_dict()))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        checkpoint.load_component(tmp_path, "adapter")


def test_some_checkpoints_stay(tmp_path):
    groups = (("adapter", "adapter/", 1e-3), ("frozen", "(dinov2|unet|vae)/", None))
    c = replace(tiny_config(1), groups=groups)
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(state.replace(step=np.int32(step)), position=step)
    checkpoints.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"4", "6", "7"}
    assert {p.stem for p in (tmp_path / "checksums").glob("*.json")} == {"4", "6", "7"}


def test_a_process_that_failed_waits_for_no_other(monkeypatch):
    waited = []
    barrier = lambda **call: waited.append(call)
    monkeypatch.setattr(ocp.multihost, "get_barrier_sync_fn", lambda: barrier)
    checkpoint._wait_for_others("saved", 1000)
    with pytest.raises(OSError, match="full"):  # as Orbax does it
        try:
            raise OSError("full")
        finally:
            checkpoint._wait_for_others("saving is over", 1000)
    assert waited == [{"key": "saved", "timeout_ms": 1000}]
