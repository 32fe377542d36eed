"""What the device does in some steps, for TensorBoard's profiler, XProf or Perfetto."""

from pathlib import Path

import jax

# Steps before the first that is recorded: the first compiles, the second may still wait for it.
WARM_UP = 2


class Profiler:
    """Records `steps` steps of a run to a folder; a context, which ends what it began.

    Args:
        folder: Where to.
        first: The run's first step.
        steps: How many; 0: none.
    """

    def __init__(self, folder: Path, first: int, steps: int):
        self.folder = folder
        self.begin = first + WARM_UP
        self.end = self.begin + steps
        self.running = False

    def before(self, step: int) -> None:
        """Begins with the first step that is to be recorded."""
        if step == self.begin < self.end:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after(self, step: int, result: object) -> None:
        """Ends behind the last, when `result`, which it computes, is there."""
        if self.running and step == self.end - 1:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self._stop()
