"""What `benchmark.py sample` and `train` share: two sizes, processes of their own, numbers, tables.

Each side of a comparison runs in a process of its own, so that its memory is its own and neither
library's allocator starves the other. The process that starts them never opens the device.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

from imprint_jax import config
from imprint_jax.planning import accelerators

SIDES = ("ours", "torch")
SIZES = ("full", "mini", "deep")
DTYPES = ("bfloat16", "float32")
LARGEST = "largest"
GIB = 2**30

# What the child says instead of numbers when the device's memory was not enough.
OUT_OF_MEMORY = {"out_of_memory": True}
# What stands for the numbers of a PyTorch side that failed otherwise.
FAILED = {"failed": True}
LAST_LINES = 3  # of its stderr that are shown; torch.compile ends its errors with one of advice


def training_batches(text: str) -> tuple[int, ...] | str:
    """`--batch`: "1,4,16" or "largest".

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    return text if text == LARGEST else positive_integers(text)


def positive_integers(text: str) -> tuple[int, ...]:
    """ "1,4,16" -> (1, 4, 16).

    Raises:
        argparse.ArgumentTypeError: It is no such list.
    """
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive whole numbers")
    return tuple(map(int, words))


def positive_integer(text: str) -> int:
    """`--steps`.

    Raises:
        argparse.ArgumentTypeError: It is no positive whole number.
    """
    numbers = positive_integers(text)
    if len(numbers) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than one number")
    return numbers[0]


def stage_numbers(text: str) -> tuple[int, ...]:
    """`--stage`: "1", "2" or "1,2".

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    chosen = positive_integers(text)
    if not set(chosen) <= {1, 2}:
        raise argparse.ArgumentTypeError(f"the stages are 1 and 2, not {text}")
    return chosen


def switches(text: str) -> tuple[bool, ...]:
    """`--remat`: "on", "off" or "on,off".

    Raises:
        argparse.ArgumentTypeError: It is none of them.
    """
    words = text.split(",")
    if not set(words) <= {"on", "off"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not on, off or on,off")
    return tuple(word == "on" for word in words)


def case(size: str, stage: int, dtype: str):
    """The configuration of a comparison: stage 1's or 2's recipe, or the same code made small.

    "mini" is not the recipe of that name, whose closed-form codec diffusers does not have. "deep"
    is as small, with as many layers as Stable Diffusion's UNet: it has as many tensors, by which
    the host's part of a step goes.
    """
    c = config.load(f"stage{stage}").unlock()
    c.dtype = dtype
    if size != "full":
        c.image_size, c.object_size = 32, 56
        c.model.dinov2.update(
            image_size=56, width=64, depth=1, num_heads=2, mlp="gelu", mlp_width=256
        )
        c.model.adapter.update(width_in=64, width=64, depth=1, num_heads=2, mlp_width=256)
        c.model.unet.update(
            block_widths=(32, 64),
            layers_per_block=1,
            attention_levels=(True, False),
            context_width=64,
            num_heads=4,
            norm_groups=8,
        )
        c.model.vae.update(block_widths=(16, 32), layers_per_block=1, norm_groups=8)
    if size == "deep":
        depth = config.default().model.unet
        c.model.unet.update(
            block_widths=(32,) * len(depth.block_widths),
            layers_per_block=depth.layers_per_block,
            attention_levels=depth.attention_levels,
        )
    return c.lock()


def peer_name(eager: bool) -> str:
    """What the other side is called in a heading."""
    return "torch without torch.compile" if eager else "torch, compiled"


def device() -> tuple[str, str]:
    """JAX's default backend ("gpu", "cpu", ...) and what it calls its first device.

    Raises:
        subprocess.CalledProcessError: JAX cannot open it.
    """
    ask = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='|')"
    said = subprocess.run(
        [sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=True
    )
    backend, kind = said.stdout.splitlines()[-1].split("|")
    return backend, kind


def in_process(script: str, side: str, arguments: dict) -> dict:
    """What `SCRIPT SIDE ARGUMENTS` prints on its last line, as JSON.

    A failure of PyTorch's side costs its own cells, not the table: `FAILED`, and the end of what it
    wrote to stderr, of which a side that succeeds shows nothing (bars, warnings of its compiler).

    Raises:
        subprocess.CalledProcessError: Our side failed.
    """
    environment = dict(os.environ)
    if side == "torch":
        # It draws weights and noise by our code, which must leave the device to PyTorch; compiled
        # code of an earlier run would make compiling look free.
        environment |= {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    else:
        # JAX takes three quarters of a GPU by default, which would make the largest batch smaller.
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    command = [sys.executable, script, side, json.dumps(arguments)]
    stderr = subprocess.PIPE if side == "torch" else None
    child = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    if side == "torch" and child.returncode:
        print(_failure(child, arguments), file=sys.stderr)
        return FAILED
    child.check_returncode()
    return json.loads(child.stdout.splitlines()[-1])


def _failure(child: subprocess.CompletedProcess, arguments: dict) -> str:
    """A PyTorch side's failure: the case, the exit code and the last lines of stderr."""
    lines = [line for line in child.stderr.splitlines() if line.strip()][-LAST_LINES:]
    said = "\n    ".join(lines)
    return (
        f"PyTorch's side failed, exit code {child.returncode}, {json.dumps(arguments)}:\n    {said}"
    )


