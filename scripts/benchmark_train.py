"""`benchmark.py train`: steps a second of mini's stages, and the host's share of a step."""

import time

import jax
import numpy as np

from imprint_jax import batch as batches
from imprint_jax import config, sharding
from imprint_jax.state import Trainer

STEPS = 20


def random_batch(settings) -> dict[str, np.ndarray]:
    """A batch of noise in the right shapes."""
    rng = np.random.default_rng(0)
    spec = batches.batch_spec(settings, settings.batch_size)
    batch = {k: rng.integers(0, 2, x.shape).astype(x.dtype) for k, x in spec.items()}
    batch["index"] = np.arange(settings.batch_size, dtype=np.int32)
    if settings.stage == 1:
        batch["mask"][:] = 1
    return batch


def train() -> None:
    """Prints a row a stage: tensors, steps a second, and milliseconds until a step is handed over.

    The host's part is the time until the call of the step returns: it neither waits for the result
    nor for the step before.
    """
    print("| recipe | tensors | steps/s | host, a step |")
    print("|---|---|---|---|")
    for recipe in ("mini_stage1", "mini_stage2"):
        settings = config.load(recipe)
        trainer = Trainer(settings, sharding.make_mesh(1))
        state = trainer.init(trainer.initial_params({}))
        step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
        batch = random_batch(settings)
        host, whole = [], []
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            state, metrics = step(state, batches.to_device(batch, where))
            host.append(time.perf_counter() - start)
            jax.block_until_ready((state, metrics))
            whole.append(time.perf_counter() - start)
        tensors = len(jax.tree.leaves(state.params(ema=False)))
        # The first step compiles.
        rate, overhead = 1 / np.median(whole[1:]), 1000 * np.median(host[1:])
        print(f"| {recipe} | {tensors} | {rate:.2f} | {overhead:.1f} ms |", flush=True)
