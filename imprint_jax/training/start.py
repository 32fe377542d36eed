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


class Startup:
    """A clock that is read at the end of each part of a start.

    Attributes:
        parts: Seconds by part, in order.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._since = time.monotonic()

    def done(self, part: str) -> None:
        """Takes note of the part that began when the one before was done."""
        now = time.monotonic()
        self.parts[part], self._since = now - self._since, now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())
        return f"started in {sum(self.parts.values()):.1f} s: {parts}"


def first_state(
    config: Config,
    workdir: Path,
    trainer: Trainer,
    licences: dict | None,
    startup: Startup,
    *,
    overwrite: bool,
) -> tuple[Checkpoints, TrainState, int]:
    """The first state, or with `licences` None the last one saved; and its place in the data."""
    if licences is None:
        checkpoints = Checkpoints(workdir, config.keep, config.keep_every)
        state, position = checkpoints.restore(trainer.abstract_state, trainer.state_sharding)
        if distributed.is_main():
            run_directory.go_on(workdir, config, int(state.step))
        jax.block_until_ready(state)
        startup.done("checkpoint")
        return checkpoints, state, position
    loaded = initialize.load_initial(config.init_from, trainer.abstract_params)
    startup.done("weights")
    params = trainer.initial_params(loaded)
    distributed.wait_for_all("loaded")
    if distributed.is_main():
        run_directory.begin(workdir, config, licences, overwrite=overwrite)
    distributed.wait_for_all("begun")
    checkpoints = Checkpoints(workdir, config.keep, config.keep_every)
    checkpoints.save_frozen(optimizer.partition(params, trainer.labels)[1])
    state = jax.block_until_ready(trainer.init(params))
    startup.done("placing them")
    return checkpoints, state, 0


def check_first_batch(batch: dict, config: Config, workdir: Path) -> None:
    """Checks shapes and ranges, and writes the batch to first_batch.png."""
    batches.check_batch(batch, config)
    if distributed.is_main():
        with atomic_file(workdir / "first_batch.png") as file:
            file.write_bytes(images.encode_png(batches.picture(batch)))


def compiled_step(
    trainer: Trainer, state: TrainState, meter: Meter, startup: Startup
) -> jax.stages.Compiled:
    """The step, compiled before the first batch; the screen says for how long."""
    where = sharding.batch_sharding(trainer.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        for key, x in batches.batch_spec(trainer.config, trainer.config.batch_size).items()
    }
    with meter.paused("tracing"):
        lowered = trainer.train_step().lower(state, batch)
    startup.done("tracing")
    seconds = COMPILE_TO_TRACE * startup.parts["tracing"]
    with meter.paused(f"compiling (about {seconds:.0f} s)"):
        compiled = lowered.compile()
    # On CPU the devices of a step find each other when it first runs, and wait half a minute.
    distributed.wait_for_all("compiled")
    startup.done("compiling")
    return compiled
