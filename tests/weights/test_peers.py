"""Paint-by-Example and ObjectStitch: converted, they do what their own code does."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from diffusers.pipelines.deprecated import paint_by_example
from PIL import Image
from scipy import ndimage

from imprint_jax.composing.compositor import Compositor
from imprint_jax.config.fields import CLIPConfig, MapperConfig
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.weights import clip, mapping, peers, release
from imprint_jax.weights.convert import convert
from imprint_jax.weights.detect import find
from imprint_jax.weights.tensors import open_tensors, write_tensors
from tests.commands import run
from tests.parity import reference
from tests.weights.test_convert import assert_equal, check_shapes, tensors_of

# From 5 steps on "leading" steps are as in diffusers; fewer begin at the end of the schedule.
STEPS, GUIDANCE = 5, 5.0


@pytest.fixture(scope="module")
def pipeline():
    return reference.paint_by_example()


@pytest.fixture(scope="module")
def published(pipeline, tmp_path_factory):
    """The pipeline's folder, with model_index.json as the files of 2022 have it."""
    folder = tmp_path_factory.mktemp("published") / "paint_by_example"
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["image_encoder"][0] = "paint_by_example"
    index.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "paint_by_example"
    convert(published, folder)
    return folder


@pytest.fixture(scope="module")
def objectstitch(tmp_path_factory):
    """A tiny ObjectStitch.pth.

    Its UNet has the heads and groups that a file without config.json stands for, its CLIP heads of
    64 channels.

    Returns:
        The folder of ObjectStitch.pth, without_clip.pth and clip/; the image encoder in diffusers'
        words, and its weights in the original names.
    """
    folder = tmp_path_factory.mktemp("objectstitch")
    unet = reference.unet(attention_head_dim=8, norm_num_groups=32, in_channels=9)
    vae = reference.vae(block_out_channels=(32, 64, 64), norm_num_groups=32)
    encoder = reference.image_encoder(hidden_size=128, projection_dim=24, num_attention_heads=2)
    state = reference.original_checkpoint(unet.state_dict(), vae.state_dict())["state_dict"]
    state = {key: x for key, x in state.items() if "cond_stage" not in key}
    condition = reference.original_condition(encoder)
    torch.save({"state_dict": state | condition}, folder / "ObjectStitch.pth")
    bare = {key: x for key, x in condition.items() if ".transformer." not in key}
    torch.save({"state_dict": state | bare}, folder / "without_clip.pth")
    whole = transformers.CLIPVisionModelWithProjection(encoder.config)
    reference.randomize(whole).save_pretrained(folder / "clip")
    return folder, encoder, condition


def pictures() -> tuple[Image.Image, Image.Image, Image.Image]:
    """A photo, its hole, and a square example."""
    rng = np.random.default_rng(0)
    noise = lambda h, w: Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
    photo = noise(8, 8).resize((64, 64), Image.Resampling.BICUBIC)
    example = noise(5, 5).resize((32, 32), Image.Resampling.BICUBIC)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:40] = 255  # on the borders of cells: every way to shrink it gives the same
    return photo, Image.fromarray(mask), example


def test_paint_by_example_equals_diffusers(pipeline, converted):
    config, params = release.load(converted)
    assert (config.image_size, config.object_size) == (64, 32)
    graphdef, _ = imprint.split(config.model)
    photo, mask, example = pictures()
    key = jax.random.key(7)[None]
    noise = jax.random.normal(key[0], (16, 16, 4))  # as `sampling.denoise` draws it
    photos, objects = (imprint.to_float(jnp.asarray(image)[None]) for image in (photo, example))
    hole = (np.asarray(mask) > 127)[None, ..., None].astype(np.float32)

    @jax.jit
    def run(params, objects, photos, hole):
        model = imprint.bind(graphdef, params)
        context = model.encode_object(objects)
        background, cells = model.encode_background(photos, hole, config.diffusion.hole_fill)
        # In the place of the decoder, which clips: a power of two loses nothing.
        undecoded = SimpleNamespace(decode=lambda latents: latents / 64)
        parts = SimpleNamespace(unet=model.unet, adapter=model.adapter, vae=undecoded)
        choices = sampling.Choices(STEPS, "ddim", config.sampling.spacing)
        how = dict(diffusion=config.diffusion, choices=choices)
        denoised = sampling.denoise(parts, context, background, cells, key, GUIDANCE, **how)
        latents = 64 * sampling.decode(parts, denoised)
        picture = jnp.clip(model.vae.decode(latents), -1.0, 1.0)
        return context, model.adapter.null_context(context), background, latents, picture

    context, null, background, latents, picture = run(params, objects, photos, hole)

    with torch.no_grad():
        pixels = pipeline.feature_extractor(images=example, return_tensors="pt").pixel_values
        want, want_null = pipeline.image_encoder(pixels, return_uncond_vector=True)
        masked = nchw(np.asarray(photos) * (1 - hole))
        masked_latents = pipeline.vae.encode(masked).latent_dist.mode() * 0.18215
        run_theirs = partial(
            pipeline,
            example_image=example,
            image=photo,
            mask_image=mask,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=nchw(np.asarray(noise)[None]),
        )
        want_latents = run_theirs(output_type="latent").images
        result = run_theirs(output_type="pt").images
    assert np.abs(want.numpy()).max() > 0.3 and np.abs(want_latents.numpy()).max() > 1
    close = partial(np.testing.assert_allclose, rtol=0)
    close(context, want.numpy(), atol=1e-6)
    np.testing.assert_array_equal(null, want_null.detach().numpy())
    close(background, nhwc(masked_latents), atol=5e-6)
    # Random weights' latents reach 50, which float32 rounds in the sixth digit.
    np.testing.assert_allclose(latents, nhwc(want_latents), rtol=1e-5, atol=2e-5)
    close(np.asarray(picture) / 2 + 0.5, nhwc(result), atol=1e-5)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.numpy().transpose(0, 2, 3, 1)


