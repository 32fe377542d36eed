"""Parts of `gpu_check.py`: whether anything runs, and whether loss and gradients are right.

The recipe as it trains, in bfloat16 with the GPU's flash attention, against the same in float32
with plain attention and nothing recomputed; random weights, `SAMPLES` samples.
"""

import importlib.metadata
import platform
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import check_part
import check_training
import numpy as np

SAMPLES = 2
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers", "transformers")


def smoke() -> None:
    """Versions and the device; then one training step and two sampling steps of small networks."""
    import jax

    from imprint_jax.training import sharding
    from imprint_jax.training.state import Trainer

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    check_part.report(
        backend=jax.default_backend(),
        device=device.device_kind,
        memory=stats.get("bytes_limit", 0) / check_part.GIB,
        versions=versions,
    )
    c = check_part.case("mini", 2, "bfloat16").unlock()
    c.batch_size, c.sampling.num_steps = SAMPLES, 2
    trainer = Trainer(c.lock(), sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    batch = check_training.random_batch(c)
    pictures = trainer.preview_step()(state, batch, np.float32(3.0))
    _, metrics = trainer.train_step()(state, batch)
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss of a small step is {loss}")
    check_part.report(loss=loss, pictures_mean=float(np.mean(pictures)))


def gradients(size: str, stage: int) -> None:
    """Reports the loss and each group's gradient norm of both, and how far the gradients differ.

    Args:
        size: Of the networks.
        stage: 1 or 2.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import traverse_util

    from imprint_jax.training import optimizer, sharding
    from imprint_jax.training.state import Trainer

    def trainer(**fields) -> Trainer:
        c = check_part.case(size, stage, "bfloat16").unlock()
        c.batch_size, c.accumulation = SAMPLES, 1
        c.update(fields)
        return Trainer(c.lock(), sharding.make_mesh(1))

    as_trained = trainer()
    plain = trainer(dtype="float32", attention="plain", remat=dict(dinov2=False, unet=False))
    groups = sorted(set(as_trained.labels.values()) - {optimizer.FROZEN})

    def of_group(tree, group: str):
        flat = traverse_util.flatten_dict(tree, sep="/")
        return [x for path, x in flat.items() if as_trained.labels[path] == group]

    def step(trainer, trained, frozen, batch):
        grads, found = trainer.gradients(trained, frozen, batch, jax.random.key(0))
        return jnp.mean(found.values), grads

    def reference(trained, frozen, batch, grads):
        """Also compares; so that both gradients need not be compared by a third program."""
        with jax.default_matmul_precision("highest"):
            loss, exact = step(plain, trained, frozen, batch)
        norms = {}
        for group in groups:
            ours, theirs = of_group(grads, group), of_group(exact, group)
            difference = optax.tree.norm(jax.tree.map(jnp.subtract, ours, theirs))
            norms[group] = (optax.tree.norm(ours), optax.tree.norm(theirs), difference)
        return loss, norms

    batch = check_training.random_batch(as_trained.config)
    shapes = lambda t: (t.abstract_state.trained, t.abstract_state.frozen, batch)
    lowered = [
        jax.jit(partial(step, as_trained)).lower(*shapes(as_trained)),
        jax.jit(reference, donate_argnums=3).lower(
            *shapes(plain), as_trained.abstract_state.trained
        ),
    ]
    start = check_part.clock()
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(lambda x: x.compile(), lowered))
    seconds = check_part.clock() - start

    check_part.take_memory()
    params = jax.tree.map(jnp.asarray, plain.initial_params({}))
    trained, frozen = optimizer.partition(params, plain.labels)
    rounded = jax.tree.map(
        lambda x, to: x.astype(to.dtype), frozen, as_trained.abstract_state.frozen
    )
    loss, grads = programs[0](trained, rounded, batch)
    del rounded
    exact, norms = jax.device_get(programs[1](trained, frozen, batch, grads))
    check_part.report(what="loss", bfloat16=float(loss), float32=float(exact), compile=seconds)
    for group, (ours, theirs, difference) in norms.items():
        check_part.report(
            what=f"gradient norm, {group}",
            bfloat16=float(ours),
            float32=float(theirs),
            difference=float(difference / theirs),
        )


if __name__ == "__main__":
    check_part.main({"smoke": smoke, "gradients": gradients})
