"""The training state: how it starts and what one step does to it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from imprint_jax import diffusion, losses, optim, sharding
from imprint_jax.models import imprint, initial


@struct.dataclass
class TrainState:
    """All that a step changes, and the frozen parameters it reads."""

    step: jax.Array  # int32 scalar: steps done
    trained: dict  # nested dict of float32 parameters
    frozen: dict  # nested dict of the rest
    ema: dict  # the average of `trained`
    opt_state: optax.OptState

    def params(self, *, ema: bool) -> dict:
        """The whole model's parameters, trained ones averaged or as they are."""
        return optim.merge(self.ema if ema else self.trained, self.frozen)


class Trainer:
    """What stays the same during a run: model, labels, optimizer, shardings.

    Args:
        config: A whole configuration.
        mesh: From `sharding.make_mesh`.
    """

    def __init__(self, config, mesh: jax.sharding.Mesh):
        self.config = config
        self.mesh = mesh
        self.graphdef, self.abstract_params = imprint.split(config.model, jnp.dtype(config.dtype))
        self.labels = optim.label_params(self.abstract_params, config.groups)
        self.tx = optim.make_optimizer(config, self.labels)
        self.abstract_state = jax.eval_shape(self._from_params, self.abstract_params)
        self.state_sharding = sharding.state_sharding(mesh, self.abstract_state)

    def _from_params(self, params: dict) -> TrainState:
        trained, frozen = optim.partition(params, self.labels)
        ema = jax.tree.map(jnp.copy, trained)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, trained, frozen, ema, self.tx.init(trained))

    def init(self, loaded: dict) -> TrainState:
        """A new state.

        Args:
            loaded: {component: parameters} to start from; what is missing starts at random.
        """

        seed, model = self.config.seed, self.config.model
        params = {
            name: loaded.get(name) or initial.draw(name, model, seed) for name in imprint.COMPONENTS
        }
        # Every host cuts its devices' parts out of its own copy: nothing is ever whole on a device.
        placed = jax.tree.map(
            lambda x, where: jax.make_array_from_callback(x.shape, where, x.__getitem__),
            params,
            sharding.state_sharding(self.mesh, self.abstract_params),
        )
        return jax.jit(self._from_params, out_shardings=self.state_sharding)(placed)

    def train_step(self) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
        """One step, compiled: (state, batch) -> (state, metrics). The old state is donated."""
        config = self.config
        alphas_cumprod = jnp.asarray(diffusion.noise_schedule(config.diffusion))
        loss_fn = losses.STAGE_LOSS[config.stage]
        rates = optim.schedules(config)

        def step(state: TrainState, batch: dict):
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)

            def mean_loss(trained):
                model = imprint.bind(self.graphdef, optim.merge(trained, state.frozen))
                shape = jax.eval_shape(model.vae.encode, batch["target"]).shape[1:]
                draws = losses.draw(key, batch["index"], shape, config)
                return jnp.mean(loss_fn(model, batch, draws, alphas_cumprod, config))

            loss, grads = jax.value_and_grad(mean_loss)(state.trained)
            updates, opt_state = self.tx.update(grads, state.opt_state, state.trained)
            trained = optax.apply_updates(state.trained, updates)
            done = state.step.astype(jnp.float32)
            decay = jnp.minimum(config.optim.ema_decay, (1 + done) / (10 + done))
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, trained)
            metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
            metrics |= {f"lr/{name}": rate(state.step) for name, rate in rates.items()}
            new_state = TrainState(state.step + 1, trained, state.frozen, ema, opt_state)
            return new_state, metrics

        out_shardings = (self.state_sharding, sharding.replicated(self.mesh))
        return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
