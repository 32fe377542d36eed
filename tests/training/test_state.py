"""One step's arithmetic: the same on any mesh, in any number of parts, with or without remat."""

import collections
import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh

from imprint_jax.config.fields import OptimConfig, SamplingConfig
from imprint_jax.data import batch as batches
from imprint_jax.errors import InputError
from imprint_jax.models import attention
from imprint_jax.planning import hlo
from imprint_jax.training import optimizer, sharding
from imprint_jax.training.state import Trainer
from tests.tiny import random_batch, tiny_config

KEY = jax.random.key(0)


def settings(stage: int = 2, **changes):
    return replace(tiny_config(stage), batch_size=16, drop_probability=0.3, **changes)


def mesh(devices: int = 1, fsdp: int = 1) -> Mesh:
    """As `sharding.make_mesh`, of the first so many devices."""
    return Mesh(np.array(jax.devices()[:devices]).reshape(-1, fsdp), ("data", "fsdp"))


@pytest.fixture
def small_parts(monkeypatch):
    """Sizes at which the tiny model's parameters are cut, and its attention goes in chunks."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 64)
    monkeypatch.setattr(attention, "QUERY_CHUNK", 4)


def gradients(c, params, where: Mesh):
    """A batch's gradients and losses on these devices."""
    trainer = Trainer(c, where)
    state = trainer.init(params)
    batch = batches.to_device(random_batch(c), sharding.batch_sharding(where))
    grads, found = jax.jit(trainer.gradients)(state.trained, state.frozen, batch, KEY)
    return traverse_util.flatten_dict(jax.device_get(grads), sep="/"), np.asarray(found.values)


@functools.cache
def alone(stage: int):
    """Initial parameters, and a batch's gradients and losses, on one device in one part."""
    c = settings(stage)
    params = jax.device_get(Trainer(c, mesh()).initial_params({}))
    return params, *gradients(c, params, mesh())


@pytest.mark.parametrize(
    "stage, devices, fsdp, changes",
    [
        (1, 8, 4, dict(accumulation=2)),
        pytest.param(2, 2, 1, dict(accumulation=4), marks=pytest.mark.slow),
        pytest.param(2, 8, 8, dict(), marks=pytest.mark.slow),
        (2, 2, 2, dict(remat=dict(dinov2=True, unet=True))),
        (2, 1, 1, dict(attention="chunked")),
    ],
)
def test_gradients_do_not_depend_on_how_the_work_is_cut(stage, devices, fsdp, changes, small_parts):
    params, grads, losses = alone(stage)
    got, got_losses = gradients(settings(stage, **changes), params, mesh(devices, fsdp))
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    for path, grad in grads.items():
        # Rounding is of the largest terms of a sum; small gradients are sums of large terms.
        np.testing.assert_allclose(
            got[path], grad, rtol=0, atol=1e-5 * np.abs(grad).max(), err_msg=path
        )


def losses_of_20_steps(c, params, where: Mesh) -> list[float]:
    """The losses of 20 steps on one batch, whose noise and timesteps change."""
    trainer = Trainer(c, where)
    state, step = trainer.init(params), trainer.train_step()
    batch = batches.to_device(random_batch(c), sharding.batch_sharding(where))
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("stage, devices, fsdp, accumulation", [(1, 2, 1, 1), (2, 8, 4, 2)])
def test_losses_over_20_steps_do_not_depend_on_how_the_work_is_cut(
    stage, devices, fsdp, accumulation, small_parts
):
    params = jax.device_get(Trainer(settings(stage), mesh()).initial_params({}))
    want = losses_of_20_steps(settings(stage), params, mesh())
    assert want[0] != pytest.approx(want[-1], rel=0.01)  # it trains
    c = settings(stage, accumulation=accumulation)
    np.testing.assert_allclose(losses_of_20_steps(c, params, mesh(devices, fsdp)), want, rtol=1e-5)


