"""Attention's kernels: which one a chip takes, and that all give the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imprint_jax.errors import InputError
from imprint_jax.models import attention
from imprint_jax.models.attention import Attention, Target, tracing_for

A100, H100 = Target("gpu", "8.0"), Target("gpu", "9.0")

plain = partial(jax.nn.dot_product_attention, implementation="xla")


def random_inputs(t: int, s: int, width: int, dtype=jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, n, 2, width)), dtype) for n in (t, s, s)]


def values_and_gradients(function, *inputs):
    """The output, and the gradients of the sum of its squares, all float32."""
    loss = lambda *inputs: jnp.sum(function(*inputs).astype(jnp.float32) ** 2)
    results = function(*inputs), *jax.grad(loss, argnums=(0, 1, 2))(*inputs)
    return [np.asarray(x, np.float32) for x in results]


def assert_close(got, want, tolerance: float) -> None:
    """Within a share of each array's largest value: rounding is of the largest terms of a sum."""
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize("t, s", [(1024, 1024), (2048, 513)])
def test_chunked_attention_equals_plain(t, s):
    inputs = random_inputs(t, s, 16)
    assert Attention().kernel_for(*inputs[:2]) == "chunked"
    assert_close(
        values_and_gradients(Attention(), *inputs), values_and_gradients(plain, *inputs), 1e-5
    )


# DINOv2, the adapter, the three widths of the UNet's cross-attention, one that needs no padding.
@pytest.mark.parametrize(
    "t, s, width",
    [(261, 261, 64), (257, 257, 64), (64, 257, 40), (64, 257, 80), (64, 257, 160), (64, 64, 40)],
)
def test_padding_to_even_lengths_changes_nothing(t, s, width):
    """By XLA's attention, whose masks mean what cuDNN's do; cuDNN's kernel itself needs a GPU."""
    lengths_seen = []

    def masked(q, k, v, **lengths):
        lengths_seen.append((q.shape[1], k.shape[1], *lengths))
        return plain(q, k, v, **lengths)

    padded = partial(attention.with_even_lengths, masked)
    inputs = random_inputs(t, s, width)
    want = values_and_gradients(plain, *inputs)
    assert_close(values_and_gradients(padded, *inputs), want, 1e-5)
    odd = t % 2 or s % 2
    names = ("query_seq_lengths", "key_value_seq_lengths") if odd else ()
    assert set(lengths_seen) == {(t + t % 2, s + s % 2, *names)}
    half = [x.astype(jnp.bfloat16) for x in inputs]
    # A rounding to bfloat16 is of 2^-9 at most; inputs, scores, weights, outputs and their
    # gradients are rounded one after the other, most often on the way to the keys' gradients.
    assert_close(values_and_gradients(padded, *half), want, 16 * 2**-9)


@pytest.mark.parametrize("target", [A100, H100])
@pytest.mark.parametrize("t, s", [(261, 261), (4096, 257)])
def test_cudnns_kernel_takes_odd_lengths_in_training(target, t, s):
    spec = lambda n: jax.ShapeDtypeStruct((2, n, 8, 40), jnp.bfloat16)
    loss = lambda q, k, v: jnp.sum(Attention(target)(q, k, v).astype(jnp.float32))
    with tracing_for(target):
        program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(spec(t), spec(s), spec(s)))
    assert "dot_product_attention_fwd" in program and "dot_product_attention_bwd" in program


@pytest.mark.parametrize(
    ("target", "kernels"),
    [
        (Target("cpu"), ["chunked", "chunked", "plain", "chunked"]),
        (Target("tpu"), ["chunked", "chunked", "plain", "chunked"]),
        (Target("gpu", "7.5"), ["chunked", "chunked", "plain", "chunked"]),
        (A100, ["cudnn", "cudnn", "plain", "chunked"]),
        (Target("gpu", "8.9"), ["cudnn", "cudnn", "plain", "chunked"]),  # RTX 4090, L4
        (H100, ["cudnn", "cudnn", "cudnn", "chunked"]),
        (Target("gpu", "gfx942"), ["chunked", "chunked", "plain", "chunked"]),
    ],
)
def test_the_kernel_of_each_attention_on_each_chip(target, kernels):
    """Stable Diffusion's three levels, and the VAE's."""
    shapes = [(1, 4096, 8, 40), (1, 1024, 8, 80), (1, 256, 8, 160), (1, 4096, 1, 512)]
    queries = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    in_float32 = jax.ShapeDtypeStruct(shapes[0], jnp.float32)
    # Chosen by name, cuDNN's kernel is still taken only where it can be.
    for kernel in ("auto", "cudnn") if "cudnn" in kernels else ("auto",):
        attend = Attention(target, kernel)
        assert [attend.kernel_for(q, q) for q in queries] == kernels
        assert attend.kernel_for(in_float32, in_float32) == "chunked"
    if "cudnn" not in kernels:
        with pytest.raises(InputError, match=r"wants an NVIDIA GPU of compute capability 8\.0"):
            Attention(target, "cudnn")


def test_a_device_is_a_target():
    assert Target.of(jax.devices()[0]) == Target("cpu")
