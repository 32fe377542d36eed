"""A run's checkpoints: Orbax, one item a component, the data's position beside the weights.

WORKDIR/config.json           the resolved configuration
WORKDIR/frozen/               frozen parameters, written once
WORKDIR/checkpoints/STEP/     dinov2 adapter unet vae (trained parameters), ema, opt, data, meta
"""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from imprint_jax import optim
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.state import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores the states of one run.

    Args:
        workdir: The run's folder.
        keep: How many of the newest checkpoints stay.
    """

    def __init__(self, workdir: Path, keep: int):
        self.frozen_dir = workdir.resolve() / "frozen"
        self.manager = ocp.CheckpointManager(
            workdir.resolve() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )

    def save_frozen(self, frozen: dict) -> None:
        """Writes the parameters that never change; a run without any writes nothing."""
        if frozen:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self.frozen_dir, frozen, force=True)

    def save(self, state: TrainState, position: int) -> None:
        """Starts writing a checkpoint; returns before it is done.

        Args:
            state: The state after a step.
            position: Samples taken from the data so far, over all hosts.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.trained.items()}
        items["ema"] = ocp.args.StandardSave(state.ema)
        items["opt"] = ocp.args.StandardSave(state.opt_state)
        items["data"] = ocp.args.JsonSave({"position": position})
        items["meta"] = ocp.args.JsonSave({"step": step, "jax": jax.__version__})
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState, shardings: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint, each array placed as `shardings` says, and the data's position."""
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        step = self.manager.latest_step()
        items = {name: ocp.args.StandardRestore(tree) for name, tree in target.trained.items()}
        items["ema"] = ocp.args.StandardRestore(target.ema)
        items["opt"] = ocp.args.StandardRestore(target.opt_state)
        items["data"] = ocp.args.JsonRestore()
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        frozen = {}
        if target.frozen:
            with ocp.StandardCheckpointer() as checkpointer:
                frozen = checkpointer.restore(self.frozen_dir, target.frozen)
        state = TrainState(
            step=jax.device_put(jnp.asarray(step, jnp.int32), shardings.step),
            trained={name: restored[name] for name in target.trained},
            frozen=frozen,
            ema=restored["ema"],
            opt_state=restored["opt"],
        )
        log.info("resumed from step %d of %s", step, self.manager.directory)
        return state, restored["data"]["position"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def load_config(workdir: Path) -> ConfigDict:
    """The configuration a run was started with."""
    return ConfigDict(json.loads((workdir / "config.json").read_text()))


def load_params(workdir: Path, *, ema: bool = True) -> tuple[ConfigDict, dict]:
    """A run's configuration and its newest parameters, NumPy arrays.

    Args:
        workdir: The run's folder.
        ema: The averaged parameters rather than the last step's.

    Raises:
        InputError: The run has no checkpoint yet.
    """
    config = load_config(workdir)
    checkpoints = Checkpoints(workdir, keep=config.keep)
    step = checkpoints.manager.latest_step()
    if step is None:
        raise InputError(f"{workdir} has no checkpoint yet.")
    _, abstract = imprint.split(config.model)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract
    )
    trained, frozen = optim.partition(abstract, optim.label_params(abstract, config.groups))
    if ema:
        args = ocp.args.Composite(ema=ocp.args.StandardRestore(trained))
        trained = checkpoints.manager.restore(step, args=args)["ema"]
    else:
        args = {name: ocp.args.StandardRestore(tree) for name, tree in trained.items()}
        restored = checkpoints.manager.restore(step, args=ocp.args.Composite(**args))
        trained = {name: restored[name] for name in trained}
    if frozen:
        with ocp.StandardCheckpointer() as checkpointer:
            frozen = checkpointer.restore(checkpoints.frozen_dir, frozen)
    checkpoints.close()
    return config, jax.device_get(optim.merge(trained, frozen))
