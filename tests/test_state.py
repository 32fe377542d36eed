"""One step's arithmetic: the same on any mesh, in any number of parts, with or without remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imprint_jax import batch as batches
from imprint_jax import optim, sharding
from imprint_jax.errors import InputError
from imprint_jax.state import Trainer
from tests.tiny import random_batch, tiny_config

KEY = jax.random.key(0)


def settings(stage: int = 2, **changes):
    c = tiny_config(stage)
    c.batch_size = 16
    c.drop_probability = 0.3
    c.update(changes)
    return c


def gradients(c, params, fsdp: int = 1):
    """A batch's gradients and losses on 8 devices."""
    trainer = Trainer(c, sharding.make_mesh(fsdp))
    state = trainer.init(params or trainer.initial_params({}))
    batch = batches.to_device(random_batch(c), sharding.batch_sharding(trainer.mesh))
    grads, found = jax.jit(trainer.gradients)(state.trained, state.frozen, batch, KEY)
    return traverse_util.flatten_dict(jax.device_get(grads), sep="/"), np.asarray(found.values)


@pytest.fixture(scope="module")
def plain():
    c = settings()
    params = Trainer(c, sharding.make_mesh(1)).initial_params({})
    return params, *gradients(c, params)


@pytest.mark.parametrize(
    "changes, fsdp",
    [
        (dict(accumulation=2), 1),
        (dict(), 4),
        (dict(accumulation=2), 8),
        (dict(remat=dict(dinov2=True, unet=True)), 2),
        (dict(attention="chunked"), 1),
    ],
)
def test_gradients_do_not_depend_on_how_the_work_is_cut(plain, changes, fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 64)
    params, grads, losses = plain
    got, got_losses = gradients(settings(**changes), params, fsdp)
    np.testing.assert_allclose(got_losses, losses, atol=1e-6)
    for path, grad in grads.items():
        scale = max(np.abs(grad).max(), 1e-3)
        np.testing.assert_allclose(got[path], grad, atol=1e-6 * max(scale, 1), err_msg=path)


def losses_of_20_steps(c, params, fsdp: int = 1) -> list[float]:
    """The losses of 20 steps on one batch, whose noise and timesteps change, on 8 devices."""
    trainer = Trainer(c, sharding.make_mesh(fsdp))
    state, step = trainer.init(params), trainer.train_step()
    batch = batches.to_device(random_batch(c), sharding.batch_sharding(trainer.mesh))
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def test_losses_over_20_steps_do_not_depend_on_how_the_work_is_cut(plain, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 64)
    params = plain[0]
    want = losses_of_20_steps(settings(), params)
    assert want[0] != pytest.approx(want[-1], rel=0.01)  # it trains
    got = losses_of_20_steps(settings(accumulation=2), params, fsdp=4)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_parameters_and_moments_are_cut(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 64)
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
    c = settings(total_steps=4)
    c.groups = (
        ("dinov2", "dinov2/", None),
        ("adapter", "adapter/", (1e-3, 0.0)),
        ("unet", "unet/", (0.0, 1e-3)),
        ("vae", "vae/", None),
    )
    c.optim.warmup_steps = 1
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
    c = settings()
    c.optim.ema_decay = 0.15
    trainer = Trainer(c, sharding.make_mesh(1))
    state = trainer.init(trainer.initial_params({}))
    step, where = trainer.train_step(), sharding.batch_sharding(trainer.mesh)
    batch = batches.to_device(random_batch(c), where)
    path = ("unet", "conv_in", "kernel")
    get = lambda tree: np.asarray(tree[path[0]][path[1]][path[2]], np.float64)
    want = get(state.ema)
    for done in range(3):
        state, _ = step(state, batch)
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
        labels = optim.label_params(full_size, config.load(name).groups)
        assert len(labels) == len(traverse_util.flatten_dict(full_size))
