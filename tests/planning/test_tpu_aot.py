"""Compiled for a TPU that is not there: `pip install libtpu` is enough, the chip is not needed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install libtpu"
)

# Eight chips of v5e; each sample's attention, and DINOv2-g's block with its gradient, in bfloat16.
PROGRAM = """
import json, os
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from imprint_jax.models import dinov2, layers
from imprint_jax.models.attention import Attention, Target

topology = topologies.get_topology_desc("v5e:2x4", platform="tpu")
mesh = Mesh(np.array(topology.devices), ("data",))


def spec(shape, *where):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*where)))


def compiled(function, *args):
    program = jax.jit(function).lower(*args).compile()
    names = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "custom-call")
    found = {name: name in program.as_text() for name in names}
    return found | {"arguments": program.memory_analysis().argument_size_in_bytes}


q = spec((8, 4096, 8, 40), "data")  # the UNet's first level
attention = Attention(Target.of(topology.devices[0]))
options = dict(attention=attention, dtype=jnp.bfloat16, rngs=layers.Rngs(jax.random.key(0)))
make = lambda: dinov2.Block(1536, 24, "swiglu", 4096, **options)
graphdef, abstract = nnx.split(nnx.eval_shape(make))
params = jax.tree.map(lambda x: spec(x.shape), abstract)
loss = lambda params, x: jnp.sum(nnx.merge(graphdef, params)(x).astype(jnp.float32))
results = {
    "kind": topology.devices[0].device_kind,
    "backend": attention.kernel_for(q, q),
    "attention": compiled(attention, q, q, q),
    "block": compiled(jax.grad(loss), params, spec((8, 261, 1536), "data")),
}
print(json.dumps(results), flush=True)
os._exit(0)  # libtpu does not always end by itself
"""


def test_attention_and_a_block_of_dinov2_compile_for_v5e():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    }
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert (found["kind"], found["backend"]) == ("TPU v5 lite", "chunked")
    attention, block = found["attention"], found["block"]
    assert attention["arguments"] == 3 * 4096 * 8 * 40 * 2  # of one sample
    assert not any(attention[name] for name in ("all-gather", "all-to-all", "all-reduce"))
    assert block["all-reduce"] and not block["all-gather"]
