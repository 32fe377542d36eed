"""What is said of files that are damaged, or of something else than they are called."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from imprint_jax.errors import InputError
from imprint_jax.models import init
from imprint_jax.weights import release
from imprint_jax.weights.convert import convert
from imprint_jax.weights.detect import find
from imprint_jax.weights.tensors import open_folder, open_tensors, write_tensors
from tests.parity import reference
from tests.tiny import tiny_config

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny UNet and VAE as diffusers writes them."""
    folder = tmp_path_factory.mktemp("sd")
    reference.unet().save_pretrained(folder / "unet")
    reference.vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def sd(saved, tmp_path):
    """A copy of them to spoil."""
    shutil.copytree(saved, tmp_path / "sd")
    return tmp_path / "sd"


def edit(file, **changes) -> None:
    """Changes fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is damaged: it is empty"),
        (b"Repository not found", "holds no weights but a text: 'Repository not found'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"  <HTML>", "is a web page"),
        (bytes(4096), "is damaged"),
        (bytes(range(256)) * 16, "is damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".safetensors"])
def test_what_a_failed_download_leaves(tmp_path, content, message, suffix):
    (tmp_path / f"sd{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        open_tensors(tmp_path / f"sd{suffix}")
    assert "weights_only" not in str(error.value)  # PyTorch's advice to read it unprotected


@pytest.mark.parametrize("content", ["<!DOCTYPE html>", "[]", "{", "{}", '{"weight_map": {}}'])
@pytest.mark.parametrize(
    "other", ['{"weight_map": {"x": "../x.safetensors"}}', '{"weight_map": 3}']
)
def test_a_damaged_index_of_shards(tmp_path, content, other):
    for text in (content, other):
        (tmp_path / f"{STEM}.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match=r"index\.json is (damaged|a web page)"):
            open_folder(tmp_path, STEM)


@pytest.mark.parametrize("content", ["[]", "", "<html>", "3", '"text"', "{", "\x00\x01"])
def test_a_damaged_config(sd, tiny_release, tmp_path, content):
    (sd / "unet/config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is (damaged|a web page)"):
        find(sd)
    shutil.copytree(tiny_release, tmp_path / "model")
    (tmp_path / "model/config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is (damaged|a web page)"):
        release.load_config(tmp_path / "model")


def test_settings_that_describe_no_network(tiny_release, tmp_path):
    shutil.copytree(tiny_release, tmp_path / "model")
    file = tmp_path / "model/config.json"
    before = json.loads(file.read_text())
    edit(file, model=before["model"] | {"unet": {"in_channels": "x"}})
    with pytest.raises(InputError, match=r"settings of .*unet.safetensors describe no network"):
        find(tmp_path / "model")
    edit(file, model={k: v for k, v in before["model"].items() if k != "unet"})
    with pytest.raises(InputError, match=r"does not describe unet.safetensors"):
        find(tmp_path / "model")
    edit(file, model=[])
    with pytest.raises(InputError, match="'model' is no section"):
        find(tmp_path / "model")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_other_dtypes(tmp_path, name, dtype):
    state = {"kernel": torch.zeros(4).to(dtype)}
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / name)
    with pytest.raises(InputError, match=r"kernel as (float8|F8|complex64|C64).*cannot be read"):
        open_tensors(tmp_path / name)


def test_parameters_that_want_gradients(tmp_path):
    torch.save({"x": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
    np.testing.assert_array_equal(open_tensors(tmp_path / "x.pt")["x"].read(), [1, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tiny_release, tmp_path, value):
    shutil.copytree(tiny_release, tmp_path / "model")
    file = tmp_path / "model/unet.safetensors"
    tensors = {key: x.read() for key, x in open_tensors(file).items()}
    tensors["conv_in.kernel"].flat[3] = value
    write_tensors(file, tensors)
    with pytest.raises(InputError, match=r"conv_in\.kernel holds 1 values that are no finite"):
        release.load(tmp_path / "model")
    with pytest.raises(InputError, match=r"conv_in\.kernel holds 1 values"):
        convert(tmp_path / "model", tmp_path / "again")
    assert not (tmp_path / "again").exists()

    c = tiny_config(2)
    params = init.draw_all(c.model, 0)
    params["unet"]["conv_in"]["kernel"].flat[0] = value
    with pytest.raises(InputError, match=r"unet holds numbers that are not finite, in conv_in"):
        release.save(tmp_path / "saved", c.released(), params)


def test_a_number_too_large_for_half_precision(sd, tmp_path):
    file = sd / f"unet/{STEM}.safetensors"
    state = safetensors.torch.load_file(file)
    state["conv_out.bias"][0] = 1e5
    safetensors.torch.save_file(state, file)
    with pytest.raises(InputError, match=r"conv_out\.bias holds 1 values .* finite float16"):
        convert(sd, tmp_path / "half", dtype="float16")


def test_a_download_that_broke_off(sd, tmp_path, caplog):
    file = sd / f"unet/{STEM}.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(InputError, match="is zero everywhere, as after a download that broke off"):
        convert(sd, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()

    file.write_bytes(content)
    state = safetensors.torch.load_file(file)
    state["conv_in.weight"].zero_()
    safetensors.torch.save_file(state, file)
    convert(sd, tmp_path / "ours")  # new layers do start at zero
    assert "1 kernels that are zero everywhere: conv_in.weight" in caplog.text


def test_settings_as_diffusers_scripts_write_them(sd):
    same = dict(upcast_attention=None, act_fn="swish", only_cross_attention=[False] * 3)
    same |= dict(attention_head_dim=[4, 4, 4], transformer_layers_per_block=[1, 1, 1])
    edit(sd / "unet/config.json", **same)
    unet = find(sd).components[0]
    assert unet.settings["num_heads"] == 4
    for field, value in (
        *(("upcast_attention", True), ("attention_head_dim", [4, 8, 8]), ("freq_shift", 1)),
        *(("time_embedding_type", "fourier"), ("only_cross_attention", [True, False, False])),
        ("act_fn", {"name": "silu"}),
    ):
        edit(sd / "unet/config.json", **same | {field: value})
        with pytest.raises(InputError, match=field if "head" not in field else "heads by level"):
            find(sd)


@pytest.mark.parametrize(
    "file, settings, message",
    [
        ("config.json", {"model_type": None}, "is not recognised"),
        ("model_index.json", {"_class_name": ["X"]}, "config.json is missing"),
    ],
)
def test_a_description_with_values_of_other_types(tmp_path, file, settings, message):
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(InputError, match=message):
        find(tmp_path)


@pytest.mark.parametrize(
    "index, shard",
    [
        (f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-0000%d-of-00002.safetensors"),
        (f"{STEM}.fp16.safetensors.index.json", f"{STEM}-0000%d-of-00002.fp16.safetensors"),
        (f"{STEM}.safetensors.index.fp16.json", f"{STEM}-0000%d-of-00002.fp16.safetensors"),
    ],
)
def test_variants_in_shards(tmp_path, index, shard):
    for number in (1, 2):
        half = np.full(number, number, np.float16)
        write_tensors(tmp_path / (shard % number), {f"x{number}": half})
    weight_map = {f"x{number}": shard % number for number in (1, 2)}
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    tensors = open_folder(tmp_path, STEM)
    assert [tensors[key].read().tolist() for key in ("x1", "x2")] == [[1], [2, 2]]
    write_tensors(tmp_path / f"{STEM}.other.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match="of which one can be read: keep one"):
        open_folder(tmp_path, STEM)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prediction_type": "banana"}, "prediction_type 'banana'; known are epsilon"),
        ({"trained_betas": [0.1, 0.2]}, "noise schedule of trained_betas"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "noise schedule 'squaredcos_cap_v2'"),
    ],
)
def test_other_noise_schedules(sd, settings, message):
    (sd / "scheduler").mkdir()
    file = sd / "scheduler/scheduler_config.json"
    file.write_text('{"trained_betas": null}')
    find(sd)
    edit(file, **settings)
    with pytest.raises(InputError, match=message):
        find(sd)


def test_a_unet_of_eight_channels(tmp_path):
    reference.unet(in_channels=8).save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match="takes 8 channels; read are 4, and 9"):
        find(tmp_path)


@pytest.mark.parametrize("field, value", [("hidden_act", "gelu_new"), ("layer_norm_eps", 1e-5)])
def test_another_dinov2(tmp_path, field, value):
    reference.dinov2(registers=4, swiglu=False).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **{field: value})
    with pytest.raises(InputError, match=f"has {field} {value!r}; DINOv2's is"):
        find(tmp_path)


@pytest.mark.parametrize(
    "key, family",
    [
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "Stable Diffusion 2"),
        ("conditioner.embedders.0.transformer.text_model.x", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("model.diffusion_model.input_blocks.1.2.local_norm.weight", "ControlCom"),
        ("control_model.zero_convs.0.0.weight", "AnyDoor"),
        ("blocks.0.norm1.weight", "timm"),
        ("unet.down_blocks.0.attentions.0.to_k.lora_A.weight", "a LoRA"),
    ],
)
def test_other_families_are_named(tmp_path, key, family):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors = {key: np.ones(3, np.float32), name: np.ones(3, np.float32)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    for kind in ("auto", "sd", "dinov2"):
        with pytest.raises(InputError, match=f"is of {family}.* which is not read"):
            find(tmp_path / "x.safetensors", kind)


def test_a_folder_that_cannot_be_written(sd, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"Cannot write .*file"):
        convert(sd, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_converting_does_not_change_the_digest(sd, tmp_path):
    convert(sd, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")
    convert(tmp_path / "ours", tmp_path / "half", dtype="bfloat16")
    digests = [
        {part.name: part.digest() for part in parts}
        for parts in (find(tmp_path / x).components for x in ("sd", "ours", "torch", "half"))
    ]
    assert digests[0] == digests[1] == digests[2]
    assert not digests[0].items() & digests[3].items()
    kept = find(tmp_path / "half").components[0].tensors
    assert {x.dtype for x in kept.values()} == {np.dtype(ml_dtypes.bfloat16)}
