"""Shapes and sizes; equality with the references is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from imprint_jax.config import Config
from imprint_jax.models import imprint, init
from imprint_jax.models.vae import AT_ONCE, AutoencoderKL, LappedCodec, in_parts
from tests.tiny import tiny_config


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_full_size_parameter_counts(full_size):
    # diffusers' and transformers' own counts of SD v1.4 and DINOv2 ViT-g/14 with registers.
    assert count(full_size["unet"]) == 859_520_964
    assert count(full_size["vae"]) == 83_653_863
    assert count(full_size["dinov2"]) == 1_136_486_912
    assert full_size["dinov2"]["blocks"]["attn"]["qkv"]["kernel"].shape == (40, 1536, 4608)
    assert set(full_size) == set(imprint.COMPONENTS)


def test_full_size_shapes():
    graphdef, abstract = imprint.split(Config().model, jnp.bfloat16)

    def forward(params, objects, images, mask):
        model = imprint.bind(graphdef, params)
        tokens = model.encode_object(objects)
        background, cells = model.encode_background(images, mask, "grey")
        prediction = model.unet(background, jnp.zeros(1), model.unet.keys_values(tokens))
        return tokens, background, cells, prediction, model.vae.decode(prediction)

    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    inputs = shape(1, 224, 224, 3), shape(1, 512, 512, 3), shape(1, 512, 512, 1)
    outputs = jax.eval_shape(forward, abstract, *inputs)
    assert [x.shape for x in outputs] == [
        (1, 257, 768),
        (1, 64, 64, 4),
        (1, 64, 64, 1),
        (1, 64, 64, 4),
        (1, 512, 512, 3),
    ]
    assert all(x.dtype == jnp.float32 for x in outputs)


def test_the_model_is_parameters_only():
    model = nnx.eval_shape(lambda: imprint.Imprint(tiny_config(1).model, rngs=nnx.Rngs(0)))
    _, _, rest = nnx.split(model, nnx.Param, ...)
    assert not jax.tree.leaves(rest)


def test_registers_are_dropped_and_null_context_repeats_one_token():
    c = tiny_config(1).model
    params = init.draw_all(c, 0)
    model = imprint.bind(imprint.split(c)[0], params)
    objects = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 28, 28, 3)), jnp.float32)
    tokens = model.encode_object(objects)
    assert tokens.shape == (2, 1 + 4, 16)
    null = model.adapter.null_context(tokens)
    assert null.shape == tokens.shape
    np.testing.assert_array_equal(
        null, jnp.broadcast_to(params["adapter"]["null_token"], null.shape)
    )


@pytest.mark.parametrize("batch, part", [(1, 1), (AT_ONCE, AT_ONCE), (6, 3), (7, 1), (32, AT_ONCE)])
def test_the_vae_works_through_a_batch_in_equal_parts(batch, part):
    x, seen = jnp.arange(batch * 6.0).reshape(batch, 2, 3), []

    def function(x):
        seen.append(x.shape)
        return 2 * x.sum(axis=1)

    np.testing.assert_array_equal(in_parts(function, x), 2 * x.sum(axis=1))
    assert set(seen) == {(part, 2, 3)}


def test_codec_is_orthonormal_and_has_the_vaes_interface():
    codec = LappedCodec(patch=4, luma=16, chroma=16, scaling_factor=1.4)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)), jnp.float32)
    latents = codec.encode(images)
    assert latents.shape == (2, 4, 6, 48)
    # With all coefficients kept nothing is lost.
    np.testing.assert_allclose(codec.decode(latents), images, atol=1e-5)
    # What is left out of a smooth ramp leaves no steps at the borders of blocks.
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 48)[:, None, None], (1, 48, 48, 3))
    mean = LappedCodec(patch=6, luma=1, chroma=1, scaling_factor=1.0)
    decoded = mean.decode(mean.encode(ramp))[0, 12:36, 24, 0]
    assert np.abs(np.diff(decoded)).max() < 3 * float(ramp[0, 1, 0, 0] - ramp[0, 0, 0, 0])
    vae = nnx.eval_shape(
        lambda: AutoencoderKL(
            latent_channels=4,
            block_widths=(8, 8, 8),
            layers_per_block=1,
            norm_groups=4,
            scaling_factor=1.0,
            rngs=nnx.Rngs(0),
        )
    )
    assert vae.factor == codec.factor == 4


def test_initial_values_cover_the_model_and_depend_on_path_and_seed_only():
    c = tiny_config(1).model
    params = init.draw_all(c, 0)
    shapes = lambda tree: {k: x.shape for k, x in traverse_util.flatten_dict(tree).items()}
    assert shapes(params) == shapes(imprint.split(c)[1])
    again, other = init.draw("unet", c, 0), init.draw("unet", c, 1)
    kernel = lambda tree: tree["mid_block"]["resnets"]["0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel(again), kernel(params["unet"]))
    assert np.abs(kernel(other) - kernel(again)).mean() > 0.01
    assert abs(kernel(again).std() * np.sqrt(9 * 32) - 1) < 0.05
    blocks = params["dinov2"]["blocks"]["attn"]["qkv"]["kernel"]
    assert np.abs(blocks[0] - blocks[1]).mean() > 0.1
    assert abs(blocks.std() * np.sqrt(16) - 1) < 0.1
    # Nothing starts at what would hide a missing layer, but norms at 1 and biases at 0.
    assert (params["dinov2"]["blocks"]["ls1"]["gamma"] == 1).all()
    assert not params["unet"]["conv_out"]["bias"].any()
