"""The training state, how it starts, and the programs that a run compiles."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec as P

from imprint_jax.config import Config
from imprint_jax.data import batch as batches
from imprint_jax.diffusion import losses, process, sampling
from imprint_jax.models import imprint, init
from imprint_jax.models.attention import Attention, Target
from imprint_jax.training import flops, optimizer, sharding, step


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
        config: The whole configuration.
        mesh: From `sharding.make_mesh`.
        target: The chips that programs are traced for; the mesh's if None.
    """

    def __init__(self, config: Config, mesh: jax.sharding.Mesh, target: Target | None = None):
        target = target or Target.of(mesh.devices.flat[0])
        self.config = config
        self.mesh = mesh
        self.dtype = jnp.dtype(config.dtype)
        self.graphdef, self.abstract_params = imprint.split(
            config.model, self.dtype, config.remat, Attention(target, config.attention)
        )
        self.labels = optimizer.label_params(self.abstract_params, config.groups)
        self.tx = optimizer.make_optimizer(config.optim, self.rates(), self.labels)
        self.abstract_state = jax.eval_shape(self._new_state, self.abstract_params)
        self.state_sharding = sharding.state_sharding(mesh, self.abstract_state)
        self.alphas_cumprod = process.noise_schedule(config.diffusion)

    def rates(self) -> dict[str, optax.Schedule]:
        """The learning rate of each trained group."""
        config = self.config
        return optimizer.schedules(config.groups, config.total_steps, config.optim.warmup_steps)

    def _new_state(self, params: dict) -> TrainState:
        trained, frozen = optimizer.partition(params, self.labels)
        # The VAE computes in float32 always; all else is rounded to the computation's dtype anyway.
        frozen = {
            name: tree if name == "vae" else jax.tree.map(lambda x: x.astype(self.dtype), tree)
            for name, tree in frozen.items()
        }
        ema = jax.tree.map(jnp.copy, trained)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, trained, frozen, ema, self.tx.init(trained))

    def initial_params(self, loaded: dict) -> dict:
        """All parameters in float32, each where the state will have it: `loaded`, or random.

        Beside what is placed there is one component on the host, and nothing whole on a device.

        Args:
            loaded: {component: nested dict of NumPy arrays}, the same on every host; emptied.
        """
        where, placed = sharding.state_sharding(self.mesh, self.abstract_params), {}
        for name in imprint.COMPONENTS:
            host = loaded.pop(name, None) or init.draw(name, self.config.model, self.config.seed)
            # Every host cuts its devices' parts out of its own copy.
            placed[name] = jax.tree.map(
                lambda x, where: jax.make_array_from_callback(x.shape, where, x.__getitem__),
                host,
                where[name],
            )
            del host  # before the next is drawn
        return placed

    def init(self, params: dict) -> TrainState:
        """A new state of `initial_params`, which are donated."""
        where = sharding.state_sharding(self.mesh, self.abstract_params)
        new = jax.jit(
            self._new_state,
            in_shardings=(where,),
            out_shardings=self.state_sharding,
            donate_argnums=0,
        )
        return new(params)

    def _bind(self, trained: dict, frozen: dict) -> imprint.Imprint:
        """The model, on one device of `_each_device`."""
        params = optimizer.merge(trained, frozen)
        specs = optimizer.merge(*(self._specs(x) for x in ("trained", "frozen")))
        params = sharding.for_networks(params, specs, trained, self.dtype)
        return imprint.bind(self.graphdef, params)

    def _specs(self, part: str) -> dict:
        return sharding.specs(getattr(self.state_sharding, part))

    def _each_device(self, function: Callable, out_specs: Any) -> Callable:
        """Runs (trained, frozen, batch, other) -> ... on each device, for its share of the batch.

        Devices hear of each other in `sharded.whole` and `sharding.mean_over_devices` only.
        """

        def in_precision(*args: Any) -> Any:
            with jax.default_matmul_precision(self.config.precision):
                return function(*args)

        return jax.shard_map(
            in_precision,
            mesh=self.mesh,
            in_specs=(self._specs("trained"), self._specs("frozen"), sharding.BATCH, P()),
            out_specs=out_specs,
            check_vma=False,
        )

    def _losses(self, model: imprint.Imprint, batch: dict, key: jax.Array) -> losses.Losses:
        shape = jax.eval_shape(model.vae.encode, batch["target"]).shape[1:]
        config, timesteps = self.config, len(self.alphas_cumprod)
        draws = losses.draw(key, batch["index"], shape, timesteps, config.drop_probability)
        how = jnp.asarray(self.alphas_cumprod), config.diffusion, config.min_snr_gamma
        values = losses.stage_loss(config.stage, model, batch, draws, *how)
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

        def one_device(
            trained: dict, frozen: dict, batch: dict, key: jax.Array
        ) -> tuple[dict, losses.Losses]:
            loss_fn = lambda trained, part: self._losses(self._bind(trained, frozen), part, key)
            grads, sample_losses = step.gradients(loss_fn, trained, batch, self.config.accumulation)
            with jax.named_scope("sum_gradients"):
                grads = sharding.mean_over_devices(grads, self._specs("trained"), self.mesh)
            return grads, sample_losses

        out_specs = self._specs("trained"), sharding.BATCH
        return self._each_device(one_device, out_specs)(trained, frozen, batch, key)

    def train_step(self) -> jax.stages.Wrapped:
        """One step, compiled: (state, batch) -> (state, metrics). The old state is donated.

        Metrics are those of `step.metrics`, and the learning rate of each group.
        """
        config, rates = self.config, self.rates()

        def train(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            grads, sample_losses = self.gradients(state.trained, state.frozen, batch, key)
            with jax.named_scope("optimizer"):
                updates, opt_state = self.tx.update(grads, state.opt_state, state.trained)
                trained = optax.apply_updates(state.trained, updates)
                decay = config.optim.ema_decay
                ema = step.moving_average(state.ema, trained, state.step, decay)
            metrics = step.metrics(sample_losses, grads, self.labels, len(self.alphas_cumprod))
            metrics |= {f"lr/{name}": rate(state.step) for name, rate in rates.items()}
            return TrainState(state.step + 1, trained, state.frozen, ema, opt_state), metrics

        out_shardings = (self.state_sharding, sharding.replicated(self.mesh))
        return jax.jit(train, donate_argnums=0, out_shardings=out_shardings)

    def validation_step(self) -> jax.stages.Wrapped:
        """(state, batch) -> the averaged weights' mean loss, with draws that never change."""

        def one_device(ema: dict, frozen: dict, batch: dict, key: jax.Array) -> jax.Array:
            return self._losses(self._bind(ema, frozen), batch, key).values

        def validate(state: TrainState, batch: dict) -> jax.Array:
            losses_of = self._each_device(one_device, sharding.BATCH)
            key = jax.random.key(self.config.seed)
            return jnp.mean(losses_of(state.ema, state.frozen, batch, key))

        return jax.jit(validate, out_shardings=sharding.replicated(self.mesh))

    def preview_step(self) -> jax.stages.Wrapped:
        """(state, batch, guidance scale) -> pictures (b h w 3) uint8 by the averaged weights."""
        config, how = self.config, self.config.sampling
        choices = sampling.Choices(how.num_steps, how.sampler, how.spacing)

        def one_device(
            ema: dict, frozen: dict, batch: dict, guidance_scale: jax.Array
        ) -> jax.Array:
            pictures, _ = sampling.generate(
                self._bind(ema, frozen),
                batch["object"][:, None],
                batch["target"],
                batch["mask"],
                jax.vmap(jax.random.fold_in, (None, 0))(
                    jax.random.key(config.seed), batch["index"]
                ),
                guidance_scale,
                diffusion=config.diffusion,
                choices=choices,
            )
            return imprint.to_uint8(pictures)

        def preview(state: TrainState, batch: dict, guidance_scale: jax.Array) -> jax.Array:
            pictures_of = self._each_device(one_device, sharding.BATCH)
            return pictures_of(state.ema, state.frozen, batch, guidance_scale)

        return jax.jit(preview, out_shardings=sharding.replicated(self.mesh))

    def model_flops(self) -> int:
        """FLOPs of one step's forward and backward passes, recomputation left out."""
        # The chunked kernel would compute its scores a second time in the backward pass.
        plain = Attention(kernel="plain")
        graphdef, _ = imprint.split(self.config.model, self.dtype, attention=plain)
        batch = batches.batch_spec(self.config, self.config.batch_size)

        def mean_loss(trained: dict, frozen: dict, batch: dict) -> jax.Array:
            model = imprint.bind(graphdef, optimizer.merge(trained, frozen))
            return jnp.mean(self._losses(model, batch, jax.random.key(0)).values)

        state = self.abstract_state
        return flops.count(jax.grad(mean_loss), state.trained, state.frozen, batch)
