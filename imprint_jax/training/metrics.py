"""Watching a run: progress bar, metrics.jsonl, TensorBoard; and that losses stay finite."""

import contextlib
import json
import logging
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from imprint_jax.config import Config
from imprint_jax.runtime import accelerators, distributed
from imprint_jax.runtime.files import atomic_file

log = logging.getLogger(__name__)


class Meter:
    """A run's numbers: on the screen, in WORKDIR/metrics.jsonl and in WORKDIR/tensorboard.

    Reads the device only every `config.log_every` steps, so that the host runs ahead of it.

    Args:
        workdir: The run's folder.
        config: The whole configuration.
        console: A rich console for the progress bar.
        start: Steps done before.
        model_flops: FLOPs of a step, or None where the device's peak is not known.
    """

    def __init__(
        self,
        workdir: Path,
        config: Config,
        console: Console,
        start: int,
        model_flops: int | None,
    ):
        self.workdir, self.config, self.model_flops = workdir, config, model_flops
        self.main = distributed.is_main()  # the others look too, so that all stop at a bad loss
        self.board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=self.main
        )
        self.metrics: list[dict] = []  # of the steps since the last flush, on the device
        self.start = self.step = start
        self.terminal = console.is_terminal
        self._restart_clock()
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.main,
            auto_refresh=self.terminal,  # where nobody sees it, ten times a second is for nothing
        )
        self.doing = f"stage {config.stage}"
        self.task = self.progress.add_task(
            self.doing, total=config.total_steps, completed=start, numbers=""
        )

    def __enter__(self) -> "Meter":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()
        self.board.close()

    def update(self, metrics: dict, waited: float) -> None:
        """Takes note of a step.

        Args:
            metrics: The step's, on the device.
            waited: Seconds the device had nothing to do but wait for data, at most.
        """
        self.metrics.append(metrics)
        self.waited += waited
        done = self.step + len(self.metrics)
        self.progress.update(self.task, completed=done)
        if done == self.start + 2 and len(self.metrics) == 2:  # so the first of them is done
            self._say(f"training; a line every {self.config.log_every} steps")
        if done % self.config.log_every == 0 or done == self.config.total_steps:
            self.flush()

    def flush(self) -> None:
        """Reads the steps since the last flush, and writes and shows their means.

        Raises:
            FloatingPointError: A loss or gradient is not finite; WORKDIR/nonfinite.json says which
                step's, and which samples were in it.
        """
        if not self.metrics:
            return
        steps = [jax.device_get(metrics) for metrics in self.metrics]
        self._check_finite(steps)
        seconds = time.monotonic() - self.since
        values = self._means(steps)
        rate = len(steps) * self.config.batch_size / seconds
        values |= {
            "samples_per_second": rate,
            "data_wait_share": self.waited / seconds,
            "memory_gib": _memory(),
        }
        if self.model_flops:
            peak = accelerators.PEAK_FLOPS[jax.devices()[0].device_kind] * jax.device_count()
            values["model_flops_utilisation"] = len(steps) * self.model_flops / seconds / peak
        self.step += len(steps)
        self._write(values)
        numbers = f"loss {values['loss']:.4f}  {rate:.1f} samples/s"
        self.progress.update(self.task, numbers=numbers)
        self._say(f"step {self.step} of {self.config.total_steps}  {numbers}")
        self.metrics = []
        self._restart_clock()

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Says what is being done in place of training; rates leave its time out."""
        self.flush()
        self._say(doing)
        self.progress.update(self.task, description=f"{doing}\u2026")
        try:
            yield
        finally:
            self.progress.update(self.task, description=self.doing)
            self._restart_clock()

    def _say(self, text: str) -> None:
        """A line where nobody sees the bar move."""
        if not self.terminal:
            log.info(text)

    def _restart_clock(self) -> None:
        self.waited, self.since = 0.0, time.monotonic()

    def add(self, values: dict[str, float]) -> None:
        """Writes numbers that belong to the last step looked at, as a validation's."""
        self._write(values)
        numbers = "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in values.items())
        log.info("step %d  %s", self.step, numbers)

    def add_picture(self, name: str, picture: np.ndarray) -> None:
        """Shows (h w 3) uint8 in TensorBoard."""
        self.board.add_image(name, picture, self.step, dataformats="HWC")

    def _means(self, steps: list[dict]) -> dict[str, float]:
        """Means over the steps; a range of timesteps counts each sample in it once."""
        total = {name: sum(float(step[name]) for step in steps) for name in steps[0]}
        means = {name: value / len(steps) for name, value in total.items() if "loss_" not in name}
        for name, count in total.items():
            if name.startswith("loss_count/") and count:
                timesteps = name.removeprefix("loss_count/")
                means[f"loss_at/{timesteps}"] = total[f"loss_sum/{timesteps}"] / count
        return means

    def _write(self, values: dict[str, float]) -> None:
        if not self.main:
            return
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step} | values) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, self.step)

    def _check_finite(self, steps: list[dict]) -> None:
        # A finite loss may have a gradient that is not, and parameters are lost with it.
        bad = [
            (number, name, float(step[name]))
            for number, step in enumerate(steps, start=self.step + 1)
            for name in ("loss", "grad_norm")
            if not math.isfinite(step[name])
        ]
        if not bad:
            return
        step, name, value = bad[0]
        first = (step - 1) * self.config.batch_size
        ids = [first, first + self.config.batch_size - 1]
        report = {"step": step, name: str(value), "first_and_last_sample": ids}
        with atomic_file(self.workdir / "nonfinite.json") as file:
            file.write_text(json.dumps(report) + "\n")
        raise FloatingPointError(
            f"The {name} of step {step} is {value} (samples {ids[0]} to {ids[1]} of the data);"
            " no checkpoint was saved since. Start a new run from the last one"
            " (--config.init_from.unet=WORKDIR ...) with a lower learning rate or in float32."
        )


def _memory() -> float:
    """Peak GiB: of the fullest local device, or of this process where JAX cannot tell."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(s["peak_bytes_in_use"] for s in stats) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
