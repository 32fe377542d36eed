"""Every program of every full-size recipe, traced for chips that are not there; none is computed.

A kernel that refuses its shapes, or a transformation that cannot be nested, raises while tracing.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from imprint_jax import config
from imprint_jax.config import Config
from imprint_jax.data import batch as batches
from imprint_jax.models.attention import Target, tracing_for
from imprint_jax.training import sharding
from imprint_jax.training.state import Trainer

TARGETS = {"H100": Target("gpu", "9.0"), "A100": Target("gpu", "8.0"), "TPU": Target("tpu")}
RECIPES = ("stage1", "stage2", "finetune")
ABLATIONS = sorted(p.stem for p in Path(__file__).parents[2].glob("configs/ablations/*.py"))
# Sections that change numbers in a program, or what it is fed, but not the program.
NUMBERS = ("seed", "total_steps", "drop_probability", "init_from", "data", "optim", "keep")
NUMBERS += ("save_every", "keep_every", "log_every", "validation", "preview", "context")


def programs() -> dict[str, Config]:
    """The full-size recipes, of those whose programs are the same the first."""
    recipes = {name: Config.of(config.load(name)) for name in RECIPES}
    for name in ABLATIONS:
        for stage in (1, 2):
            c = config.load_recipe(f"ablations/{name}", "paper", stage)
            if c is not None:
                recipes[f"{name}, stage {stage}"] = Config.of(c)
    distinct = {}
    for name, c in recipes.items():
        program = {key: value for key, value in c.to_dict().items() if key not in NUMBERS}
        program["groups"] = [(pattern, rate is None) for _, pattern, rate in c.groups]
        distinct.setdefault(json.dumps(program, default=str, sort_keys=True), (name, c))
    return dict(distinct.values())


# What chips differ in is attention: those of one kind go through all programs by default, those of
# the others through the paper's two stages.
CASES = [
    pytest.param(
        c,
        target,
        marks=() if kind == "H100" or name in ("stage1", "stage2") else pytest.mark.long,
        id=f"{name}-{kind}",
    )
    for name, c in programs().items()
    for kind, target in TARGETS.items()
]


@pytest.mark.parametrize(("c", "target"), CASES)
def test_every_program_traces(c, target):
    """But for the optimizer, which is the same for every chip: `test_a_whole_step_traces`."""
    count = 8 if c.batch_size % (8 * c.accumulation) == 0 else 1
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(1, count), ("data", "fsdp"))
    trainer = Trainer(c, mesh, target)
    state, batch = trainer.abstract_state, batches.batch_spec(c, c.batch_size)
    with tracing_for(target):
        grads, losses = jax.eval_shape(
            trainer.gradients, state.trained, state.frozen, batch, jax.random.key(0)
        )
        loss = jax.eval_shape(trainer.validation_step(), state, batch)
        pictures = jax.eval_shape(trainer.preview_step(), state, batch, jnp.float32(3.0))
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, state.trained)
    assert losses.values.shape == (c.batch_size,) and loss.shape == ()
    assert pictures.shape == (c.batch_size, c.image_size, c.image_size, 3)


def test_a_whole_step_traces():
    c = Config.of(config.load("stage2"))
    trainer = Trainer(c, sharding.make_mesh(8), TARGETS["TPU"])
    state, batch = trainer.abstract_state, batches.batch_spec(c, c.batch_size)
    new_state, metrics = jax.eval_shape(trainer.train_step(), state, batch)
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
