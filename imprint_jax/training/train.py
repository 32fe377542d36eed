"""Training, top to bottom in the order things happen; both stages."""

import logging
import time
from contextlib import closing
from pathlib import Path

import jax
from rich.console import Console

from imprint_jax.config import Config
from imprint_jax.data import batch as batches
from imprint_jax.data import pipeline
from imprint_jax.diffusion import sampling
from imprint_jax.runtime import accelerators, distributed, host_memory
from imprint_jax.training import (
    initialize,
    optimizer,
    run_directory,
    sharding,
    start,
    summary,
)
from imprint_jax.training.checkpoint import Checkpoints
from imprint_jax.training.metrics import Meter
from imprint_jax.training.profiler import Profiler
from imprint_jax.training.state import Trainer, TrainState
from imprint_jax.training.validation import Validation

log = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
    profile: int = 0,
    console: Console,
) -> int:
    """Trains one stage.

    Args:
        config: The whole configuration.
        workdir: The run's folder, see run_directory.py.
        resume: Continue the run in `workdir` exactly; start one if there is none.
        overwrite: Delete the run in `workdir` first.
        dry_run: Only check configuration, records and weights, and show what would be done.
        verbose: The dry run shows the configuration, and where parameters that are cut lie.
        profile: Record so many steps for a profiler, in the run's profile/.
        console: A rich console for the tables and the progress bar.

    Returns:
        0 when all steps are done; 143 or 130 when SIGTERM or Ctrl-C came and the state was saved.

    Raises:
        InputError: The folder holds a run already, or the configuration, weights or data do not
            fit.
        FloatingPointError: The loss became infinite or NaN.
        ConnectionError: Another process of the run is gone.
    """
    startup = start.Startup()
    # Whatever can be wrong is found before anything is written, or an old run deleted.
    resuming = run_directory.check(workdir, config, resume=resume, overwrite=overwrite)
    mesh = sharding.make_mesh(config.fsdp)
    if jax.default_backend() == "cpu":
        host_memory.keep_freed()
    sharding.check_batch_size(config.batch_size, config.accumulation, mesh.size)
    pipeline.check_sources(config)
    trainer = Trainer(config, mesh)
    if not resuming:  # a run that has begun cannot change these
        optimizer.check_trained(trainer.labels, config.groups)
        sampling.check_timesteps(
            config.diffusion, config.sampling.num_steps, config.sampling.spacing
        )
        initialize.check_sources(config, trainer.abstract_params)
    if dry_run:
        summary.show(config, trainer, console, verbose=verbose)
        return 0
    licences = None if resuming else initialize.inherited_licences(config.init_from)
    console.print(summary.group_table(trainer))
    startup.done("checks")
    with distributed.losses_named(), run_directory.locked(workdir):
        checkpoints, state, position = start.first_state(
            config, workdir, trainer, licences, startup, overwrite=overwrite
        )
        code = _loop(
            config, workdir, trainer, checkpoints, state, position, startup, profile, console
        )
        distributed.wait_for_all("done")  # at their exit they wait for each other only briefly
    if code == 0:
        summary.say_what_next(config.stage, workdir, console)
    return code


def _loop(
    config: Config,
    workdir: Path,
    trainer: Trainer,
    checkpoints: Checkpoints,
    state: TrainState,
    position: int,
    startup: start.Startup,
    profile: int,
    console: Console,
) -> int:
    """Steps until all are done, or until told to stop; the exit code."""
    log.info(
        "backend %s, %d devices, compute in %s, attention %s",
        *(jax.default_backend(), trainer.mesh.size, config.dtype, config.attention),
    )
    dataset = pipeline.make_dataset(
        config,
        start=position,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    validate = Validation(config, workdir, trainer)
    batch_sharding = sharding.batch_sharding(trainer.mesh)
    peak_known = jax.devices()[0].device_kind in accelerators.PEAK_FLOPS
    model_flops = trainer.model_flops() if peak_known else None
    before = None
    with (
        closing(iter(dataset)) as host_batches,
        Meter(workdir, config, console, int(state.step), model_flops) as meter,
        distributed.StopSignal() as stop,
        Profiler(workdir / "profile", int(state.step) + 1, profile) as profiler,
    ):
        startup.done("data")
        train_step = start.compiled_step(trainer, state, meter, startup)
        first, stopping = int(state.step) + 1, False
        for step in range(first, config.total_steps + 1):
            wait_start = time.monotonic()
            host_batch = next(host_batches)
            # While the device is at the step before, nothing waits for data.
            idle = before is None or before["loss"].is_ready()
            waited = time.monotonic() - wait_start if idle else 0.0
            if step == first:
                startup.done("first batch")
                log.info("%s", startup)
            if step == 1:
                start.check_first_batch(host_batch, config, workdir)
            batch = batches.to_device(host_batch, batch_sharding)
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
            validate(step, state, meter)
            # After the step and before the next batch is taken: state and position agree.
            stopping = stop.reached(step)
            if step % config.save_every == 0 or step == config.total_steps or stopping:
                meter.flush()  # nothing is saved unless every step since the last was finite
                checkpoints.save(state, position)
            if stopping:
                break
        checkpoints.close()  # a signal to stop does not end it before all is on disk
        if stopping:
            log.warning("stopped after step %d, which is saved; --resume goes on", step)
            return stop.exit_code
    return 0
