"""Attentions of a traced program: which kernel, how often, why not flash."""

import jax
import jax.numpy as jnp
import pytest

from imprint_jax.models.attention import Attention, Target, tracing_for
from imprint_jax.planning.attentions import attentions, why_not_flash
from imprint_jax.planning.plan import AttentionUse

A100, TPU = Target("gpu", "8.0"), Target("tpu")


def traced(target: Target) -> tuple[AttentionUse, ...]:
    """Three times in a scan, half precision; once with one wide head in float32."""
    attend = Attention(target)

    def function(x, wide):
        x = jax.lax.scan(lambda x, _: (attend(x, x, x), None), x, length=3)[0]
        return x, jax.checkpoint(attend)(wide, wide, wide)

    x = jax.ShapeDtypeStruct((2, 257, 8, 64), jnp.bfloat16)
    wide = jax.ShapeDtypeStruct((2, 1024, 1, 512), jnp.float32)
    with tracing_for(target):
        return attentions(jax.make_jaxpr(function)(x, wide).jaxpr, target)


def test_kernels_of_a_gpu_and_of_a_tpu():
    wide = (1, 1024, 1024, 1, 512, "float32")
    assert traced(A100) == (
        AttentionUse("chunked", *wide, "float32; the kernel wants half precision"),
        AttentionUse("cudnn", 3, 257, 257, 8, 64, "bfloat16", ""),
    )
    none = "the chip has no cuDNN flash kernel"
    assert traced(TPU) == (
        AttentionUse("chunked", *wide, none),
        AttentionUse("plain", 3, 257, 257, 8, 64, "bfloat16", none),
    )


@pytest.mark.parametrize(
    ("target", "dtype", "width", "why"),
    [
        (A100, "bfloat16", 160, "heads of 160; the kernel takes 128"),
        (A100, "bfloat16", 36, "heads of 36; the kernel wants a multiple of 8"),
        (A100, "bfloat16", 64, "config.attention says so"),
        (Target("gpu", "7.5"), "bfloat16", 64, "the chip has no cuDNN flash kernel"),
    ],
)
def test_reasons(target, dtype, width, why):
    assert why_not_flash(target, dtype, width) == why
