"""Attention, and the kernel that computes it on each kind of chip.

Networks are built with an `Attention`, which is made for a `Target`. A target is a value: it can
name a chip that this process does not have, so that programs for it are traced and compiled here.

Letters in shapes: b batch, t query tokens, s key tokens, n heads, d head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from imprint_jax.errors import InputError

# Queries a step of the chunked attention handles; 256 to 1024 measured alike on two CPU cores.
QUERY_CHUNK = 512
# Below this many scores a head, one fused softmax is as fast as chunking and compiles smaller.
CHUNK_FROM = 1024 * 1024

KERNELS = ("auto", "cudnn", "chunked", "plain")


@dataclass(frozen=True)
class Target:
    """The kind of chip that a program is for.

    Attributes:
        platform: As `jax.Device.platform`: "cpu", "gpu" or "tpu".
        compute_capability: Of a GPU: NVIDIA's "8.0" (A100), "9.0" (H100), or AMD's "gfx942".
    """

    platform: str = "cpu"
    compute_capability: str = ""

    @classmethod
    def of(cls, device: jax.Device) -> "Target":
        """The target that a device is."""
        platform = "gpu" if device.platform in ("cuda", "rocm") else device.platform
        return cls(platform, str(getattr(device, "compute_capability", "")))

    @property
    def flash_width(self) -> int:
        """The widest head that cuDNN's flash kernel takes; 0: the chip has no such kernel.

        Limits from jax/_src/cudnn/fused_attention_stablehlo.py; NVIDIA's cuDNN documentation has
        the kernel from compute capability 8.0 on.
        """
        major = self.compute_capability.split(".")[0]
        if self.platform != "gpu" or not major.isdecimal() or int(major) < 8:
            return 0
        return 256 if int(major) >= 9 else 128


@dataclass(frozen=True)
class Attention:
    """Scaled dot-product attention with a softmax in float32.

    Attributes:
        target: The chip it is for; the default runs anywhere.
        kernel: "auto" chooses; "cudnn", "chunked" and "plain" are taken wherever they can be.

    Raises:
        InputError: There is no such kernel, or not on this target.
    """

    target: Target = Target()
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise InputError(
                f"config.attention is {self.kernel!r}; it may be {', '.join(KERNELS)}."
            )
        if self.kernel == "cudnn" and not self.target.flash_width:
            raise InputError(
                "config.attention is 'cudnn', which wants an NVIDIA GPU of compute capability 8.0"
                " or more; 'auto' takes what the chip has."
            )

    def kernel_for(self, q: jax.Array, k: jax.Array) -> str:
        """The kernel for queries and keys of these shapes: "cudnn", "chunked" or "plain".

        cuDNN's flash kernel wants half precision and a head width that is a multiple of 8 and at
        most `Target.flash_width`; the chunked one wants whole chunks.
        """
        if self.kernel in ("auto", "cudnn") and q.dtype in (jnp.bfloat16, jnp.float16):
            if q.shape[-1] % 8 == 0 and q.shape[-1] <= self.target.flash_width:
                return "cudnn"
        large = self.kernel == "chunked" or q.shape[1] * k.shape[1] >= CHUNK_FROM
        if self.kernel == "plain" or not large or q.shape[1] % QUERY_CHUNK:
            return "plain"
        return "chunked"

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """(b t n d) queries, (b s n d) keys and values -> (b t n d), of q's dtype."""
        kernel = {"cudnn": cudnn, "chunked": chunked, "plain": plain}[self.kernel_for(q, k)]
        # A function of its own in the traced program, so that `planning` can tell what was chosen.
        return jax.jit(kernel)(q, k, v)


# By the kernels that every chip has.
PORTABLE = Attention()


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All scores at once."""
    # Heads come first by hand: left to the einsums, XLA:CPU picks a layout in which the softmax of
    # 4 heads over 16x16 cells took 6 to 9 times as long.
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = jnp.einsum("bntd,bnsd->bnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bnts,bnsd->bntd", weights, v).swapaxes(1, 2)


def chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One head and one chunk of queries at a time: the scores stay in cache.

    Samples are mapped over, not looped over: the partitioner lets every device of a mesh run a
    loop whole, so one over samples would work through all devices' on each. Normalises after the
    second product, which touches d columns instead of s.
    """

    def one_head(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = qkv

        @jax.checkpoint
        def one_chunk(q: jax.Array) -> jax.Array:
            scores = jnp.einsum("td,sd->ts", q, k, preferred_element_type=jnp.float32)
            weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
            total = jnp.sum(weights, axis=-1, keepdims=True)
            return (weights.astype(v.dtype) @ v / total).astype(v.dtype)

        return jax.lax.map(one_chunk, q.reshape(-1, QUERY_CHUNK, q.shape[-1])).reshape(q.shape)

    def one_sample(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads_first = tuple(x.swapaxes(0, 1) for x in (q, k, v))
        return jax.lax.map(one_head, heads_first).swapaxes(0, 1)

    return jax.vmap(one_sample)(q * q.shape[-1] ** -0.5, k, v)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's flash kernel: no scores in memory, forwards or backwards."""

    def flash(q: jax.Array, k: jax.Array, v: jax.Array, **lengths: Any) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)

    return with_even_lengths(flash, q, k, v)


def with_even_lengths(flash: Callable, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Calls a kernel that wants even numbers of tokens.

    jax (0.10 and 0.11) refuses odd ones to cuDNN whenever a gradient is taken, and both of the
    paper's contexts are odd: 261 tokens in DINOv2, 257 in the UNet. Such are padded by one token,
    which the kernel is told to leave out.

    Args:
        flash: As `jax.nn.dot_product_attention`, of which `query_seq_lengths` and
            `key_value_seq_lengths` are used.
        q: (b t n d).
        k: (b s n d).
        v: (b s n d).

    Returns:
        (b t n d).
    """
    b, t, s = q.shape[0], q.shape[1], k.shape[1]
    if t % 2 == 0 and s % 2 == 0:
        return flash(q, k, v)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = lambda length: jnp.full((b,), length, jnp.int32)
    return flash(q, k, v, query_seq_lengths=lengths(t), key_value_seq_lengths=lengths(s))[:, :t]


@contextmanager
def tracing_for(target: Target) -> Iterator[None]:
    """Lets jax trace and lower programs for a GPU that this process does not have.

    jax asks its default backend which GPU and which cuDNN there are before it traces cuDNN's
    attention, forwards or backwards; in this context the target answers. Programs that run here
    need no such thing.
    """
    if not target.flash_width:
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as jax_asks

    version = lambda text: tuple(int(x) for x in text.split("."))
    have = version(target.compute_capability)
    with mock.patch.multiple(
        jax_asks,
        check_cudnn_version=lambda: 91000,  # 9.10.0; what we use has not changed since 9.0
        check_compute_capability=lambda least: have >= version(least),
        is_cuda_compute_capability_equal=lambda other: have == version(other),
    ):
        yield
