"""Prints XLA:GPU's program of a tiny training step for 8 H100: run by test_gpu_program.py."""

import os
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from imprint_jax.config.fields import RematConfig
from imprint_jax.data import batch as batches
from imprint_jax.models.attention import tracing_for
from imprint_jax.planning import compile as compiling
from imprint_jax.training import sharding
from imprint_jax.training.state import Trainer
from tests.tiny import tiny_config

sharding.MIN_SHARDED_ELEMENTS = 64  # at which the tiny model's parameters are cut
c = replace(tiny_config(1), batch_size=8, dtype="bfloat16", remat=RematConfig())
devices = np.array(compiling.make_devices("h100", 8)).reshape(2, 4)
target = compiling.target("h100")
trainer = Trainer(c, Mesh(devices, ("data", "fsdp")), target)
place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
state = jax.tree.map(place, trainer.abstract_state, trainer.state_sharding)
spread = sharding.batch_sharding(trainer.mesh)
batch = {key: place(x, spread) for key, x in batches.batch_spec(c, c.batch_size).items()}
with tracing_for(target):
    program = trainer.train_step().lower(state, batch)
print(program.compile().as_text(), flush=True)
os._exit(0)  # the plugin's threads wait for a device
