"""`keep_freed`: what is freed after a training step, or a sample, stays with the process."""

import ctypes
import sys

# mallopt's parameters and the largest values it takes (glibc's malloc.h; its manual, section
# "Malloc Tunable Parameters"). A threshold for mmap above 1 GiB could not be an int in bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**31 - 1, 2**30


def keep_freed() -> None:
    """Keeps freed memory, on Linux with glibc; elsewhere nothing is done.

    XLA:CPU allocates a step's temporary memory anew each time. glibc returns it to the kernel in
    between, and the next step faults in and clears every page again: a third of a small model's
    training step (docs/benchmarks.md). So it is with the pictures of each sample in the processes
    that load data. Peak memory stays the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
