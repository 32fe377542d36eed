"""Parts of `gpu_check.py`: a training step of imprint_jax, and the same one with PyTorch."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import check_part
import numpy as np

from imprint_jax import config
from imprint_jax.config import Config
from imprint_jax.data import batch as batches

STEPS = 10  # timed after two that warm up; the median counts


def random_batch(c) -> dict[str, np.ndarray]:
    """A batch of noise in the right shapes."""
    rng = np.random.default_rng(0)
    spec = batches.batch_spec(c, c.batch_size)
    batch = {k: rng.integers(0, 2, x.shape).astype(x.dtype) for k, x in spec.items()}
    batch["index"] = np.arange(c.batch_size, dtype=np.int32)
    if c.stage == 1:
        batch["mask"][:] = 1
    return batch


def load_config(size: str, stage: int, dtype: str, batch: int) -> Config:
    """A stage's configuration with so many samples a step, in one part."""
    c = Config.of(config.load(f"stage{stage}", check_part.overrides(size, dtype)))
    return replace(c, batch_size=batch, accumulation=1, fsdp=1)


def _measure(step: Callable[[], float], batch: int) -> dict[str, float]:
    """Samples a second of a function that does one step, waits for it and returns its loss."""
    first, _ = step(), step()
    return {"batch": batch, "rate": batch / check_part.seconds_of(step, STEPS), "loss": first}


def _halving(measure: Callable[[int], None], batch: int, error: type[Exception]) -> None:
    """Measures with the largest of batch, batch / 2, ... that the memory is enough for."""
    while batch:
        try:
            return measure(batch)
        except error as problem:
            if not check_part.is_out_of_memory(problem):
                raise
        check_part.report(batch=batch, out_of_memory=True)
        batch //= 2


def lower(c, mesh):
    """Our step for the devices of a mesh, which need not be in this machine.

    Returns:
        The trainer, and its step's program, to be compiled.
    """
    import jax

    from imprint_jax.training import sharding
    from imprint_jax.training.state import Trainer

    trainer = Trainer(c, mesh)
    where = sharding.batch_sharding(mesh)
    placed = lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies)
    state = jax.tree.map(placed, trainer.abstract_state, trainer.state_sharding)
    spec = batches.batch_spec(c, c.batch_size)
    batch = {key: placed(x, where) for key, x in spec.items()}
    return trainer, trainer.train_step().lower(state, batch)


def measure_jax(size: str, stage: int, dtype: str, batch: int) -> None:
    """Our step. "host" is the milliseconds until its call returns, which waits for no result.

    Args:
        size: Of the networks.
        stage: 1 or 2.
        dtype: Of the computation.
        batch: Samples a step; halved until the memory is enough.
    """
    import jax

    from imprint_jax.runtime import host_memory
    from imprint_jax.training import sharding

    if jax.default_backend() == "cpu":
        host_memory.keep_freed()  # as imprint_jax.training.train does

    largest = batch

    def measure(batch: int) -> None:
        c = load_config(size, stage, dtype, batch)
        trainer, lowered = lower(c, sharding.make_mesh(1))
        start = check_part.clock()
        program = lowered.compile()
        seconds = check_part.clock() - start
        flops = trainer.model_flops() / batch

        check_part.take_memory()
        state = trainer.init(trainer.initial_params({}))
        where = sharding.batch_sharding(trainer.mesh)
        arrays, host = random_batch(c), []

        def step() -> float:
            nonlocal state
            start = time.perf_counter()
            state, metrics = program(state, batches.to_device(arrays, where))
            host.append(time.perf_counter() - start)
            jax.block_until_ready(state)
            return float(metrics["loss"])

        measured = _measure(step, batch)
        if batch == largest:  # JAX tells the peak of all that came before, too
            measured["memory"] = check_part.jax_memory()
        check_part.report(
            **measured,
            compile=seconds,
            flops=flops,
            host=1000 * statistics.median(host[2:]),
            tensors=len(jax.tree.leaves(state.params(ema=False))),
            planned=check_part.planned_memory(program),
        )

    _halving(measure, batch, jax.errors.JaxRuntimeError)


def _draws(c) -> dict[str, np.ndarray]:
    """What our first step draws for the batch of `random_batch`."""
    import jax

    from imprint_jax.diffusion import losses

    side = c.image_size // c.model.vae.factor
    shape = (side, side, c.model.vae.latent_channels)
    key = jax.random.fold_in(jax.random.key(c.seed), 0)
    index = np.arange(c.batch_size, dtype=np.int32)
    length, drop = c.diffusion.num_train_timesteps, c.drop_probability
    drawn = losses.draw(key, index, shape, length, drop)
    return {
        "timesteps": np.array(drawn.timesteps, np.int64),
        "noise": np.array(drawn.noise),
        "drop": np.array(drawn.drop),
    }