def answer(sides: dict) -> None:
    """A child's whole work: measures the side its command line names and prints what it found."""
    side, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        found = sides[side](**arguments)
    except _memory_error(side) as error:
        if not is_out_of_memory(error):
            raise
        found = OUT_OF_MEMORY
    print(json.dumps(found))


def _memory_error(side: str) -> type[Exception]:
    """The exception by which a library says, among other things, that memory is used up."""
    if side == "ours":
        import jax

        return jax.errors.JaxRuntimeError
    import torch

    return torch.OutOfMemoryError


def is_out_of_memory(error: Exception) -> bool:
    """JAX has one exception for everything that goes wrong on a device; its text has the code."""
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)


def both(script: str, arguments: dict) -> dict[str, dict]:
    """What both sides measure of one case, one after the other."""
    return {side: in_process(script, side, arguments) for side in SIDES}


def largest(script: str, arguments: dict) -> dict[str, dict]:
    """As `both`, each side with the largest power of two as its batch that fits into memory."""
    return {side: _last_that_fits(script, side, arguments) for side in SIDES}


def _last_that_fits(script: str, side: str, arguments: dict) -> dict:
    found = OUT_OF_MEMORY
    for batch in _doubling():
        tried = in_process(script, side, arguments | {"batch": batch})
        if tried in (OUT_OF_MEMORY, FAILED):
            return found
        found = tried


def _doubling() -> Iterator[int]:
    batch = 1
    while True:
        yield batch
        batch *= 2


def process_memory() -> float:
    """Peak GiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def jax_memory() -> float:
    """Peak GiB of JAX's device, or of this process where there is none to ask."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / GIB if stats else process_memory()


def torch_memory() -> float:
    """Peak GiB of PyTorch's tensors on the GPU, or of this process without one."""
    import torch

    return (
        torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else process_memory()
    )


def cells(found: dict[str, dict], rate: str, kind: str) -> str:
    """A row's cells that both benchmarks have: rates, ratio, utilisation, memory, compile time.

    Args:
        found: Of each side `rate`, "memory" and "compile"; of ours also "flops" of one `rate`.
        rate: What is counted a second.
        kind: What JAX calls the device.
    """
    missing = [side for side in SIDES if rate not in found[side]]
    value = lambda side, key, form: "-" if side in missing else f"{found[side][key]:{form}}"
    pair = lambda key, form: " / ".join(value(side, key, form) for side in SIDES)
    ratio = "-" if missing else f"{found['ours'][rate] / found['torch'][rate]:.2f}"
    columns = (pair(rate, ".3g"), ratio, _utilisation(found, rate, kind), pair("memory", ".2f"))
    return " | ".join((*columns, pair("compile", ".0f")))


def _utilisation(found: dict[str, dict], rate: str, kind: str) -> str:
    """Shares of the device's peak at our count of FLOPs, of both sides; "-" where unknown."""
    if kind not in accelerators.PEAK_FLOPS:
        return "-"
    flops = found["ours"].get("flops")
    shares = [
        f"{x[rate] * flops / accelerators.PEAK_FLOPS[kind]:.0%}" if flops and rate in x else "-"
        for x in found.values()
    ]
    return " / ".join(shares)
