"""One small program compiled for chips that are not there; the texts are in programs/.

    python -m tests.planning.small_program h100 > tests/planning/programs/h100.txt

wants the extra plan-gpu, for "tpu-v5e" plan-tpu.
"""

import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from imprint_jax.models.attention import Attention, tracing_for
from imprint_jax.planning.compile import make_devices, target

MESH = {"data": 2, "fsdp": 2}
BLOCKS, BATCH, TOKENS, HEADS, WIDTH = 3, 8, 257, 2, 64


def gradients(attention: Attention, mesh: Mesh):
    """(weights (blocks c 3c) float32, x (b t c) bfloat16) -> gradients of a loss by the weights.

    A scan over blocks that gather their weights; DINOv2 and the UNet have odd numbers of tokens.
    """

    def block(x, w):
        w = jax.lax.with_sharding_constraint(w.astype(x.dtype), NamedSharding(mesh, P()))
        q, k, v = (y.reshape(*x.shape[:2], HEADS, -1) for y in jnp.split(x @ w, 3, axis=-1))
        return x + attention(q, k, v).reshape(x.shape), None

    loss = lambda w, x: jnp.sum(jax.lax.scan(block, x, w)[0].astype(jnp.float32) ** 2)
    return jax.grad(loss)


def compiled(accelerator: str) -> jax.stages.Compiled:
    """The program for four devices of an accelerator."""
    devices = np.array(make_devices(accelerator, 4)).reshape(tuple(MESH.values()))
    mesh = Mesh(devices, tuple(MESH))
    spec = lambda shape, dtype, *where: jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, P(*where))
    )
    w = spec((BLOCKS, WIDTH, 3 * WIDTH), jnp.float32, None, None, "fsdp")
    x = spec((BATCH, TOKENS, WIDTH), jnp.bfloat16, ("data", "fsdp"))
    chip = target(accelerator)
    with tracing_for(chip):
        function = gradients(Attention(chip), mesh)
        return jax.jit(function, out_shardings=w.sharding).lower(w, x).compile()


def trimmed(text: str) -> str:
    """A program's text without what is not read: where its source stands, and most settings."""
    lines = []
    for line in text.splitlines():
        if not re.match(r"ENTRY|[%}\s]", line):
            continue  # the tables of source files
        if "cond/lt" not in line:
            line = re.sub(r", metadata=\{[^}]*\}", "", line)
        known = re.search(r'"known_trip_count":\{"n":"\d+"\}', line)
        kept = f", backend_config={{{known[0]}}}" if known else ""
        lines.append(re.sub(r", backend_config=.*", lambda _, kept=kept: kept, line))
    return "\n".join(lines)


if __name__ == "__main__":
    print(trimmed(compiled(sys.argv[1]).as_text()))
    sys.stdout.flush()
    os._exit(0)  # libtpu does not always end by itself
