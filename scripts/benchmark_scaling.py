"""`benchmark.py scaling`: one training step in 1, 2 and 4 processes, gloo between them."""

import os
import socket
import subprocess
import sys
import time

import benchmark_train
import jax
import numpy as np

from imprint_jax import batch as batches
from imprint_jax import config, distributed, plan, sharding
from imprint_jax.state import Trainer

RECIPE = "mini_stage1"
BATCH_SIZE = 16  # over all processes
STEPS = 5  # timed, after one that compiles; the median counts
# Processes, and how many of them share one copy of the state.
CASES = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 4))


def overrides(fsdp: int) -> list[str]:
    """What differs from the recipe."""
    return [f"--config.batch_size={BATCH_SIZE}", f"--config.fsdp={fsdp}"]


def run_process(port: int, count: int, number: int, fsdp: int) -> None:
    """One process of a run; the first prints the median seconds of a step."""
    if count > 1:
        distributed.initialize(f"localhost:{port}", count, number)
    settings = config.load(RECIPE, overrides(fsdp))
    trainer = Trainer(settings, sharding.make_mesh(fsdp))
    state = trainer.init(trainer.initial_params({}))
    step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
    rows = slice(number * BATCH_SIZE // count, (number + 1) * BATCH_SIZE // count)
    batch = {key: x[rows] for key, x in benchmark_train.random_batch(settings).items()}
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        state, metrics = step(state, batches.to_device(batch, where))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    if number == 0:
        print(np.median(seconds[1:]))


def measure(count: int, fsdp: int) -> float:
    """Seconds of a step by so many processes of this machine.

    Raises:
        RuntimeError: One of them failed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = lambda i: [sys.executable, __file__, *map(str, (port, count, i, fsdp))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    start = lambda i: subprocess.Popen(
        command(i), env=environment, stdout=subprocess.PIPE, text=True
    )
    processes = [start(i) for i in range(count)]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process of {count} failed")
    return float(said[0].splitlines()[-1])


def scaling() -> None:
    """Prints a row for each number of processes, with and without a state cut over them."""
    print("| processes | sharing one state | samples/s | to one process | planned MB sent a step |")
    print("|---|---|---|---|---|")
    rates = []
    for count, fsdp in CASES:
        planned = plan.plan(RECIPE, overrides(fsdp), count)
        sent = sum(c.sent for c in planned.collectives) / 1e6
        rates.append(BATCH_SIZE / measure(count, fsdp))
        cells = (f"{rates[-1]:.2f}", f"{rates[-1] / rates[0]:.2f}", f"{sent:.1f}")
        print(f"| {count} | {fsdp} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_process(*map(int, sys.argv[1:]))
