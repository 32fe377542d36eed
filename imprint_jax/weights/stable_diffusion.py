"""Stable Diffusion v1.x: diffusers' folders and the original CompVis checkpoints.

Our paths are diffusers' names with other words for weights, so that one rule serves them; the
original names follow from how the original counts its blocks (ldm/modules/diffusionmodules in
CompVis/stable-diffusion).
"""

import re
from pathlib import Path
from typing import Any

from flax import traverse_util

from imprint_jax.errors import InputError
from imprint_jax.weights.mapping import Piece, Table, axes_of
from imprint_jax.weights.tensors import StoredTensor, open_folder, open_tensors, read_json

STEM = "diffusion_pytorch_model"

# What our UNet and VAE are built as; a config.json that says otherwise is of another network.
UNET_FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "use_linear_projection": False,
}
VAE_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "out_channels": 3,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}

# Families of 9-channel UNets: where each of our input channels [z, mask, background] is in theirs,
# and what their mask's 1 stands for.
INPAINTING = {
    # [z, mask, masked image]: StableDiffusionInpaintPipeline in diffusers.
    "sd-inpainting": (tuple(range(9)), "hole"),
    # [z, masked image, mask], mask 1 = keep: PaintByExamplePipeline in diffusers.
    "paint-by-example": ((0, 1, 2, 3, 8, 4, 5, 6, 7), "keep"),
    # The same: ldm/models/diffusion/ddpm.py in bcmi/ObjectStitch-Image-Composition.
    "objectstitch": ((0, 1, 2, 3, 8, 4, 5, 6, 7), "keep"),
}

# Tensors of an original checkpoint that belong to neither UNet nor VAE: the noise schedule's
# tables, the text or image encoder, and of Paint-by-Example what makes its condition.
COMPVIS_OTHER = (
    r"betas|log_one_minus_alphas_cumprod|(sqrt_(one_minus_|recip_|recipm1_)?)?alphas_cumprod(_prev)?"
    r"|posterior_\w+|logvar|scale_factor|model_ema\.(decay|num_updates)|cond_stage_model\..*"
    r"|learnable_vector|proj_out\.(weight|bias)"
)


def open_diffusers(folder: Path) -> tuple[dict, dict[str, StoredTensor]]:
    """A diffusers model folder's config.json and tensors.

    Raises:
        InputError: A file is missing or damaged.
    """
    return read_json(folder / "config.json"), open_folder(folder, STEM)


def unet_settings(tensors: dict[str, StoredTensor], settings: dict, name: str) -> dict:
    """`config.model.unet` of a UNet in diffusers' names.

    Args:
        tensors: Its tensors; widths and depths are read off them.
        settings: Its config.json, or an empty dict for Stable Diffusion v1's number of heads.
        name: What to call it in an error.

    Raises:
        InputError: It is of another architecture.
    """
    if family := unet_family(tensors):
        raise InputError(f"{name} is {family}'s; only Stable Diffusion v1's networks can be read.")
    _check_fixed(settings, UNET_FIXED, name)
    # diffusers' old name for the number of heads; null stands for the default.
    heads = settings.get("num_attention_heads") or settings.get("attention_head_dim") or 8
    if isinstance(heads, list | tuple) and len(set(heads)) == 1:
        heads = heads[0]
    if not isinstance(heads, int):
        raise InputError(f"{name} has {heads} heads by level; Stable Diffusion v1 has one number.")
    levels = _count(tensors, r"down_blocks\.(\d+)\.")
    first = lambda i: f"down_blocks.{i}.resnets.0.conv1.weight"
    attention = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(levels)]
    contexts = [x for k, x in tensors.items() if k.endswith("attn2.to_k.weight")]
    if not levels or not contexts or "conv_in.weight" not in tensors:
        raise InputError(f"{name} holds no Stable Diffusion v1 UNet.")
    return dict(
        in_channels=tensors["conv_in.weight"].shape[1],
        out_channels=tensors["conv_out.weight"].shape[0],
        block_widths=tuple(tensors[first(i)].shape[0] for i in range(levels)),
        layers_per_block=_count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        attention_levels=tuple(attention),
        context_width=contexts[0].shape[1],
        num_heads=heads,
        norm_groups=settings.get("norm_num_groups", 32),
    )


def vae_settings(tensors: dict[str, StoredTensor], settings: dict, name: str) -> dict:
    """`config.model.vae` of a VAE in diffusers' names; arguments as `unet_settings`."""
    _check_fixed(settings, VAE_FIXED, name)
    levels = _count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    first = lambda i: f"encoder.down_blocks.{i}.resnets.0.conv1.weight"
    if not levels or "post_quant_conv.weight" not in tensors:
        raise InputError(f"{name} holds no Stable Diffusion v1 VAE.")
    return dict(
        latent_channels=tensors["post_quant_conv.weight"].shape[0],
        block_widths=tuple(tensors[first(i)].shape[0] for i in range(levels)),
        layers_per_block=_count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        norm_groups=settings.get("norm_num_groups", 32),
        # Old config.json files lack it (CompVis' v1-inference.yaml: scale_factor).
        scaling_factor=settings.get("scaling_factor", 0.18215),
    )


