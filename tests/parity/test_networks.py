"""Tiny networks equal PyTorch's to float32 rounding, forward and backward."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from imprint_jax.config.fields import CLIPConfig, DiffusionConfig, network
from imprint_jax.diffusion import process
from imprint_jax.models import imprint
from imprint_jax.models.dinov2 import DINOv2
from imprint_jax.weights import mapping, stable_diffusion
from imprint_jax.weights.detect import find
from tests.parity import reference


def converted(model: torch.nn.Module, folder: Path, kind: str = "auto"):
    """The reference saved by its own library and read by our converter: our module, bound."""
    model.save_pretrained(folder)
    (part,) = find(folder, kind).components
    params = mapping.read(part.table, part.tensors, part.abstract, part.source)
    if part.name == "clip":
        section = CLIPConfig.of(part.settings)
    else:
        section = network(part.name, part.settings, {})
    make = lambda: imprint.build(section, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(nnx.eval_shape(make), nnx.Param)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


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
def unets(tmp_path_factory):
    theirs = reference.unet()
    return converted(theirs, tmp_path_factory.mktemp("unet")), theirs


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


def test_unets_blocks_equal_diffusers(unets):
    ours, theirs = unets
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, temb, context = normal(2, 8, 12, 32), normal(2, 128), normal(2, 7, 24)
    wide = normal(2, 8, 12, 64)
    torch_of = torch.from_numpy

    level, level_torch = ours.down_blocks[0], theirs.down_blocks[0]
    got = level.resnets[0](x, temb)
    assert_close(got, nhwc(level_torch.resnets[0](nchw(x), torch_of(temb))))
    attention = level.attentions[0]
    got = attention(x, attention.keys_values(context))
    want = level_torch.attentions[0](nchw(x), encoder_hidden_states=torch_of(context)).sample
    assert_close(got, nhwc(want))
    assert_close(level.downsamplers[0](x), nhwc(level_torch.downsamplers[0](nchw(x))))
    middle = ours.mid_block
    got = middle(wide, temb, [middle.attentions[0].keys_values(context)])
    want = theirs.mid_block(nchw(wide), torch_of(temb), encoder_hidden_states=torch_of(context))
    assert_close(got, nhwc(want))
    last, last_torch = ours.up_blocks[0], theirs.up_blocks[0]
    widths = [resnet.conv1.in_features - 64 for resnet in last.resnets]
    skips = [normal(2, 8, 12, width) for width in reversed(widths)]
    want = last_torch(nchw(wide), tuple(nchw(s) for s in skips), torch_of(temb))
    assert_close(last(wide, temb, [], list(skips)), nhwc(want))


@pytest.mark.parametrize("kind", stable_diffusion.INPAINTING)
def test_inpainting_unets_see_the_same(tmp_path, kind):
    """Our channels, as `process.network_input` lays them, against each family's own layout."""
    theirs = reference.unet(in_channels=9)
    ours = converted(theirs, tmp_path, kind)
    rng = np.random.default_rng(0)
    latents, background = rng.normal(size=(2, 2, 8, 16, 4)).astype(np.float32)
    context = rng.normal(size=(2, 7, 24)).astype(np.float32)
    hole = np.zeros((2, 8, 16, 1), np.float32)
    hole[0, 2:6, 4:9] = 1
    hole[1, :3, 10:] = 1  # touches two edges, where a convolution's padding shows
    if kind == "sd-inpainting":
        parts = (latents, hole, background)
    else:
        parts = (latents, background, 1 - hole)
    x_torch = nchw(np.concatenate(parts, axis=-1))
    timesteps = np.array([3, 981])
    want = theirs(x_torch, torch.from_numpy(timesteps), torch.from_numpy(context)).sample

    settings = DiffusionConfig(**find(tmp_path, kind).released["diffusion"])
    seen = process.network_input(settings, latents, background, hole, latents, jnp.float32(0.5))
    got = jax.jit(lambda x: ours(x, timesteps, ours.keys_values(context)))(seen)
    assert_close(got, nhwc(want))


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    theirs = reference.vae()
    return converted(theirs, tmp_path_factory.mktemp("vae")), theirs


@pytest.mark.parametrize("height, width", [(32, 32), (16, 48)])
def test_vae_equals_diffusers(vaes, height, width):
    ours, theirs = vaes
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, size=(2, height, width, 3)).astype(np.float32)
    latents = theirs.encode(nchw(images)).latent_dist.mean * 0.18215
    assert_close(ours.encode(images), nhwc(latents))
    decoded = theirs.decode(latents / 0.18215).sample
    assert_close(ours.decode(nhwc(latents)), nhwc(decoded))


def test_vaes_gradients_equal_diffusers(vaes):
    ours, theirs = vaes
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, size=(1, 16, 32, 3)).astype(np.float32)
    latents = rng.normal(size=(1, 4, 8, 4)).astype(np.float32)
    images_torch, latents_torch = nchw(images).requires_grad_(), nchw(latents).requires_grad_()
    ((theirs.encode(images_torch).latent_dist.mean * 0.18215) ** 2).sum().backward()
    (theirs.decode(latents_torch / 0.18215).sample ** 2).sum().backward()
    encode = jax.jit(jax.grad(lambda x: (ours.encode(x) ** 2).sum()))
    decode = jax.jit(jax.grad(lambda x: (ours.decode(x) ** 2).sum()))
    pairs = ((encode(images), images_torch.grad), (decode(latents), latents_torch.grad))
    for got, want in pairs:
        # A sum of squares over all outputs: errors add up over two passes through the network.
        np.testing.assert_allclose(got, nhwc(want), rtol=0, atol=3e-5 * np.abs(want).max())


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
    theirs = reference.dinov2(registers=registers, swiglu=swiglu)
    ours = converted(theirs, tmp_path)
    rng = np.random.default_rng(0)
    # Without registers transformers resizes the position embedding by another rule than the
    # original code, which ours follows: see the next test.
    sizes = ((70, 70), (56, 98), (28, 28)) if registers else ((70, 70),)
    for height, width in sizes:
        images = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        want = theirs(nchw(images)).last_hidden_state.detach().numpy()
        assert_close(jax.jit(ours)(images), want)


@pytest.mark.parametrize("registers", [4, 0])
def test_dinov2s_gradients_equal_transformers(tmp_path, registers):
    theirs = reference.dinov2(registers=registers, swiglu=True)
    ours = converted(theirs, tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 70, 70, 3)).astype(np.float32)
    images_torch = nchw(images).requires_grad_()
    (theirs(images_torch).last_hidden_state ** 2).sum().backward()
    gradient = jax.jit(jax.grad(lambda x: (ours(x) ** 2).sum()))(images)
    want = nhwc(images_torch.grad)
    # A sum of squares over all outputs: errors add up over two passes through the network.
    np.testing.assert_allclose(gradient, want, rtol=0, atol=3e-5 * np.abs(want).max())


def test_clip_equals_transformers(tmp_path):
    theirs = reference.clip()
    ours = converted(theirs, tmp_path)
    images = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    want = theirs.get_image_features(pixel_values=nchw(images)).pooler_output.detach()
    assert_close(jax.jit(ours)(images), want)
    tokens = theirs.vision_model(nchw(images)).last_hidden_state.detach()
    assert_close(ours.tokens(images), tokens)


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