def test_all_names_give_the_same(pipeline, converted, tmp_path):
    """The original checkpoint's, and both spellings of CLIP's in image_encoder/."""
    encoder = pipeline.image_encoder
    shorter = {
        key.replace("model.vision_model.", "model."): x for key, x in encoder.state_dict().items()
    }
    longer = {
        key.replace("model.", "model.vision_model.", 1) if key.startswith("model.") else key: x
        for key, x in shorter.items()
    }
    original = reference.original_condition(encoder)
    model = release.load_config(converted).model
    for number, (state, rename) in enumerate(
        [(shorter, dict), (longer, dict), (original, peers.diffusers_names)]
    ):
        file = tmp_path / f"{number}.safetensors"
        safetensors.torch.save_file({k: x.contiguous() for k, x in state.items()}, file)
        parts = peers.split(rename(open_tensors(file)))
        assert peers.mapper_settings(parts[1], "x") == model.adapter.to_dict()
        tables = (clip.hf_table, peers.mapper_table)
        for name, make_table, part in zip(("dinov2", "adapter"), tables, parts, strict=True):
            abstract = imprint.abstract(getattr(model, name))
            arrays = mapping.parameters(make_table(abstract), part, abstract, "x")
            read = {f"{name}.{path.replace('/', '.')}": array for path, array in arrays}
            assert_equal(read, tensors_of(converted / f"{name}.safetensors"))


def test_diffusers_loads_what_is_written_for_it(pipeline, converted, tmp_path, monkeypatch):
    convert(converted, tmp_path / "torch", to="torch")
    # diffusers has moved the module, and cannot find it by the name that published folders have.
    monkeypatch.setattr(diffusers.pipelines, "paint_by_example", paint_by_example, raising=False)
    again = diffusers.PaintByExamplePipeline.from_pretrained(
        tmp_path / "torch", local_files_only=True
    )
    for name in ("unet", "vae", "image_encoder"):
        want, state = (getattr(p, name).state_dict() for p in (pipeline, again))
        assert state.keys() == want.keys()
        assert all(torch.equal(state[key], want[key]) for key in want), name
    schedule, written = pipeline.scheduler.config, again.scheduler.config
    for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset", "set_alpha_to_one"):
        assert written[key] == schedule[key]
    size = again.feature_extractor.crop_size
    assert (size["height"], size["width"]) == (32, 32)
    convert(tmp_path / "torch", tmp_path / "again")
    assert_equal(tensors_of(tmp_path / "again"), tensors_of(converted))
    assert release.load_config(tmp_path / "again") == release.load_config(converted)


def torch_condition(encoder, weights: dict, pixels: torch.Tensor) -> torch.Tensor:
    """ObjectStitch's condition in plain PyTorch, by the original names.

    All tokens of CLIP through its last norm, the mapper's blocks of one head, a norm, a linear
    layer (FrozenCLIPImageEmbedder and LatentDiffusion in bcmi/ObjectStitch-Image-Composition).
    """
    layer = lambda name: (weights[f"{name}.weight"], weights[f"{name}.bias"])
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], *layer(name))
    linear = lambda x, name: F.linear(x, *layer(name))
    x = encoder.model(pixel_values=pixels).last_hidden_state
    x = norm(x, "cond_stage_model.transformer.vision_model.post_layernorm")
    for i in range(2):
        block = f"cond_stage_model.mapper.resblocks.{i}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_qkv").chunk(3, dim=-1)
        attended = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v
        x = x + linear(attended, f"{block}.attn.c_proj")
        hidden = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    return linear(norm(x, "cond_stage_model.final_ln"), "proj_out")


