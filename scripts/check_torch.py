"""The model that `gpu_check.py` compares with: diffusers' and transformers' modules and PyTorch.

Weights are ours, drawn from a seed and renamed by the converter's tables.
"""

from collections.abc import Callable

import check_part
import diffusers
import numpy as np
import torch
import transformers
from torch.nn import functional

from imprint_jax.models import imprint, init
from imprint_jax.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from imprint_jax.weights import dinov2, mapping, stable_diffusion

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# JAX multiplies float32 in TF32 on NVIDIA's GPUs unless told otherwise.
torch.set_float32_matmul_precision("high")
# XLA times convolutions' algorithms before it chooses one; so may PyTorch.
torch.backends.cudnn.benchmark = True


def take_memory(share: float) -> None:
    """As `check_part.take_memory`; from this share of the GPU's memory on PyTorch has none left."""
    check_part.take_memory()
    if DEVICE == "cuda":
        torch.cuda.set_per_process_memory_fraction(share)


class Attention(torch.nn.Module):
    """Self-attention with one fused projection."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)

    def forward(self, x):
        """(b t c) -> (b t c)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class MLP(torch.nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.fc1 = torch.nn.Linear(width, mlp_width)
        self.fc2 = torch.nn.Linear(mlp_width, width)

    def forward(self, x):
        """(b t c) -> (b t c)."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(torch.nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, num_heads: int, mlp_width: int):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = torch.nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width)

    def forward(self, x):
        """(b t c) -> (b t c)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Adapter(torch.nn.Module):
    """Our adapter's layers under our names; arguments as `imprint_jax.models.adapter.Adapter`."""

    def __init__(self, *, width_in, width, depth, num_heads, mlp_width):
        super().__init__()
        self.norm_in = torch.nn.LayerNorm(width_in)
        self.proj = torch.nn.Linear(width_in, width)
        blocks = [Block(width, num_heads, mlp_width) for _ in range(depth)]
        self.blocks = torch.nn.ModuleList(blocks)
        self.norm_out = torch.nn.LayerNorm(width)
        self.null_token = torch.nn.Parameter(torch.zeros(width))

    def forward(self, tokens):
        """(b t width_in) -> (b t width)."""
        x = self.proj(self.norm_in(tokens))
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)


class Peer(torch.nn.Module):
    """All four networks, channels last, on the device, with the weights `init.draw` gives.

    Args:
        model: The `model` section of a configuration.
    """

    def __init__(self, model):
        super().__init__()
        tensors = lambda part: _drawn(part, model)
        self.dinov2 = transformers.Dinov2WithRegistersModel.from_pretrained(
            None,
            config=transformers.Dinov2WithRegistersConfig.from_dict(
                dinov2.hf_config(vars(model.dinov2))
            ),
            state_dict=tensors("dinov2"),
        )
        self.adapter = _loaded(lambda: Adapter(**vars(model.adapter)), tensors("adapter"))
        unet = stable_diffusion.unet_config(vars(model.unet), 64)
        vae = stable_diffusion.vae_config(vars(model.vae), 512)
        self.unet = _loaded(
            lambda: diffusers.UNet2DConditionModel.from_config(unet), tensors("unet")
        )
        self.vae = _loaded(lambda: diffusers.AutoencoderKL.from_config(vae), tensors("vae"))
        self.registers = model.dinov2.num_registers
        self.factor = model.vae.factor
        self.to(DEVICE, memory_format=torch.channels_last)

    def encode_object(self, objects):
        """(b 3 s s) in [-1, 1] -> the object's tokens (b t c), without the registers."""
        mean, std = (
            torch.tensor(x, device=DEVICE)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD)
        )
        tokens = self.dinov2(((objects + 1) / 2 - mean) / std).last_hidden_state
        tokens = torch.cat([tokens[:, :1], tokens[:, 1 + self.registers :]], 1)
        return self.adapter(tokens)

    def encode(self, images):
        """(b 3 H W) in [-1, 1] -> latents (b c h w), the posterior's mean."""
        return self.vae.encode(images).latent_dist.mean * self.vae.config.scaling_factor

    def encode_background(self, images, holes):
        """Latents with the hole (b 1 H W) greyed, and the hole on their grid."""
        margin = imprint.FILL_MARGIN
        filled = functional.max_pool2d(holes, 2 * margin + 1, stride=1, padding=margin)
        return self.encode(images * (1 - filled)), functional.max_pool2d(holes, self.factor)


def _drawn(part: str, model) -> dict:
    """A component's tensors under the names of the modules above."""
    abstract = imprint.abstract(getattr(model, part))
    table = (
        dinov2.hf_table(abstract)
        if part == "dinov2"
        else stable_diffusion.diffusers_table(abstract)
    )
    tensors = mapping.write(table, init.draw(part, model, 0))
    for key in tensors:  # one by one, so that each is in memory once
        tensors[key] = torch.from_numpy(np.ascontiguousarray(tensors[key]))
    return tensors


def _loaded(make: Callable, tensors: dict):
    """The module with these tensors, which are not copied."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict(tensors, assign=True)
    # Tensors that were assigned may train, whatever the module was made with.
    return module.requires_grad_(True)


def on_device(array: np.ndarray):
    """(b h w c) -> (b c h w) on the device; arrays of fewer axes as they are."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def to_float(images):
    """uint8 0 to 255 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
