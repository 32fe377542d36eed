"""Weights there and back, bit for bit; and what is said of files that do not fit."""

import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import diffusers
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers.loaders import single_file_utils
from flax import traverse_util

from imprint_jax.config import Config
from imprint_jax.errors import InputError
from imprint_jax.models import imprint, init
from imprint_jax.weights import detect, dinov2, mapping, release, stable_diffusion
from imprint_jax.weights.convert import convert
from imprint_jax.weights.detect import find
from imprint_jax.weights.tensors import (
    CHECKPOINT_CALLBACK,
    open_tensors,
    weights_hash,
    write_tensors,
)
from tests.parity import reference
from tests.tiny import tiny_config, tiny_recipe


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    """A tiny Stable Diffusion as diffusers writes it."""
    folder = tmp_path_factory.mktemp("sd")
    reference.unet().save_pretrained(folder / "unet")
    reference.vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    reference.dinov2(registers=4, swiglu=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A Stable Diffusion with the heads and groups that original files take for granted.

    Returns:
        Its folder of diffusers, and both networks' weights.
    """
    folder = tmp_path_factory.mktemp("original")
    unet = reference.unet(attention_head_dim=8, norm_num_groups=32)
    vae = reference.vae(block_out_channels=(32, 64, 64), norm_num_groups=32)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    return folder, unet.state_dict(), vae.state_dict()


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a released folder or of a file."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    return {
        f"{file.stem}.{key}": tensor.read()
        for file in files
        for key, tensor in open_tensors(file).items()
    }


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for key, x in ours.items():
        assert x.dtype == theirs[key].dtype, key
        assert x.tobytes() == theirs[key].tobytes(), key


def assert_untouched(folder: Path) -> None:
    """Nothing was written, hidden files included."""
    assert not list(folder.parent.glob(f"*{folder.name}*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stable_diffusion_there_and_back(tmp_path, dtype):
    unet, vae = reference.unet().to(dtype), reference.vae().to(dtype)
    unet.save_pretrained(tmp_path / "sd/unet")
    vae.save_pretrained(tmp_path / "sd/vae")
    convert(tmp_path / "sd", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")

    for name, theirs in (("unet", unet), ("vae", vae)):
        again, info = type(theirs).from_pretrained(
            tmp_path / "torch" / name, torch_dtype=dtype, output_loading_info=True
        )
        assert not any(info.values()), info
        assert again.state_dict().keys() == theirs.state_dict().keys()
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key
        mine = again.config
        for key in reference.UNET if name == "unet" else reference.VAE:
            assert np.array_equal(mine[key], theirs.config[key]), key

    convert(tmp_path / "torch", tmp_path / "again")
    assert_equal(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "ours"))


@pytest.mark.parametrize("registers, swiglu", [(4, True), (4, False), (0, True), (0, False)])
def test_dinov2_there_and_back(tmp_path, registers, swiglu):
    theirs = reference.dinov2(registers=registers, swiglu=swiglu)
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")
    again, info = type(theirs).from_pretrained(tmp_path / "torch/dinov2", output_loading_info=True)
    assert not any(info.values()), info
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    # The names on disk are the same too.
    files = (tmp_path / name / "model.safetensors" for name in ("theirs", "torch/dinov2"))
    written, read = (open_tensors(file) for file in files)
    assert weights_hash(written) == weights_hash(read)


def test_clip_there_and_back(tmp_path):
    theirs = reference.clip()
    theirs.save_pretrained(tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")
    tower, info = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path / "torch/clip", output_loading_info=True
    )
    assert not any(info.values()), info
    images = torch.randn(2, 3, 64, 64)
    want = theirs.get_image_features(pixel_values=images).pooler_output
    assert torch.equal(tower(images).image_embeds, want)
    convert(tmp_path / "torch/clip", tmp_path / "again")
    assert_equal(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "ours"))


def save_original(path: Path, checkpoint: dict) -> None:
    if path.suffix == ".safetensors":
        state = {key: x.contiguous() for key, x in checkpoint["state_dict"].items()}
        safetensors.torch.save_file(state, path)
    else:
        torch.save(checkpoint, path)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_the_original_checkpoint_equals_diffusers(tmp_path, original, name):
    folder, unet, vae = original
    checkpoint = reference.original_checkpoint(unet, vae)
    # diffusers' own reading of the names agrees with the test's idea of them.
    settings = dict(reference.UNET, class_embed_type=None, use_linear_projection=False)
    judged = single_file_utils.convert_ldm_unet_checkpoint(checkpoint["state_dict"], settings)
    assert judged.keys() == unet.keys()
    assert all(torch.equal(judged[key], unet[key]) for key in unet)

    save_original(tmp_path / name, checkpoint)
    convert(tmp_path / name, tmp_path / "original")
    convert(folder, tmp_path / "diffusers")
    assert_equal(tensors_of(tmp_path / "original"), tensors_of(tmp_path / "diffusers"))
    # Without a config.json the number of heads and groups is Stable Diffusion's.
    model = release.load_config(tmp_path / "original").model
    assert (model.unet.num_heads, model.unet.norm_groups) == (8, 32)


def test_averaged_weights_are_taken_where_there_are_any(tmp_path, original):
    folder, averaged, vae = original
    trained = {key: x + 1 for key, x in averaged.items()}
    checkpoint = reference.original_checkpoint(trained, vae, ema=averaged)
    torch.save(checkpoint, tmp_path / "full-ema.ckpt")
    convert(tmp_path / "full-ema.ckpt", tmp_path / "original")
    convert(folder, tmp_path / "diffusers")
    assert_equal(tensors_of(tmp_path / "original"), tensors_of(tmp_path / "diffusers"))

    del checkpoint["state_dict"]["model_ema.diffusion_modelout2bias"]
    torch.save(checkpoint, tmp_path / "part.ckpt")
    with pytest.raises(InputError, match=r"lacks the averaged \(EMA\) out\.2\.bias"):
        convert(tmp_path / "part.ckpt", tmp_path / "part")


def test_the_original_dinov2_equals_hugging_faces(tmp_path, dinov2_folder):
    # Heads of 64 channels, as all published models have: the file does not say.
    theirs = transformers.Dinov2WithRegistersConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    model = reference.randomize(transformers.Dinov2WithRegistersModel(theirs))
    model.save_pretrained(tmp_path / "hf")
    state = safetensors.torch.load_file(tmp_path / "hf/model.safetensors")
    torch.save(reference.original_dinov2(state), tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    convert(tmp_path / "hf", tmp_path / "a")
    convert(tmp_path / "dinov2_vits14_reg4_pretrain.pth", tmp_path / "b")
    assert_equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    settings = [release.load_config(tmp_path / name).to_dict() for name in "ab"]
    assert settings[0] == settings[1]
    assert settings[0]["model"]["dinov2"]["num_heads"] == 2


def test_old_attention_names_and_other_files_of_a_folder(tmp_path, sd_folder):
    convert(sd_folder, tmp_path / "want")
    want = tensors_of(tmp_path / "want")

    old = dict(to_q="query", to_k="key", to_v="value", to_out="proj_attn")
    state = {}
    for key, tensor in reference.vae().state_dict().items():
        for new, word in old.items():
            key = key.replace(f"attentions.0.{new}.0", f"attentions.0.{word}")
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{word}.")
        state[key] = tensor
    assert any("proj_attn" in key for key in state)
    folder = tmp_path / "old"
    reference.unet().save_pretrained(folder / "unet", max_shard_size="2MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    reference.vae().save_pretrained(folder / "vae", safe_serialization=False)
    torch.save(state, folder / "vae/diffusion_pytorch_model.bin")
    convert(folder, tmp_path / "old_ours")
    assert_equal(tensors_of(tmp_path / "old_ours"), want)

    shard = sorted((folder / "unet").glob("*.safetensors"))[0]
    shard.rename(folder / "gone")
    with pytest.raises(InputError, match=rf"{shard.name} is missing"):
        find(folder)

    variant = tmp_path / "variant"
    reference.unet().save_pretrained(variant / "unet", variant="fp16")
    reference.vae().save_pretrained(variant / "vae", safe_serialization=False)
    convert(variant, tmp_path / "variant_ours")
    assert_equal(tensors_of(tmp_path / "variant_ours"), want)


def test_components_share_a_folder(tmp_path, sd_folder, dinov2_folder):
    convert(sd_folder, tmp_path / "ours")
    convert(dinov2_folder, tmp_path / "ours")
    released = release.load_config(tmp_path / "ours")
    assert released.model.dinov2.width == released.model.adapter.width_in == 48
    assert released.model.unet.context_width == released.model.adapter.width == 24
    for component in ("unet", "vae", "dinov2"):
        params = release.load_component(tmp_path / "ours", component)
        assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    with pytest.raises(InputError, match=r"not a whole model: .*adapter.safetensors missing"):
        release.load(tmp_path / "ours")
    with pytest.raises(InputError, match="holds unet, vae already"):
        convert(sd_folder, tmp_path / "ours")
    # Networks of other sizes than the published ones are not what was published.
    licences = release.load_licences(tmp_path / "ours")
    assert licences == {"unet": "not stated", "vae": "not stated", "dinov2": "not stated"}


def test_a_folder_is_not_made_one_of_two_models(tmp_path, sd_folder, tiny_release):
    """What is added leaves the rest of config.json as it was, or is refused."""
    licences = {"unet": "MIT", "vae": "CreativeML OpenRAIL-M"}
    whole = release.load_config(tiny_release).to_dict() | {"licences": licences}
    for name, components in (("unet", ("unet",)), ("rest", ("dinov2", "adapter", "vae"))):
        (tmp_path / name).mkdir()
        for component in components:
            shutil.copy(tiny_release / f"{component}.safetensors", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(whole))
    rest = tmp_path / "rest"
    (rest / "config.json").write_text(json.dumps(whole | {"licences": {"vae": licences["vae"]}}))
    (tmp_path / "unet" / "config.json").write_text(json.dumps(whole | {"context": 2.0}))
    reference.clip().save_pretrained(tmp_path / "clip")
    before = (rest / "config.json").read_bytes()
    for source, message in ((tmp_path / "unet", "differs in context"), (tmp_path / "clip", "clip")):
        with pytest.raises(InputError, match=message):
            convert(source, rest)
    assert (rest / "config.json").read_bytes() == before
    (tmp_path / "unet" / "config.json").write_text(json.dumps(whole))
    convert(tmp_path / "unet", rest)
    assert release.load_licences(rest) == licences
    assert_equal(tensors_of(rest), tensors_of(tiny_release))
    release.load(rest)
    # What went to PyTorch comes back into the same folder.
    convert(tmp_path / "unet", tmp_path / "torch", to="torch")
    (rest / "unet.safetensors").unlink()
    convert(tmp_path / "torch", rest)
    assert_equal(tensors_of(rest), tensors_of(tiny_release))


def test_licences_travel(tmp_path, sd_folder):
    convert(sd_folder, tmp_path / "ours", licence="CreativeML OpenRAIL-M")
    card = (tmp_path / "ours/README.md").read_text()
    assert "| unet | CreativeML OpenRAIL-M |" in card
    licence = (tmp_path / "ours/LICENCE-CreativeML-OpenRAIL-M.txt").read_text()
    assert "Attachment A" in licence
    assert release.load_licences(tmp_path / "ours")["unet"] == "CreativeML OpenRAIL-M"
    published = Config().model.to_dict()
    for name, settings, expected in (
        ("unet", published["unet"], "CreativeML OpenRAIL-M"),
        ("vae", published["vae"], "CreativeML OpenRAIL-M"),
        ("dinov2", published["dinov2"], "Apache-2.0"),
        ("clip", dict(width=1024, patch_size=14, projection=768), "MIT"),
        ("clip", dict(width=1280, patch_size=14, projection=768), "not stated"),
        ("adapter", published["adapter"], "not stated"),
    ):
        part = detect.Component(name, settings, {}, None, {}, "")
        assert detect.licences(detect.Source("sd", "torch", [part])) == {name: expected}


def test_a_whole_model_to_torch_and_back(tmp_path):
    """A model with all four components; the adapter as docs/weights.md describes it."""
    c = tiny_recipe(2)
    c.model.autoencoder = "kl"
    c.model.vae = dict(
        latent_channels=4,
        block_widths=(16, 32, 32),
        layers_per_block=1,
        norm_groups=8,
        scaling_factor=0.18215,
    )
    c.model.unet.update(in_channels=4, out_channels=4)
    c = Config.of(c)
    params = init.draw_all(c.model, 0)
    params = jax.tree.map(lambda x: x + 0.1, params)
    release.save(tmp_path / "ours", c.released(), params)
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")
    convert(tmp_path / "torch", tmp_path / "again")
    assert_equal(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "ours"))
    ours, again = (
        json.loads((tmp_path / n / "config.json").read_text()) for n in ("ours", "again")
    )
    assert ours == again

    params = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    graphdef, _ = imprint.split(c.model)
    tokens = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    want = imprint.bind(graphdef, params).adapter(tokens)
    weights = safetensors.torch.load_file(tmp_path / "torch/adapter/adapter.safetensors")
    got = torch_adapter(torch.from_numpy(tokens), weights, num_heads=2)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert weights["null_token"].shape == (16,)


def torch_adapter(x: torch.Tensor, w: dict[str, torch.Tensor], num_heads: int) -> torch.Tensor:
    """The adapter in PyTorch, from the exported names."""
    w = {key: tensor.float() for key, tensor in w.items()}
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    norm = lambda x, name: torch.nn.functional.layer_norm(
        x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5
    )
    x = linear(norm(x, "norm_in"), "proj")
    depth = len({key.split(".")[1] for key in w if key.startswith("blocks.")})
    for i in range(depth):
        b, t, c = x.shape
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = (y.view(b, t, num_heads, -1).transpose(1, 2) for y in qkv.chunk(3, dim=-1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + linear(y.transpose(1, 2).reshape(b, t, c), f"blocks.{i}.attn.proj")
        y = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        x = x + linear(torch.nn.functional.gelu(y), f"blocks.{i}.mlp.fc2")
    return norm(x, "norm_out")


def test_a_folder_of_an_older_version_gets_todays_defaults(tmp_path, tiny_release):
    shutil.copytree(tiny_release, tmp_path / "old")
    file = tmp_path / "old/config.json"
    content = json.loads(file.read_text())
    del content["sampling"]["sampler"], content["diffusion"]["background_mode"]
    file.write_text(json.dumps(content))
    released = release.load_config(tmp_path / "old")
    assert (released.sampling.sampler, released.diffusion.background_mode) == ("ddim", "blend")
    assert released.sampling.num_steps == content["sampling"]["num_steps"]
    # Likewise of a run that began before there was the field.
    content = tiny_config(2).to_dict()
    del content["object_view"]
    assert Config.of(content).released().object_view.fit == "pad"


def test_dtype_option(tmp_path, sd_folder):
    convert(sd_folder, tmp_path / "half", dtype="bfloat16")
    convert(sd_folder, tmp_path / "full")
    half, full = tensors_of(tmp_path / "half"), tensors_of(tmp_path / "full")
    for key, x in full.items():
        assert half[key].dtype == ml_dtypes.bfloat16
        assert half[key].tobytes() == x.astype(ml_dtypes.bfloat16).tobytes()
    convert(tmp_path / "full", tmp_path / "again", dtype="bfloat16")
    assert_equal(tensors_of(tmp_path / "again"), half)


def test_full_size_names_and_shapes_are_the_references():
    """At full size, without weights: every name and shape of the published models."""
    model = Config().model
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        settings = transformers.Dinov2WithRegistersConfig(
            **dinov2.hf_config(model.dinov2.to_dict())
        )
        encoder = transformers.Dinov2WithRegistersModel(settings)
    for name, theirs in (("unet", unet), ("vae", vae)):
        abstract = imprint.abstract(getattr(model, name))
        check_shapes(stable_diffusion.diffusers_table(abstract), abstract, theirs.state_dict())
    abstract = imprint.abstract(model.dinov2)
    flat = traverse_util.flatten_dict(abstract, sep="/")
    pieces = dinov2.hf_table(abstract).pieces
    ours = sorted(piece.shape(flat[piece.path].shape) for piece in pieces)
    # In memory transformers has other names than on disk, and the gate apart from the value.
    theirs = [tuple(x.shape) for x in encoder.state_dict().values()]
    gates = [shape for shape in theirs if shape[0] == 4096]
    assert len(gates) == 40 * 2 * 2
    fused = sorted((2 * 4096, *shape[1:]) for shape in gates)
    rest = [shape for shape in theirs if shape[0] != 4096]
    assert ours == sorted(rest + fused[::2])


def check_shapes(table: mapping.Table, abstract: dict, state: dict) -> None:
    flat = traverse_util.flatten_dict(abstract, sep="/")
    ours = {piece.key: piece.shape(flat[piece.path].shape) for piece in table.pieces}
    assert ours == {key: tuple(x.shape) for key, x in state.items()}


# What is refused.


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickles_run_no_code(tmp_path, original, monkeypatch):
    folder, unet, vae = original
    state = reference.original_checkpoint(unet, vae)
    # The original SD 1.4 file: a class of the training library is a key of a dict.
    package, _, name = CHECKPOINT_CALLBACK.rpartition(".")
    library = types.ModuleType(package)
    callback = type(name, (), {"__module__": package})
    setattr(library, name, callback)
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks", package):
        monkeypatch.setitem(sys.modules, parent, library)
    torch.save(
        state | {"callbacks": {callback: {"best_model_path": ""}}},
        tmp_path / "sd.ckpt",
    )
    monkeypatch.undo()  # the library is not there when the file is read
    convert(tmp_path / "sd.ckpt", tmp_path / "ours")
    convert(folder, tmp_path / "want")
    assert_equal(tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "want"))

    for name, extra in (
        ("evil.ckpt", Payload(tmp_path / "ran")),
        ("other.ckpt", Path("somewhere")),
    ):
        torch.save(state | {"extra": extra}, tmp_path / name)
        with pytest.raises(InputError, match=r"is refused: it holds (posix\.system|pathlib\.\S+),"):
            convert(tmp_path / name, tmp_path / "refused")
        assert_untouched(tmp_path / "refused")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"refused|damaged"):
        convert(tmp_path / "plain.bin", tmp_path / "refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["sd.ckpt", "stable_diffusion.safetensors"])
def test_truncated_files(tmp_path, original, name, share):
    save_original(tmp_path / name, reference.original_checkpoint(*original[1:]))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"{name} is damaged"):
        convert(tmp_path / name, tmp_path / "refused")
    assert_untouched(tmp_path / "refused")


def test_everything_wrong_is_listed_at_once(tmp_path, sd_folder):
    unet = reference.unet()
    unet.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    state["conv_out.bias"] = state["conv_out.bias"].half()
    state["time_embedding.linear_1.weight"] = torch.zeros(3, 5)
    state["adm_emb.weight"] = torch.zeros(2)
    del state["conv_norm_out.bias"]
    safetensors.torch.save_file(state, file, {"format": "pt"})
    with pytest.raises(InputError) as error:
        convert(tmp_path / "unet", tmp_path / "refused")
    assert "missing: conv_norm_out.bias; " in str(error.value)
    assert "shape: time_embedding.linear_1.weight is (3, 5), should be (128, 32); " in str(
        error.value
    )
    assert "unknown: adm_emb.weight." in str(error.value)
    assert_untouched(tmp_path / "refused")


def test_a_key_named_twice_and_a_parameter_without_tensor():
    abstract = {"a": {"bias": jax.ShapeDtypeStruct((2,), np.float32)}, "b": np.zeros(3)}
    pieces = [mapping.Piece("a/bias", "x"), mapping.Piece("a/bias", "x")]
    with pytest.raises(InputError, match="in no tensor: b; missing: x; named twice: x"):
        mapping.check(mapping.Table(pieces), {}, abstract, "the table")


def test_what_is_not_what_it_is_called(tmp_path, sd_folder, dinov2_folder):
    cases = [
        (sd_folder, "dinov2", "of the kind sd, not dinov2"),
        (dinov2_folder, "sd", "of the kind dinov2, not sd"),
        (sd_folder, "paint-by-example", "takes 4 channels"),
        (sd_folder, "sdxl", "no kind 'sdxl'"),
        (tmp_path / "nowhere", "auto", "There is no"),
        (tmp_path, "auto", "is not recognised"),
    ]
    for path, kind, message in cases:
        with pytest.raises(InputError, match=message):
            convert(path, tmp_path / "refused", kind=kind)
    reference.unet(in_channels=9).save_pretrained(tmp_path / "nine/unet")
    with pytest.raises(InputError, match="--kind sd-inpainting or --kind paint-by-example"):
        convert(tmp_path / "nine", tmp_path / "refused")
    reference.unet(use_linear_projection=True).save_pretrained(tmp_path / "sd2/unet")
    with pytest.raises(InputError, match="is Stable Diffusion 2's; only"):
        convert(tmp_path / "sd2", tmp_path / "refused")
    with pytest.raises(InputError, match="in PyTorch's names already"):
        convert(sd_folder, tmp_path / "refused", to="torch")
    with pytest.raises(InputError, match="closed-form codec"):
        convert(release.model_folder("mini"), tmp_path / "refused", to="torch")
    with pytest.raises(InputError, match=r"--dtype is 'fp16'; use float32"):
        convert(sd_folder, tmp_path / "refused", dtype="fp16")
    with pytest.raises(InputError, match=r"--to is 'onnx'"):
        convert(sd_folder, tmp_path / "refused", to="onnx")
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(InputError, match=r"notes.txt is no weights file"):
        convert(tmp_path / "notes.txt", tmp_path / "refused")
    assert_untouched(tmp_path / "refused")


def test_nothing_stays_behind_when_the_disk_is_full(tmp_path, sd_folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(release, "write_tensors", full)
    with pytest.raises(InputError, match=r"Cannot write .*ours: No space left"):
        convert(sd_folder, tmp_path / "ours")
    assert_untouched(tmp_path / "ours")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").touch()
    with pytest.raises(OSError, match="No space left"):
        convert(sd_folder, tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"x": np.zeros(3, np.float32)})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
