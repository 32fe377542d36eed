"""The released folder: config.json and one safetensors file a component, keys joined by dots.

DIR/config.json  dinov2.safetensors  adapter.safetensors  unet.safetensors  vae.safetensors
DIR/README.md    the card: what is in the folder, under which licences
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import DTypeLike

from imprint_jax.config.fields import CLIPConfig, ReleasedConfig
from imprint_jax.config.section import Section
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.runtime.files import atomic_file
from imprint_jax.weights import hub, mapping
from imprint_jax.weights.tensors import file_hash, open_tensors, read_json, write_tensors

log = logging.getLogger(__name__)

# The models that ship with the package.
SHIPPED = Path(__file__).parent.parent / "released"
LICENCES = Path(__file__).parent.parent / "licences"


def resolve(name: str | Path) -> Path:
    """What a text means: the folder of the model that ships by this name ("mini"), or a path.

    Or a name on the hub, "ORG/NAME" or "ORG/NAME@REVISION", whose files are fetched.

    A `Path` is a path always; so are "./mini" and whatever exists.

    Raises:
        InputError: As `hub.fetch`.
    """
    if isinstance(name, str) and name in _shipped():
        if Path(name).exists():
            log.warning("%s is the model that ships; ./%s is the one here", name, name)
        return SHIPPED / name
    if isinstance(name, str) and hub.is_name(name) and not Path(name).exists():
        return hub.fetch(name)
    return Path(name)


def model_folder(name: str | Path) -> Path:
    """The folder of a model: one that ships ("mini"), a released folder's path, or of the hub.

    Raises:
        InputError: There is none.
    """
    folder = resolve(name)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"There is no model {str(name)!r}: give {', '.join(_shipped())}, a folder with a"
            " config.json and one .safetensors a component, or ORG/NAME on the hub."
        )
    return folder


def _shipped() -> list[str]:
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())


def component_file(folder: Path, component: str) -> Path:
    """Where a component's weights are."""
    return folder / f"{component}.safetensors"


def save(
    folder: Path,
    config: ReleasedConfig,
    params: dict,
    licences: Mapping[str, str] | None = None,
    dtype: DTypeLike = np.float16,
) -> None:
    """Writes a released folder; each file is replaced when the new one is whole.

    Args:
        folder: Where to; created if it does not exist.
        config: What the model needs to be used.
        params: {component: nested dict of arrays}.
        licences: {component: licence} of the public weights it comes from, if any.
        dtype: Of the stored arrays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for component, tree in params.items():
        flat = traverse_util.flatten_dict(tree)
        half = {path: np.asarray(x, dtype) for path, x in flat.items()}
        write_component(folder, component, traverse_util.unflatten_dict(half))
    write_config(folder, config.to_dict() | {"licences": dict(licences or {})})


def write_component(folder: Path, component: str, params: dict) -> None:
    """Writes one component's nested dict of NumPy arrays.

    Raises:
        InputError: One holds a number that is not finite.
    """
    flat = traverse_util.flatten_dict(params, sep=".")
    flat = {key: np.ascontiguousarray(x) for key, x in flat.items()}
    if broken := [key for key, x in flat.items() if not np.isfinite(x).all()]:
        raise InputError(
            f"The {component} holds numbers that are not finite, in {', '.join(broken[:3])}: such"
            " weights are not written."
        )
    write_tensors(component_file(folder, component), flat)


def write_config(folder: Path, released: dict) -> None:
    """Writes config.json, and the card that says what the folder's weights may be used for."""
    write_card(folder, released)
    with atomic_file(folder / "config.json") as file:
        file.write_text(json.dumps(released, indent=2) + "\n")


def write_card(folder: Path, released: dict) -> None:
    """Writes README.md and the licences that go with the weights.

    Args:
        folder: Where to.
        released: A config.json's content; read is `licences`, {component: name}.
    """
    licences = released.get("licences", {})
    lines = [
        "# Weights for imprint_jax",
        "",
        "| component | public weights' licence |",
        "|---|---|",
    ]
    lines += [f"| {component} | {licence} |" for component, licence in licences.items()]
    lines += ["| (all else) | as who trained it says |", ""]
    for text in sorted(LICENCES.glob("*.txt")):
        licence = text.stem.replace("-", " ", 1)
        if any(licence in name for name in licences.values()):
            shutil.copy(text, folder / f"LICENCE-{text.name}")
            lines += [
                f"Parts of this model are {licence} weights or were trained from them. The use"
                f" restrictions of Attachment A in [LICENCE-{text.name}](LICENCE-{text.name}) hold"
                " for this model and all that is derived from it, and must be passed on with it.",
                "",
            ]
    with atomic_file(folder / "README.md") as file:
        file.write_text("\n".join(lines), encoding="utf-8")


