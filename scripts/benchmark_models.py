"""`benchmark.py models`: attention and the full-size networks beside PyTorch, float32."""

from pathlib import Path

import full_size
import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax.models.attention import Attention, Target

# The UNet's largest self-attention: batch 2, 64x64 latents, 8 heads of 40 channels.
SHAPE = (2, 4096, 8, 40)


def attention() -> str:
    """A row: largest difference, both times, their ratio; both in this process."""
    import torch

    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
    forward = jax.jit(Attention(Target.of(jax.devices()[0])))
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    tensors = [torch.from_numpy(x).transpose(1, 2) for x in (q, k, v)]
    ours, our_time = full_size.fastest(lambda: np.asarray(forward(*arrays)))
    scaled = torch.nn.functional.scaled_dot_product_attention
    theirs, their_time = full_size.fastest(lambda: scaled(*tensors).transpose(1, 2).numpy())
    error = np.abs(ours - theirs).max()
    return (
        f"| attention {SHAPE} | {error:.1e} | {1000 * our_time:.0f} / {1000 * their_time:.0f} ms"
        f" = {our_time / their_time:.2f} |"
    )


def models(folder: Path) -> None:
    """Prints a table; weights are written to `folder` if they are not there (17 GB)."""
    print("| | largest difference | time ours / torch |")
    print("|---|---|---|")
    print(attention(), flush=True)
    full_size.prepare(folder)
    print(full_size.HEADER)
    for name in full_size.CASES:
        print(full_size.compare(folder, name), flush=True)