def unet_family(tensors: dict[str, StoredTensor]) -> str | None:
    """The family of a UNet in diffusers' names, if it is another than Stable Diffusion v1."""
    if "add_embedding.linear_1.weight" in tensors:
        return "Stable Diffusion XL"
    proj = "down_blocks.0.attentions.0.proj_in.weight"
    if proj in tensors and len(tensors[proj].shape) == 2:  # linear layers, not convolutions
        return "Stable Diffusion 2"
    return None


def unet_config(unet: dict, sample_size: int) -> dict:
    """diffusers' config.json of our UNet; `sample_size` is the latents' side."""
    levels = unet["attention_levels"]
    down = [f"{'CrossAttn' if flag else ''}DownBlock2D" for flag in levels]
    up = [f"{'CrossAttn' if flag else ''}UpBlock2D" for flag in reversed(levels)]
    return UNET_FIXED | {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": unet["num_heads"],  # diffusers' old name for the number of heads
        "block_out_channels": list(unet["block_widths"]),
        "cross_attention_dim": unet["context_width"],
        "down_block_types": down,
        "downsample_padding": 1,
        "in_channels": unet["in_channels"],
        "layers_per_block": unet["layers_per_block"],
        "norm_num_groups": unet["norm_groups"],
        "out_channels": unet["out_channels"],
        "sample_size": sample_size,
        "up_block_types": up,
    }


