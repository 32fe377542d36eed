"""DINOv2: Hugging Face folders, in the names their files carry, and the original .pth files."""

import math
import re
from collections.abc import Iterator

from flax import traverse_util

from imprint_jax.errors import InputError
from imprint_jax.weights.mapping import Piece, Table, axes_of
from imprint_jax.weights.tensors import StoredTensor

# Our names and Hugging Face's, as regular expressions on paths joined by dots; the first line that
# matches counts. transformers 5 has other names in memory, not in files.
HF_NAMES = (
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj", r"encoder.layer.\1.attention.output.dense"),
    (r"^blocks\.(\d+)\.ls(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.mlp\.w12", r"encoder.layer.\1.mlp.weights_in"),
    (r"^blocks\.(\d+)\.mlp\.w3", r"encoder.layer.\1.mlp.weights_out"),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
)
HF_QKV = ("query", "key", "value")

# What our network is built as; a config.json that says otherwise is of another one.
HF_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "num_channels": 3}
HEAD_WIDTH = 64  # channels a head, in every published DINOv2 (dinov2/models/vision_transformer.py)


def original_settings(tensors: dict[str, StoredTensor], name: str) -> dict:
    """`config.model.dinov2` of tensors in the original names.

    Raises:
        InputError: They are no DINOv2's.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")
    if lacking := [key for key in needed if key not in tensors]:
        raise InputError(f"{name} holds no DINOv2: it lacks {', '.join(lacking)}.")
    width = tensors["cls_token"].shape[-1]
    return _settings(
        tensors,
        width=width,
        position=tensors["pos_embed"],
        patch=tensors["patch_embed.proj.weight"],
        registers=tensors.get("register_tokens"),
        out=tensors.get("blocks.0.mlp.w3.weight") or tensors.get("blocks.0.mlp.fc2.weight"),
        swiglu="blocks.0.mlp.w3.weight" in tensors,
        block=r"blocks\.(\d+)\.",
        num_heads=max(width // HEAD_WIDTH, 1),
    )


def hf_settings(tensors: dict[str, StoredTensor], settings: dict, name: str) -> dict:
    """`config.model.dinov2` of tensors in Hugging Face's names and their config.json.

    Raises:
        InputError: They are no DINOv2's.
    """
    layer = "encoder.layer.0"
    needed = (
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
        f"{layer}.norm1.weight",
    )
    if lacking := [key for key in needed if key not in tensors]:
        raise InputError(f"{name} holds no DINOv2: it lacks {', '.join(lacking)}.")
    for key, value in HF_FIXED.items():
        if settings.get(key, value) != value:
            raise InputError(f"{name} has {key} {settings[key]!r}; DINOv2's is {value!r}.")
    if not isinstance(settings.get("num_attention_heads"), int):
        raise InputError(f"{name}: its config.json says no number of attention heads.")
    swiglu = f"{layer}.mlp.weights_out.weight"
    return _settings(
        tensors,
        width=tensors["embeddings.cls_token"].shape[-1],
        position=tensors["embeddings.position_embeddings"],
        patch=tensors["embeddings.patch_embeddings.projection.weight"],
        registers=tensors.get("embeddings.register_tokens"),
        out=tensors.get(swiglu) or tensors.get(f"{layer}.mlp.fc2.weight"),
        swiglu=swiglu in tensors,
        block=r"encoder\.layer\.(\d+)\.",
        num_heads=settings["num_attention_heads"],
    )


def _settings(
    tensors: dict[str, StoredTensor],
    *,
    width: int,
    position: StoredTensor,
    patch: StoredTensor,
    registers: StoredTensor | None,
    out: StoredTensor | None,
    swiglu: bool,
    block: str,
    num_heads: int,
) -> dict:
    patch_size = patch.shape[-1]
    blocks = {int(m[1]) for m in (re.match(block, key) for key in tensors) if m}
    return dict(
        image_size=math.isqrt(position.shape[1] - 1) * patch_size,
        patch_size=patch_size,
        width=width,
        depth=max(blocks) + 1,
        num_heads=num_heads,
        mlp="swiglu" if swiglu else "gelu",
        mlp_width=out.shape[1] if out else 0,
        num_registers=registers.shape[1] if registers else 0,
    )


def original_table(abstract: dict) -> Table:
    """The original names: ours, with a number after `blocks` and words for weights."""
    return Table([piece for piece, _ in _pieces(abstract)])


def hf_table(abstract: dict) -> Table:
    """Hugging Face's names; queries, keys and values are thirds of our fused projection."""
    pieces = []
    for piece, third in _pieces(abstract):
        if third is None:
            pieces.append(piece._replace(key=_hf_name(piece.key)))
            continue
        for n, word in enumerate(HF_QKV):
            key = re.sub(r"attn\.qkv", f"attention.attention.{word}", piece.key)
            where = (*piece.where, ..., slice(n * third, (n + 1) * third))
            pieces.append(piece._replace(key=_hf_name(key), where=where))
    return Table(pieces)


def _pieces(abstract: dict) -> Iterator[tuple[Piece, int | None]]:
    """Each tensor of the original, and for fused projections a third of its width."""
    for path, x in traverse_util.flatten_dict(abstract, sep="/").items():
        key = re.sub(r"\.(kernel|scale)$", ".weight", path.replace("/", "."))
        third = x.shape[-1] // 3 if "/qkv/" in path else None
        if not path.startswith("blocks/"):
            yield Piece(path, key, axes_of(path, x.ndim)), third
            continue
        for i in range(x.shape[0]):  # ours are stacked along the first axis
            numbered = key.replace("blocks.", f"blocks.{i}.", 1)
            yield Piece(path, numbered, axes_of(path, x.ndim - 1), where=(i,)), third


def _hf_name(key: str) -> str:
    for pattern, replacement in HF_NAMES:
        if re.search(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def hf_config(dinov2: dict) -> dict:
    """transformers' config.json of our encoder.

    Raises:
        InputError: transformers has no such feed-forward width.
    """
    width, swiglu = dinov2["width"], dinov2["mlp"] == "swiglu"
    # Dinov2SwiGLUFFN: two thirds of the ratio times the width, rounded up to a multiple of 8.
    mlp_width = lambda ratio: (width * ratio * 2 // 3 + 7) // 8 * 8 if swiglu else width * ratio
    ratios = [ratio for ratio in range(1, 17) if mlp_width(ratio) == dinov2["mlp_width"]]
    if not ratios:
        raise InputError(f"transformers has no DINOv2 of mlp_width {dinov2['mlp_width']}.")
    registers = dinov2["num_registers"]
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    return {
        "architectures": [f"{name}Model"],
        "hidden_size": width,
        "image_size": dinov2["image_size"],
        "layer_norm_eps": 1e-6,
        "mlp_ratio": ratios[0],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "num_attention_heads": dinov2["num_heads"],
        "num_hidden_layers": dinov2["depth"],
        "patch_size": dinov2["patch_size"],
        "use_swiglu_ffn": swiglu,
    } | ({"num_register_tokens": registers} if registers else {})