def test_objectstitchs_condition(objectstitch, tmp_path):
    folder, encoder, weights = objectstitch
    convert(folder / "ObjectStitch.pth", tmp_path / "ours", kind="objectstitch")
    config, params = release.load(tmp_path / "ours")
    graphdef, _ = imprint.split(config.model)
    model = imprint.bind(graphdef, params)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
    got = model.encode_object(images)
    with torch.no_grad():
        pixels = nchw(np.asarray(model.dinov2.normalize(images)))
        want = torch_condition(encoder, weights, pixels).numpy()
    assert got.shape == (2, 17, 24) and np.abs(want).max() > 0.3
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    null = model.adapter.null_context(got)
    np.testing.assert_array_equal(null[1, 16], weights["learnable_vector"].numpy()[0, 0])


def test_clip_may_come_from_its_own_folder(objectstitch, tmp_path):
    folder, _, _ = objectstitch
    file, how = folder / "without_clip.pth", dict(kind="objectstitch")
    with pytest.raises(InputError, match=r"lacks CLIP ViT-L/14: give --clip"):
        convert(file, tmp_path / "refused", **how)
    convert(folder / "clip", tmp_path / "clip")
    for name, clip_folder in (("a", folder / "clip"), ("b", tmp_path / "clip")):
        convert(file, tmp_path / name, **how, clip_folder=clip_folder)
    assert_equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    assert release.load_config(tmp_path / "a").model.dinov2.projection == 0
    with pytest.raises(InputError, match="holds its own CLIP: leave out --clip"):
        convert(
            folder / "ObjectStitch.pth",
            tmp_path / "refused",
            **how,
            clip_folder=tmp_path / "clip",
        )
    with pytest.raises(InputError, match="is no CLIP: --clip takes"):
        convert(file, tmp_path / "refused", **how, clip_folder=tmp_path / "a")
    assert not (tmp_path / "refused").exists()


@pytest.fixture(scope="module")
def stitcher(objectstitch, tmp_path_factory):
    """The tiny ObjectStitch as a released folder."""
    folder = tmp_path_factory.mktemp("stitcher") / "os"
    convert(objectstitch[0] / "ObjectStitch.pth", folder, kind="objectstitch")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_size": 64}))
    return folder


