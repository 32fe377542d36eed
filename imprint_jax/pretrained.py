"""The released folder: config.json and one safetensors file a component, keys joined by dots.

DIR/config.json  dinov2.safetensors  adapter.safetensors  unet.safetensors  vae.safetensors
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from imprint_jax import checkpoint
from imprint_jax.errors import InputError
from imprint_jax.models import imprint

# What of a configuration a model needs to be used; the rest is how it was trained.
RELEASED_FIELDS = ("image_size", "object_size", "model", "diffusion", "sampling")
# The models that ship with the package.
SHIPPED = Path(__file__).parent / "released"


def model_folder(name: str | Path) -> Path:
    """The folder of a model: one that ships ("mini"), or a released folder's path.

    Raises:
        InputError: There is none.
    """
    for folder in (SHIPPED / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))
    raise InputError(
        f"There is no model {str(name)!r}: give {shipped}, or a folder with a config.json and"
        " one .safetensors a component."
    )


def save(folder: Path, config: ConfigDict, params: dict, dtype=np.float16) -> None:
    """Writes a released folder; what was there before stays whole until the new one is.

    Args:
        folder: Where to; created if it does not exist.
        config: A whole configuration, of which `RELEASED_FIELDS` are kept.
        params: {component: nested dict of arrays}.
        dtype: Of the stored arrays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for component, tree in params.items():
        flat = traverse_util.flatten_dict(tree, sep=".")
        flat = {key: np.ascontiguousarray(np.asarray(x, dtype)) for key, x in flat.items()}
        _replace(folder / f"{component}.safetensors", safetensors.numpy.save(flat))
    fields = config.to_dict()
    released = {field: fields[field] for field in RELEASED_FIELDS}
    _replace(folder / "config.json", (json.dumps(released, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def load_config(folder: Path) -> ConfigDict:
    """The configuration of a released folder: `RELEASED_FIELDS` only."""
    return ConfigDict(json.loads((folder / "config.json").read_text()))


def load(folder: Path) -> tuple[ConfigDict, dict]:
    """A released folder's configuration and parameters, float32 on the host.

    Raises:
        InputError: A file is missing or damaged, or holds other tensors than the model has.
    """
    config = load_config(folder)
    _, abstract = imprint.split(config.model)
    params = {name: _read(folder / f"{name}.safetensors", abstract[name]) for name in abstract}
    return config, params


def model_hash(folder: Path) -> str:
    """What tells a released folder from any other: the SHA-256 over its files' names and contents.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def load_component(source: str, component: str, abstract: dict) -> dict:
    """One component's parameters, from a released folder or a training run's averaged weights.

    Args:
        source: Path of the folder.
        component: "dinov2", "adapter", "unet" or "vae".
        abstract: The nested dict of shapes it must have.

    Raises:
        InputError: The folder is neither, or its component has another shape.
    """
    folder = Path(source)
    if (folder / "checkpoints").is_dir():
        params = checkpoint.load_params(folder)[1][component]
        _check(params, abstract, f"{component} of {source}")
        return params
    return _read(model_folder(source) / f"{component}.safetensors", abstract)


def _read(path: Path, abstract: dict) -> dict:
    if not path.is_file():
        raise InputError(f"The model's file {path} is missing.")
    try:
        flat = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"The model's file {path} is damaged: {error}.") from error
    params = traverse_util.unflatten_dict(
        {key: x.astype(np.float32) for key, x in flat.items()}, sep="."
    )
    _check(params, abstract, str(path))
    return params


def _check(params: dict, abstract: dict, name: str) -> None:
    found = {k: x.shape for k, x in traverse_util.flatten_dict(params, sep=".").items()}
    wanted = {k: x.shape for k, x in traverse_util.flatten_dict(abstract, sep=".").items()}
    if found != wanted:
        wrong = sorted(set(found.items()) ^ set(wanted.items()))
        listed = ", ".join(f"{key} {shape}" for key, shape in wrong)
        raise InputError(f"{name} does not fit the model's configuration: {listed}.")
