"""What a run is going to do, as tables: what trains, what it needs, where each parameter lies."""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
from flax import traverse_util
from rich.console import Console
from rich.table import Table

from imprint_jax.config import Config
from imprint_jax.data import pipeline
from imprint_jax.training import optimizer
from imprint_jax.training.state import Trainer

GIB = 2**30


def show(config: Config, trainer: Trainer, console: Console, *, verbose: bool) -> None:
    """Prints what `--dry-run` found.

    Args:
        config: The whole configuration, whose weights and records have been checked.
        trainer: Of the same.
        console: Where to.
        verbose: Also the configuration, and each parameter's place where it is cut.
    """
    console.print(group_table(trainer))
    plain = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for line in _lines(config, trainer):
        plain(line)
    if verbose:
        plain(json.dumps(config.to_dict(), indent=2))
        if trainer.mesh.shape["fsdp"] > 1:
            console.print(sharding_table(trainer))
    plain("Nothing was written. --verbose shows the configuration.")


def _lines(config: Config, trainer: Trainer) -> Iterator[str]:
    samples = config.total_steps * config.batch_size
    yield (
        f"steps    {config.total_steps:,} of {config.batch_size} samples: {samples:,} in all;"
        f" saved every {config.save_every:,}"
    )
    size = lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
    held = sum(jax.tree.leaves(jax.tree.map(size, trainer.abstract_state, trainer.state_sharding)))
    mesh = ", ".join(f"{name} {size}" for name, size in trainer.mesh.shape.items())
    yield (
        f"memory   {held / GIB:.2f} GiB a device for weights, averages and moments ({mesh});"
        " `imprint plan` finds what a step needs besides"
    )
    for source in (source for source in config.data.sources if source.weight):
        count = len(pipeline.make_transform(config, source))
        yield f"data     {source.records}: {count:,} pairs of kind {source.kind}"
    for component, source in vars(config.init_from).items():
        yield f"weights  {component}: {source or 'its closed form'}"


def say_what_next(stage: int, workdir: Path, console: Console) -> None:
    """Prints which commands a finished run leads to."""
    if stage == 1:
        lines = [
            "Stage 2 starts from this run; stage2 follows stage1, mini_stage2 mini_stage1:",
            "  imprint train --config RECIPE --workdir WORKDIR"
            f" --config.init_from.dinov2={workdir} --config.init_from.adapter={workdir} ...",
        ]
    else:
        lines = [
            "Now make a model of it, and compose with that:",
            f"  imprint export {workdir} MODEL",
            "  imprint compose --model MODEL --object O.png --background B.jpg --mask M.png"
            " --out RESULT.png",
        ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def group_table(trainer: Trainer) -> Table:
    """What trains at which rate: a row for each two-part path prefix and group."""
    table = Table(title=f"Stage {trainer.config.stage}: what trains")
    for name in ("parameters", "tensors", "size", "dtype", "group", "learning rate"):
        table.add_column(name, justify="right" if name in ("tensors", "size") else "left")
    rows = optimizer.parameter_table(trainer.abstract_params, trainer.labels, trainer.config.groups)
    for prefix, tensors, size, dtype, group, rate in rows:
        rate = "-" if rate is None else str(rate)
        table.add_row(prefix, str(tensors), f"{size:,}", dtype, group, rate)
    return table


def sharding_table(trainer: Trainer) -> Table:
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
