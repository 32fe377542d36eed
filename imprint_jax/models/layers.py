"""What the networks share: blocks, feed-forwards, and norms that equal the reference's.

Letters in shapes: b batch, h w height and width, c channels, t tokens, n heads, d head width.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax.models.attention import Attention
from imprint_jax.models.sharded import whole

# Flax's layers are annotated to take an `nnx.Rngs`; all that they use of it is `params`.
if TYPE_CHECKING:
    _Rngs = nnx.Rngs
else:
    _Rngs = object


class Rngs(_Rngs):
    """Keys for the initial parameters: every call of `params` gives another.

    What `nnx.Rngs` does, with a counter that is a Python number: nnx's is an array, and each of its
    steps inside a trace composes and drops an error message of milliseconds, which made 6 s of the
    UNet's 7.

    Args:
        key: A JAX key.
    """

    def __init__(self, key: jax.Array):
        self.key, self.count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


def layer_norm(width: int, *, epsilon: float, dtype: DTypeLike, rngs: Rngs) -> nnx.LayerNorm:
    """LayerNorm with the two-pass variance of PyTorch; one pass loses digits at large means."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


def group_norm(
    width: int, groups: int, *, epsilon: float, dtype: DTypeLike, rngs: Rngs
) -> nnx.GroupNorm:
    """GroupNorm over channels-last features, with the two-pass variance of `layer_norm`."""
    return nnx.GroupNorm(
        width, num_groups=groups, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


def conv3x3(
    width_in: int, width_out: int, *, stride: int = 1, dtype: DTypeLike, rngs: Rngs
) -> nnx.Conv:
    """3x3 convolution padded by one pixel on every side, as PyTorch's `padding=1`."""
    return nnx.Conv(width_in, width_out, (3, 3), strides=stride, padding=1, dtype=dtype, rngs=rngs)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles height and width by repetition: (b h w c) -> (b 2h 2w c)."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


class ResnetBlock(nnx.Module):
    """Two convolutions; in the UNet the timestep's embedding is added between them.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output.
        embedding: Width of the timestep's embedding, None where there is none (the VAE).
        groups: Groups of both GroupNorms.
        epsilon: Of both GroupNorms: 1e-5 in diffusers' UNet, 1e-6 in its VAE.
        dtype: Dtype of the computation.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        embedding: int | None,
        groups: int,
        *,
        epsilon: float,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm1 = group_norm(width_in, groups, epsilon=epsilon, **make)
        self.conv1 = conv3x3(width_in, width_out, **make)
        self.time_emb_proj = nnx.Linear(embedding, width_out, **make) if embedding else None
        self.norm2 = group_norm(width_out, groups, epsilon=epsilon, **make)
        self.conv2 = conv3x3(width_out, width_out, **make)
        self.conv_shortcut = (
            nnx.Conv(width_in, width_out, (1, 1), **make) if width_in != width_out else None
        )

    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        """(b h w c_in), (b e) or None -> (b h w c_out)."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert temb is not None
            y = y + self.time_emb_proj(nnx.silu(temb))[:, None, None, :]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """(b t n*d) -> (b t n d)."""
    return x.reshape(*x.shape[:2], num_heads, -1)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused projection, as in the original ViT and DINOv2."""

    def __init__(
        self, width: int, num_heads: int, *, attention: Attention, dtype: DTypeLike, rngs: Rngs
    ):
        self.num_heads = num_heads
        self.attention = attention
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.qkv(x), 3, axis=-1))
        return self.proj(self.attention(q, k, v).reshape(x.shape))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by the error function, as PyTorch's default."""
    return nnx.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI CLIP's approximation of GELU: x sigmoid(1.702 x)."""
    return x * nnx.sigmoid(1.702 * x)


class MLP(nnx.Module):
    """Linear, activation, linear."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        self.activation = activation
        self.fc1 = nnx.Linear(width, mlp_width, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(mlp_width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nnx.Module):
    """Gated feed-forward of DINOv2's ViT-g: w3(silu(x1) * x2), [x1, x2] = w12(x)."""

    def __init__(self, width: int, mlp_width: int, *, dtype: DTypeLike, rngs: Rngs):
        self.w12 = nnx.Linear(width, 2 * mlp_width, dtype=dtype, rngs=rngs)
        self.w3 = nnx.Linear(mlp_width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(nnx.silu(gate) * value)


class TransformerBlock(nnx.Module):
    """Pre-norm self-attention and feed-forward; LayerNorm epsilon 1e-5."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=1e-5, **make)
        self.attn = SelfAttention(width, num_heads, attention=attention, **make)
        self.norm2 = layer_norm(width, epsilon=1e-5, **make)
        self.mlp = MLP(width, mlp_width, activation=activation, **make)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def stack_blocks(make: Callable[[Rngs], nnx.Module], depth: int, rngs: Rngs) -> nnx.Module:
    """Equal blocks as one module, whose parameters have a leading axis of `depth`.

    Args:
        make: Makes a block of its `Rngs`.
        depth: How many.
        rngs: Source of their initial parameters.
    """
    return nnx.vmap(lambda key: make(Rngs(key)))(jax.random.split(rngs.params(), depth))


def run(module: nnx.Module, *args: Any, remat: bool) -> jax.Array:
    """Calls a block, whose parameters may be `Sharded`.

    Equal blocks of arguments of equal shapes are traced once, differentiated once, and are one
    function in the program that XLA is handed.

    Args:
        module: The block.
        *args: What it is called with.
        remat: Recompute its activations in the backward pass. (`nnx.remat` does not work inside a
            scan that the module was made outside of.)
    """
    graphdef, params = nnx.split(module)
    return (_run_remat if remat else _run)(graphdef, params, *args)


def _call(graphdef: nnx.GraphDef, params: nnx.State, *args: Any) -> jax.Array:
    params, args = whole(params, args)
    return nnx.merge(graphdef, params)(*args)


_run = jax.jit(_call, static_argnums=0)
_run_remat = jax.jit(jax.checkpoint(_call, static_argnums=0), static_argnums=0)


def scan_blocks(blocks: nnx.Module, x: jax.Array, *, remat: bool) -> jax.Array:
    """Runs what `stack_blocks` made, one after the other: compiled once, however many they are.

    Args:
        blocks: The stacked blocks, whose parameters may be `Sharded`.
        x: (b t c).
        remat: Recompute each block's activations in the backward pass.

    Returns:
        (b t c).
    """
    graphdef, stacked = nnx.split(blocks)
    block = lambda x, params: (nnx.merge(graphdef, whole(params)[0])(x), None)
    # Inside a scan nothing can be merged with the recomputation: no barrier is needed.
    block = jax.checkpoint(block, prevent_cse=False) if remat else block
    return jax.lax.scan(block, x, stacked)[0]
