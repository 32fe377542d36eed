"""Every so many steps: the validation loss, and pictures, of the averaged weights."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from imprint_jax import images
from imprint_jax.config import Config
from imprint_jax.data import batch as batches
from imprint_jax.data import pipeline
from imprint_jax.runtime import distributed
from imprint_jax.runtime.files import atomic_file
from imprint_jax.training import sharding
from imprint_jax.training.metrics import Meter
from imprint_jax.training.state import Trainer, TrainState

# The guidance scale a preview shows beside the configuration's own: without guidance.
PLAIN = 1.0


class Validation:
    """The first samples of the split "validation", and what is done with them.

    Args:
        config: The whole configuration.
        workdir: The run's folder; pictures go to its previews/.
        trainer: The run's.

    Raises:
        InputError: The data has no split "validation".
    """

    def __init__(self, config: Config, workdir: Path, trainer: Trainer):
        self.config, self.workdir = config, workdir
        self.loss, self.preview = trainer.validation_step(), trainer.preview_step()
        self.batch_sharding = sharding.batch_sharding(trainer.mesh)
        # A preview's samples on this host: all of them together divide over the devices.
        rounded = -(-config.preview.samples // trainer.mesh.size) * trainer.mesh.size
        self.rows = min(rounded, config.batch_size) // jax.process_count()
        count = config.validation.batches if config.validation.every else 0
        count = max(count, 1 if config.preview.every else 0)
        self.batches = self._first_batches(count) if count else []

    def _first_batches(self, count: int) -> list[dict]:
        """The first batches of the validation split, on the host."""
        held_out = pipeline.held_out(self.config)
        in_this_process = replace(held_out, data=replace(held_out.data, num_workers=0))
        dataset = pipeline.make_dataset(
            in_this_process, process_index=jax.process_index(), process_count=jax.process_count()
        )
        with closing(iter(dataset)) as host_batches:
            return [next(host_batches) for _ in range(count)]

    def __call__(self, step: int, state: TrainState, meter: Meter) -> None:
        """Does what is due after this step."""
        due = lambda section: section.every and step % section.every == 0
        if due(self.config.validation):
            with meter.paused("validating"):
                each = [
                    self.loss(state, batches.to_device(batch, self.batch_sharding))
                    for batch in self.batches[: self.config.validation.batches]
                ]
                meter.add({"validation_loss": float(np.mean(jax.device_get(each)))})
        if due(self.config.preview):
            with meter.paused("sampling a preview"):
                picture = self._picture(state)
                if distributed.is_main():
                    (self.workdir / "previews").mkdir(exist_ok=True)
                    with atomic_file(self.workdir / "previews" / f"{step:08d}.png") as file:
                        file.write_bytes(images.encode_png(picture))
                    meter.add_picture("preview", picture)

    def _picture(self, state: TrainState) -> np.ndarray:
        """One sample a row: object, target, target with a red hole, without and with guidance."""
        local = {key: value[: self.rows] for key, value in self.batches[0].items()}
        batch = batches.to_device(local, self.batch_sharding)
        scales = (PLAIN, self.config.sampling.guidance_scale)
        sampled = [np.asarray(self.preview(state, batch, np.float32(scale))) for scale in scales]
        # The first rows of all hosts' are the first host's own, which draws them.
        rows = min(self.config.preview.samples, self.rows)
        more = {
            f"guidance {scale:g}": pictures[:rows]
            for scale, pictures in zip(scales, sampled, strict=True)
        }
        return batches.picture(local, rows, more)
