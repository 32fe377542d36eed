"""Every program of every full-size recipe, traced for chips that are not there; none is computed.

A kernel that refuses its shapes, or a transformation that cannot be nested, raises while tracing.
"""

import jax
import jax.numpy as jnp
import pytest

from imprint_jax import config
from imprint_jax.data import batch as batches
from imprint_jax.models.attention import Target, tracing_for
from imprint_jax.training import sharding
from imprint_jax.training.state import Trainer

TARGETS = {"H100": Target("gpu", "9.0"), "A100": Target("gpu", "8.0"), "TPU": Target("tpu")}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("recipe", ["stage1", "stage2", "finetune"])
def test_every_program_traces(recipe, target):
    c = config.load(recipe)
    trainer = Trainer(c, sharding.make_mesh(1), target)
    state, batch = trainer.abstract_state, batches.batch_spec(c, c.batch_size)
    with tracing_for(target):
        new_state, metrics = jax.eval_shape(trainer.train_step(), state, batch)
        loss = jax.eval_shape(trainer.validation_step(), state, batch)
        pictures = jax.eval_shape(trainer.preview_step(), state, batch, jnp.float32(3.0))
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == loss.shape == ()
    assert pictures.shape == (c.batch_size, c.image_size, c.image_size, 3)
