"""What a run may start from."""

import json
from dataclasses import replace

import numpy as np
import pytest

from imprint_jax import config
from imprint_jax.config.fields import Config, InitFromConfig
from imprint_jax.errors import InputError
from imprint_jax.models import imprint, init
from imprint_jax.training import initialize, optimizer
from imprint_jax.weights import release
from tests.tiny import tiny_config

CLIP = dict(
    image_size=28,
    patch_size=14,
    width=32,
    depth=2,
    num_heads=2,
    mlp_width=64,
    projection=16,
    activation="quick_gelu",
)


def test_a_four_channel_unet_starts_one_with_nine(tmp_path):
    c = tiny_config(2)
    params = init.draw_all(c.model, 0)
    release.save(tmp_path, c.released(), params, {"unet": "CreativeML OpenRAIL-M"})
    channels = c.model.unet.out_channels

    def load(in_channels):
        abstract = imprint.abstract(replace(c.model.unet, in_channels=in_channels))
        return initialize.load_component(str(tmp_path), "unet", abstract)

    few = load(channels)["conv_in"]["kernel"]
    many = load(2 * channels + 1)["conv_in"]["kernel"]
    np.testing.assert_array_equal(many[:, :, :channels], few)
    assert many.shape[2] == 2 * channels + 1 and not many[:, :, channels:].any()
    with pytest.raises(InputError, match=rf"conv_in.kernel \(3, 3, {channels}, 16\)"):
        load(channels + 3)
    licences = initialize.inherited_licences(InitFromConfig(unet=str(tmp_path)))
    assert licences == {"unet": "CreativeML OpenRAIL-M"}


def test_converted_clip_takes_the_place_of_dinov2(tmp_path):
    model = replace(tiny_config(2).model, encoder="clip", dinov2=CLIP)
    params = init.draw("dinov2", model, 0)
    release.write_component(tmp_path, "clip", params)
    settings = {"clip": CLIP, "licences": {"clip": "MIT"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    load = lambda abstract: initialize.load_component(str(tmp_path), "dinov2", abstract)
    loaded = load(imprint.abstract(model.dinov2))
    kernel = lambda params: params["blocks"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel(loaded), kernel(params))
    start = InitFromConfig(dinov2=str(tmp_path))
    assert initialize.inherited_licences(start) == {"dinov2": "MIT"}
    with pytest.raises(InputError, match="does not fit the configuration"):
        load(imprint.abstract(tiny_config(2).model.dinov2))


def test_recipes_from_public_compositors():
    """Which parts of the UNet train, at which rate."""
    recipe = lambda name, part: Config.of(config.load(f"finetune_from_{name}:{part}"))
    model = recipe("objectstitch", "unet").model
    params = {"adapter": imprint.abstract(model.adapter), "unet": imprint.abstract(model.unet)}
    block = "unet/mid_block/attentions/0/transformer_blocks/0"
    for name in ("objectstitch", "paint_by_example"):
        for part in ("adapter", "unet"):
            c = recipe(name, part)
            assert c.model == model
            labels = optimizer.label_params(params, c.groups)
            rates = {path: config.rate(c.groups, label) for path, label in labels.items()}
            assert all(rate for path, rate in rates.items() if path.startswith("adapter/"))
            trained = {path for path, rate in rates.items() if path.startswith("unet/") and rate}
            if part == "adapter":
                assert not trained
                continue
            untrained = name == "paint_by_example"  # its queries and keys had no gradient
            assert (
                rates[f"{block}/attn2/to_k/kernel"] == rates[f"{block}/attn2/to_q/kernel"] == 4e-5
            )
            assert rates[f"{block}/attn2/to_v/kernel"] == (4e-6 if untrained else 4e-5)
            assert rates[f"{block}/norm2/scale"] == (4e-5 if untrained else None)
            parts = ("/attn2/", "/transformer_blocks/0/norm2/")
            assert all(any(part in path for part in parts) for path in trained)
