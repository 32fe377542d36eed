"""Training, top to bottom in the order things happen; both stages."""

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from rich.table import Table

from imprint_jax import geometry, images
from imprint_jax.data import batch as batches
from imprint_jax.data import pipeline
from imprint_jax.diffusion import losses, process
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.planning import accelerators
from imprint_jax.runtime import distributed, host_memory
from imprint_jax.runtime.files import atomic_file
from imprint_jax.training import initialize, optimizer, sharding
from imprint_jax.training.checkpoint import Checkpoints
from imprint_jax.training.metrics import Meter
from imprint_jax.training.profiler import Profiler
from imprint_jax.training.state import Trainer, TrainState
from imprint_jax.weights import release

log = logging.getLogger(__name__)

# How a process ends that was told to stop and has saved: 128 + SIGTERM, as shells report it.
STOPPED = 143
# The guidance scale a preview shows beside the configuration's own: without guidance.
PLAIN = 1.0


def train(
    config,
    workdir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    profile: int = 0,
    console,
) -> int:
    """Trains one stage.

    Args:
        config: A whole, locked configuration.
        workdir: The run's folder: config.json, licences.json, first_batch.png, metrics.jsonl,
            tensorboard/, previews/, checkpoints/.
        resume: Continue the run in `workdir` exactly; start one if there is none.
        overwrite: Delete the run in `workdir` first.
        dry_run: Only show the configuration, what trains, and where every parameter lies.
        profile: Record so many steps for a profiler, in the run's profile/.
        console: A rich console for the tables and the progress bar.

    Returns:
        0 when all steps are done, `STOPPED` when SIGTERM came and the state was saved.

    Raises:
        InputError: The folder holds a run already, or the configuration or data do not fit.
        FloatingPointError: The loss became infinite or NaN.
    """
    # Whatever can be wrong is found before anything is written, or an old run deleted.
    resuming = _check_workdir(workdir, config, resume=resume, overwrite=overwrite)
    mesh = sharding.make_mesh(config.fsdp)
    if jax.default_backend() == "cpu":
        host_memory.keep_freed()
    check_config(config, mesh.size)
    trainer = Trainer(config, mesh)
    console.print(_group_table(trainer))
    if dry_run:
        console.print(config.to_json(indent=2), _sharding_table(trainer))
        return 0
    pipeline.check_sources(config)
    initial, licences = {}, None
    if not resuming:
        licences = initialize.inherited_licences(config.init_from)
        initial = initialize.load_initial(config, trainer.abstract_params)
    distributed.wait_for_all("checked")
    if distributed.is_main():
        _prepare_workdir(workdir, config, licences, overwrite=overwrite)
    distributed.wait_for_all("prepared")

    checkpoints = Checkpoints(workdir, config.keep, config.keep_every)
    if resuming:
        state, position = checkpoints.restore(trainer.abstract_state, trainer.state_sharding)
    else:
        params = trainer.initial_params(initial)
        checkpoints.save_frozen(optimizer.partition(params, trainer.labels)[1])
        state, position = trainer.init(params), 0
        del params  # donated
    log.info(
        "backend %s, %d devices, compute in %s, attention %s",
        *(jax.default_backend(), mesh.size, config.dtype, config.attention),
    )

    dataset = pipeline.make_dataset(
        config,
        start=position,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    train_step = trainer.train_step()
    known = jax.devices()[0].device_kind in accelerators.PEAK_FLOPS
    meter_inputs = (int(state.step), trainer.model_flops() if known else None)
    observer = Observer(config, workdir, trainer)
    before = None
    with (
        closing(iter(dataset)) as host_batches,
        Meter(workdir, config, console, *meter_inputs) as meter,
        distributed.StopSignal() as stop,
        Profiler(workdir / "profile", int(state.step) + 1, profile) as profiler,
    ):
        for step in range(int(state.step) + 1, config.total_steps + 1):
            asked = time.monotonic()
            host_batch = next(host_batches)
            # While the device is at the step before, nothing waits for data.
            idle = before is None or before["loss"].is_ready()
            waited = time.monotonic() - asked if idle else 0.0
            if step == 1:
                batches.check_batch(host_batch, config)
                if distributed.is_main():
                    picture = batches.picture(host_batch)
                    with atomic_file(workdir / "first_batch.png") as file:
                        file.write_bytes(images.encode_png(picture))
            batch = batches.to_device(host_batch, sharding.batch_sharding(mesh))
            profiler.before(step)
            state, metrics = train_step(state, batch)
            profiler.after(step, metrics)
            # One step ahead of the device and no more: running further ahead takes batches faster
            # than they are made, and would count as waiting for data though no device waits.
            jax.block_until_ready(before)
            before = metrics
            position += config.batch_size
            meter.update(metrics, waited)
            if step % config.log_every == 0:
                checkpoints.check()
            observer(step, state, meter)
            # After the step and before the next batch is taken: state and position agree.
            stopping = stop.reached(step)
            if step % config.save_every == 0 or step == config.total_steps or stopping:
                meter.look()  # nothing is saved unless every step since the last was finite
                checkpoints.save(state, position)
            if stopping:
                checkpoints.close()
                log.warning("stopped after step %d, which is saved; --resume goes on", step)
                return STOPPED
    checkpoints.close()
    return 0


# The smallest and the largest value of fields that would otherwise fail late, or silently.
RANGES = {
    **dict.fromkeys(("total_steps", "batch_size", "log_every", "save_every"), (1, math.inf)),
    **dict.fromkeys(("keep", "validation.batches", "preview.samples"), (1, math.inf)),
    **dict.fromkeys(("keep_every", "validation.every", "preview.every"), (0, math.inf)),
    "drop_probability": (0, 1),
    "min_snr_gamma": (0, math.inf),
    "context": (geometry.MIN_CONTEXT, math.inf),
}


def check_config(config, devices: int) -> None:
    """Refuses what no run on so many devices can do.

    Raises:
        InputError: Unknown stage or dtype, numbers out of range, settings that exclude each other,
            or a batch that does not divide over the devices.
    """
    for field, (low, high) in RANGES.items():
        section, _, name = field.rpartition(".")
        value = (config[section] if section else config)[name]
        if not low <= value <= high:
            allowed = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            raise InputError(f"config.{field} = {value} must be {allowed}.")
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.dtype = {config.dtype!r} must be float32 or bfloat16.")
    if config.precision not in ("default", "high", "highest"):
        raise InputError(
            f"config.precision = {config.precision!r} must be default, high or highest."
        )
    if config.stage not in losses.STAGE_LOSS:
        raise InputError(f"config.stage = {config.stage}; the stages are 1 and 2.")
    process.check_config(config)
    if config.stage == 1 and config.diffusion.background_mode == "concat":
        raise InputError("Stage 1 has no background to concatenate; use another background_mode.")
    cell = imprint.latent_factor(config.model) * 2 ** (len(config.model.unet.block_widths) - 1)
    patch = config.model.dinov2.patch_size
    for field, multiple in (("image_size", cell), ("object_size", patch)):
        if config[field] % multiple:
            raise InputError(f"config.{field} = {config[field]} is no multiple of {multiple}.")
    parts = devices * config.accumulation
    if config.accumulation < 1 or config.batch_size % parts:
        raise InputError(
            f"config.batch_size = {config.batch_size} does not divide over {devices} devices"
            f" times config.accumulation = {config.accumulation}."
        )


def _check_workdir(workdir: Path, config, *, resume: bool, overwrite: bool) -> bool:
    """True if there is a checkpoint to go on from; changes nothing."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other.")
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; --workdir wants a folder.")
    if not (workdir / "config.json").exists():
        if overwrite and workdir.exists() and any(workdir.iterdir()):
            raise InputError(f"{workdir} holds files but no run: --overwrite will not delete it.")
        return False
    if overwrite:
        _check_sources_outlive(workdir, config.init_from)
        return False
    if not resume:
        raise InputError(
            f"{workdir} already holds a run: --resume continues it, --overwrite deletes it."
        )
    before = json.loads((workdir / "config.json").read_text())
    changed = _differences(before, json.loads(config.to_json()))
    if changed:
        raise InputError(
            f"{workdir} was started with another configuration, which differs in"
            f" {', '.join(changed)}; --resume with the same, or use another workdir."
        )
    there = any(p.name.isdecimal() for p in (workdir / "checkpoints").glob("*"))
    if not there and (workdir / "damaged").exists():
        raise InputError(
            f"All checkpoints of {workdir} were damaged and are in its damaged/: nothing is left to"
            " go on from. Start again with --overwrite or in another workdir."
        )
    return there


def _check_sources_outlive(workdir: Path, init_from: Mapping[str, str]) -> None:
    for component, source in init_from.items():
        if source and release.resolve(source).resolve().is_relative_to(workdir.resolve()):
            raise InputError(
                f"config.init_from.{component} = {source} lies in {workdir}, which --overwrite"
                " deletes: choose another --workdir, or move that run first."
            )


# What may change when a run goes on: what it shows and keeps, and how it is spread over machines.
FREE = {
    *("log_every", "save_every", "keep", "keep_every", "data.num_workers"),
    *("validation.every", "validation.batches", "preview.every", "preview.samples"),
    *("fsdp", "accumulation", "remat.dinov2", "remat.unet", "attention", "precision"),
}


def _differences(before: dict, after: dict) -> list[str]:
    """The fields that differ and may not, as dotted paths."""
    before, after = (traverse_util.flatten_dict(x, sep=".") for x in (before, after))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    return sorted(changed - FREE)


def _prepare_workdir(
    workdir: Path, config, licences: dict[str, str] | None, *, overwrite: bool
) -> None:
    """Makes the run's folder; `licences` None: those that are there stay."""
    if overwrite and workdir.exists():
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if licences is not None:
        with atomic_file(workdir / "licences.json") as file:
            file.write_text(json.dumps(licences, indent=2) + "\n")
    with atomic_file(workdir / "config.json") as file:
        file.write_text(config.to_json(indent=2) + "\n")


class Observer:
    """Every so many steps: the validation loss, and pictures, of the averaged weights.

    Args:
        config: A whole configuration.
        workdir: The run's folder; pictures go to its previews/.
        trainer: The run's.

    Raises:
        InputError: The data has no split "validation".
    """

    def __init__(self, config, workdir: Path, trainer: Trainer):
        self.config, self.workdir = config, workdir
        self.validate, self.preview = trainer.validation_step(), trainer.preview_step()
        self.batch_sharding = sharding.batch_sharding(trainer.mesh)
        # A preview's samples on this host: all of them together divide over the devices.
        rounded = -(-config.preview.samples // trainer.mesh.size) * trainer.mesh.size
        self.rows = min(rounded, config.batch_size) // jax.process_count()
        self.batches = []
        count = config.validation.batches if config.validation.every else 0
        count = max(count, 1 if config.preview.every else 0)
        if count:
            self.batches = self._first_batches(count)

    def _first_batches(self, count: int) -> list[dict]:
        """The first batches of the validation split, on the host."""
        held_out = pipeline.held_out(self.config)
        held_out.data.num_workers = 0
        dataset = pipeline.make_dataset(
            held_out, process_index=jax.process_index(), process_count=jax.process_count()
        )
        with closing(iter(dataset)) as host_batches:
            return [next(host_batches) for _ in range(count)]

    def __call__(self, step: int, state: TrainState, meter: Meter) -> None:
        """Does what is due after this step."""
        due = lambda section: section.every and step % section.every == 0
        if due(self.config.validation):
            meter.look()
            each = [
                self.validate(state, batches.to_device(batch, self.batch_sharding))
                for batch in self.batches[: self.config.validation.batches]
            ]
            meter.add({"validation_loss": float(np.mean(jax.device_get(each)))})
            meter.restart_clock()
        if due(self.config.preview):
            meter.look()
            picture = self._picture(state)
            if distributed.is_main():
                (self.workdir / "previews").mkdir(exist_ok=True)
                with atomic_file(self.workdir / "previews" / f"{step:08d}.png") as file:
                    file.write_bytes(images.encode_png(picture))
                meter.add_picture("preview", picture)
            meter.restart_clock()

    def _picture(self, state: TrainState) -> np.ndarray:
        """One sample a row: object, target, target with a red hole, without and with guidance."""
        local = {key: value[: self.rows] for key, value in self.batches[0].items()}
        batch = batches.to_device(local, self.batch_sharding)
        scales = (PLAIN, self.config.sampling.guidance_scale)
        made = [np.asarray(self.preview(state, batch, np.float32(scale))) for scale in scales]
        # The first rows of all hosts' are the first host's own, which draws them.
        rows = min(self.config.preview.samples, self.rows)
        return batches.picture(local, rows, [pictures[:rows] for pictures in made])


def _group_table(trainer: Trainer) -> Table:
    table = Table(title=f"Stage {trainer.config.stage}: what trains")
    for name in ("parameters", "tensors", "size", "dtype", "group", "learning rate"):
        justify = "right" if name in ("tensors", "size") else "left"
        table.add_column(name, justify=justify)
    rows = optimizer.parameter_table(trainer.abstract_params, trainer.labels, trainer.config)
    for prefix, tensors, size, dtype, group, rate in rows:
        rate = "-" if rate is None else str(rate)
        table.add_row(prefix, str(tensors), f"{size:,}", dtype, group, rate)
    return table


def _sharding_table(trainer: Trainer) -> Table:
    """Every parameter: shape, dtype in the state, group, and which axis is cut."""
    table = Table(title=f"Where parameters lie on {dict(trainer.mesh.shape)}")
    for name in ("parameter", "shape", "dtype", "group", "spec"):
        table.add_column(name, no_wrap=True)
    state, where = trainer.abstract_state, trainer.state_sharding
    params = optimizer.merge(state.trained, state.frozen)
    specs = traverse_util.flatten_dict(optimizer.merge(where.trained, where.frozen), sep="/")
    for path, x in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        table.add_row(path, str(x.shape), str(x.dtype), trainer.labels[path], str(specs[path].spec))
    return table
