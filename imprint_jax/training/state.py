"""The training state: how it starts and what one step does to it."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util

from imprint_jax.data import batch as batches
from imprint_jax.diffusion import losses, process, sampling
from imprint_jax.models import imprint, init
from imprint_jax.models.attention import Attention, Target
from imprint_jax.training import flops, optimizer, sharding

# The loss is also reported for each of so many equal ranges of timesteps.
TIMESTEP_RANGES = 4


@struct.dataclass
class TrainState:
    """All that a step changes, and the frozen parameters it reads."""

    step: jax.Array  # int32 scalar: steps done
    trained: dict  # nested dict of float32 parameters
    frozen: dict  # nested dict of the rest, in the computation's dtype (the VAE's in float32)
    ema: dict  # the average of `trained`
    opt_state: optax.OptState

    def params(self, *, ema: bool) -> dict:
        """The whole model's parameters, trained ones averaged or as they are."""
        return optimizer.merge(self.ema if ema else self.trained, self.frozen)


class Trainer:
    """What stays the same during a run: model, labels, optimizer, shardings.

    Args:
        config: A whole configuration.
        mesh: From `sharding.make_mesh`.
        target: The chips that programs are traced for; the mesh's if None.
    """

    def __init__(self, config, mesh: jax.sharding.Mesh, target: Target | None = None):
        target = target or Target.of(mesh.devices.flat[0])
        self.config = config
        self.mesh = mesh
        self.dtype = jnp.dtype(config.dtype)
        self.graphdef, self.abstract_params = imprint.split(
            config.model, self.dtype, config.remat, Attention(target, config.attention)
        )
        self.labels = optimizer.label_params(self.abstract_params, config.groups)
        self.tx = optimizer.make_optimizer(config, self.labels)
        self.abstract_state = jax.eval_shape(self._from_params, self.abstract_params)
        self.state_sharding = sharding.state_sharding(mesh, self.abstract_state)
        self.alphas_cumprod = process.noise_schedule(config.diffusion)

    def _from_params(self, params: dict) -> TrainState:
        trained, frozen = optimizer.partition(params, self.labels)
        # The VAE computes in float32 always; all else is rounded to the computation's dtype anyway.
        frozen = {
            name: tree if name == "vae" else jax.tree.map(lambda x: x.astype(self.dtype), tree)
            for name, tree in frozen.items()
        }
        ema = jax.tree.map(jnp.copy, trained)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, trained, frozen, ema, self.tx.init(trained))

    def initial_params(self, loaded: dict) -> dict:
        """Every component's parameters on this host: those given, the rest at random.

        Args:
            loaded: {component: nested dict of NumPy arrays}.
        """
        seed, model = self.config.seed, self.config.model
        return {
            name: loaded.get(name) or init.draw(name, model, seed) for name in imprint.COMPONENTS
        }

    def init(self, params: dict) -> TrainState:
        """A new state of parameters on the host, the same on every host."""
        # Every host cuts its devices' parts out of its own copy: nothing is ever whole on a device.
        placed = jax.tree.map(
            lambda x, where: jax.make_array_from_callback(x.shape, where, x.__getitem__),
            params,
            sharding.state_sharding(self.mesh, self.abstract_params),
        )
        make = jax.jit(self._from_params, out_shardings=self.state_sharding)
        return make(placed)

    def _whole(self, params):
        """Parameters as all that computes with them takes them: whole on every device.

        Only what is kept is cut. Computing with cut parameters, the partitioner would cut the
        matrix products too and send activations: many times the bytes (docs/planning.md).
        """
        return jax.lax.with_sharding_constraint(params, sharding.replicated(self.mesh))

    def _losses(
        self, trained: dict, frozen: dict, batch: dict, key: jax.Array, graphdef=None
    ) -> losses.Losses:
        model = imprint.bind(graphdef or self.graphdef, optimizer.merge(trained, frozen))
        shape = jax.eval_shape(model.vae.encode, batch["target"]).shape[1:]
        draws = losses.draw(key, batch["index"], shape, self.config)
        loss_fn = losses.STAGE_LOSS[self.config.stage]
        values = loss_fn(model, batch, draws, jnp.asarray(self.alphas_cumprod), self.config)
        return losses.Losses(values, draws.timesteps)

    def gradients(
        self, trained: dict, frozen: dict, batch: dict, key: jax.Array
    ) -> tuple[dict, losses.Losses]:
        """Gradients of a batch's mean loss, worked through in `config.accumulation` parts.

        Args:
            trained: Parameters to differentiate by.
            frozen: The rest.
            batch: See `imprint_jax.data.batch`.
            key: The step's key; draws depend on it and each sample's index only.

        Returns:
            Gradients like `trained`, and the samples' losses and timesteps, (batch_size,).
        """
        trained, frozen = self._whole((trained, frozen))

        def mean_loss(trained, part):
            found = self._losses(trained, frozen, part, key)
            return jnp.mean(found.values), found

        grad_fn = jax.grad(mean_loss, has_aux=True)
        count = self.config.accumulation
        if count == 1:
            return grad_fn(trained, batch)

        # Part i takes every count-th sample: each device works on samples it has.
        parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
        spread = sharding.batch_sharding(self.mesh)

        def add(total, part):
            part = jax.lax.with_sharding_constraint(part, spread)
            grads, found = grad_fn(trained, part)
            return jax.tree.map(lambda t, g: t + g / count, total, grads), found

        grads, found = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, trained), parts)
        return grads, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), found)

    def train_step(self) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
        """One step, compiled: (state, batch) -> (state, metrics). The old state is donated.

        Metrics are scalars: loss; loss_sum/A-B and loss_count/A-B for ranges of timesteps;
        grad_norm, also a group; lr a group.
        """
        config = self.config
        rates = optimizer.schedules(config)

        def step(state: TrainState, batch: dict):
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            grads, found = self.gradients(state.trained, state.frozen, batch, key)
            updates, opt_state = self.tx.update(grads, state.opt_state, state.trained)
            trained = optax.apply_updates(state.trained, updates)
            done = state.step.astype(jnp.float32)
            decay = jnp.minimum(config.optim.ema_decay, (1 + done) / (10 + done))
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, trained)
            metrics = {"loss": jnp.mean(found.values), "grad_norm": optax.tree.norm(grads)}
            metrics |= self._group_norms(grads) | self._by_timestep(found)
            metrics |= {f"lr/{name}": rate(state.step) for name, rate in rates.items()}
            new_state = TrainState(state.step + 1, trained, state.frozen, ema, opt_state)
            return new_state, metrics

        out_shardings = (self.state_sharding, sharding.replicated(self.mesh))
        return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)

    def _group_norms(self, grads: dict) -> dict[str, jax.Array]:
        groups = {}
        for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
            groups.setdefault(self.labels[path], []).append(grad)
        return {f"grad_norm/{name}": optax.tree.norm(group) for name, group in groups.items()}

    def _by_timestep(self, found: losses.Losses) -> dict[str, jax.Array]:
        metrics = {}
        edges = np.linspace(0, len(self.alphas_cumprod), TIMESTEP_RANGES + 1).astype(int)
        for low, high in itertools.pairwise(edges):
            inside = (found.timesteps >= low) & (found.timesteps < high)
            metrics[f"loss_sum/{low}-{high - 1}"] = jnp.sum(found.values * inside)
            metrics[f"loss_count/{low}-{high - 1}"] = jnp.sum(inside)
        return metrics

    def validation_step(self) -> Callable[[TrainState, dict], jax.Array]:
        """(state, batch) -> the averaged weights' mean loss, with draws that never change."""
        key = jax.random.key(self.config.seed)

        def step(state: TrainState, batch: dict) -> jax.Array:
            averaged, frozen = self._whole((state.ema, state.frozen))
            return jnp.mean(self._losses(averaged, frozen, batch, key).values)

        return jax.jit(step, out_shardings=sharding.replicated(self.mesh))

    def preview_step(self) -> Callable[[TrainState, dict, float], jax.Array]:
        """(state, batch, guidance scale) -> pictures (b h w 3) uint8 by the averaged weights."""
        config = self.config
        keys = lambda index: jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(
            index
        )

        def step(state: TrainState, batch: dict, guidance_scale) -> jax.Array:
            model = imprint.bind(self.graphdef, self._whole(state.params(ema=True)))
            background, cells = model.encode_background(
                imprint.to_float(batch["target"]), batch["mask"], config.diffusion.hole_fill
            )
            pictures = sampling.sample(
                model,
                model.encode_object(imprint.to_float(batch["object"])),
                background,
                cells,
                keys(batch["index"]),
                guidance_scale,
                num_steps=config.sampling.num_steps,
                config=config,
            )
            return jnp.round((pictures + 1.0) * 127.5).astype(jnp.uint8)

        return jax.jit(step, out_shardings=sharding.replicated(self.mesh))

    def model_flops(self) -> int:
        """FLOPs of one step's forward and backward passes, recomputation left out."""
        # The chunked kernel would compute its scores a second time in the backward pass.
        plain = Attention(kernel="plain")
        graphdef, _ = imprint.split(self.config.model, self.dtype, attention=plain)
        state = self.abstract_state
        batch = batches.batch_spec(self.config, self.config.batch_size)

        def mean_loss(trained, frozen, batch):
            found = self._losses(trained, frozen, batch, jax.random.key(0), graphdef)
            return jnp.mean(found.values)

        return flops.count(jax.grad(mean_loss), state.trained, state.frozen, batch)
