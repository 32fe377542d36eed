"""Work in several processes of this machine, which end with this one."""

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from imprint_jax.errors import InputError


def in_processes(
    function: Callable, jobs: Sequence[tuple], workers: int, *shared: Any
) -> Iterator[Any]:
    """`function(*shared, *job)` of every job, in order.

    A consumer that stops early stops the work too, but for what is being done.

    Args:
        function: One of a module: the processes are new ones.
        jobs: What each call gets last.
        workers: Processes; 1: this one.
        shared: What all calls get first; sent once a process.

    Raises:
        InputError: Less than one worker, or a process was killed.
    """
    if workers < 1:
        raise InputError(f"{workers} workers: need 1 at least.")
    call = functools.partial(function, *shared)
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield call(*job)
        return
    # Spawned, since threads of this process may hold locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), spawn, _begin, (call,)) as pool:
        try:
            for future in [pool.submit(_do, job) for job in jobs]:
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "A process was killed, perhaps for want of memory. Run the same command again,"
                " with fewer --workers, which need less memory."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_call: Callable


def _begin(call: Callable) -> None:
    global _call
    _call = call
    # A killed parent's processes would wait for ever, or finish a job that the next run does too.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _do(job: tuple) -> Any:
    return _call(*job)
