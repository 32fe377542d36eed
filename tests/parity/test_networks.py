"""Tiny networks equal PyTorch's to float32 rounding, forward and backward."""

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx, traverse_util

from imprint_jax.models.unet import UNet
from imprint_jax.models.vae import AutoencoderKL
from imprint_jax.models.vit import DINOv2
from tests.parity import reference


def bound(make, params: dict):
    """Our module with these parameters; fails unless names and shapes are exactly the module's."""
    graphdef, state = nnx.split(nnx.eval_shape(make), nnx.Param)
    ours = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    ours = {".".join(map(str, path)): x.shape for path, x in ours.items()}
    given = traverse_util.flatten_dict(params, sep=".")
    assert ours == {path: x.shape for path, x in given.items()}
    return nnx.merge(graphdef, jax.tree.map(jax.numpy.asarray, params))


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs):
    """Within 1e-5 of the largest value, the project's float32 bar."""
    theirs = np.asarray(theirs)
    assert np.abs(theirs).max() > 0.01, "the reference is nearly zero: it would show nothing"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(np.abs(theirs).max(), 1.0))


@pytest.fixture(scope="module")
def unets():
    theirs = reference.randomize(
        diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            layers_per_block=2,
            cross_attention_dim=24,
            attention_head_dim=4,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    make = lambda: UNet(
        in_channels=4,
        out_channels=4,
        block_widths=(32, 64, 64),
        layers_per_block=2,
        attention_levels=(True, True, False),
        context_width=24,
        num_heads=4,
        norm_groups=8,
        rngs=nnx.Rngs(0),
    )
    return bound(make, reference.to_flax(theirs.state_dict())), theirs


@pytest.mark.parametrize("height, width", [(16, 16), (8, 24)])
def test_unet_equals_diffusers(unets, height, width):
    ours, theirs = unets
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 4)).astype(np.float32)
    context = rng.normal(size=(2, 7, 24)).astype(np.float32)
    timesteps = np.array([3, 981])
    x_torch = nchw(x).requires_grad_()
    context_torch = torch.from_numpy(context).requires_grad_()
    out_torch = theirs(x_torch, torch.from_numpy(timesteps), context_torch).sample
    (out_torch**2).sum().backward()

    def forward(x, context):
        return ours(x, timesteps, ours.keys_values(context))

    assert_close(jax.jit(forward)(x, context), nhwc(out_torch))
    gradient = jax.jit(jax.grad(lambda x, c: (forward(x, c) ** 2).sum(), argnums=(0, 1)))
    dx, dcontext = gradient(x, context)
    # A sum of squares over all outputs: errors add up over two passes through the network.
    for got, want in ((dx, nhwc(x_torch.grad)), (dcontext, context_torch.grad.numpy())):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())


@pytest.fixture(scope="module")
def vaes():
    theirs = reference.randomize(
        diffusers.AutoencoderKL(
            latent_channels=4,
            block_out_channels=(16, 32, 32),
            layers_per_block=2,
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
    )
    make = lambda: AutoencoderKL(
        latent_channels=4,
        block_widths=(16, 32, 32),
        layers_per_block=2,
        norm_groups=8,
        scaling_factor=0.18215,
        rngs=nnx.Rngs(0),
    )
    return bound(make, reference.to_flax(theirs.state_dict())), theirs


@pytest.mark.parametrize("height, width", [(32, 32), (16, 48)])
def test_vae_equals_diffusers(vaes, height, width):
    ours, theirs = vaes
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, size=(2, height, width, 3)).astype(np.float32)
    latents = theirs.encode(nchw(images)).latent_dist.mean * 0.18215
    assert_close(ours.encode(images), nhwc(latents))
    decoded = theirs.decode(latents / 0.18215).sample
    assert_close(ours.decode(nhwc(latents)), nhwc(decoded))


def test_vae_samples_its_posterior(vaes):
    ours, theirs = vaes
    images = np.random.default_rng(0).uniform(-1, 1, size=(1, 16, 16, 3)).astype(np.float32)
    std = nhwc(theirs.encode(nchw(images)).latent_dist.std) * 0.18215
    key = jax.random.key(3)
    noise = jax.random.normal(key, std.shape)
    assert_close(ours.encode(images, key) - ours.encode(images), std * noise)


@pytest.mark.parametrize("registers", [4, 0])
@pytest.mark.parametrize("swiglu", [True, False])
def test_dinov2_equals_transformers(tmp_path, registers, swiglu):
    settings = dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        use_swiglu_ffn=swiglu,
        image_size=70,
        patch_size=14,
    )
    if registers:
        settings |= dict(num_register_tokens=registers)
        config = transformers.Dinov2WithRegistersConfig(**settings)
        theirs = transformers.Dinov2WithRegistersModel(config)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    reference.randomize(theirs)
    theirs.save_pretrained(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    params = reference.dinov2_to_flax(tensors)
    mlp_width = (int(48 * 4 * 2 / 3) + 7) // 8 * 8 if swiglu else 192
    make = lambda: DINOv2(
        image_size=70,
        patch_size=14,
        width=48,
        depth=3,
        num_heads=4,
        mlp="swiglu" if swiglu else "gelu",
        mlp_width=mlp_width,
        num_registers=registers,
        rngs=nnx.Rngs(0),
    )
    ours = bound(make, params)
    rng = np.random.default_rng(0)
    # Without registers transformers resizes the position embedding by another rule than the
    # original code, which ours follows: see the next test.
    sizes = ((70, 70), (56, 98), (28, 28)) if registers else ((70, 70),)
    for height, width in sizes:
        images = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        want = theirs(nchw(images)).last_hidden_state.detach().numpy()
        assert_close(jax.jit(ours)(images), want)


@pytest.mark.parametrize("height, width", [(4, 7), (9, 5), (2, 2)])
def test_position_embedding_follows_dinov2s_offset_rule(height, width):
    model = DINOv2(
        image_size=70,
        patch_size=14,
        width=8,
        depth=1,
        num_heads=2,
        mlp="gelu",
        mlp_width=16,
        num_registers=0,
        rngs=nnx.Rngs(0),
    )
    table = np.random.default_rng(0).normal(size=(1, 26, 8)).astype(np.float32)
    model.pos_embed[...] = jax.numpy.asarray(table)
    patches = torch.from_numpy(table[:, 1:]).reshape(1, 5, 5, 8).permute(0, 3, 1, 2)
    # dinov2/models/vision_transformer.py, interpolate_pos_encoding with offset 0.1.
    scale = ((height + 0.1) / 5, (width + 0.1) / 5)
    want = torch.nn.functional.interpolate(patches, scale_factor=scale, mode="bicubic")
    assert want.shape[-2:] == (height, width)
    got = model.position_embedding(height, width)
    assert_close(got[:, 1:].reshape(1, height, width, 8), nhwc(want))
    assert_close(got[:, :1], table[:, :1])
