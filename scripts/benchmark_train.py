"""`benchmark.py train`: a training step, ours and the same one written with PyTorch.

Run through `benchmark.py`; alone it is its child process:
`python scripts/benchmark_train.py ours|torch ARGUMENTS`.
"""

import statistics
import time
from collections.abc import Callable

import benchmark_peer
import numpy as np

from imprint_jax.data import batch as batches

STEPS = 15  # timed after two that warm up; the median counts


def random_batch(settings) -> dict[str, np.ndarray]:
    """A batch of noise in the right shapes."""
    rng = np.random.default_rng(0)
    spec = batches.batch_spec(settings, settings.batch_size)
    batch = {k: rng.integers(0, 2, x.shape).astype(x.dtype) for k, x in spec.items()}
    batch["index"] = np.arange(settings.batch_size, dtype=np.int32)
    if settings.stage == 1:
        batch["mask"][:] = 1
    return batch


def train(
    size: str | None,
    stages: tuple[int, ...],
    remats: tuple[bool, ...],
    sizes: tuple[int, ...] | str | None,
    dtype: str | None,
    eager: bool,
) -> None:
    """Prints a row a case: steps a second, ours and torch's, each in a process of its own.

    What is None is chosen by the device: full size, the largest batch and bfloat16 on a GPU; small
    networks, batch 4 and float32 elsewhere.
    """
    backend, kind = benchmark_peer.device()
    chosen = ("mini", (4,), "float32") if backend == "cpu" else ("full", "largest", "bfloat16")
    given = (size, sizes, dtype)
    size, sizes, dtype = (b if a is None else a for a, b in zip(given, chosen, strict=True))
    if sizes == benchmark_peer.LARGEST and backend == "cpu":
        raise SystemExit("--batch largest wants a GPU: without one, memory that runs out kills.")
    print(f"{kind}: {size} size, {dtype}; ours / {benchmark_peer.peer_name(eager)}\n")
    print(
        "| stage | remat | batch | samples/s | ratio | MFU | peak GiB | compile s | steps/s"
        " | first loss | host ms a step, tensors |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for stage in stages:
        for remat in remats:
            arguments = dict(size=size, stage=stage, remat=remat, dtype=dtype, eager=eager)
            for found in _found(arguments, sizes):
                print(_row(stage, remat, found, kind), flush=True)


def _found(arguments: dict, sizes: tuple[int, ...] | str):
    """What both sides measure, for each batch size."""
    if sizes == benchmark_peer.LARGEST:
        yield benchmark_peer.largest(__file__, arguments)
        return
    for size in sizes:
        yield benchmark_peer.both(__file__, arguments | {"batch": size})


def _row(stage: int, remat: bool, found: dict[str, dict], kind: str) -> str:
    pair = lambda key, form: " / ".join(
        f"{x[key]:{form}}" if key in x else "-" for x in found.values()
    )
    host = "-"
    if "host" in found["ours"]:
        host = f"{found['ours']['host']:.1f}, {found['ours']['tensors']}"
    return (
        f"| {stage} | {'on' if remat else 'off'} | {pair('batch', 'd')}"
        f" | {benchmark_peer.cells(found, 'samples_per_second', kind)} | {pair('steps', '.3g')}"
        f" | {pair('loss', '.5f')} | {host} |"
    )


def _settings(size: str, stage: int, remat: bool, batch: int, dtype: str):
    c = benchmark_peer.case(size, stage, dtype).unlock()
    c.batch_size, c.accumulation = batch, 1
    c.remat.update(dinov2=remat, unet=remat)
    return c.lock()


def _measured(step: Callable[[], float], batch: int) -> dict:
    """Times of a function that does one step, returns its loss and waits for it."""
    seconds, values = [], []
    for _ in range(2 + STEPS):
        start = time.perf_counter()
        values.append(step())
        seconds.append(time.perf_counter() - start)
    usual = statistics.median(seconds[2:])
    return {
        "batch": batch,
        "steps": 1 / usual,
        "samples_per_second": batch / usual,
        "loss": values[0],
        "compile": seconds[0] - usual,
    }


def _ours(size: str, stage: int, remat: bool, batch: int, dtype: str, eager: bool) -> dict:
    """Our step. The host's part is the time until its call returns: it waits for no result."""
    import jax

    from imprint_jax.runtime import host_memory
    from imprint_jax.training import sharding
    from imprint_jax.training.state import Trainer

    c = _settings(size, stage, remat, batch, dtype)
    if jax.default_backend() == "cpu":
        host_memory.keep_freed()  # as imprint_jax.training.train does
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
    arrays, host = random_batch(c), []

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = step(state, batches.to_device(arrays, where))
        host.append(time.perf_counter() - start)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return _measured(once, batch) | {
        "flops": trainer.model_flops() / batch,
        "host": 1000 * statistics.median(host[2:]),
        "tensors": len(jax.tree.leaves(state.params(ema=False))),
        "memory": benchmark_peer.jax_memory(),
    }


def _draws(c) -> dict[str, np.ndarray]:
    """What our first step draws for the batch of `random_batch`."""
    import jax

    from imprint_jax.diffusion import losses
    from imprint_jax.models import imprint

    side = c.image_size // imprint.latent_factor(c.model)
    shape = (side, side, c.model.vae.latent_channels)
    key = jax.random.fold_in(jax.random.key(c.seed), 0)
    drawn = losses.draw(key, np.arange(c.batch_size, dtype=np.int32), shape, c)
    return {
        "timesteps": np.array(drawn.timesteps, np.int64),
        "noise": np.array(drawn.noise),
        "drop": np.array(drawn.drop),
    }


def _torch(size: str, stage: int, remat: bool, batch: int, dtype: str, eager: bool) -> dict:
    """The same step: loss, gradients, clipping, AdamW and the average of the weights."""
    import benchmark_torch
    import torch

    from imprint_jax.diffusion import process

    c = _settings(size, stage, remat, batch, dtype)
    peer = benchmark_torch.Peer(c.model).train()
    trained = _freeze(peer, stage, getattr(torch, dtype))
    if remat:
        peer.unet.enable_gradient_checkpointing()
        # Frozen in stage 2, where there is nothing to recompute, and torch.compile refuses it.
        if stage == 1:
            peer.dinov2.activation_checkpointing_enable()
    if not eager:
        peer.compile_parts()
    # Rates do not change the time; the warm-up's first ones are next to nothing.
    optimizer = torch.optim.AdamW(trained, lr=1e-8, weight_decay=1e-2, fused=True)
    average = [x.detach().clone() for x in trained]
    host = random_batch(c) | _draws(c)
    schedule = np.asarray(process.noise_schedule(c.diffusion), np.float32)
    alphas = benchmark_torch.on_device(schedule)

    def once() -> float:
        tensors = {key: benchmark_torch.on_device(x) for key, x in host.items()}
        with torch.autocast(benchmark_torch.DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = _loss(peer, tensors, alphas, stage)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, c.optim.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [x.detach() for x in trained], 1e-4)
        if benchmark_torch.DEVICE == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return _measured(once, batch) | {"memory": benchmark_peer.torch_memory()}


def _freeze(peer, stage: int, dtype) -> list:
    """The parameters a stage trains; the others are frozen and kept in the step's dtype.

    The VAE stays in float32, as ours.
    """
    unet = peer.unet
    modules = {
        1: (peer.dinov2, peer.adapter, unet.up_blocks, unet.conv_norm_out, unet.conv_out),
        2: (peer.adapter, unet),
    }[stage]
    trained = {x for module in modules for x in module.parameters()}
    vae = set(peer.vae.parameters())
    for x in peer.parameters():
        x.requires_grad_(x in trained)
        if x not in trained and x not in vae:
            x.data = x.data.to(dtype)
    return list(trained)


def _loss(peer, tensors: dict, alphas, stage: int):
    """`imprint_jax.diffusion.losses` with PyTorch's modules."""
    import benchmark_torch
    import torch

    images = benchmark_torch.to_float(tensors["target"])
    mask = tensors["mask"].float()
    with torch.no_grad(), torch.autocast(benchmark_torch.DEVICE, enabled=False):
        x0 = peer.encode(images)
        if stage == 2:
            background, mask = peer.encode_background(images, mask)
    objects = benchmark_torch.to_float(tensors["object"])
    tokens = peer.encode_object(objects)
    null = peer.adapter.null_token.expand_as(tokens)
    context = torch.where(tensors["drop"][:, None, None], null, tokens)
    a = alphas[tensors["timesteps"]][:, None, None, None]
    noise = tensors["noise"]
    seen = a.sqrt() * x0 + (1 - a).sqrt() * noise
    if stage == 2:
        seen = mask * seen + (1 - mask) * background
    prediction = peer.unet(seen, tensors["timesteps"], context).sample.float()
    error = (noise - prediction) ** 2
    return (mask * error if stage == 2 else error).mean()


if __name__ == "__main__":
    benchmark_peer.answer({"ours": _ours, "torch": _torch})
