"""PyTorch's reference models with every tensor random, and their weights in the original names."""

import re

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

UNET = dict(
    block_out_channels=(32, 64, 64),
    layers_per_block=2,
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)
VAE = dict(
    latent_channels=4,
    block_out_channels=(16, 32, 32),
    layers_per_block=2,
    norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
)


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every tensor anew: at their initial 0 and 1, swapped norms or biases pass unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        spread = 1.0 / np.sqrt(max(tensor[0].numel(), 1)) if tensor.ndim > 1 else 0.3
        centre = 1.0 if tensor.ndim == 1 and not name.endswith("bias") else 0.0
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data.copy_(centre + spread * noise)
    return model.eval()


def unet(**changes) -> diffusers.UNet2DConditionModel:
    """A tiny UNet of Stable Diffusion's kind."""
    return randomize(diffusers.UNet2DConditionModel(**UNET | changes))


def vae(**changes) -> diffusers.AutoencoderKL:
    """A tiny VAE of Stable Diffusion's kind."""
    return randomize(diffusers.AutoencoderKL(**VAE | changes))


def dinov2(*, registers: int, swiglu: bool) -> torch.nn.Module:
    """A tiny DINOv2 of transformers."""
    settings = dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        use_swiglu_ffn=swiglu,
        image_size=70,
        patch_size=14,
    )
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**settings, num_register_tokens=registers)
        return randomize(transformers.Dinov2WithRegistersModel(config))
    return randomize(transformers.Dinov2Model(transformers.Dinov2Config(**settings)))


def clip() -> transformers.CLIPModel:
    """A tiny CLIP, text tower and all."""
    vision = dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
    )
    text = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    return randomize(transformers.CLIPModel(config))


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_unet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tiny UNet's weights in the names of CompVis' checkpoints (three levels of two blocks)."""
    whole = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for level in range(3):
        for i in range(2):
            whole[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{1 + 3 * level + i}.0"
            whole[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{1 + 3 * level + i}.1"
        whole[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 + 3 * level}.0.op"
        for i in range(3):
            whole[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{3 * level + i}.0"
            whole[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{3 * level + i}.1"
        # The first level of the decoder has no transformers in this network.
        last = 1 if level == 0 else 2
        whole[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{3 * level + 2}.{last}"
    named = {}
    for key, tensor in state.items():
        place = max((p for p in whole if key.startswith(f"{p}.")), key=len)
        rest = key.removeprefix(place)
        if ".resnets." in key:
            layer, kind = re.fullmatch(r"\.(\w+)\.(\w+)", rest).groups()
            rest = f".{RESNET[layer]}.{kind}"
        named[whole[place] + rest] = tensor
    return named


def original_vae(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tiny VAE's weights in the names of CompVis' checkpoints (three levels)."""
    rules = (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)", lambda m: f"up.{2 - int(m[1])}"),
        (r"(up\.\d)\.resnets", r"\1.block"),
        (r"(up\.\d)\.upsamplers\.0", r"\1.upsample"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    )
    named = {}
    for key, tensor in state.items():
        if re.search(r"attentions\.0\.to_.*weight", key):
            tensor = tensor[..., None, None]
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        named[key] = tensor
    return named


def original_checkpoint(unet_state: dict, vae_state: dict, *, ema: dict | None = None) -> dict:
    """What torch.save wrote for Stable Diffusion v1: weights beside the schedule and the rest."""
    state = {f"model.diffusion_model.{k}": x for k, x in original_unet(unet_state).items()}
    state |= {f"first_stage_model.{k}": x for k, x in original_vae(vae_state).items()}
    for name in ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"):
        state[name] = torch.ones(1000)
    state["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = torch.ones(4)
    if ema:
        state["model_ema.decay"] = torch.tensor(0.9999)
        state["model_ema.num_updates"] = torch.tensor(470000, dtype=torch.int32)
        for key, tensor in original_unet(ema).items():
            state[f"model_ema.diffusion_model{key.replace('.', '')}"] = tensor
    return {"epoch": 12, "global_step": 470000, "state_dict": state}


def original_dinov2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DINOv2's weights in the original names, from those transformers writes to files."""
    rules = (
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
    named = {}
    for key, tensor in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        named[key] = tensor
    for key in [key for key in named if "attention.attention.query" in key]:
        parts = [named.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        named[key.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return named


def image_encoder(**changes) -> PaintByExampleImageEncoder:
    """A tiny image encoder of Paint-by-Example: CLIP and a mapper of two blocks."""
    settings = dict(
        hidden_size=48,
        projection_dim=32,
        intermediate_size=96,
        num_hidden_layers=9,  # the mapper has (9 + 1) // 5 blocks
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    config = transformers.CLIPVisionConfig(**settings | changes)
    return randomize(PaintByExampleImageEncoder(config, proj_size=config.projection_dim))


def paint_by_example() -> diffusers.PaintByExamplePipeline:
    """A tiny Paint-by-Example, whose pictures depend on nothing random but the starting noise."""
    two_levels = dict(
        sample_size=16,
        in_channels=9,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
    )
    autoencoder = vae(layers_per_block=1)
    # The posterior's variance is e^-30: a sample is the mean to float32's precision.
    autoencoder.quant_conv.weight.data[4:] = 0.0
    autoencoder.quant_conv.bias.data[4:] = -30.0
    network = unet(**two_levels)
    network.conv_out.weight.data *= 0.5  # guidance of 5 would leave latents far from 1
    pipeline = diffusers.PaintByExamplePipeline(
        vae=autoencoder,
        image_encoder=image_encoder(),
        unet=network,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def original_condition(encoder: PaintByExampleImageEncoder) -> dict[str, torch.Tensor]:
    """Its weights in the names of Paint-by-Example's and ObjectStitch's original checkpoints."""
    layers = {
        "norm1": "ln_1",
        "norm3": "ln_2",
        "ff.net.0.proj": "mlp.c_fc",
        "ff.net.2": "mlp.c_proj",
        "attn1.to_out.0": "attn.c_proj",
    }
    state, named = encoder.state_dict(), {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        if key.startswith("model."):
            rest = key.removeprefix("model.").removeprefix("vision_model.")
            named[f"cond_stage_model.transformer.vision_model.{rest}"] = tensor
        elif layer == "final_layer_norm":
            named[f"cond_stage_model.final_ln.{kind}"] = tensor
        elif layer == "proj_out":
            named[key] = tensor
        elif key == "uncond_vector":
            named["learnable_vector"] = tensor
        elif layer.endswith("attn1.to_q"):
            parts = [state[key.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            block = key.split(".")[2]
            name = f"cond_stage_model.mapper.resblocks.{block}.attn.c_qkv.{kind}"
            named[name] = torch.cat(parts)
        elif not layer.endswith(("to_k", "to_v")):
            _, _, block, layer = layer.split(".", 3)
            name = f"cond_stage_model.mapper.resblocks.{block}.{layers[layer]}.{kind}"
            named[name] = tensor
    return named
