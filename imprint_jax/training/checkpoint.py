"""A run's checkpoints: Orbax, one item a component, the data's position beside the weights.

WORKDIR/config.json           the resolved configuration
WORKDIR/frozen/               frozen parameters as they were loaded, written once
WORKDIR/checkpoints/STEP/     dinov2 adapter unet vae (trained parameters), ema, opt, data, meta
WORKDIR/checksums/STEP.json   of the checkpoint's files, written when all of them are
WORKDIR/checksums/frozen.json likewise
WORKDIR/damaged/STEP/         a checkpoint whose files were not as they had been written
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imprint_jax.config import Config
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.runtime import distributed
from imprint_jax.runtime.files import atomic_file
from imprint_jax.training import optimizer
from imprint_jax.training.run_directory import load_config
from imprint_jax.training.state import TrainState

log = logging.getLogger(__name__)

# Of an array that several devices hold, Orbax lets each write a part. It cuts the parts one by one
# while training waits, and a model has hundreds of small arrays: those are written whole.
MIN_PART_BYTES = 2**20
# What reading a damaged checkpoint raises, found by damaging each of its files.
UNREADABLE = (FileNotFoundError, ValueError)


class Checkpoints:
    """Saves and restores the states of one run.

    Args:
        workdir: The run's folder.
        keep: How many of the newest checkpoints stay.
        keep_every: Checkpoints at multiples of so many steps stay too; 0: none.
    """

    def __init__(self, workdir: Path, keep: int, keep_every: int = 0):
        self.workdir = workdir.resolve()
        self.frozen_dir = self.workdir / "frozen"
        self.folder = self.workdir / "checkpoints"
        self.checksums = self.workdir / "checksums"
        self.manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(barrier_sync_fn=_wait_for_others),
            ),
        )
        # Steps this process wrote or read. Of any other it cannot be told whether it is whole, and
        # checksums of what a lost machine left half on disk would vouch for it.
        self.own: set[int] = set()
        # Checksums are of files that Orbax writes in the background, so they are too.
        self.background = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def save_frozen(self, frozen: dict) -> None:
        """Writes the parameters that never change; a run without any writes nothing."""
        if frozen:
            with _refusals_named(self.frozen_dir), ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self.frozen_dir, frozen, force=True)
            if distributed.is_main():
                self._write_checksums(self.frozen_dir)

    def save(self, state: TrainState, position: int) -> None:
        """Starts writing a checkpoint; returns before it is done.

        Args:
            state: The state after a step.
            position: Samples taken from the data so far, over all hosts.

        Raises:
            RuntimeError: The folder holds a later step, of another run.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        self._wait()
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in state.trained.items()}
        items["ema"] = ocp.args.PyTreeSave(state.ema)
        items["opt"] = ocp.args.PyTreeSave(state.opt_state)
        items["data"] = ocp.args.JsonSave({"position": position})
        items["meta"] = ocp.args.JsonSave({"step": step, "jax": jax.__version__})
        if not self.manager.save(step, args=ocp.args.Composite(**items)):
            newest = self.manager.latest_step()  # of another run: the state here is older
            raise RuntimeError(f"{self.folder} holds step {newest}: step {step} is not saved")
        self._vouch_for(step)

    def check(self) -> None:
        """Raises what went wrong in the background since the last save; waits for nothing."""
        if self.pending is not None and self.pending.done():
            self._wait()

    def _wait(self) -> None:
        """Returns when everything is on disk, or raises what went wrong."""
        pending, self.pending = self.pending, None
        if pending is not None:
            with _refusals_named(self.folder):
                pending.result()

    def restore(self, abstract: TrainState, shardings: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint whose files are whole, and the data's position.

        One that is damaged is moved to WORKDIR/damaged, and said so.

        Args:
            abstract: Shapes and dtypes of the state.
            shardings: Where each array goes, on any mesh.

        Raises:
            InputError: All are damaged, or the frozen parameters are.
        """
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        for step in sorted(self.manager.all_steps(), reverse=True):
            # One process reads all files; all of them together would read the storage idle.
            folder = self.folder / str(step)
            damage = _damage(self.checksums, folder) if distributed.is_main() else ""
            if distributed.any_of_all(bool(damage)):
                self._set_aside(step, damage or "as process 0 found")
                continue
            restored, error = self._try_step(step, target)
            if distributed.any_of_all(bool(error)):
                self._set_aside(step, error or "another process cannot read it")
                continue
            state = self._state(step, restored, target)
            self._vouch_for(step)
            log.info("resumed from step %d of %s", step, self.folder)
            return state, restored["data"]["position"]
        raise InputError(f"All checkpoints of {self.workdir} are damaged; see its damaged/.")

    def _vouch_for(self, step: int) -> None:
        """Has the checksums of a checkpoint written once Orbax, in one step, gives it its name."""
        self.own.add(step)
        self.pending = self.background.submit(self._finish)

    def _finish(self) -> None:
        self.manager.wait_until_finished()
        if not distributed.is_main():
            return
        on_disk = {int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()}
        vouched = {int(p.stem) for p in self.checksums.glob("*.json") if p.stem.isdecimal()}
        for step in vouched - on_disk:
            (self.checksums / f"{step}.json").unlink(missing_ok=True)
        for step in sorted((on_disk & self.own) - vouched):
            try:
                self._write_checksums(self.folder / str(step))
            except (OSError, InputError) as error:  # a full disk, a server that is away
                log.warning("no checksums of step %d until the next save: %s", step, error)

    def _write_checksums(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        checksums = {path.relative_to(folder).as_posix(): _crc32(path) for path in files}
        self.checksums.mkdir(exist_ok=True)
        with atomic_file(self.checksums / f"{folder.name}.json") as file:
            file.write_text(json.dumps(checksums, indent=0) + "\n")

    def _try_step(self, step: int, target: TrainState) -> tuple[Any, str]:
        """The checkpoint, and ""; or None and why it cannot be read, if no checksums vouch for it.

        Without them a file may be cut short: the machine was lost before it was on disk.
        """
        try:
            return self._restore_step(step, target), ""
        except Exception as error:
            # Of damaged arrays Orbax raises a plain Exception, which has nothing narrower.
            expected = type(error) is Exception or isinstance(error, UNREADABLE)
            if not expected or _read_checksums(self.checksums, str(step)):
                raise
            return None, f"it cannot be read: {error}"

    def _restore_step(self, step: int, target: TrainState) -> Any:
        def tree(like: Any) -> ocp.args.PyTreeRestore:
            restore_args = ocp.checkpoint_utils.construct_restore_args(like)
            return ocp.args.PyTreeRestore(like, restore_args)

        items = {name: tree(like) for name, like in target.trained.items()}
        items |= {"ema": tree(target.ema), "opt": tree(target.opt_state)}
        items["data"] = ocp.args.JsonRestore()
        return self.manager.restore(step, args=ocp.args.Composite(**items))

    def _state(self, step: int, restored: Any, target: TrainState) -> TrainState:
        frozen = {}
        if target.frozen:
            damage = _damage(self.checksums, self.frozen_dir) if distributed.is_main() else ""
            if distributed.any_of_all(bool(damage)):
                raise _frozen_is_damaged(self.frozen_dir, damage or "as process 0 found")
            with ocp.StandardCheckpointer() as checkpointer:
                frozen = checkpointer.restore(self.frozen_dir, target.frozen)
        return TrainState(
            step=jax.device_put(jnp.asarray(step, jnp.int32), target.step.sharding),
            trained={name: restored[name] for name in target.trained},
            frozen=frozen,
            ema=restored["ema"],
            opt_state=restored["opt"],
        )

    def _set_aside(self, step: int, damage: str) -> None:
        damaged = self.workdir / "damaged" / str(step)
        log.warning(
            "the checkpoint of step %d is damaged: %s; it is moved to %s, the one before is taken",
            *(step, damage, damaged),
        )
        distributed.wait_for_all(f"damaged {step}")
        if distributed.is_main():
            damaged.parent.mkdir(exist_ok=True)
            shutil.rmtree(damaged, ignore_errors=True)  # the same step's, of an earlier time
            (self.folder / str(step)).rename(damaged)
            (self.checksums / f"{step}.json").unlink(missing_ok=True)
        distributed.wait_for_all(f"moved {step}")
        self.manager.reload()

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            OSError: The system refused to write, as on a full disk.
            Exception: What else went wrong while writing in the background.
        """
        with _refusals_named(self.folder):  # the manager raises what it raised before, again
            try:
                self._wait()
            finally:
                self.background.shutdown()
                self.manager.close()


def _wait_for_others(key: str, timeout_ms: int) -> None:
    """Orbax's barrier between processes, at which none waits that has failed.

    Orbax itself lets it wait there for 20 minutes before it raises its error, while the others wait
    for it elsewhere: a full disk would stop a run without ending it.
    """
    if sys.exc_info()[0] is None:
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    """Turns what Orbax raises where the system refuses to write into the `OSError` that it is."""
    try:
        yield
    except Exception as error:  # TensorStore has a ValueError for most, with the number in its text
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    """Of a checkpoint's items; arrays are written as `MIN_PART_BYTES` says."""
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_PART_BYTES)
    arrays = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    trees = {
        name: ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)
        for name in (*imprint.COMPONENTS, "ema", "opt")
    }
    return trees | {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _damage(checksums: Path, folder: Path, items: Iterable[str] | None = None) -> str:
    """What is wrong with a folder's files; "" if nothing is, or if nothing tells.

    Args:
        checksums: The run's folder of checksums.
        folder: A checkpoint, or the frozen parameters.
        items: Of a checkpoint, what is looked at; None: all.
    """
    for file, checksum in _read_checksums(checksums, folder.name).items():
        if items is not None and Path(file).parts[0] not in items:
            continue
        if not (folder / file).is_file():
            return f"{file} is missing"
        if _crc32(folder / file) != checksum:
            return f"{file} has changed"
    return ""


def _read_checksums(checksums: Path, name: str) -> dict[str, int]:
    """Of a folder's files; none if the process ended between the two."""
    try:
        return json.loads((checksums / f"{name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _frozen_is_damaged(folder: Path, damage: str) -> InputError:
    return InputError(
        f"{folder} is damaged: {damage}. Put back a copy of it, which any run from the same weights"
        " has."
    )


def load_params(workdir: Path, *, ema: bool = True) -> tuple[Config, dict]:
    """A run's configuration and its newest parameters, float32 NumPy arrays.

    Args:
        workdir: The run's folder.
        ema: The averaged parameters rather than the last step's.

    Raises:
        InputError: As `load_component`.
    """
    config = load_config(workdir)
    return config, _load(workdir.resolve(), config, imprint.COMPONENTS, ema=ema)


def load_component(workdir: Path, component: str, *, ema: bool = True) -> dict:
    """One component of a run's newest parameters; reads no other.

    A checkpoint in which it is damaged is passed over, and said so.

    Args:
        workdir: The run's folder.
        component: One of `imprint.COMPONENTS`.
        ema: The averaged parameters rather than the last step's.

    Returns:
        Nested dict of float32 NumPy arrays.

    Raises:
        InputError: The run has no checkpoint yet, it is damaged in all of them, or the frozen
            parameters are.
    """
    return _load(workdir.resolve(), load_config(workdir), (component,), ema=ema)[component]


def _load(workdir: Path, config: Config, components: Sequence[str], *, ema: bool) -> dict:
    """Components of one checkpoint: the newest in which they all are whole."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        {name: imprint.abstract(getattr(config.model, name)) for name in components},
    )
    trained, frozen = optimizer.partition(abstract, optimizer.label_params(abstract, config.groups))
    checkpoint = _newest_whole(workdir, {"ema"} if ema and trained else set(trained))
    if frozen and (damage := _damage(workdir / "checksums", workdir / "frozen")):
        raise _frozen_is_damaged(workdir / "frozen", damage)
    params: dict[str, dict] = {}
    for name in components:  # one by one: a device need not hold them all
        parts = []
        if name in trained and ema:
            parts.append(_restore_part(checkpoint / "ema", {name: trained[name]}))
        elif name in trained:
            parts.append({name: _restore_part(checkpoint / name, trained[name])})
        if name in frozen:
            parts.append(_restore_part(workdir / "frozen", {name: frozen[name]}))
        params |= jax.device_get(optimizer.merge(*parts))
    return params


def _newest_whole(workdir: Path, items: set[str]) -> Path:
    """The newest checkpoint whose files of these items are as they were written."""
    folder = workdir / "checkpoints"
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise InputError(f"{workdir} has no checkpoint yet.")
    for step in sorted(steps, reverse=True):
        damage = _damage(workdir / "checksums", folder / str(step), items)
        if not damage:
            return folder / str(step)
        log.warning("the checkpoint of step %d is damaged: %s; passed over", step, damage)
    raise InputError(f"All checkpoints of {workdir} are damaged in {', '.join(sorted(items))}.")


def _restore_part(folder: Path, abstract: dict) -> dict:
    """The part of a saved tree that `abstract` names."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            ),
        )
