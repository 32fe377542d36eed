"""Where a run's first weights come from: released folders, converted CLIP, other runs."""

import json
import logging

import jax
import numpy as np
from flax import traverse_util

from imprint_jax.config.fields import RANDOM, Config, InitFromConfig
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.training import checkpoint, run_directory
from imprint_jax.weights import release

log = logging.getLogger(__name__)

SHOWN = 8  # names of tensors in a message


def check_sources(config: Config, abstract_params: dict) -> None:
    """Refuses a run whose weights nobody chose, or whose sources do not have them.

    Reads names and shapes, no weights.

    Args:
        config: The whole configuration.
        abstract_params: {component: nested dict of the shapes it must have}.

    Raises:
        InputError: A component without a source, other than the closed-form codec; or a source that
            is no model, or has another shape.
    """
    if missing := unchosen(config):
        fields = " ".join(f"--config.init_from.{name}=SOURCE" for name in missing)
        raise InputError(
            f"Nothing says what {', '.join(missing)} should start from: add {fields}, where SOURCE"
            ' is a folder of weights, a run, or the word "random".'
        )
    for component, source in vars(config.init_from).items():
        if source not in ("", RANDOM):
            shapes = _shapes(source, component)
            if component == "unet":
                shapes = _with_background_channels(shapes, abstract_params[component])
            _check_shapes(shapes, abstract_params[component], component, source)


def unchosen(config: Config) -> list[str]:
    """The components that nothing says the start of; the closed-form codec has none to choose."""
    closed_form = {"vae"} if config.model.autoencoder != "kl" else set()
    return [
        name
        for name, source in vars(config.init_from).items()
        if not source and name not in closed_form
    ]


def load_initial(init_from: InitFromConfig, abstract_params: dict) -> dict:
    """The components that a source is named for.

    Args:
        init_from: The sources, checked by `check_sources`.
        abstract_params: {component: nested dict of the shapes it must have}.

    Returns:
        {component: nested dict of float32 NumPy arrays}.

    Raises:
        InputError: As `load_component`.
    """
    loaded = {}
    for component, source in vars(init_from).items():
        if source == RANDOM:
            log.info("%s starts at random", component)
        elif source:
            log.info("%s starts from %s", component, source)
            loaded[component] = load_component(source, component, abstract_params[component])
    return loaded


def load_component(source: str, component: str, abstract: dict) -> dict:
    """One component's parameters, from a released folder or a training run's averaged weights.

    A UNet without channels for a concatenated background starts one with them: their weights are 0.
    A folder of converted CLIP weights is taken as the component "dinov2".

    Args:
        source: Path of the folder.
        component: "dinov2", "adapter", "unet" or "vae".
        abstract: The nested dict of shapes it must have.

    Returns:
        Nested dict of float32 NumPy arrays.

    Raises:
        InputError: The folder is neither, or its component has another shape.
    """
    folder = release.resolve(source)
    if (folder / "checkpoints").is_dir():
        params = checkpoint.load_component(folder, component)
    elif component == "dinov2" and release.component_file(folder, "clip").is_file():
        params = release.load_clip(folder)
    else:
        params = release.load_component(release.model_folder(folder), component)
    if component == "unet":
        params = _with_background_channels(params, abstract)
    _check_shapes(params, abstract, component, source)
    return params


def _shapes(source: str, component: str) -> dict:
    """As `load_component`, with `jax.ShapeDtypeStruct`s in place of arrays."""
    folder = release.resolve(source)
    if (folder / "checkpoints").is_dir():
        return imprint.abstract(getattr(run_directory.load_config(folder).model, component))
    if component == "dinov2" and release.component_file(folder, "clip").is_file():
        return release.clip_shapes(folder)
    return release.component_shapes(release.model_folder(folder), component)


def _check_shapes(params: dict, abstract: dict, component: str, source: str) -> None:
    shapes = {k: x.shape for k, x in traverse_util.flatten_dict(params, sep=".").items()}
    needed = {k: x.shape for k, x in traverse_util.flatten_dict(abstract, sep=".").items()}
    differing = sorted(shapes.items() ^ needed.items())
    if differing:
        listed = ", ".join(f"{k} {shape}" for k, shape in differing[:SHOWN])
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise InputError(f"{component} of {source} does not fit the configuration: {listed}{more}.")


def _with_background_channels(unet: dict, abstract: dict) -> dict:
    """The UNet with zeros for the channels of mask and background, where only those are missing."""
    kernel, wanted = unet["conv_in"]["kernel"], abstract["conv_in"]["kernel"]
    more = wanted.shape[2] - kernel.shape[2]
    if more != 1 + unet["conv_out"]["kernel"].shape[3]:
        return unet
    if isinstance(kernel, jax.ShapeDtypeStruct):
        shape = (*kernel.shape[:2], wanted.shape[2], kernel.shape[3])
        padded: jax.ShapeDtypeStruct | np.ndarray = jax.ShapeDtypeStruct(shape, kernel.dtype)
    else:
        padded = np.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
    return unet | {"conv_in": unet["conv_in"] | {"kernel": padded}}


def load_licences(source: str) -> dict[str, str]:
    """{component: licence} of the public weights in a released folder or behind a training run.

    Raises:
        InputError: The folder is neither, or a run that does not say.
    """
    folder = release.resolve(source)
    if not (folder / "checkpoints").is_dir():
        return release.load_licences(folder)
    path = folder / "licences.json"
    if not path.is_file():
        raise InputError(
            f"{path} is missing: copy it from the run that {source} is, or write"
            ' {"component": "licence"} of the public weights it started from, {} for none.'
        )
    return json.loads(path.read_text())


def inherited_licences(init_from: InitFromConfig) -> dict[str, str]:
    """The licences that a run's weights stand under: {component: licence}, of those that have one.

    Args:
        init_from: The sources.
    """
    licences = {
        name: load_licences(source).get(name)
        for name, source in vars(init_from).items()
        if source not in ("", RANDOM)
    }
    return {name: licence for name, licence in licences.items() if licence}