def vae_config(vae: dict, sample_size: int) -> dict:
    """diffusers' config.json of our VAE; `sample_size` is the images' side."""
    levels = len(vae["block_widths"])
    return VAE_FIXED | {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(vae["block_widths"]),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "latent_channels": vae["latent_channels"],
        "layers_per_block": vae["layers_per_block"],
        "norm_num_groups": vae["norm_groups"],
        "sample_size": sample_size,
        "scaling_factor": vae["scaling_factor"],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def diffusers_table(abstract: dict, order: tuple[int, ...] = ()) -> Table:
    """A UNet or VAE in diffusers' names; `order` as `Piece.order`, of a UNet's first kernel."""
    pieces = []
    for path, x in traverse_util.flatten_dict(abstract, sep="/").items():
        key = re.sub(r"\.(kernel|scale)$", ".weight", path.replace("/", "."))
        own = order if path == "conv_in/kernel" else ()
        pieces.append(Piece(path, key, axes_of(path, x.ndim), order=own))
    return Table(pieces)


def old_attention(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """A VAE's tensors with the attention's present names: it was query, key, value, proj_attn.

    diffusers wrote the old names until version 0.18 and still reads both.
    """
    words = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(r"(.*mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(\w+)")
    rename = lambda m: f"{m[1]}.{words[m[2]]}.{m[3]}"
    return {pattern.sub(rename, key): tensor for key, tensor in tensors.items()}


def open_compvis(path: Path) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The UNet and the VAE of an original checkpoint, in diffusers' names.

    Returns:
        The UNet's tensors: the averaged ones (EMA) where there are any; and the VAE's.

    Raises:
        InputError: The file is damaged, is no such checkpoint, or holds tensors of unknown use.
    """
    tensors = open_tensors(path)
    trained = _take(tensors, "model.diffusion_model.")
    vae = _take(tensors, "first_stage_model.")
    unknown = [k for k in tensors if not re.fullmatch(COMPVIS_OTHER + r"|model_ema\..*", k)]
    if not trained or not vae or unknown:
        kind = "no Stable Diffusion checkpoint" if not (trained and vae) else "not understood"
        listed = f": unknown {', '.join(sorted(unknown)[:20])}" if unknown else ""
        raise InputError(f"{path} is {kind}{listed}.")
    # The average's names have lost their dots (LitEma in ldm/modules/ema.py).
    name = lambda key: f"model_ema.diffusion_model{key.replace('.', '')}"
    averaged = {key: tensors[name(key)] for key in trained if name(key) in tensors}
    lacking = [key for key in trained if key not in averaged]
    if averaged and lacking:
        raise InputError(f"{path} lacks the averaged (EMA) {', '.join(lacking)}.")
    unet = trained if lacking else averaged
    return _unet_names(unet), _vae_names(vae)


def _take(tensors: dict[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Removes the tensors of a prefix, and returns them without it."""
    keys = [key for key in tensors if key.startswith(prefix)]
    return {key.removeprefix(prefix): tensors.pop(key) for key in keys}


# The original names of a residual block's layers.
UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _unet_names(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """An original UNet's tensors under diffusers' names; unknown ones keep theirs.

    The original numbers all blocks of the encoder, and of the decoder, one after the other: block 0
    is the first convolution, then come each level's residual blocks with their transformers, then
    its down- or upsampling.
    """
    layers = _count(tensors, r"output_blocks\.(\d+)\.")
    down = _count(tensors, r"input_blocks\.(\d+)\.")
    ends = [n for n in range(down) if f"input_blocks.{n}.0.op.weight" in tensors]
    per_level = (ends[0] if ends else down) - 1  # residual blocks a level of the encoder
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    for n in range(1, down):
        level, i = divmod(n - 1, per_level + 1)
        if i == per_level:
            places[f"input_blocks.{n}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        else:
            places[f"input_blocks.{n}.0"] = f"down_blocks.{level}.resnets.{i}"
            places[f"input_blocks.{n}.1"] = f"down_blocks.{level}.attentions.{i}"
    for n in range(layers):
        level, i = divmod(n, per_level + 1)
        places[f"output_blocks.{n}.0"] = f"up_blocks.{level}.resnets.{i}"
        places[f"output_blocks.{n}.1"] = f"up_blocks.{level}.attentions.{i}"
        # Upsampling is what comes last in its block: after the transformer, if there is one.
        for last in (1, 2):
            if f"output_blocks.{n}.{last}.conv.weight" in tensors:
                places[f"output_blocks.{n}.{last}"] = f"up_blocks.{level}.upsamplers.0"
    return _renamed(tensors, places, UNET_RESNET, r"\.resnets\.\d+")


def _vae_names(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """An original VAE's tensors under diffusers' names; unknown ones keep theirs."""
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    places = {}
    for side in ("encoder", "decoder"):
        for i in (1, 2):
            places[f"{side}.mid.block_{i}"] = f"{side}.mid_block.resnets.{i - 1}"
        places[f"{side}.mid.attn_1.norm"] = f"{side}.mid_block.attentions.0.group_norm"
        for old, new in dict(q="to_q", k="to_k", v="to_v", proj_out="to_out.0").items():
            places[f"{side}.mid.attn_1.{old}"] = f"{side}.mid_block.attentions.0.{new}"
        places[f"{side}.norm_out"] = f"{side}.conv_norm_out"
    for level in range(levels):
        # The original decoder counts from the largest resolution, where it ends.
        sides = (
            ("encoder.down", "encoder.down_blocks", level, "downsample", "downsamplers.0"),
            ("decoder.up", "decoder.up_blocks", levels - 1 - level, "upsample", "upsamplers.0"),
        )
        for old, new, place, resample, resampler in sides:
            for i in range(_count(tensors, rf"{re.escape(old)}\.0\.block\.(\d+)\.")):
                places[f"{old}.{level}.block.{i}"] = f"{new}.{place}.resnets.{i}"
            places[f"{old}.{level}.{resample}"] = f"{new}.{place}.{resampler}"
    named = _renamed(tensors, places, {"nin_shortcut": "conv_shortcut"}, r"\.resnets\.\d+")
    return {key: _without_ones(key, tensor) for key, tensor in named.items()}


def _without_ones(key: str, tensor: StoredTensor) -> StoredTensor:
    """The VAE's attention: 1x1 convolutions in the original, linear layers in diffusers."""
    if not re.search(r"attentions\.0\.to_\w+(\.0)?\.weight$", key) or tensor.shape[2:] != (1, 1):
        return tensor
    return StoredTensor(tensor.shape[:2], tensor.dtype, lambda: tensor.read()[..., 0, 0])


def _renamed(tensors: dict, places: dict[str, str], layers: dict[str, str], within: str) -> dict:
    """Tensors with each place's prefix replaced, and in residual blocks each layer's name."""
    result = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        for n in range(len(parts) - 1, 0, -1):  # the longest prefix there is a place for
            prefix = ".".join(parts[:n])
            if prefix in places:
                rest = ".".join(parts[n:])
                if re.search(within, places[prefix]):
                    layer, _, kind = rest.rpartition(".")
                    rest = f"{layers.get(layer, layer)}.{kind}"
                key = f"{places[prefix]}.{rest}"
                break
        result[key] = tensor
    return result


def _count(tensors: dict, pattern: str) -> int:
    """One more than the highest number the pattern's group matches at a key's start; 0 if none."""
    numbers = [int(m[1]) for m in (re.match(pattern, key) for key in tensors) if m]
    return max(numbers, default=-1) + 1


def _check_fixed(settings: dict, fixed: dict, name: str) -> None:
    other = [
        f"{key} is {settings[key]!r}, should be {value!r}"
        for key, value in fixed.items()
        if not _same_setting(settings.get(key), value)
    ]
    if other:
        raise InputError(f"{name} is not Stable Diffusion v1's network: {'; '.join(other)}.")


def _same_setting(value: Any, wanted: object) -> bool:
    """Whether diffusers builds the same of both: null is the default, a list is one a level."""
    if isinstance(value, list | tuple):
        return all(_same_setting(x, wanted) for x in value)
    if value is None or (not value and not wanted):
        return True
    return ("silu" if value == "swish" else value) == wanted
