"""Inception, its resizing, and FID end to end, against a reference written with PyTorch.

Before, the same code was compared once with pytorch-fid 0.3.0, torch-fidelity 0.4.0 and clean-fid
0.1.35 themselves at full width and random weights: features differed by 9e-6 at most, of up to 21.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchmetrics.image.fid import _compute_fid

from imprint_jax import images
from imprint_jax.errors import InputError
from imprint_jax.evaluation import distribution, inception, measures
from imprint_jax.evaluation.batched import Cache
from tests.pictures import write_png

# Kernels of the convolutions whose names do not say them.
KERNELS = {"branch7x7_2": (1, 7), "branch7x7_3": (7, 1), "branch7x7dbl_2": (7, 1),
           "branch7x7dbl_3": (1, 7), "branch7x7dbl_4": (7, 1), "branch7x7dbl_5": (1, 7),
           "branch7x7x3_2": (1, 7), "branch7x7x3_3": (7, 1), "branch7x7x3_4": (3, 3),
           "branch3x3_2a": (1, 3), "branch3x3_2b": (3, 1), "branch3x3dbl_3a": (1, 3),
           "branch3x3dbl_3b": (3, 1), "branch5x5_2": (5, 5), "branch3x3": (3, 3),
           "branch3x3_2": (3, 3), "branch3x3dbl_2": (3, 3), "branch3x3dbl_3": (3, 3),
           "Conv2d_1a_3x3": (3, 3), "Conv2d_2a_3x3": (3, 3), "Conv2d_2b_3x3": (3, 3),
           "Conv2d_4a_3x3": (3, 3)}  # fmt: skip
WIDTH = 4  # channels of every convolution here


class Reference:
    """torchvision's Inception-v3 with the changes of pytorch-fid, every layer `WIDTH` wide.

    Its weights are drawn as layers are met, so that the network's shape says their shapes.
    """

    def __init__(self):
        self.state, self.generator = {}, torch.Generator().manual_seed(0)

    def conv(self, name: str, x, stride=1, padding=0):
        if f"{name}.conv.weight" not in self.state:
            self.draw(name, x.shape[1])
        part = lambda key: self.state[f"{name}.{key}"]
        y = F.conv2d(x, part("conv.weight"), stride=stride, padding=padding)
        norm = [part(f"bn.{key}") for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(y, *norm, eps=0.001))

    def draw(self, name: str, width: int):
        kernel = KERNELS.get(name.split(".")[-1], (1, 1))
        normal = lambda *shape: torch.randn(shape, generator=self.generator)
        fan_in = width * kernel[0] * kernel[1]
        self.state |= {
            f"{name}.conv.weight": normal(WIDTH, width, *kernel) * (2.4 / fan_in) ** 0.5,
            f"{name}.bn.weight": 1 + 0.2 * normal(WIDTH),
            f"{name}.bn.bias": 0.2 * normal(WIDTH),
            f"{name}.bn.running_mean": 0.2 * normal(WIDTH),
            f"{name}.bn.running_var": 0.5 + torch.rand(WIDTH, generator=self.generator),
            f"{name}.bn.num_batches_tracked": torch.tensor(7),
        }

    def __call__(self, x):
        """(b 3 299 299) in [-1, 1] -> (b c)."""
        x = self.conv("Conv2d_1a_3x3", x, 2)
        x = self.conv("Conv2d_2b_3x3", self.conv("Conv2d_2a_3x3", x), 1, 1)
        x = self.conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2))
        x = F.max_pool2d(self.conv("Conv2d_4a_3x3", x), 3, 2)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            five = self.conv(f"{block}.branch5x5_2", self.conv(f"{block}.branch5x5_1", x), 1, 2)
            double = self.conv(f"{block}.branch3x3dbl_1", x)
            double = self.conv(f"{block}.branch3x3dbl_2", double, 1, 1)
            double = self.conv(f"{block}.branch3x3dbl_3", double, 1, 1)
            x = torch.cat(
                [self.conv(f"{block}.branch1x1", x), five, double, self.pool(block, x)], 1
            )
        double = self.conv("Mixed_6a.branch3x3dbl_1", x)
        double = self.conv("Mixed_6a.branch3x3dbl_2", double, 1, 1)
        double = self.conv("Mixed_6a.branch3x3dbl_3", double, 2)
        x = torch.cat([self.conv("Mixed_6a.branch3x3", x, 2), double, F.max_pool2d(x, 3, 2)], 1)
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            seven = self.conv(f"{block}.branch7x7_1", x)
            seven = self.conv(f"{block}.branch7x7_2", seven, 1, (0, 3))
            seven = self.conv(f"{block}.branch7x7_3", seven, 1, (3, 0))
            double = self.conv(f"{block}.branch7x7dbl_1", x)
            for k, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
                double = self.conv(f"{block}.branch7x7dbl_{k}", double, 1, padding)
            one = self.conv(f"{block}.branch1x1", x)
            x = torch.cat([one, seven, double, self.pool(block, x)], 1)
        three = self.conv("Mixed_7a.branch3x3_2", self.conv("Mixed_7a.branch3x3_1", x), 2)
        seven = self.conv("Mixed_7a.branch7x7x3_1", x)
        seven = self.conv("Mixed_7a.branch7x7x3_2", seven, 1, (0, 3))
        seven = self.conv("Mixed_7a.branch7x7x3_3", seven, 1, (3, 0))
        seven = self.conv("Mixed_7a.branch7x7x3_4", seven, 2)
        x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
        for block in ("Mixed_7b", "Mixed_7c"):
            single = self.conv(f"{block}.branch3x3_1", x)
            double = self.conv(f"{block}.branch3x3dbl_1", x)
            double = self.conv(f"{block}.branch3x3dbl_2", double, 1, 1)
            parts = [self.conv(f"{block}.branch1x1", x)]
            for name, y in (("3x3_2", single), ("3x3dbl_3", double)):
                parts.append(self.conv(f"{block}.branch{name}a", y, 1, (0, 1)))
                parts.append(self.conv(f"{block}.branch{name}b", y, 1, (1, 0)))
            x = torch.cat([*parts, self.pool(block, x)], 1)
        return x.mean(dim=(2, 3))

    def pool(self, block: str, x):
        if block == "Mixed_7c":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.conv(f"{block}.branch_pool", pooled)


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """A smooth random picture: noise would hide how it was resized."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The reference and ours, of one file of weights."""
    reference = Reference()
    with torch.no_grad():
        reference(torch.zeros(1, 3, 299, 299))
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    extra = {"fc.weight": torch.zeros(8, WIDTH), "fc.bias": torch.zeros(8)}
    torch.save(reference.state | extra, path)
    return reference, inception.load(path)


