"""How far is it from the truth? LPIPS, which also tells seeds apart; PSNR and SSIM.

LPIPS (Zhang et al. 2018, version 0.1): features of AlexNet or VGG-16 after five ReLUs, normalised
over their channels, squared differences weighted by learned heads, averaged over positions, summed.
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax.composing.manifest import Entry
from imprint_jax.errors import InputError
from imprint_jax.evaluation.batched import Batched, key_of
from imprint_jax.evaluation.measures import (
    Column,
    Scores,
    Shot,
    Store,
    box_items,
    mean_distances,
    siblings,
)
from imprint_jax.models import imprint
from imprint_jax.weights.tensors import StoredTensor, open_tensors, weights_hash

# Side of the pictures LPIPS compares. Ours.
LPIPS_SIZE = 256
# Channel statistics of LPIPS's input in [-1, 1] (lpips.py of richzhang/PerceptualSimilarity).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Keeps the normalisation from dividing by 0, as there.
EPSILON = 1e-10

# PSNR of equal images, which would be infinite, dB. Ours.
BEST_PSNR = 100.0

# torchvision's `features`: convolutions by their place (stride, padding), "pool" (window, stride),
# and "tap" where LPIPS compares.
ALEXNET = (
    (0, 4, 2), "tap", ("pool", 3, 2), (3, 1, 2), "tap", ("pool", 3, 2), (6, 1, 1), "tap",
    (8, 1, 1), "tap", (10, 1, 1), "tap",
)  # fmt: skip
VGG16 = (
    (0, 1, 1), (2, 1, 1), "tap", ("pool", 2, 2), (5, 1, 1), (7, 1, 1), "tap", ("pool", 2, 2),
    (10, 1, 1), (12, 1, 1), (14, 1, 1), "tap", ("pool", 2, 2), (17, 1, 1), (19, 1, 1), (21, 1, 1),
    "tap", ("pool", 2, 2), (24, 1, 1), (26, 1, 1), (28, 1, 1), "tap",
)  # fmt: skip
NETWORKS = {"alex": ALEXNET, "vgg": VGG16}
# Backbone in torchvision's or lpips's names, and lpips's heads.
BACKBONE = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
HEAD = re.compile(r"lin(\d)\.model\.1\.weight")


class LpipsMeasure:
    """LPIPS of what is in the hole's box: to the truth, and between the pictures of an entry.

    Args:
        network: From `load_lpips`.
    """

    def __init__(self, network: "Lpips"):
        self.network = network
        self.settings: dict = {"network": network.network, "weights": network.weights}
        self.settings |= {"crop": "box", "size": LPIPS_SIZE}

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """As `measures.Measure`."""
        return ["lpips"] if any(entry.target for entry in entries) else []

    def compute(self, shots: list[Shot], store: Store) -> Scores:
        """As `measures.Measure`."""
        scores = Scores([{} for _ in shots])
        pairs = siblings(shots)
        keys: dict[int | tuple[int, int], str] = {}
        items: dict[str, Callable[[], tuple]] = {}
        for i, shot in enumerate(shots):
            if shot.entry.target:
                keys[i] = key_of(store.key(shot, self.settings), "target")
                paths = (shot.path, shot.entry.target)
                items[keys[i]] = functools.partial(box_items, shot.entry, LPIPS_SIZE, *paths)
        for i, j in pairs:
            one, other = shots[i], shots[j]
            keys[i, j] = key_of(*(store.key(shot, self.settings) for shot in (one, other)))
            paths = (one.path, other.path)
            items[keys[i, j]] = functools.partial(box_items, one.entry, LPIPS_SIZE, *paths)
        about = f"LPIPS ({self.network.network})"
        values = store.values(items, self.network.distance, about)
        to_target = {i: float(values[key]) for i, key in keys.items() if isinstance(i, int)}
        between = mean_distances({pair: float(values[keys[pair]]) for pair in pairs})
        for name, better, about, lacking, column in (
            ("lpips", "lower", "LPIPS of the hole's box to the target's",
             "the manifest names no target", to_target),
            ("diversity_lpips", "",
             "mean LPIPS to the other pictures of the entry, in the hole's box",
             "no entry has more than one picture", between),
        ):  # fmt: skip
            if not column:
                scores.not_computed[name] = lacking
                continue
            scores.columns[name] = Column(better, about, self.settings)
            for i, value in column.items():
                scores.rows[i][name] = value
        return scores


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS with its weights.

    Attributes:
        network: "alex" or "vgg".
        weights: SHA-256 of its weights, 16 hexadecimal digits.
        distance: Items ((s s 3) uint8, (s s 3) uint8) -> distances () float32, in order.
    """

    network: str
    weights: str
    distance: Batched


@dataclass(frozen=True, eq=False)
class Network:
    """The convolutions of AlexNet or VGG-16, trained to tell ImageNet's classes.

    Attributes:
        name: "alex" or "vgg".
        weights: SHA-256 of its weights, 16 hexadecimal digits.
        params: As `taps` takes them.
    """

    name: str
    weights: str
    params: dict


