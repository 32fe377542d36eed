"""CLIP's vision tower, from Hugging Face folders of the whole model or of the tower alone."""

import math
import re

from flax import traverse_util

from imprint_jax.errors import InputError
from imprint_jax.weights.mapping import LINEAR, Piece, Table, axes_of
from imprint_jax.weights.tensors import StoredTensor

PROJECTION = "visual_projection.weight"
# Our paths and Hugging Face's names; {i} is a block's number.
HF_NAMES = {
    "patch_embed/kernel": "vision_model.embeddings.patch_embedding.weight",
    "cls_token": "vision_model.embeddings.class_embedding",
    "pos_embed": "vision_model.embeddings.position_embedding.weight",
    "norm_in": "vision_model.pre_layrnorm",  # their spelling
    "norm_out": "vision_model.post_layernorm",
    "proj/kernel": PROJECTION,
    "blocks/norm1": "vision_model.encoder.layers.{i}.layer_norm1",
    "blocks/norm2": "vision_model.encoder.layers.{i}.layer_norm2",
    "blocks/mlp/fc1": "vision_model.encoder.layers.{i}.mlp.fc1",
    "blocks/mlp/fc2": "vision_model.encoder.layers.{i}.mlp.fc2",
    "blocks/attn/proj": "vision_model.encoder.layers.{i}.self_attn.out_proj",
}
HF_QKV = "vision_model.encoder.layers.{i}.self_attn.%s_proj"
# The text tower and what joins the two; and tables that old files carry.
OTHER = r"text_model\..*|text_projection\.weight|logit_scale|.*\.position_ids"


def settings(tensors: dict[str, StoredTensor], config: dict, name: str) -> dict:
    """The arguments of `CLIPVision` for a folder's tensors and config.json.

    Raises:
        InputError: They are no CLIP's, or their activation is unknown.
    """
    vision = config.get("vision_config", config)
    patch = HF_NAMES["patch_embed/kernel"]
    needed = (patch, HF_NAMES["pos_embed"], "vision_model.encoder.layers.0.mlp.fc1.weight")
    if lacking := [key for key in needed if key not in tensors]:
        raise InputError(f"{name} holds no CLIP vision tower: it lacks {', '.join(lacking)}.")
    activation = vision.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise InputError(f"{name} has the activation {activation!r}; known: quick_gelu, gelu.")
    if vision.get("layer_norm_eps", 1e-5) != 1e-5:
        raise InputError(f"{name} has layer_norm_eps {vision['layer_norm_eps']}; CLIP's is 1e-5.")
    width, _, patch_size, _ = tensors[patch].shape
    layers = [re.match(r"vision_model\.encoder\.layers\.(\d+)\.", key) for key in tensors]
    depth = 1 + max(int(match[1]) for match in layers if match)
    return dict(
        image_size=math.isqrt(tensors[HF_NAMES["pos_embed"]].shape[0] - 1) * patch_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        # Both published towers have heads of 64 channels; config.json files may omit the number.
        num_heads=vision.get("num_attention_heads", width // 64),
        mlp_width=tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        projection=tensors[PROJECTION].shape[0] if PROJECTION in tensors else 0,
        activation=activation,
    )


def hf_table(abstract: dict) -> Table:
    """Hugging Face's names; queries, keys and values are thirds of our fused projection."""
    pieces = []
    for path, x in traverse_util.flatten_dict(abstract, sep="/").items():
        stacked = path.startswith("blocks/")
        axes = axes_of(path, x.ndim - stacked)
        for i in range(x.shape[0]) if stacked else [0]:
            where = (i,) if stacked else ()
            if "/qkv/" not in path:
                pieces.append(Piece(path, _hf_name(path).format(i=i), axes, where))
                continue
            third = x.shape[-1] // 3
            for n, word in enumerate("qkv"):
                key = (HF_QKV % word).format(i=i) + (".weight" if axes == LINEAR else ".bias")
                part = (*where, ..., slice(n * third, (n + 1) * third))
                pieces.append(Piece(path, key, axes, part))
    return Table(pieces, ignored=OTHER)


def _hf_name(path: str) -> str:
    if path in HF_NAMES:
        return HF_NAMES[path]
    layer, _, kind = path.rpartition("/")
    return f"{HF_NAMES[layer]}.{'bias' if kind == 'bias' else 'weight'}"


def hf_config(clip: dict) -> dict:
    """transformers' config.json of CLIP's vision tower."""
    return {
        "attention_dropout": 0.0,
        "hidden_act": clip["activation"],
        "hidden_size": clip["width"],
        "image_size": clip["image_size"],
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": clip["mlp_width"],
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": clip["num_heads"],
        "num_channels": 3,
        "num_hidden_layers": clip["depth"],
        "patch_size": clip["patch_size"],
    }
