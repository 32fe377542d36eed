"""Encoders from what users have: converted or not, ours or public; CLIP in our own model."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from safetensors.numpy import save_file

from imprint_jax.config.fields import Config, RematConfig
from imprint_jax.errors import InputError
from imprint_jax.evaluation import encoders, perceptual
from imprint_jax.models import imprint, init
from imprint_jax.models.clip import CLIPVision
from imprint_jax.weights import release
from imprint_jax.weights.convert import convert
from tests.evaluation.test_perceptual import head_widths, torch_backbone
from tests.tiny import tiny_config, tiny_recipe

CLIP = dict(
    image_size=28,
    patch_size=14,
    width=16,
    depth=2,
    num_heads=2,
    mlp_width=32,
    projection=8,
    activation="quick_gelu",
)


def clip_config(stage: int):
    c = tiny_config(stage)
    return replace(c, model=replace(c.model, encoder="clip", dinov2=CLIP))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """Converted weights of a tiny CLIP, random."""
    folder = tmp_path_factory.mktemp("clip")
    params = init.draw("dinov2", clip_config(2).model, 0)
    release.write_component(folder, "clip", params)
    (folder / "config.json").write_text(json.dumps({"clip": CLIP, "licences": {"clip": "MIT"}}))
    return folder


def pictures(count: int, size: int) -> list[tuple[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (size, size, 3), dtype=np.uint8),) for _ in range(count)]


def test_our_encoder_gives_the_mean_of_its_tokens(tiny_release):
    encoder = encoders.load(tiny_release)
    assert (encoder.name, encoder.size) == ("imprint", 28)
    items = pictures(3, 28)
    found = np.stack(list(encoder.embed(iter(items))))
    config, params = release.load(tiny_release)
    graphdef, _ = imprint.split(config.model)
    model = imprint.bind(graphdef, params)
    stack = imprint.to_float(jnp.stack([x for (x,) in items]))
    np.testing.assert_allclose(found, model.encode_object(stack).mean(axis=1), atol=1e-5)

    bare = encoders.load(f"{tiny_release}{encoders.BARE}")
    assert bare.name == "dinov2" and bare.weights == encoder.weights
    tokens = model.dinov2.class_and_patches(stack)[:, 0]
    np.testing.assert_allclose(np.stack(list(bare.embed(iter(items)))), tokens, atol=1e-5)


def test_untrained_is_random_but_the_same_each_time(tiny_release):
    one, two = (encoders.untrained(tiny_release) for _ in range(2))
    assert one.weights == two.weights
    items = pictures(1, 28)
    np.testing.assert_array_equal(*(list(x.embed(iter(items))) for x in (one, two)))


def test_clip_gives_its_embedding(clip_folder):
    encoder = encoders.load(clip_folder)
    assert (encoder.name, encoder.size) == ("clip", 28)
    (found,) = encoder.embed(iter(pictures(1, 28)))
    assert found.shape == (8,)


def test_converted_and_original_weights_give_the_same(tmp_path):
    model = tmp_path / "public"
    c = tiny_recipe(2)
    c.model.autoencoder, c.model.vae = (
        "kl",
        dict(
            latent_channels=4,
            block_widths=(8, 8),
            layers_per_block=1,
            norm_groups=4,
            scaling_factor=1.0,
        ),
    )
    c.model.unet.update(in_channels=4, out_channels=4)
    c = Config.of(c)
    release.save(model, c.released(), init.draw_all(c.model, 0), dtype=np.float32)
    convert(model, tmp_path / "torch", to="torch")
    items = pictures(2, 224)
    found = []
    for path in (f"{model}{encoders.BARE}", tmp_path / "torch" / "dinov2"):
        encoder = encoders.load(path)
        assert encoder.name == "dinov2"
        found.append(np.stack(list(encoder.embed(iter(items)))))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_what_is_no_encoder_is_refused(tmp_path, tiny_release):
    with pytest.raises(InputError, match="no model 'nowhere'"):
        encoders.load("nowhere")
    alone = tmp_path / "vae"
    alone.mkdir()
    (alone / "config.json").write_bytes((tiny_release / "config.json").read_bytes())
    (alone / "vae.safetensors").write_bytes((tiny_release / "vae.safetensors").read_bytes())
    with pytest.raises(InputError, match="holds vae: no image encoder"):
        encoders.load(alone)


def test_clip_in_the_place_of_dinov2_reaches_the_context():
    c = clip_config(2)
    graphdef, abstract = imprint.split(c.model, remat=RematConfig(dinov2=True, unet=False))
    params = init.draw_all(c.model, 0)
    shapes = lambda tree: {k: x.shape for k, x in traverse_util.flatten_dict(tree).items()}
    assert shapes(params) == shapes(abstract)
    objects = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 28, 28, 3)), jnp.float32)

    @jax.jit
    @jax.grad
    def sensitivity(objects):
        return (imprint.bind(graphdef, params).encode_object(objects) ** 3).sum()

    context = imprint.bind(graphdef, params).encode_object(objects)
    assert context.shape == (1, 1 + 4, 16)
    assert np.abs(sensitivity(objects)).min() > 0
    module = imprint.bind(graphdef, params).dinov2
    assert isinstance(module, CLIPVision)
    np.testing.assert_allclose(
        module.class_and_patches(objects)[:, 0] @ module.proj.kernel[...],
        module(module.normalize(objects)),
        atol=1e-5,
    )


def test_a_model_with_clip_is_released_and_found_again(tmp_path):
    c = clip_config(2)
    release.save(tmp_path / "model", c.released(), init.draw_all(c.model, 0))
    assert release.load(tmp_path / "model")[0].model.encoder == "clip"
    encoder = encoders.load(tmp_path / "model")
    assert encoder.name == "imprint"
    (found,) = encoder.embed(iter(pictures(1, 28)))
    assert np.isfinite(found).all()
    with pytest.raises(InputError, match="is CLIP's; only models whose encoder is DINOv2"):
        convert(tmp_path / "model", tmp_path / "torch", to="torch")


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_backbone_is_an_encoder_with_its_heads_or_without(network, tmp_path):
    backbone = torch_backbone(network, 0)
    state = {f"features.{k}": x.numpy() for k, x in backbone.state_dict().items()}
    save_file(state, tmp_path / "network.safetensors")
    alone = encoders.load(tmp_path / "network.safetensors")
    heads = {f"lin{k}.model.1.weight": np.ones((1, w, 1, 1), np.float32)
             for k, w in enumerate(head_widths(network))}  # fmt: skip
    save_file(heads, tmp_path / "heads.safetensors")
    encoder = encoders.load(tmp_path)
    assert (encoder.name, encoder.size, encoder.weights) == ("imagenet", 224, alone.weights)
    picture = pictures(1, 224)[0][0]
    shown = (picture / 127.5 - 1 - perceptual.SHIFT) / perceptual.SCALE
    with torch.no_grad():
        features = backbone(torch.tensor(shown.transpose(2, 0, 1)[None], dtype=torch.float32))
    unit = features / features.norm(dim=1, keepdim=True).clamp(min=1e-10)
    found = next(iter(encoder.embed(iter([(picture,)]))))
    np.testing.assert_allclose(found, unit.mean(dim=(2, 3))[0], atol=1e-4)


def test_what_holds_no_encoder_is_refused(tmp_path):
    save_file({"features.0.weight": np.zeros((1, 3, 1, 1), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="is not recognised"):
        encoders.load(tmp_path / "x.safetensors")