def test_kernels_are_sent_in_the_computations_dtype_and_gradients_summed_in_float32(small_parts):
    """By the program that XLA is handed; CPUs themselves send nothing in bfloat16."""
    c = settings(1, dtype="bfloat16", remat=dict(dinov2=True, unet=True))
    trainer = Trainer(c, mesh(8, 4))
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    state = jax.tree.map(place, trainer.abstract_state, trainer.state_sharding)
    spread = sharding.batch_sharding(trainer.mesh)
    batch = {key: place(x, spread) for key, x in batches.batch_spec(c, c.batch_size).items()}
    text = trainer.train_step().lower(state, batch).as_text()
    pattern = r"stablehlo\.(all_gather|reduce_scatter|all_reduce)\b.*?-> tensor<(?:\d+x)*(\w+)>"
    sent = collections.Counter(re.findall(pattern, text, re.DOTALL))
    assert set(sent) == {
        ("all_gather", "bf16"),  # kernels
        ("all_gather", "f32"),  # other parameters
        ("reduce_scatter", "f32"),
        ("all_reduce", "f32"),
    }


def test_activations_stay_where_they_are_when_the_average_is_looked_at(small_parts):
    """Parameters are gathered; else only the mean loss travels, and the finished pictures."""
    c = settings(sampling=SamplingConfig(num_steps=1))
    trainer = Trainer(c, mesh(8, 4))
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    spread = sharding.batch_sharding(trainer.mesh)
    state = jax.tree.map(place, trainer.abstract_state, trainer.state_sharding)
    batch = {key: place(x, spread) for key, x in batches.batch_spec(c, c.batch_size).items()}

    def summed(step, *arguments) -> dict[str, int]:
        text = step.lower(*arguments).compile().as_text()
        found = collections.Counter()
        for x in hlo.collectives(hlo.Program(text), dict(trainer.mesh.shape)):
            found[x.kind] += x.bytes
        return found

    sent = summed(trainer.validation_step(), state, batch)
    assert set(sent) == {"all-gather", "all-reduce"} and sent["all-reduce"] == 4
    sent = summed(trainer.preview_step(), state, batch, np.float32(3))
    assert "all-gather" in sent and "all-reduce" not in sent


def test_parameters_and_moments_are_cut(small_parts):
    trainer = Trainer(settings(), sharding.make_mesh(4))
    state = trainer.init(trainer.initial_params({}))
    kernel = state.trained["unet"]["conv_in"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, None, None, "fsdp")
    assert kernel.addressable_shards[0].data.shape == (3, 3, 8, 4)
    moments = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "conv_in" in jax.tree_util.keystr(path) and x.ndim == 4
    ]
    assert len(moments) == 2
    assert all(x.sharding.spec == kernel.sharding.spec for x in moments)
    blocks = state.frozen["dinov2"]["blocks"] if "dinov2" in state.frozen else None
    blocks = blocks or state.trained["dinov2"]["blocks"]
    assert blocks["mlp"]["fc1"]["kernel"].sharding.spec[0] is None


def test_the_rules_at_full_size(full_size):
    """FSDP 8 leaves nothing large whole."""
    flat = traverse_util.flatten_dict(full_size, sep="/")
    whole = {
        path: x.size
        for path, x in flat.items()
        if sharding.param_spec(path, x.shape, 8) == jax.sharding.PartitionSpec()
    }
    assert max(whole.values()) < 2**17
    assert sum(whole.values()) < 0.002 * sum(x.size for x in flat.values())
    spec = sharding.param_spec("dinov2/blocks/mlp/w12/kernel", (40, 1536, 8192), 8)
    assert spec == jax.sharding.PartitionSpec(None, None, "fsdp")
    moment = sharding.param_spec("opt_state/1/mu/dinov2/blocks/attn/qkv/bias", (40, 4608), 8)
    assert moment == jax.sharding.PartitionSpec(None, "fsdp")


