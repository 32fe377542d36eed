"""Training, top to bottom in the order things happen; both stages."""

import json
import logging
import math
import shutil
import time
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from imprint_jax import batch as batches
from imprint_jax import diffusion, images, losses, optim, pretrained, sharding
from imprint_jax.checkpoint import Checkpoints
from imprint_jax.errors import InputError
from imprint_jax.inputs import pipeline
from imprint_jax.state import Trainer

log = logging.getLogger(__name__)


def train(config, workdir: Path, *, resume: bool = False, overwrite: bool = False, console) -> None:
    """Trains one stage.

    Args:
        config: A whole, locked configuration.
        workdir: The run's folder: config.json, first_batch.png, metrics.jsonl, checkpoints/.
        resume: Continue the run in `workdir` exactly; start one if there is none.
        overwrite: Delete the run in `workdir` first.
        console: A rich console for the table and the progress bar.

    Raises:
        InputError: The folder holds a run already, or the configuration or data do not fit.
        FloatingPointError: The loss became infinite or NaN.
    """
    # Whatever can be wrong is found before anything is written, or an old run deleted.
    resuming = _check_workdir(workdir, config, resume=resume, overwrite=overwrite)
    if config.stage not in losses.STAGE_LOSS:
        raise InputError(f"config.stage = {config.stage}; the stages are 1 and 2.")
    diffusion.check_config(config)
    if config.stage == 1 and config.diffusion.background_mode == "concat":
        raise InputError("Stage 1 has no background to concatenate; use another background_mode.")
    mesh = sharding.make_mesh(config.fsdp)
    if config.batch_size % mesh.size:
        raise InputError(
            f"config.batch_size = {config.batch_size} does not divide over {mesh.size} devices."
        )
    pipeline.check_sources(config)
    trainer = Trainer(config, mesh)
    console.print(_group_table(trainer))
    initial = {} if resuming else _load_initial(trainer)
    if overwrite and workdir.exists():
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    licences = pretrained.inherited_licences(config.init_from)
    (workdir / "licences.json").write_text(json.dumps(licences, indent=2) + "\n")
    (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")

    checkpoints = Checkpoints(workdir, config.keep)
    if resuming:
        state, position = checkpoints.restore(trainer.abstract_state, trainer.state_sharding)
    else:
        state, position = trainer.init(initial), 0
        checkpoints.save_frozen(state.frozen)
    log.info(
        "backend %s, %d devices, compute in %s", jax.default_backend(), mesh.size, config.dtype
    )

    dataset = pipeline.make_dataset(
        config,
        start=position,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    train_step = trainer.train_step()
    with (
        closing(iter(dataset)) as host_batches,
        Meter(workdir / "metrics.jsonl", config, console, start=int(state.step)) as meter,
    ):
        for step in range(int(state.step), config.total_steps):
            host_batch = next(host_batches)
            if step == 0:
                batches.check_batch(host_batch, config)
                images.write_png(workdir / "first_batch.png", batches.picture(host_batch))
            batch = batches.to_device(host_batch, sharding.batch_sharding(mesh))
            state, metrics = train_step(state, batch)
            position += config.batch_size
            meter.update(step + 1, metrics)
            # After the step and before the next batch is taken: state and position agree.
            if (step + 1) % config.save_every == 0 or step + 1 == config.total_steps:
                meter.check_finite(step + 1, metrics)
                checkpoints.save(state, position)
    checkpoints.close()


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
    return any(p.name.isdecimal() for p in (workdir / "checkpoints").glob("*"))


def _differences(before: dict, after: dict) -> list[str]:
    """The fields that differ, as dotted paths; how often to log, save and keep may."""
    free = {"log_every", "save_every", "keep", "data.num_workers"}
    before, after = (traverse_util.flatten_dict(x, sep=".") for x in (before, after))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    return sorted(changed - free)


def _load_initial(trainer: Trainer) -> dict:
    loaded = {}
    for component, source in trainer.config.init_from.items():
        log.info("%s starts from %s", component, source or "random weights")
        if source:
            abstract = trainer.abstract_params[component]
            loaded[component] = pretrained.load_component(source, component, abstract)
    return loaded


def _group_table(trainer: Trainer) -> Table:
    table = Table(title=f"Stage {trainer.config.stage}: what trains")
    for name in ("parameters", "tensors", "size", "dtype", "group", "learning rate"):
        justify = "right" if name in ("tensors", "size") else "left"
        table.add_column(name, justify=justify)
    rows = optim.parameter_table(trainer.abstract_params, trainer.labels, trainer.config)
    for prefix, tensors, size, dtype, group, rate in rows:
        rate = "-" if rate is None else str(rate)
        table.add_row(prefix, str(tensors), f"{size:,}", dtype, group, rate)
    return table


class Meter:
    """The progress bar and metrics.jsonl: loss, rate, time left.

    Reads the device only every `config.log_every` steps, so that the host runs ahead of it.
    """

    def __init__(self, path: Path, config, console, start: int):
        self.path, self.config = path, config
        self.losses, self.since, self.last_step = [], time.monotonic(), start
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} samples/s"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task(
            f"stage {config.stage}",
            total=config.total_steps,
            completed=start,
            loss=math.nan,
            rate=math.nan,
        )

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def update(self, step: int, metrics: dict) -> None:
        """Takes note of a step done; every `log_every` steps writes and shows the mean."""
        self.losses.append(metrics["loss"])
        if step % self.config.log_every and step != self.config.total_steps:
            return
        values = self.check_finite(step, metrics)
        values["loss"] = float(np.mean(jax.device_get(self.losses)))
        now = time.monotonic()
        rate = len(self.losses) * self.config.batch_size / (now - self.since)
        values |= {"step": step, "samples_per_second": rate}
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        self.progress.update(self.task, completed=step, loss=values["loss"], rate=rate)
        log.info("step %d  loss %.4f  %.1f samples/s", step, values["loss"], rate)
        self.losses, self.since, self.last_step = [], now, step

    def check_finite(self, step: int, metrics: dict) -> dict:
        """The metrics on the host.

        Raises:
            FloatingPointError: The loss is not a number; names the steps it happened between.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"The loss became {values['loss']} between steps {self.last_step} and {step};"
                " nothing was saved since."
            )
        return values
