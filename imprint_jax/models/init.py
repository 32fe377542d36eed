"""Random initial parameters, drawn with NumPy on the host by what a parameter is called.

Drawing them in a compiled program is no faster and takes XLA:CPU 20 s to compile for `mini`'s 400
tensors. Each tensor has its own stream, so that a value depends on the seed and the path only.
"""

import math
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from flax import traverse_util

from imprint_jax.config.fields import LappedConfig, ModelConfig
from imprint_jax.models import imprint
from imprint_jax.models.vae import lapped_codec_params

Draw = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


def lecun_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """N(0, 1 / fan_in) for a kernel (... in out): flax's default, here without truncation."""
    return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))


def small_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """N(0, 0.02^2), for tokens and position embeddings (dinov2/models/vision_transformer.py)."""
    return np.float32(0.02) * rng.standard_normal(shape, np.float32)


def ones(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Gains."""
    return np.ones(shape, np.float32)


def zeros(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Offsets, and the token that only DINOv2's own training uses."""
    return np.zeros(shape, np.float32)


# The first pattern that matches a path's end decides; every parameter must match one.
INITIAL: tuple[tuple[str, Draw], ...] = (
    (r"kernel", lecun_normal),
    (r"scale|gamma", ones),
    (r"bias|mask_token", zeros),
    (r"cls_token|pos_embed|register_tokens|null_token", small_normal),
)


def draw(component: str, config: ModelConfig, seed: int) -> dict:
    """One component's initial parameters.

    Args:
        component: One of `imprint.COMPONENTS`.
        config: The whole model's.
        seed: Decides all values.

    Returns:
        Nested dict of float32 NumPy arrays.
    """
    section = getattr(config, component)
    if isinstance(section, LappedConfig):
        return lapped_codec_params(**vars(section))
    flat = traverse_util.flatten_dict(imprint.abstract(section), sep="/")

    def values(path: str) -> np.ndarray:
        initializer = next(f for p, f in INITIAL if re.fullmatch(p, path.rpartition("/")[2]))
        rng = np.random.default_rng([seed, zlib.crc32(f"{component}/{path}".encode())])
        shape = flat[path].shape
        if component != "dinov2" or not path.startswith("blocks/"):
            return initializer(shape, rng)
        stacked = np.empty(shape, np.float32)  # the leading axis counts blocks, not inputs
        for block in stacked:
            block[...] = initializer(shape[1:], rng)
        return stacked

    with ThreadPoolExecutor() as pool:  # NumPy draws without holding Python's lock
        drawn = dict(zip(flat, pool.map(values, flat), strict=True))
    return traverse_util.unflatten_dict(drawn, sep="/")


def draw_all(config: ModelConfig, seed: int) -> dict:
    """{component: `draw`} of the whole model."""
    return {component: draw(component, config, seed) for component in imprint.COMPONENTS}
