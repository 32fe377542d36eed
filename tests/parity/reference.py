"""PyTorch's reference models with every tensor random, and their weights under our names."""

import re

import numpy as np
import torch
from flax import traverse_util


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every tensor anew: at their initial 0 and 1, swapped norms or biases pass unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        spread = 1.0 / np.sqrt(max(tensor[0].numel(), 1)) if tensor.ndim > 1 else 0.3
        centre = 1.0 if tensor.ndim == 1 and not name.endswith("bias") else 0.0
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data.copy_(centre + spread * noise)
    return model.eval()


def to_flax(state_dict: dict) -> dict:
    """A nested dict: kernels last-axis-out, norms' weights called scale, paths split at dots."""
    flat = {}
    for key, tensor in state_dict.items():
        array = tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor
        if key.endswith(".weight"):
            name = "scale" if array.ndim == 1 else "kernel"
            key = key.removesuffix("weight") + name
            if array.ndim == 4:
                array = array.transpose(2, 3, 1, 0)
            elif array.ndim == 2:
                array = array.T
        flat[key] = array
    return traverse_util.unflatten_dict(flat, sep=".")


def dinov2_to_flax(tensors: dict[str, np.ndarray]) -> dict:
    """Weights of transformers' Dinov2 in the names its files carry, as ours; blocks stacked."""
    renames = (
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^layernorm", "norm"),
        (r"^encoder\.layer\.", "blocks."),
        (r"attention\.output\.dense", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"mlp\.weights_in", "mlp.w12"),
        (r"mlp\.weights_out", "mlp.w3"),
    )
    renamed = {}
    for key, array in tensors.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = array
    for key in [key for key in renamed if "attention.attention.query" in key]:
        parts = [renamed.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        renamed[key.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    params = to_flax(renamed)
    blocks = [params["blocks"][str(i)] for i in range(len(params["blocks"]))]
    flat = [traverse_util.flatten_dict(block) for block in blocks]
    stacked = {path: np.stack([block[path] for block in flat]) for path in flat[0]}
    return params | {"blocks": traverse_util.unflatten_dict(stacked)}
