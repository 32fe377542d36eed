"""Pictures to embeddings: public encoders and our own, from weights of the user's.

| what a path holds                    | embedding                                          |
|--------------------------------------|----------------------------------------------------|
| CLIP's vision tower                  | what CLIP compares                                 |
| DINOv2, or DINO                      | the class token after the last norm                |
| torchvision's AlexNet or VGG-16      | LPIPS's last features, averaged over positions     |
| a released model of ours, or a run   | the adapter's tokens, averaged                     |
| the same, with "#dinov2" behind      | the class token of its image encoder               |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from imprint_jax.config.fields import CLIPConfig, Config, DINOv2Config, ModelConfig, ReleasedConfig
from imprint_jax.errors import InputError
from imprint_jax.evaluation import perceptual, vit
from imprint_jax.evaluation.batched import Batched
from imprint_jax.models import dinov2, imprint, init
from imprint_jax.models.attention import Attention, Target
from imprint_jax.models.layers import Rngs
from imprint_jax.training import checkpoint
from imprint_jax.weights import mapping, release
from imprint_jax.weights.detect import Component, find
from imprint_jax.weights.tensors import StoredTensor, open_tensors, weights_hash

# Side of the pictures DINOv2 embeds, in pixels (its evaluations'; dinov2/data/transforms.py).
DINOV2_SIZE = 224
# Likewise AlexNet and VGG-16 (torchvision's).
IMAGENET_SIZE = 224
# Path of a model + this: its image encoder without the adapter.
BARE = "#dinov2"


@dataclass(frozen=True, eq=False)
class Encoder:
    """An image encoder with its weights.

    Attributes:
        name: "clip", "dinov2", "dino", "dreamsim", "imagenet" or "imprint".
        about: Architecture in words, for reports.
        size: Side of the pictures it takes, in pixels.
        weights: SHA-256 of its weights, 16 hexadecimal digits.
        embed: Items ((size size 3) uint8,) -> embeddings (c) float32, in order.
    """

    name: str
    about: str
    size: int
    weights: str
    embed: Batched

    def settings(self) -> dict:
        """What a report says of it."""
        return {"encoder": self.name, "architecture": self.about, "weights": self.weights}


def load(path: str | Path) -> Encoder:
    """The encoder of a path, see the module; a shipped model's name ("mini") is one too.

    Raises:
        InputError: There is no encoder, or its weights are damaged.
    """
    path, bare = _split(path)
    if not path.exists():
        raise InputError(
            f"There is no model {str(path)!r}: give mini, or the path of CLIP, of DINOv2 or DINO,"
            " of AlexNet or VGG-16, of a run or of a released model."
        )
    if (path / "checkpoints").is_dir():
        config, params = checkpoint.load_params(path)
        return _ours(config.model, config.object_size, params, bare)
    if network := perceptual.find_network(path):
        return _imagenet(network)
    if path.is_file() and vit.is_vit(tensors := open_tensors(path)):
        return _dino(tensors, path)
    source = find(path)
    parts = {part.name: part for part in source.components}
    if "adapter" in parts and "dinov2" in parts:
        model = ModelConfig.of(source.released["model"])
        params = {name: _read(parts[name]) for name in ("dinov2", "adapter")}
        return _ours(model, source.released["object_size"], params, bare)
    for name, function in (("clip", _clip), ("dinov2", _dinov2)):
        if name in parts:
            return function(parts[name])
    raise InputError(f"{path} holds {', '.join(parts) or 'nothing'}: no image encoder.")


def untrained(path: str | Path) -> Encoder:
    """The encoder of a model or run as it was before any training: random, from seed 0.

    Raises:
        InputError: As `load`, or the path is no model of ours.
    """
    path, bare = _split(path)
    config: Config | ReleasedConfig
    if (path / "checkpoints").is_dir():
        config = checkpoint.load_config(path)
    else:
        config = release.load_config(release.model_folder(path))
    params = {name: init.draw(name, config.model, 0) for name in ("dinov2", "adapter")}
    return _ours(config.model, config.object_size, params, bare)


def _split(path: str | Path) -> tuple[Path, bool]:
    """The path, and whether `BARE` stands behind it."""
    name = str(path)
    if name.endswith(BARE):
        return release.resolve(name.removesuffix(BARE)), True
    return release.resolve(path), False


def _read(part: Component) -> dict:
    return mapping.read(part.table, part.tensors, part.abstract, part.source, np.dtype(np.float32))


def _bound(make: Callable, call: Callable) -> Callable:
    """(params, images (b s s 3) uint8) -> `call(module, images in [-1, 1])`."""
    attention = Attention(Target.of(jax.local_devices()[0]))
    module = nnx.eval_shape(lambda: make(attention=attention, rngs=Rngs(jax.random.key(0))))
    graphdef, _ = nnx.split(module, nnx.Param)
    return lambda params, images: call(nnx.merge(graphdef, params), imprint.to_float(images))


def _shape(settings: dict, depth: int) -> str:
    return f"width {settings['width']}, {depth} blocks, patches of {settings['patch_size']}"


def _clip(part: Component) -> Encoder:
    function = _bound(
        partial(imprint.build, CLIPConfig.of(part.settings), dtype=jnp.float32),
        lambda module, images: module(module.normalize(images)),
    )
    about = _shape(part.settings, part.settings["depth"])
    weights = part.digest()[:16]
    batched = Batched(function, _read(part))
    return Encoder("clip", about, part.settings["image_size"], weights, batched)


def _dinov2(part: Component) -> Encoder:
    settings = part.settings
    function = _bound(
        partial(imprint.build, DINOv2Config.of(settings), dtype=jnp.float32),
        lambda module, images: module.class_and_patches(images)[:, 0],
    )
    about = f"{_shape(settings, settings['depth'])}, {settings['num_registers']} registers"
    size = DINOV2_SIZE // settings["patch_size"] * settings["patch_size"]
    weights = part.digest()[:16]
    return Encoder("dinov2", about, size, weights, Batched(function, _read(part)))


def _dino(tensors: dict[str, StoredTensor], path: Path) -> Encoder:
    params = vit.read(tensors, str(path))

    def function(params: dict, images: jax.Array) -> jax.Array:
        tokens = vit.tokens(params, dinov2.normalize(imprint.to_float(images)))
        return vit.norm(params, "norm", tokens[:, 0], 1e-6)

    shape = params["patch_embed.proj.weight"].shape
    depth = len(params["blocks"]["norm1.weight"])
    about = "DINO, " + _shape({"width": shape[0], "patch_size": shape[-1]}, depth)
    weights = weights_hash(tensors)[:16]
    return Encoder("dino", about, vit.image_size(params), weights, Batched(function, params))


def _imagenet(network: perceptual.Network) -> Encoder:
    steps = perceptual.NETWORKS[network.name]

    def function(params: dict, images: jax.Array) -> jax.Array:
        return perceptual.taps(params, steps, imprint.to_float(images))[-1].mean(axis=(1, 2))

    about = f"{network.name}, last features"
    batched = Batched(function, network.params)
    return Encoder("imagenet", about, IMAGENET_SIZE, network.weights, batched)


def _ours(model: ModelConfig, object_size: int, params: dict, bare: bool) -> Encoder:
    """The encoder of a model: DINOv2, and unless `bare` the adapter."""

    def make(**options: Any) -> nnx.Dict:
        return nnx.Dict(
            {
                name: imprint.build(getattr(model, name), dtype=jnp.float32, **options)
                for name in ("dinov2", "adapter")
            }
        )

    def call(modules: nnx.Dict, images: jax.Array) -> jax.Array:
        tokens = modules["dinov2"].class_and_patches(images)
        return tokens[:, 0] if bare else modules["adapter"](tokens).mean(axis=1)

    params = {name: params[name] for name in ("dinov2", "adapter")}
    flat = traverse_util.flatten_dict(params, sep=".")
    stored = {k: StoredTensor(x.shape, x.dtype, partial(np.asarray, x)) for k, x in flat.items()}
    section = vars(model.dinov2)
    about = _shape(section, model.dinov2.depth) + ("" if bare else " and adapter")
    return Encoder(
        "dinov2" if bare else "imprint",
        about,
        object_size,
        weights_hash(stored)[:16],
        Batched(_bound(make, call), params),
    )
