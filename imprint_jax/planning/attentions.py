"""Which kernel each attention of a traced program takes, and why not flash."""

import collections
from collections.abc import Iterator

from jax.extend import core

from imprint_jax.models.attention import KERNELS, Target
from imprint_jax.planning.plan import AttentionUse
from imprint_jax.training.flops import inner_jaxprs


def attentions(jaxpr: core.Jaxpr, target: Target) -> tuple[AttentionUse, ...]:
    """The attentions of a program without gradients, those in loops as often as they run.

    Args:
        jaxpr: The program's, of calls of `imprint_jax.models.attention`.
        target: The chip it is for.
    """
    counts: collections.Counter[tuple] = collections.Counter()
    for kernel, (q, k), times in _calls(jaxpr, 1):
        _, tokens, heads, width = q.shape
        why_not = "" if kernel == "cudnn" else why_not_flash(target, q.dtype.name, width)
        counts[kernel, tokens, k.shape[1], heads, width, q.dtype.name, why_not] += times
    return tuple(
        AttentionUse(kernel, count, *shape) for (kernel, *shape), count in sorted(counts.items())
    )


def _calls(jaxpr: core.Jaxpr, times: int) -> Iterator[tuple[str, list, int]]:
    """(kernel, shapes of queries and keys, times) of each call."""
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name in ("jit", "pjit") and params["name"] in KERNELS:
            yield params["name"], [x.aval for x in equation.invars[:2]], times
            continue
        inside = times * params["length"] if equation.primitive.name == "scan" else times
        for inner in inner_jaxprs(params):
            yield from _calls(inner, inside)


def why_not_flash(target: Target, dtype: str, width: int) -> str:
    """The reason for which cuDNN's flash kernel does not compute an attention.

    Args:
        target: The chip.
        dtype: Of queries, keys and values.
        width: Channels of a head.
    """
    if not target.flash_width:
        return "the chip has no cuDNN flash kernel"
    if dtype not in ("bfloat16", "float16"):
        return f"{dtype}; the kernel wants half precision"
    if width > target.flash_width:
        return f"heads of {width}; the kernel takes {target.flash_width}"
    if width % 8:
        return f"heads of {width}; the kernel wants a multiple of 8"
    return "config.attention says so"
