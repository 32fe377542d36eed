"""The Inception network of FID and KID, and the ways in which pictures are brought to its size.

The network is Inception-v3 as TensorFlow released it on 2015-12-05, whose features FID was defined
on (Heusel et al. 2017), in PyTorch's names: `pt_inception-2015-12-05-6726825d.pth` of
mseitzer/pytorch-fid. It is torchvision's `inception_v3` except that average pools leave their
padding out and that the last block pools by the maximum.

How a picture becomes 299 pixels wide changes FID by whole points (Parmar et al. 2022):

| name         | resizing                             | as in                               |
|--------------|--------------------------------------|-------------------------------------|
| `pytorch`    | bilinear, no antialiasing            | pytorch-fid; most published numbers |
| `tensorflow` | the same at TensorFlow 1's positions | the original code, torch-fidelity   |
| `clean`      | bicubic, antialiased, not rounded    | clean-fid                           |
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.evaluation.batched import Batched
from imprint_jax.weights.tensors import StoredTensor, open_tensors, weights_hash

SIZE = 299  # pixels, the network's input
# Of the batch norms, as in TensorFlow's network.
EPSILON = 1e-3
RESIZING = ("pytorch", "tensorflow", "clean")
# Beside the features: the classifier, and counters of training.
IGNORED = ("fc.weight", "fc.bias")


@dataclass(frozen=True, eq=False)
class Inception:
    """The network with its weights.

    Attributes:
        weights: SHA-256 of its weights, 16 hexadecimal digits.
        embed: Items ((299 299 3) float32 from `resize`,) -> features (2048) float32, in order.
    """

    weights: str
    embed: Batched


def load(path: Path) -> Inception:
    """The network from its weights' file.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth`, or the same tensors as .safetensors.

    Raises:
        InputError: Tensors are missing, or not of this network.
    """
    tensors = {
        key: tensor
        for key, tensor in open_tensors(path).items()
        if key not in IGNORED and not key.endswith(".num_batches_tracked")
    }
    names = sorted({key.rsplit(".", 2)[0] for key in tensors})
    wanted = _convolutions()
    if names != wanted:
        lacking = sorted(set(wanted) - set(names)) or sorted(set(names) - set(wanted))
        raise InputError(
            f"{path} is not the Inception network of FID: it has {len(names)} of its"
            f" {len(wanted)} convolutions, the first that differs is {lacking[0]}."
        )
    params = {name: _fold(name, tensors, path) for name in names}
    return Inception(weights_hash(tensors)[:16], Batched(features, params))


def _fold(name: str, tensors: dict[str, StoredTensor], path: Path) -> dict[str, np.ndarray]:
    """A convolution with its batch norm in it: kernel (h w in out) and bias (out)."""
    keys = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    if lacking := [key for key in keys if f"{name}.{key}" not in tensors]:
        raise InputError(f"{path} lacks {name}.{lacking[0]}.")
    weight, gain, bias, mean, variance = (
        np.asarray(tensors[f"{name}.{key}"].read(), np.float64) for key in keys
    )
    gain = gain / np.sqrt(variance + EPSILON)
    kernel = (weight * gain[:, None, None, None]).transpose(2, 3, 1, 0)
    return {
        "kernel": np.ascontiguousarray(kernel, np.float32),
        "bias": (bias - mean * gain).astype(np.float32),
    }


# The branches of each kind of block, as the ends of their convolutions' names.
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
BLOCKS = {
    "Mixed_5b": "a", "Mixed_5c": "a", "Mixed_5d": "a", "Mixed_6a": "b", "Mixed_6b": "c",
    "Mixed_6c": "c", "Mixed_6d": "c", "Mixed_6e": "c", "Mixed_7a": "d", "Mixed_7b": "e",
    "Mixed_7c": "e",
}  # fmt: skip
BRANCHES = {
    "a": ("branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2",
          "branch3x3dbl_3", "branch_pool"),
    "b": ("branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    "c": ("branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3", "branch7x7dbl_1",
          "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5", "branch_pool"),
    "d": ("branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3",
          "branch7x7x3_4"),
    "e": ("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1",
          "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"),
}  # fmt: skip


def _convolutions() -> list[str]:
    blocks = [f"{block}.{branch}" for block, kind in BLOCKS.items() for branch in BRANCHES[kind]]
    return sorted([*STEM, *blocks])


def features(params: dict, images: jax.Array) -> jax.Array:
    """The last block's features, averaged over positions.

    Args:
        params: {convolution: {"kernel": (h w in out), "bias": (out)}}, batch norms folded in.
        images: (b 299 299 3) float32, about -1 to 1.

    Returns:
        (b 2048) float32.
    """

    def conv(name: str, x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
        axes = ("NHWC", "HWIO", "NHWC")
        layer, strides = params[name], (stride, stride)
        y = jax.lax.conv_general_dilated(
            x, layer["kernel"], strides, padding, dimension_numbers=axes
        )
        return jax.nn.relu(y + layer["bias"])

    x = conv("Conv2d_1a_3x3", images, 2, "VALID")
    x = conv("Conv2d_2a_3x3", x, padding="VALID")
    x = conv("Conv2d_2b_3x3", x)
    x = conv("Conv2d_3b_1x1", _max_pool(x), padding="VALID")
    x = _max_pool(conv("Conv2d_4a_3x3", x, padding="VALID"))
    for block, kind in BLOCKS.items():
        branch = lambda name, *args, block=block: conv(f"{block}.{name}", *args)
        x = _block(branch, kind, x, last=block == "Mixed_7c")
    return x.mean(axis=(1, 2))


def _block(conv: Callable[..., jax.Array], kind: str, x: jax.Array, last: bool) -> jax.Array:
    """The branches of a block side by side; `conv` takes the end of a convolution's name."""

    def chain(x: jax.Array, *branches: str) -> jax.Array:
        for branch in branches:
            x = conv(branch, x)
        return x

    if kind == "b":
        double = chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts = [conv("branch3x3", x, 2, "VALID"), conv("branch3x3dbl_3", double, 2, "VALID")]
        return jnp.concatenate([*parts, _max_pool(x)], axis=-1)
    if kind == "d":
        wide = chain(x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
        parts = [conv("branch3x3_2", conv("branch3x3_1", x), 2, "VALID")]
        parts += [conv("branch7x7x3_4", wide, 2, "VALID"), _max_pool(x)]
        return jnp.concatenate(parts, axis=-1)
    parts = [conv("branch1x1", x)]
    if kind == "a":
        parts.append(chain(x, "branch5x5_1", "branch5x5_2"))
        parts.append(chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
    elif kind == "c":
        parts.append(chain(x, *(f"branch7x7_{k}" for k in (1, 2, 3))))
        parts.append(chain(x, *(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5))))
    else:
        single = conv("branch3x3_1", x)
        double = chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts += [conv("branch3x3_2a", single), conv("branch3x3_2b", single)]
        parts += [conv("branch3x3dbl_3a", double), conv("branch3x3dbl_3b", double)]
    pooled = _max_pool(x, 1, "SAME") if last else _average_pool(x)
    return jnp.concatenate([*parts, conv("branch_pool", pooled)], axis=-1)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def _average_pool(x: jax.Array) -> jax.Array:
    """3x3 means of what lies inside the picture."""
    total = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1,) * 4, "SAME")
    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))