def test_frozen_parameters_are_stored_in_the_computations_dtype_and_have_no_moments():
    c = settings(dtype="bfloat16")
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    dtypes = lambda tree: {x.dtype for x in jax.tree.leaves(tree)}
    assert dtypes(state.frozen["dinov2"]) == {jnp.dtype("bfloat16")}
    assert dtypes(state.frozen["vae"]) == {jnp.dtype("float32")}
    assert dtypes(state.trained) == dtypes(state.ema) == {jnp.dtype("float32")}
    trained = sum(x.size for x in jax.tree.leaves(state.trained))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * trained
    assert "dinov2" not in state.trained and "dinov2" not in state.ema


def test_which_leaves_change_in_each_phase_of_the_swap():
    """Rates of 0 make the swap visible: first only the adapter moves, then only the UNet."""
    groups = (
        ("dinov2", "dinov2/", None),
        ("adapter", "adapter/", (1e-3, 0.0)),
        ("unet", "unet/", (0.0, 1e-3)),
        ("vae", "vae/", None),
    )
    c = settings(total_steps=4, groups=groups, optim=OptimConfig(warmup_steps=1))
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
    batch = batches.to_device(random_batch(c), where)
    moved = []
    for _ in range(4):
        before = jax.device_get(state.params(ema=False))
        state, metrics = step(state, batch)
        after = jax.device_get(state.params(ema=False))
        changed = lambda name, a=after, b=before: any(
            not np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(a[name]), jax.tree.leaves(b[name]), strict=True)
        )
        moved.append({name for name in after if changed(name)})
        assert float(metrics["grad_norm/unet"]) > 0
    assert moved == [{"adapter"}, {"adapter"}, {"unet"}, {"unet"}]
    assert float(metrics["lr/unet"]) == pytest.approx(1e-3)
    norms = [float(metrics[f"grad_norm/{name}"]) ** 2 for name in ("adapter", "unet")]
    assert float(metrics["grad_norm"]) ** 2 == pytest.approx(sum(norms), rel=1e-5)
    counts = {k: float(v) for k, v in metrics.items() if k.startswith("loss_count/")}
    assert sum(counts.values()) == 16 and next(iter(counts)) == "loss_count/0-249"
    sums = sum(float(v) for k, v in metrics.items() if k.startswith("loss_sum/"))
    assert sums / 16 == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_the_average_follows_its_formula():
    c = settings(optim=OptimConfig(ema_decay=0.15))
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
    batch = batches.to_device(random_batch(c), where)
    path = ("unet", "conv_in", "kernel")
    get = lambda tree: np.asarray(tree[path[0]][path[1]][path[2]], np.float64)
    want = get(state.ema)
    for done in range(3):
        old = state
        state, _ = step(state, batch)
        # The new state lies where the old one did.
        assert all(x.is_deleted() for x in jax.tree.leaves((old.trained, old.ema, old.opt_state)))
        decay = min(0.15, (1 + done) / (10 + done))
        want = decay * want + (1 - decay) * get(state.trained)
        np.testing.assert_allclose(get(state.ema), want, atol=1e-7)


def test_validation_is_the_same_every_time_and_sees_the_average():
    c = settings()
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    batch = batches.to_device(random_batch(c), sharding.batch_sharding(trainer.mesh))
    validate = trainer.validation_step()
    first = float(validate(state, batch))
    assert float(validate(state.replace(step=state.step + 5), batch)) == first
    worse = jax.tree.map(lambda x: x + 0.1, state.ema)
    assert float(validate(state.replace(ema=worse), batch)) != first


def test_unknown_attention_kernel():
    with pytest.raises(InputError, match=r"config\.attention is 'flash'"):
        Trainer(settings(attention="flash"), sharding.make_mesh(1))


def test_every_config_labels_every_parameter(full_size):
    from imprint_jax import config

    for name in ("stage1", "stage2", "finetune"):
        labels = optimizer.label_params(full_size, config.load(name).groups)
        assert len(labels) == len(traverse_util.flatten_dict(full_size))
