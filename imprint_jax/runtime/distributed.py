"""Several processes as one run: how they find each other, and how they stop together."""

import contextlib
import logging
import re
import signal
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from imprint_jax.errors import InputError

log = logging.getLogger(__name__)

# A process that is silent for so many seconds is taken for dead, which ends the others; one that
# failed waits so many for the others at its exit, and then leaves them. Within a minute together.
HEARTBEAT, FAREWELL = 40, 15
# What collectives on CPU and on GPU, and barriers, say of a process that is gone.
GONE = re.compile("Gloo|NCCL|CoordinationService|coordination service|barrier")


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of the run; must come before JAX is first used.

    Without arguments JAX finds them itself under SLURM, Open MPI and on TPU pods
    (`jax.distributed.initialize`).

    Args:
        coordinator: HOST:PORT of process 0, on a network all processes reach.
        num_processes: How many processes there are.
        process_id: Which one this is, from 0.

    Raises:
        InputError: Some but not all of the arguments, or the others cannot be found or reached.
    """
    arguments = (coordinator, num_processes, process_id)
    if any(x is not None for x in arguments) and None in arguments:
        raise InputError(
            "Give all of --coordinator HOST:PORT, --num-processes N and --process-id I, or none"
            " of them under SLURM, Open MPI or on a TPU pod."
        )
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=FAREWELL,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"The processes of this run could not find each other: {error}") from error
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def is_main() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Says in one sentence that another process is gone, where a collective fails for that.

    Raises:
        ConnectionError: Another process is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, TimeoutError) as error:
        if jax.process_count() == 1 or not GONE.search(str(error)):
            raise
        raise ConnectionError(
            "Another process of this run has ended or cannot be reached; its own messages say why"
            f" ({str(error).splitlines()[0]}). Start all of them again with --resume"
        ) from error


def any_of_all(flag: bool) -> bool:
    """Whether it is so on any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class StopSignal:
    """SIGTERM, as schedulers send it before they take a machine away, and Ctrl-C.

    Used as a context manager around the training loop. With several processes JAX's coordination
    service catches SIGTERM on any of them, and all see it after the same step. A second Ctrl-C
    interrupts at once.
    """

    def __enter__(self) -> "StopSignal":
        self.received: int = signal.SIGTERM
        self.stopping = False
        self.before = {signal.SIGINT: signal.signal(signal.SIGINT, self._receive)}
        if jax.process_count() == 1:
            self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received, self.stopping = number, True
        log.warning("stopping after this step, which will be saved")
        if number == signal.SIGINT:
            log.warning("Ctrl-C again stops at once, and loses what was not saved")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if jax.process_count() > 1:  # the way all processes hear of it
                signal.raise_signal(signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether all processes are to stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.stopping

    @property
    def exit_code(self) -> int:
        """How a process ends that was stopped, as shells report it: 128 and the signal's number."""
        return 128 + self.received
