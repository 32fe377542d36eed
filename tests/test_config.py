"""What a configuration refuses, and in which words; recipes and JSON in and out."""

import json
from dataclasses import replace

import pytest

from imprint_jax import config
from imprint_jax.config.fields import Config, DataConfig, DiffusionConfig, SamplingConfig
from imprint_jax.config.section import Section
from imprint_jax.errors import InputError

CHOICES = ("prediction_type", "background_mode", "mask_channel", "hole_fill")


@pytest.mark.parametrize("field", CHOICES)
def test_unknown_choices_are_refused(field):
    with pytest.raises(InputError, match=rf"config\.diffusion\.{field} is 'other'; it may be one"):
        DiffusionConfig(**{field: "other"})


@pytest.mark.parametrize(
    "section, content, message",
    [
        (Config, dict(nope=1), "config has no field 'nope'; its fields: stage, seed"),
        (
            Config,
            dict(optim=dict(warmup=5)),
            "config.optim has no field 'warmup'; its fields: warm",
        ),
        (Config, dict(optim=3), "config.optim = 3 must be a section with fields"),
        (Config, dict(model=dict(unet={})), "config.model lacks 'dinov2', 'adapter', 'vae'"),
        (Config, [], "config = [] must be a section with fields"),
        (Config, dict(batch_size=8.0), "config.batch_size = 8.0 must be a whole number"),
        (Config, dict(batch_size=True), "config.batch_size = True must be a whole number"),
        (Config, dict(dtype=1), "config.dtype = 1 must be text"),
        (Config, dict(min_snr_gamma="5"), "config.min_snr_gamma = '5' must be a number"),
        (Config, dict(drop_probability=float("nan")), "drop_probability = nan must be from 0 to 1"),
        (DiffusionConfig, dict(final_blend=1), "final_blend = 1 must be True or False"),
        (SamplingConfig, dict(mask_level=4), "config.sampling.mask_level = 4 must be from 0 to 3"),
        (
            SamplingConfig,
            dict(sampler="euler"),
            "sampler is 'euler'; it may be one of ddim, dpm++2m",
        ),
        (DataConfig, dict(mask_sigmas=0.1), "config.data.mask_sigmas = 0.1 must be a tuple"),
        (
            DataConfig,
            dict(mask_sigmas=[0.1]),
            "config.data.mask_sigmas = [0.1] must have 2 entries",
        ),
        (DataConfig, dict(share=[0.1, "x"]), "config.data.share[1] = 'x' must be a number"),
        (DataConfig, dict(share=[0.4, 0.1]), "must be (), or the least and the largest share"),
        (
            DataConfig,
            dict(sources=[dict(kind="views", weight=1, size=2)]),
            "config.data.sources[0] has no field 'size'",
        ),
        (
            DataConfig,
            dict(sources=[dict(kind="pasted", records="r", weight=1)]),
            "lacks 'backgrounds'",
        ),
    ],
)
def test_what_cannot_be_is_refused(section: type[Section], content, message):
    with pytest.raises(InputError) as error:
        section.of(content)
    assert message in str(error.value)


def test_sections_must_suit_each_other():
    with pytest.raises(InputError, match=r"in_channels is 4; with .* it must be 9"):
        Config(diffusion=DiffusionConfig(background_mode="concat"))
    with pytest.raises(InputError, match="has kind 'views' in stage 2; stage 1 takes views"):
        Config(stage=2, data=DataConfig(sources=(dict(kind="views", records="r", weight=1.0),)))
    with pytest.raises(InputError, match=r"config\.model\.dinov2 has no field 'mlp', 'num_reg"):
        Config.of({"model": Config().model.to_dict() | {"encoder": "clip"}})
    with pytest.raises(
        InputError, match=r"config\.model\.autoencoder is 'vq'; it may be one of kl"
    ):
        replace(Config().model, autoencoder="vq")
    with pytest.raises(InputError, match="object_view is for composing"):
        Config(object_view=dict(fit="stretch"))


@pytest.mark.parametrize("name", ["stage2", "mini_stage1", "ablations/clip_encoder:mini,1"])
def test_json_and_recipe_say_the_same(name):
    c = Config.of(config.load(name))
    saved = json.loads(json.dumps(c.to_dict()))
    assert Config.of(saved) == c  # lists become tuples again
    assert saved == json.loads(config.load(name).to_json())
    assert Config.of(c.recipe()) == c


def test_overrides_take_tuples_and_lists():
    of = lambda value: Config.of(config.load("stage1", [f"--config.data.share={value}"])).data.share
    assert of("(0.1, 0.2)") == of("[0.1, 0.2]") == (0.1, 0.2)