def in_torch(resized: np.ndarray) -> torch.Tensor:
    return torch.tensor(resized.transpose(2, 0, 1)[None])


def test_features_equal_the_references(networks):
    reference, network = networks
    inputs = [inception.resize(picture(seed, 320, 240), "pytorch") for seed in range(2)]
    ours = np.stack(list(network.embed((x,) for x in inputs)))
    with torch.no_grad():
        theirs = np.concatenate([reference(in_torch(x)).numpy() for x in inputs])
    assert ours.shape == (2, 6 * WIDTH)  # the last block's branches
    # 1e-5 of each feature: of up to 22 here, float32 keeps the seventh digit only.
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    assert np.abs(theirs[0] - theirs[1]).max() > 1


@pytest.mark.parametrize("size", [(320, 240), (150, 500)])
def test_pytorchs_resizing_is_pytorchs(size):
    x = picture(0, *size)
    tensor = torch.tensor(x.transpose(2, 0, 1)[None]) / 255
    theirs = F.interpolate(tensor, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    ours = inception.resize(x, "pytorch")
    np.testing.assert_allclose(ours, theirs[0].numpy().transpose(1, 2, 0), atol=1e-5)


def test_tensorflows_positions_are_corners():
    # A ramp's value is its position; beyond the last column it stays.
    ramp = np.repeat(np.arange(0, 250, dtype=np.uint8)[None, :, None], 3, axis=2)
    resized = inception.resize(np.repeat(ramp, 10, axis=0), "tensorflow")
    expected = np.minimum(np.arange(299) * 250 / 299, 249) / 128 - 1
    np.testing.assert_allclose(resized[0, :, 0], expected, atol=1e-5)


def test_clean_resizing_keeps_fractions_and_no_overshoot():
    x = picture(1, 640, 400)
    resized = (inception.resize(x, "clean") + 1) * 128
    rounded = np.asarray(Image.fromarray(x).resize((299, 299), Image.Resampling.BICUBIC))
    # Pillow rounds bytes after each of two passes.
    assert np.abs(resized - rounded).max() < 1.5 and np.abs(resized % 1).max() > 0.1
    edge = np.zeros((600, 600, 3), np.uint8)
    edge[:, 300:] = 255
    resized = (inception.resize(edge, "clean") + 1) * 128
    assert resized.min() >= 0 and resized.max() <= 255


def test_fid_of_folders_is_the_references(networks, tmp_path):
    reference, network = networks
    photos, shots = [], []
    for seed in range(8):
        for folder, offset, paths in (("photos", 0, photos), ("results", 50, shots)):
            (tmp_path / folder).mkdir(exist_ok=True)
            paths.append(tmp_path / folder / f"{seed}.png")
            write_png(paths[-1], picture(seed + offset, 200, 160))
    permuted = [measures.Shot("same", None, 0, path) for path in photos[::-1]]
    results = [measures.Shot("other", None, 0, path) for path in shots]
    store = measures.Store(Cache(tmp_path / "cache"), lambda items, *_: items)
    scores = measures.Scores([{} for _ in permuted + results])
    for measure in distribution.literature(network, photos):
        scores.add(measure.compute(permuted + results, store))
    names = {f"{m}{way}" for m in ("fid", "kid") for way in ("", "_tensorflow", "_clean")}
    assert set(scores.columns) == names and not scores.not_computed
    assert scores.sets["same"]["fid"] == pytest.approx(0, abs=1e-3)
    with torch.no_grad():
        features = [
            np.concatenate([
                reference(in_torch(inception.resize(images.read_image(path), "pytorch"))).numpy()
                for path in paths
            ]).astype(np.float64)
            for paths in (photos, shots)
        ]  # fmt: skip
    moments = [torch.tensor(x) for f in features for x in (f.mean(axis=0), np.cov(f, rowvar=False))]
    expected = _compute_fid(*moments).item()
    assert scores.sets["other"]["fid"] == pytest.approx(expected, abs=1e-3)
    assert expected > 1


def test_other_files_are_refused(networks, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1, 3, 3, 3)}, path)
    with pytest.raises(InputError, match=r"not the Inception network of FID: it has 1 of its 94"):
        inception.load(path)
