"""Floating-point operations of a function, counted on its jaxpr.

The compiler's own figure counts the body of a loop once; here a scan's body counts as often as it
runs. Only matrix products and convolutions count, as is usual for utilisation.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# JAX's calls of cuDNN's attention hold no program: how many products of queries and keys each is.
# Scores that the second computes anew are left out, as all recomputation is.
CUDNN_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


def count(function: Callable, *args: Any) -> int:
    """FLOPs of calling `function` with arguments of these shapes; traces it, runs nothing.

    Raises:
        NotImplementedError: It has a loop of unknown length.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr) -> int:
    """FLOPs of a traced function.

    Raises:
        NotImplementedError: It has a loop of unknown length.
    """
    total = 0
    equation: Any  # to JAX's annotations not every value has a shape
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = params["dimension_numbers"].rhs_spec[0]  # output channels
            inner = math.prod(kernel) // kernel[features]
            # The zeros that a strided convolution's gradient puts between inputs are no work.
            zeros = math.prod(params["lhs_dilation"])
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner // zeros
        elif name in CUDNN_PRODUCTS:
            query, key = (x.aval.shape for x in equation.invars[:2])
            total += CUDNN_PRODUCTS[name] * 2 * math.prod(query) * key[1]  # both are (b t n d)
        elif name == "scan":
            total += params["length"] * count_jaxpr(params["jaxpr"].jaxpr)
        elif name == "shard_map":  # one device's share
            total += params["mesh"].size * count_jaxpr(params["jaxpr"])
        elif name == "cond":
            total += max(count_jaxpr(branch.jaxpr) for branch in params["branches"])
        elif name == "while":
            raise NotImplementedError("a loop of unknown length")
        else:
            total += sum(count_jaxpr(inner) for inner in inner_jaxprs(params))
    return total


def inner_jaxprs(params: dict) -> Iterator[core.Jaxpr]:
    """The functions an operation calls: those of jit, checkpoint, custom derivatives..."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