def load_config(folder: Path) -> ReleasedConfig:
    """The configuration in a released folder's config.json.

    Raises:
        InputError: It is damaged, of a single encoder, or has values that cannot be.
    """
    path = folder / "config.json"
    content = read_json(path)
    try:
        return ReleasedConfig.of({k: x for k, x in content.items() if k != "licences"})
    except InputError as error:
        raise InputError(f"{path} is no model's configuration: {error}") from error


def load(folder: Path) -> tuple[ReleasedConfig, dict]:
    """A released folder's configuration and parameters, float32 on the default device.

    Raises:
        InputError: A file is missing or damaged, or holds other tensors than the model has.
    """
    config = load_config(folder)
    check_whole(folder)
    params = {}
    for name in imprint.COMPONENTS:
        # Placed one by one: NumPy's copy of a tensor is gone before the next is read.
        arrays = _read(component_file(folder, name), getattr(config.model, name))
        flat = {path: jnp.asarray(x) for path, x in arrays}
        params[name] = traverse_util.unflatten_dict(flat, sep="/")
    return config, params


def check_whole(folder: Path) -> None:
    """Raises `InputError` unless a released folder has all components."""
    files = [component_file(folder, name) for name in imprint.COMPONENTS]
    if lacking := [str(file) for file in files if not file.is_file()]:
        raise InputError(
            f"{folder} is not a whole model: {', '.join(lacking)} missing. Converted public weights"
            " of Stable Diffusion and DINOv2 have no adapter; it comes from training."
        )


def load_component(folder: Path, component: str) -> dict:
    """One component's parameters, a nested dict of float32 NumPy arrays.

    Args:
        folder: A released folder, which may lack the other components.
        component: One of `imprint.COMPONENTS`.

    Raises:
        InputError: A file is missing or damaged, or holds other tensors than the model has.
    """
    file = component_file(folder, component)
    flat = dict(_read(file, getattr(load_config(folder).model, component)))
    return traverse_util.unflatten_dict(flat, sep="/")


def load_clip(folder: Path) -> dict:
    """As `load_component`, of a folder of converted CLIP weights: as the component "dinov2"."""
    flat = dict(_read(component_file(folder, "clip"), _clip_section(folder)))
    return traverse_util.unflatten_dict(flat, sep="/")


def component_shapes(folder: Path, component: str) -> dict:
    """As `load_component`, but reads no values: a nested dict of `jax.ShapeDtypeStruct`s."""
    return _shapes(component_file(folder, component), getattr(load_config(folder).model, component))


def clip_shapes(folder: Path) -> dict:
    """As `load_clip`, but reads no values: a nested dict of `jax.ShapeDtypeStruct`s."""
    return _shapes(component_file(folder, "clip"), _clip_section(folder))


def _clip_section(folder: Path) -> CLIPConfig:
    return CLIPConfig.of(read_json(folder / "config.json")["clip"])


def _shapes(file: Path, section: Section) -> dict:
    shapes = abstract(section, str(file))
    mapping.check(mapping.own_table(shapes), open_tensors(file), shapes, str(file))
    return shapes


def _read(file: Path, section: Section) -> Iterator[tuple[str, np.ndarray]]:
    """Paths and float32 arrays of a component's file, one by one; as `mapping.parameters`."""
    abstract_params = abstract(section, str(file))
    table = mapping.own_table(abstract_params)
    dtype = np.dtype(np.float32)
    return mapping.parameters(table, open_tensors(file), abstract_params, str(file), dtype)


def abstract(section: Section, source: str) -> dict:
    """The shapes of one component's parameters, by settings that come from a file.

    Args:
        section: The component's.
        source: Where it is from, for the error.

    Raises:
        InputError: The settings describe no such network.
    """
    try:
        return imprint.abstract(section)
    # Whatever numbers that do not fit each other do to a network's constructor.
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(f"The settings of {source} describe no network: {error}.") from error


def load_licences(folder: Path) -> dict[str, str]:
    """{component: licence} of the public weights in a released folder, or one of converted CLIP.

    Raises:
        InputError: There is no such folder.
    """
    if component_file(folder, "clip").is_file():  # which takes the place of DINOv2
        return {"dinov2": read_json(folder / "config.json")["licences"]["clip"]}
    return read_json(model_folder(folder) / "config.json").get("licences", {})


def model_hash(folder: Path) -> str:
    """SHA-256 over config.json and the weights of a released folder, hexadecimal."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    lines = "".join(f"{file_hash(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
