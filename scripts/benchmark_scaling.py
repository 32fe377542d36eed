"""`benchmark.py scaling`: one training step in 1, 2 and 4 processes, gloo between them.

What is sent is counted by Linux, on the loopback device: other programs' local traffic counts too.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import check_training
import jax
import numpy as np

from imprint_jax import config
from imprint_jax.data import batch as batches
from imprint_jax.planning.compile_process import plan
from imprint_jax.planning.plan import training_request
from imprint_jax.runtime import distributed, host_memory
from imprint_jax.training import sharding
from imprint_jax.training.state import Trainer

RECIPE = "mini_stage1"
BATCH_SIZE = 16  # over all processes
STEPS = 5  # timed, after one that compiles; the median counts
PATIENCE = 600  # seconds for a case, compiling included
# Processes, and how many of them share one copy of the state.
CASES = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 4))


def overrides(fsdp: int) -> list[str]:
    """What differs from the recipe."""
    return [f"--config.batch_size={BATCH_SIZE}", f"--config.fsdp={fsdp}"]


def run_process(port: int, count: int, number: int, fsdp: int) -> None:
    """One process of a run; the first prints a step's median seconds and a device's bytes sent."""
    if count > 1:
        distributed.initialize(f"localhost:{port}", count, number)
    host_memory.keep_freed()  # as imprint_jax.training.train does on CPU
    settings = config.Config.of(config.load(RECIPE, overrides(fsdp)))
    trainer = Trainer(settings, sharding.make_mesh(fsdp))
    state = trainer.init(trainer.initial_params({}))
    step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
    rows = slice(number * BATCH_SIZE // count, (number + 1) * BATCH_SIZE // count)
    batch = {key: x[rows] for key, x in check_training.random_batch(settings).items()}
    seconds, sent = [], []
    for _ in range(1 + STEPS):
        start, before = time.perf_counter(), sent_here()
        state, metrics = step(state, batches.to_device(batch, where))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        sent.append((sent_here() - before) / count)
    if number == 0:
        print(np.median(seconds[1:]), np.median(sent[1:]))


def sent_here() -> int:
    """Bytes that this machine has sent to itself."""
    lines = (line.partition(":") for line in Path("/proc/net/dev").read_text().splitlines())
    (counts,) = (numbers.split() for device, _, numbers in lines if device.strip() == "lo")
    return int(counts[8])


def measure(count: int, fsdp: int) -> tuple[float, float]:
    """Seconds of a step by so many processes of this machine, and bytes that each sends.

    Raises:
        RuntimeError: One of them failed.
        subprocess.TimeoutExpired: They did not end in time.
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
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process of {count} failed")
    seconds, sent = map(float, said[0].split()[-2:])
    return seconds, sent


def scaling() -> None:
    """Prints a row for each number of processes, with and without a state cut over them."""
    print("| processes | share a state | samples/s | to one process | MB sent a step | planned |")
    print("|---|---|---|---|---|---|")
    rates = []
    for count, fsdp in CASES:
        planned = plan(training_request(RECIPE, overrides(fsdp), count))
        expected = sum(c.sent for c in planned.collectives) / 1e6
        try:
            seconds, sent = measure(count, fsdp)
        except subprocess.TimeoutExpired:
            late = f"not done in {PATIENCE} s"
            print(f"| {count} | {fsdp} | {late} | | | {expected:.1f} |", flush=True)
            continue
        rates.append(BATCH_SIZE / seconds)
        cells = (f"{rates[-1]:.2f}", f"{rates[-1] / rates[0]:.2f}", f"{sent / 1e6:.1f}")
        cells += (f"{expected:.1f}",)
        print(f"| {count} | {fsdp} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_process(*map(int, sys.argv[1:]))
