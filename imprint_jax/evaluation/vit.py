"""The plain vision transformer of DINO, CLIP and DreamSim, in the names of DINO's files.

DINO (Caron et al. 2021, facebookresearch/dino) and the towers that DreamSim's files hold have one
shape: patches, a class token, a position embedding, blocks of pre-norm attention and feed-forward,
a last norm. CLIP's have a norm before the first block besides (`pos_drop` in DreamSim's files).
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax.errors import InputError
from imprint_jax.models.layers import gelu, quick_gelu
from imprint_jax.weights.tensors import StoredTensor

HEAD_WIDTH = 64  # channels a head, in every published ViT of these
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_BLOCK_PARTS = {f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}
_ELSE = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
         "norm.weight", "norm.bias"}  # fmt: skip
NORM_IN = {"pos_drop.weight", "pos_drop.bias"}
ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


def is_vit(tensors: Mapping[str, StoredTensor]) -> bool:
    """Are these the tensors of DINO? DINOv2's have a gain after each branch."""
    return _ELSE <= set(tensors) and "blocks.0.ls1.gamma" not in tensors


def read(tensors: Mapping[str, StoredTensor], name: str) -> dict:
    """The network's parameters.

    Args:
        tensors: In DINO's names; heads and projections beside them are left out.
        name: What to call them in an error.

    Returns:
        {tensor: array} float32, and "blocks": the same of all blocks, stacked.

    Raises:
        InputError: Tensors are missing.
    """
    blocks: dict[str, list[str]] = {part: [] for part in sorted(_BLOCK_PARTS)}
    depth = 1 + max((int(m[1]) for m in map(BLOCK.fullmatch, tensors) if m), default=-1)
    for part, keys in blocks.items():
        keys += [f"blocks.{i}.{part}" for i in range(depth)]
    wanted = _ELSE | {key for keys in blocks.values() for key in keys}
    if lacking := sorted(wanted - set(tensors)):
        raise InputError(f"{name} is not a vision transformer: it lacks {lacking[0]}.")
    array = lambda key: np.asarray(tensors[key].read(), np.float32)
    params = {key: array(key) for key in sorted((_ELSE | NORM_IN) & set(tensors))}
    return params | {"blocks": {part: np.stack([array(k) for k in keys])
                                for part, keys in blocks.items()}}  # fmt: skip


def image_size(params: dict) -> int:
    """The side of the pictures that the position embedding is for, in pixels."""
    patches = params["pos_embed"].shape[1] - 1
    return math.isqrt(patches) * params["patch_embed.proj.weight"].shape[-1]


def tokens(
    params: dict, images: jax.Array, *, epsilon: float = 1e-6, activation: str = "gelu"
) -> jax.Array:
    """All tokens after the last block, before the last norm.

    Args:
        params: From `read`.
        images: (b s s 3) normalised as the network wants, s from `image_size`.
        epsilon: Of the norms.
        activation: "gelu" or "quick_gelu".

    Returns:
        (b 1+patches c) float32: the class token, the patches in row-major order.
    """
    kernel = params["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    patches = jax.lax.conv_general_dilated(
        images, kernel, (patch, patch), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    b, h, w, c = patches.shape
    patches = patches.reshape(b, h * w, c) + params["patch_embed.proj.bias"]
    cls = jnp.broadcast_to(params["cls_token"], (b, 1, c))
    x = jnp.concatenate([cls, patches], axis=1) + params["pos_embed"]
    if NORM_IN <= set(params):
        x = norm(params, "pos_drop", x, epsilon)

    def block(x: jax.Array, layers: dict) -> tuple[jax.Array, None]:
        qkv = _linear(layers, "attn.qkv", norm(layers, "norm1", x, epsilon))
        heads = (b, 1 + h * w, c // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = (y.reshape(heads) for y in jnp.split(qkv, 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v)
        x = x + _linear(layers, "attn.proj", mixed.reshape(x.shape))
        y = _linear(layers, "mlp.fc1", norm(layers, "norm2", x, epsilon))
        return x + _linear(layers, "mlp.fc2", ACTIVATIONS[activation](y)), None

    return jax.lax.scan(block, x, params["blocks"])[0]


def norm(params: dict, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis by the parameters NAME.weight and NAME.bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return centred / deviation * params[f"{name}.weight"] + params[f"{name}.bias"]


def _linear(params: dict, name: str, x: jax.Array) -> jax.Array:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