def resize(picture: np.ndarray, way: str) -> np.ndarray:
    """A picture (h w 3) uint8 as the network takes it, by one of `RESIZING`.

    Returns:
        (299 299 3) float32: pytorch-fid maps 0 and 255 to -1 and 1, the others 0 and 256.
    """
    if way == "pytorch":
        return bilinear(picture, SIZE) / np.float32(127.5) - 1
    if way == "tensorflow":
        resized = bilinear(picture, SIZE, centred=False)
    else:
        channels = [
            Image.fromarray(channel).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            for channel in np.moveaxis(picture.astype(np.float32), -1, 0)
        ]
        resized = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)
    return resized / np.float32(128) - 1


def bilinear(picture: np.ndarray, size: int, *, centred: bool = True) -> np.ndarray:
    """Bilinear resizing without antialiasing.

    Args:
        picture: (h w 3) uint8.
        size: Side of the result.
        centred: Positions are pixels' centres (PyTorch's `align_corners=False`), or else their
            corners (TensorFlow 1's `resize_bilinear`).

    Returns:
        (size size 3) float32, 0 to 255.
    """
    rows, columns = (_positions(length, size, centred) for length in picture.shape[:2])
    picture = picture.astype(np.float32)
    (top, bottom, weight), (left, right, along) = rows, columns
    blended = picture[top] + (picture[bottom] - picture[top]) * weight[:, None, None]
    first, second = blended[:, left], blended[:, right]
    return first + (second - first) * along[None, :, None]


def _positions(length: int, size: int, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel of the result: the two it lies between, and how far it is to the second."""
    scale = np.float32(length / size)
    place = np.arange(size, dtype=np.float32)
    half = np.float32(0.5 if centred else 0)
    place = np.maximum((place + half) * scale - half, 0)
    first = place.astype(int)
    second = np.minimum(first + 1, length - 1)
    return first, second, (place - first).astype(np.float32)
