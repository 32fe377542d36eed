"""What the parts of `gpu_check.py` share: the networks' sizes, and how a part talks to the command.

A part is a process of its own, `python SCRIPT FUNCTION ARGUMENTS`, so that it alone ends when it
fails or uses up the device's memory. A line of its standard output that begins with `MARK` is a
message in JSON: a result, or a request, which a line on its standard input answers.
"""

import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

MARK = "@ "
GIB = 2**30


# Small networks by the same code. Not those of `mini`, whose closed-form codec diffusers lacks.
SMALL = (
    *("--config.image_size=32", "--config.object_size=56"),
    *("--config.remat.dinov2=False", "--config.remat.unet=False"),
    *("--config.model.dinov2.image_size=56", "--config.model.dinov2.width=64"),
    *("--config.model.dinov2.depth=1", "--config.model.dinov2.num_heads=2"),
    *("--config.model.dinov2.mlp=gelu", "--config.model.dinov2.mlp_width=256"),
    *("--config.model.adapter.width_in=64", "--config.model.adapter.width=64"),
    *("--config.model.adapter.depth=1", "--config.model.adapter.num_heads=2"),
    *("--config.model.adapter.mlp_width=256", "--config.model.unet.context_width=64"),
    *("--config.model.unet.num_heads=4", "--config.model.unet.norm_groups=8"),
    *("--config.model.vae.block_widths=(16, 32)", "--config.model.vae.layers_per_block=1"),
    "--config.model.vae.norm_groups=8",
)
SIZES = {
    "full": (),
    "mini": (
        *SMALL,
        "--config.model.unet.block_widths=(32, 64)",
        "--config.model.unet.layers_per_block=1",
        "--config.model.unet.attention_levels=(True, False)",
    ),
    # As many layers as Stable Diffusion's UNet, and so as many tensors, by which the host's part of
    # a step goes.
    "deep": (*SMALL, "--config.model.unet.block_widths=(32, 32, 32, 32)"),
}


def overrides(size: str, dtype: str) -> tuple[str, ...]:
    """What differs from stage 1's or 2's recipe, as `config.load` takes it."""
    return (*SIZES[size], f"--config.dtype={dtype}")


def report(**result) -> None:
    """Hands a result over; it is in the command's files at once."""
    print(MARK + json.dumps(result), flush=True)


def _ask(request: str) -> str:
    report(request=request)
    return sys.stdin.readline()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """All other parts stand still inside: for what is timed."""
    _ask("alone")
    try:
        yield
    finally:
        report(request="together")


def seconds_of(call: Callable, runs: int) -> float:
    """The median time of a call, while all other parts stand still."""
    seconds = []
    with alone():
        for _ in range(runs):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def take_memory() -> None:
    """Waits for this part's share of the device's memory, and keeps it until the part ends."""
    _ask("memory")


def clock() -> float:
    """Seconds on a clock that stops while this part stands still for another."""
    return float(_ask("clock"))


def main(functions: dict[str, Callable]) -> None:
    """A part's whole work: the function and the arguments of its command line."""
    functions[sys.argv[1]](**json.loads(sys.argv[2]))


def is_out_of_memory(error: Exception) -> bool:
    """JAX has one exception for everything that goes wrong on a device; its text has the code."""
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)


def planned_memory(program) -> float:
    """Peak GiB of a program compiled by JAX, as the compiler plans it; nothing has to run."""
    plan = program.memory_analysis()
    sizes = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes)
    whole = sum(sizes) - plan.alias_size_in_bytes
    return (getattr(plan, "peak_memory_in_bytes", 0) or whole) / GIB


def jax_memory() -> float:
    """Peak GiB of JAX's device, or of this process where there is none to ask."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / GIB if stats else _process_memory()


def torch_memory() -> float:
    """Peak GiB of PyTorch's tensors on the GPU since the last call, or of this process without."""
    import torch

    if not torch.cuda.is_available():
        return _process_memory()
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def _process_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