def load_lpips(path: Path) -> Lpips:
    """LPIPS from weights files.

    Args:
        path: A file (.safetensors, or PyTorch's) or a folder of them, which together hold the
            state of `lpips.LPIPS`, or torchvision's backbone and the heads of the package `lpips`
            (weights/v0.1/alex.pth).

    Raises:
        InputError: Tensors are missing or of other shapes.
    """
    backbone, heads = _open(path)
    network = _name(backbone)
    if network is None or sorted(heads) != list(range(5)):
        raise InputError(
            f"{path} holds no LPIPS: it needs the convolutions of AlexNet or VGG-16"
            " (features.0.weight ...) and five heads (lin0.model.1.weight ...); there are"
            f" {len(backbone)} tensors of a backbone and {len(heads)} heads."
        )
    learned = [np.asarray(heads[k].read().reshape(-1), np.float32) for k in range(5)]
    params = _params(backbone) | {"heads": learned}
    used = _named(backbone) | {f"lin{k}": x for k, x in heads.items()}
    function = lambda params, a, b: lpips(params, NETWORKS[network], *map(imprint.to_float, (a, b)))
    return Lpips(network, weights_hash(used)[:16], Batched(function, params))


def find_network(path: Path) -> Network | None:
    """The backbone by itself of what `load_lpips` takes, heads or not; None if there is none.

    Raises:
        InputError: A file is damaged.
    """
    if path.is_dir() and any(path.glob("*.json")):  # a model of another code, maybe large
        return None
    backbone, _ = _open(path)
    if (name := _name(backbone)) is None:
        return None
    return Network(name, weights_hash(_named(backbone))[:16], _params(backbone))


def _open(path: Path) -> tuple[dict[tuple[int, str], StoredTensor], dict[int, StoredTensor]]:
    """The tensors of a backbone, by place and kind, and LPIPS's heads among some files'."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= open_tensors(file)
    backbone, heads = {}, {}
    for name, tensor in tensors.items():
        if match := BACKBONE.fullmatch(name):
            backbone[int(match[1]), match[2]] = tensor
        elif match := HEAD.fullmatch(name):
            heads[int(match[1])] = tensor
    return backbone, heads


def _name(backbone: dict) -> str | None:
    """Which network has these tensors."""
    return next((n for n, steps in NETWORKS.items() if set(backbone) == _needed(steps)), None)


def _params(backbone: dict) -> dict:
    read = lambda wanted: {
        place: np.asarray(x.read(), np.float32)
        for (place, kind), x in backbone.items()
        if kind == wanted
    }
    kernels = {place: x.transpose(2, 3, 1, 0) for place, x in read("weight").items()}
    return {"kernels": kernels, "biases": read("bias")}


def _named(backbone: dict) -> dict[str, StoredTensor]:
    return {f"{place}.{kind}": x for (place, kind), x in backbone.items()}


def convolutions(steps: tuple) -> list[tuple[int, int, int]]:
    """The convolutions among the steps of a network: (place, stride, padding)."""
    return [step for step in steps if step != "tap" and step[0] != "pool"]


def _needed(steps: tuple) -> set[tuple[int, str]]:
    return {(place, kind) for place, _, _ in convolutions(steps) for kind in ("weight", "bias")}


def lpips(params: dict, steps: tuple, a: jax.Array, b: jax.Array) -> jax.Array:
    """The distance of pairs of images.

    Args:
        params: As `taps` takes them, and heads: [(out,)].
        steps: `ALEXNET` or `VGG16`.
        a: (b h w 3) in [-1, 1].
        b: Likewise.

    Returns:
        (b,) float32, 0 for equal images.
    """
    # A loop is compiled once for both: side by side, one could be rounded otherwise than the other.
    features = jax.lax.map(lambda images: taps(params, steps, images), jnp.stack([a, b]))
    pairs = zip(features, params["heads"], strict=True)
    return sum(((x - y) ** 2 @ head).mean(axis=(1, 2)) for (x, y), head in pairs)


def taps(params: dict, steps: tuple, images: jax.Array) -> list[jax.Array]:
    """What LPIPS compares: features of unit length at a network's taps.

    Args:
        params: {kernels: {place: (h w in out)}, biases: {place: (out,)}}.
        steps: `ALEXNET` or `VGG16`.
        images: (b h w 3) in [-1, 1].

    Returns:
        A (b h w c) float32 a tap.
    """
    x, features = (images - jnp.array(SHIFT)) / jnp.array(SCALE), []
    for step in steps:
        if step == "tap":
            features.append(x / (jnp.sqrt((x**2).sum(axis=-1, keepdims=True)) + EPSILON))
        elif step[0] == "pool":
            _, window, stride = step
            shape, strides = (1, window, window, 1), (1, stride, stride, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, strides, "VALID")
        else:
            place, stride, padding = step
            x = jax.lax.conv_general_dilated(
                x,
                params["kernels"][place],
                (stride, stride),
                [(padding, padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + params["biases"][place])
    return features


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, `BEST_PSNR` at most."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(min(10 * np.log10(255**2 / error), BEST_PSNR)) if error else BEST_PSNR


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two (h w 3) uint8 images, the mean over the channels.

    scikit-image's, with the Gaussian window of Wang et al. 2004 (sigma 1.5, 11 pixels).

    Raises:
        ImportError: scikit-image is not installed; the extra [metrics] has it.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            a,
            b,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