def test_they_compose(converted, stitcher):
    """A photo of another size than the model's, several pictures in a batch, paste-back."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    thing = rng.integers(0, 256, (40, 50, 4), dtype=np.uint8)
    thing[..., 3] = 255 * (np.arange(50) > 9)
    hole = np.hypot(*np.mgrid[-40:50, -60:70]) < 20
    box = np.zeros_like(hole)
    box[21:60, 41:80] = True  # ObjectStitch knows no other holes
    for folder, changed in ((converted, hole), (stitcher, box)):
        compositor = Compositor.from_pretrained(folder)
        made = compositor.samples(thing, photo, hole, num=2, num_steps=2)
        first, second = (np.asarray(picture) for picture in made)
        assert (first != second).any()
        far = ~ndimage.binary_dilation(changed, iterations=4)
        np.testing.assert_array_equal(first[far], photo[far])
        assert (first != photo).any(-1)[changed].mean() > 0.9


@pytest.mark.slow
def test_one_report_has_all_models_and_baselines(converted, stitcher, tiny_release, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("object", "background"):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.pad(np.full((30, 40), 255, np.uint8), ((15, 15), (20, 20)))).save(
        tmp_path / "mask.png"
    )
    entry = dict(object="object.png", object_mask="mask.png", background="background.png")
    entries = [entry | dict(id=f"entry{i}", box=[10 * i, 5, 30 + 10 * i, 50]) for i in range(2)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    methods = ["mini", f"IMPRINT={tiny_release}", f"PbE={converted}", f"ObjectStitch={stitcher}"]
    arguments = [x for method in methods for x in ("--model", method)]
    arguments += ["--baseline", "paste", "--baseline", "poisson", "--steps", 2]
    arguments += ["--out", tmp_path / "report"]
    code, said = run("evaluate", "--manifest", tmp_path / "manifest.jsonl", *arguments)
    assert code == 0, said
    summary = json.loads((tmp_path / "report/summary.json").read_text())["methods"]
    assert set(summary) == {"mini", "IMPRINT", "PbE", "ObjectStitch", "paste", "poisson"}
    assert len({json.dumps(scores, sort_keys=True) for scores in summary.values()}) == 6
    page = (tmp_path / "report/index.html").read_text()
    assert all(name in page for name in summary)


def test_a_cut_out_is_said_once_where_the_photo_around_an_object_is_seen(converted, caplog):
    """Paint-by-Example was trained on objects in their photos."""
    rng = np.random.default_rng(0)
    photo, thing = rng.integers(0, 256, (2, 60, 60, 3), dtype=np.uint8)
    mask = np.hypot(*np.mgrid[-30:30, -30:30]) < 20
    compositor = Compositor.from_pretrained(converted)
    compositor(thing, photo, mask, object_mask=mask, num_steps=1)
    assert "surrounds it" not in caplog.text
    white = np.where(mask[..., None], thing, np.uint8(255))
    compositor(np.dstack([thing, 255 * mask.astype(np.uint8)]), photo, mask, num_steps=1)
    compositor(white, photo, mask, object_mask=mask, num_steps=1)
    compositor = Compositor.from_pretrained(converted)
    compositor(white, photo, mask, object_mask=mask, num_steps=1)
    told = [line for line in caplog.messages if "surrounds it" in line]
    assert len(told) == 2 and "it is black:" in told[0] and "it is white:" in told[1]


def test_full_size_names_and_shapes():
    """At full size, without weights: all 476 names and shapes of the published image_encoder/."""
    settings = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    with torch.device("meta"):
        encoder = paint_by_example.PaintByExampleImageEncoder(settings)
    state = {
        key.replace("model.vision_model.", "model."): x for key, x in encoder.state_dict().items()
    }
    state = {key.replace("model.", "model.vision_model."): x for key, x in state.items()}
    assert len(state) == 476
    tower = dict(image_size=224, patch_size=14, width=1024, depth=24, num_heads=16, mlp_width=4096)
    tower |= dict(projection=0, activation="quick_gelu")
    adapter = dict(width_in=1024, width=768, depth=5, num_heads=1, mlp_width=4096)
    for section, make_table, is_tower in (
        (CLIPConfig(**tower), peers.tower_table, True),
        (MapperConfig(**adapter), peers.mapper_table, False),
    ):
        part = {key: x for key, x in state.items() if key.startswith("model.") == is_tower}
        abstract = imprint.abstract(section)
        check_shapes(make_table(abstract), abstract, part)


# What is refused.


def test_a_folder_that_lacks_a_part(published, tmp_path):
    for part in ("image_encoder", "vae", "unet"):
        shutil.copytree(published, tmp_path / part)
        shutil.rmtree(tmp_path / part / part)
        with pytest.raises(InputError, match=f"lacks {part}"):
            convert(tmp_path / part, tmp_path / "refused")
    shutil.copytree(published, tmp_path / "null")
    file = tmp_path / "null/image_encoder/model.safetensors"
    tensors = {key: x.read() for key, x in open_tensors(file).items()}
    del tensors["uncond_vector"]
    write_tensors(file, tensors, {"format": "pt"})
    with pytest.raises(InputError, match="it lacks uncond_vector"):
        convert(tmp_path / "null", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_another_familys_file(published, objectstitch, tmp_path):
    state = torch.load(objectstitch[0] / "ObjectStitch.pth", weights_only=True)["state_dict"]
    own = ("model.diffusion_model.", "first_stage_model.")
    torch.save({k: x for k, x in state.items() if k.startswith(own)}, tmp_path / "inpainting.ckpt")
    for kind in ("paint-by-example", "objectstitch"):
        with pytest.raises(InputError, match="is no Paint-by-Example's: it lacks"):
            find(tmp_path / "inpainting.ckpt", kind)
    with pytest.raises(InputError, match="of the kind paint-by-example, not dinov2"):
        find(published, "dinov2")
    with pytest.raises(InputError, match="--clip belongs to"):
        find(published / "unet", "sd-inpainting", clip_folder=tmp_path)
    shutil.copytree(published, tmp_path / "four")
    shutil.rmtree(tmp_path / "four/unet")
    reference.unet().save_pretrained(tmp_path / "four/unet")
    with pytest.raises(InputError, match="takes 4 channels, no mask or background"):
        find(tmp_path / "four")
