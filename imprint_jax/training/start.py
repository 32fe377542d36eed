"""How a run starts: its first state or the last one saved, its step compiled, its first batch."""

import time
from pathlib import Path

import jax

from imprint_jax import images
from imprint_jax.config import Config
from imprint_jax.data import batch as batches
from imprint_jax.runtime import distributed
from imprint_jax.runtime.files import atomic_file
from imprint_jax.training import initialize, optimizer, run_directory, sharding
from imprint_jax.training.checkpoint import Checkpoints
from imprint_jax.training.metrics import Meter
from imprint_jax.training.state import Trainer, TrainState

# Compiling a step takes about so many times as long as tracing it: 4 to 11 times were seen with
# `mini_stage1` on two busy cores. Ours.
COMPILE_TO_TRACE = 5.0


def first_state(
    config: Config, workdir: Path, trainer: Trainer, licences: dict | None, *, overwrite: bool
) -> tuple[Checkpoints, TrainState, int]:
    """The first state, or with `licences` None the last one saved; and its place in the data."""
    if licences is None:
        checkpoints = Checkpoints(workdir, config.keep, config.keep_every)
        state, position = checkpoints.restore(trainer.abstract_state, trainer.state_sharding)
        if distributed.is_main():
            run_directory.go_on(workdir, config, int(state.step))
        return checkpoints, state, position
    loaded = initialize.load_initial(config.init_from, trainer.abstract_params)
    params = trainer.initial_params(loaded)
    distributed.wait_for_all("loaded")
    if distributed.is_main():
        run_directory.begin(workdir, config, licences, overwrite=overwrite)
    distributed.wait_for_all("begun")
    checkpoints = Checkpoints(workdir, config.keep, config.keep_every)
    checkpoints.save_frozen(optimizer.partition(params, trainer.labels)[1])
    return checkpoints, trainer.init(params), 0


def check_first_batch(batch: dict, config: Config, workdir: Path) -> None:
    """Checks shapes and ranges, and writes the batch to first_batch.png."""
    batches.check_batch(batch, config)
    if distributed.is_main():
        with atomic_file(workdir / "first_batch.png") as file:
            file.write_bytes(images.encode_png(batches.picture(batch)))


def compiled_step(trainer: Trainer, state: TrainState, meter: Meter) -> jax.stages.Compiled:
    """The step, compiled before the first batch; the screen says for how long."""
    where = sharding.batch_sharding(trainer.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        for key, x in batches.batch_spec(trainer.config, trainer.config.batch_size).items()
    }
    begin = time.monotonic()
    with meter.paused("tracing"):
        lowered = trainer.train_step().lower(state, batch)
    seconds = COMPILE_TO_TRACE * (time.monotonic() - begin)
    with meter.paused(f"compiling (about {seconds:.0f} s)"):
        return lowered.compile()
