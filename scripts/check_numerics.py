"""Parts of `gpu_check.py`: whether anything runs, and whether loss and gradients are right.

The recipe as it trains, in bfloat16 with the GPU's flash attention, against the same in float32
with plain attention and no TF32; random weights, `SAMPLES` samples.
"""

import importlib.metadata
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import check_part
import check_training
import numpy as np

from imprint_jax.data import batch as batches

SAMPLES = 2
# Kernels are not timed before they are chosen: these programs run once.
QUICK = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
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
    c = check_training.load_config("mini", 2, "bfloat16", SAMPLES)
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    _, metrics = trainer.train_step()(state, check_training.random_batch(c))
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss of a small step is {loss}")
    check_part.report(loss=loss)


def lower(size: str, stage: int, mesh):
    """Both programs, for the devices of a mesh, which need not be in this machine.

    Returns:
        The trainer that is checked and its program, to be compiled: (trained, frozen, batch) ->
        loss, gradients; the plain trainer and its program: (trained, frozen, batch, gradients) ->
        loss, {group: the norms of the given gradients, of its own, and of their difference}.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import traverse_util

    from imprint_jax.training import optimizer, sharding
    from imprint_jax.training.state import Trainer

    c = check_training.load_config(size, stage, "bfloat16", SAMPLES)
    plain = replace(c, dtype="float32", attention="plain", precision="highest")
    checked, plain = Trainer(c, mesh), Trainer(plain, mesh)
    groups = sorted(set(checked.labels.values()) - {optimizer.FROZEN})

    def of_group(tree, group: str):
        flat = traverse_util.flatten_dict(tree, sep="/")
        return [x for path, x in flat.items() if checked.labels[path] == group]

    def step(trainer, trained, frozen, batch):
        grads, losses = trainer.gradients(trained, frozen, batch, jax.random.key(0))
        return jnp.mean(losses.values), grads

    def reference(trained, frozen, batch, grads):
        loss, exact = step(plain, trained, frozen, batch)
        norms = {}
        for group in groups:
            first, second = of_group(grads, group), of_group(exact, group)
            difference = optax.tree.norm(jax.tree.map(jnp.subtract, first, second))
            norms[group] = (optax.tree.norm(first), optax.tree.norm(second), difference)
        return loss, norms

    where = sharding.replicated(mesh)
    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    spec = batches.batch_spec(c, SAMPLES)
    inputs = lambda trainer: jax.tree.map(
        placed, (trainer.abstract_state.trained, trainer.abstract_state.frozen, spec)
    )
    first = jax.jit(partial(step, checked)).lower(*inputs(checked))
    second = jax.jit(reference).lower(*inputs(plain), inputs(checked)[0])
    return checked, first, plain, second


def compile_quickly(lowered):
    """A program whose kernels were chosen without timing them."""
    import jax

    try:
        return lowered.compile(compiler_options=QUICK)
    except jax.errors.JaxRuntimeError as error:  # the options may have other names in a later XLA
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()


def gradients(size: str, stage: int) -> None:
    """Reports the loss and each group's gradient norm of both, and how far the gradients differ.

    Args:
        size: Of the networks.
        stage: 1 or 2.
    """
    import jax
    import jax.numpy as jnp

    from imprint_jax.training import optimizer, sharding

    checked, first, plain, second = lower(size, stage, sharding.make_mesh(1))
    start = check_part.clock()
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(compile_quickly, (first, second))
    seconds = check_part.clock() - start

    check_part.take_memory()
    params = jax.tree.map(jnp.asarray, plain.initial_params({}))
    trained, frozen = optimizer.partition(params, plain.labels)
    rounded = lambda x, to: x.astype(to.dtype)
    batch = check_training.random_batch(checked.config)
    loss, grads = first(
        trained, jax.tree.map(rounded, frozen, checked.abstract_state.frozen), batch
    )
    exact, norms = jax.device_get(second(trained, frozen, batch, grads))
    check_part.report(what="loss", bfloat16=float(loss), float32=float(exact), compile=seconds)
    for group, (norm, exact, difference) in norms.items():
        check_part.report(
            what=f"gradient norm, {group}",
            bfloat16=float(norm),
            float32=float(exact),
            difference=float(difference / exact),
        )


if __name__ == "__main__":
    check_part.main({"smoke": smoke, "gradients": gradients})