def measure_torch(
    size: str, stage: int, dtype: str, batch: int, eager: bool, memory_share: float
) -> None:
    """The same step: loss, gradients, clipping, AdamW and the average of the weights.

    Args:
        size: Of the networks.
        stage: 1 or 2.
        dtype: Of the computation.
        batch: Samples a step; halved until the memory is enough.
        eager: Without `torch.compile`.
        memory_share: Of the device's memory, that may be used.
    """
    import check_torch
    import torch

    from imprint_jax.diffusion import process

    check_torch.take_memory(memory_share)
    c = load_config(size, stage, dtype, batch)
    model = check_torch.Peer(c.model).train()
    trained = _freeze(model, stage, getattr(torch, dtype))
    # In stage 2 DINOv2 is frozen: there is nothing to recompute.
    if c.remat.dinov2 and stage == 1:
        model.dinov2.gradient_checkpointing_enable()
    if c.remat.unet:
        model.unet.enable_gradient_checkpointing()
    if not eager:
        # DINOv2's blocks are equal and compiled once.
        blocks = next(x for x in model.dinov2.modules() if isinstance(x, torch.nn.ModuleList))
        for network in (*blocks, model.adapter, model.unet, model.vae.encoder):
            network.compile(dynamic=False)
    # Rates do not change the time; the warm-up's first ones are next to nothing.
    optimizer = torch.optim.AdamW(trained, lr=1e-8, weight_decay=1e-2, fused=True)
    average = [x.detach().clone() for x in trained]
    alphas = check_torch.on_device(np.asarray(process.noise_schedule(c.diffusion), np.float32))

    def measure(batch: int) -> None:
        c = load_config(size, stage, dtype, batch)
        host = random_batch(c) | _draws(c)

        def step() -> float:
            tensors = {key: check_torch.on_device(x) for key, x in host.items()}
            with torch.autocast(check_torch.DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = _loss(model, tensors, alphas, stage)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, c.optim.clip_norm, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            torch._foreach_lerp_(average, [x.detach() for x in trained], 1e-4)
            if check_torch.DEVICE == "cuda":
                torch.cuda.synchronize()
            return loss.item()

        start = check_part.clock()
        loss = step()  # compiles
        seconds = check_part.clock() - start
        rate = _measure(step, batch)
        memory = check_part.torch_memory()
        check_part.report(**rate | {"loss": loss}, compile=seconds, memory=memory)

    _halving(measure, batch, torch.OutOfMemoryError)


def _freeze(model, stage: int, dtype) -> list:
    """The parameters a stage trains; the others are frozen and kept in the step's dtype.

    The VAE stays in float32, as ours.
    """
    unet = model.unet
    modules = {
        1: (model.dinov2, model.adapter, unet.up_blocks, unet.conv_norm_out, unet.conv_out),
        2: (model.adapter, unet),
    }[stage]
    trained = {x for module in modules for x in module.parameters()}
    vae = set(model.vae.parameters())
    for x in model.parameters():
        x.requires_grad_(x in trained)
        if x not in trained and x not in vae:
            x.data = x.data.to(dtype)
    return list(trained)


def _loss(model, tensors: dict, alphas, stage: int):
    """`imprint_jax.diffusion.losses` with PyTorch's modules."""
    import check_torch
    import torch

    images = check_torch.to_float(tensors["target"])
    mask = tensors["mask"].float()
    with torch.no_grad(), torch.autocast(check_torch.DEVICE, enabled=False):
        x0 = model.encode(images)
        if stage == 2:
            background, mask = model.encode_background(images, mask)
    tokens = model.encode_object(check_torch.to_float(tensors["object"]))
    null = model.adapter.null_token.expand_as(tokens)
    context = torch.where(tensors["drop"][:, None, None], null, tokens)
    a = alphas[tensors["timesteps"]][:, None, None, None]
    noise = tensors["noise"]
    seen = a.sqrt() * x0 + (1 - a).sqrt() * noise
    if stage == 2:
        seen = mask * seen + (1 - mask) * background
    prediction = model.unet(seen, tensors["timesteps"], context).sample.float()
    error = (noise - prediction) ** 2
    return (mask * error if stage == 2 else error).mean()


if __name__ == "__main__":
    check_part.main({"jax": measure_jax, "torch": measure_torch})
