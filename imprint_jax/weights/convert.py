"""`imprint convert`: public weights to a folder of ours, and a folder of ours to PyTorch's."""

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from imprint_jax.config.fields import Config, ModelConfig, ReleasedConfig
from imprint_jax.errors import InputError
from imprint_jax.runtime.files import atomic_folder
from imprint_jax.weights import clip, detect, dinov2, mapping, peers, release, stable_diffusion
from imprint_jax.weights.detect import Component, Source, find
from imprint_jax.weights.tensors import read_json, write_tensors

log = logging.getLogger(__name__)

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def convert(
    src: Path,
    dst: Path,
    *,
    kind: str = "auto",
    to: str = "imprint",
    dtype: str | None = None,
    licence: str | None = None,
    clip_folder: Path | None = None,
) -> None:
    """Converts weights.

    Args:
        src: A file or folder: see `sources.find`.
        dst: Folder to make. Converting to "imprint" may add to a folder of ours that lacks these
            components, so that Stable Diffusion and DINOv2 can share one.
        kind: What `src` is; "auto" tells by what is there.
        to: "imprint" makes config.json and one safetensors a component; "torch" makes folders that
            diffusers and transformers load: unet/, vae/, dinov2/, and adapter/, imprint.json.
        dtype: "float32", "float16" or "bfloat16"; None keeps each tensor's.
        licence: That of the weights; None: the published weights' that the networks may be by their
            sizes, or "not stated".
        clip_folder: As `detect.find` takes it.

    Raises:
        InputError: Nothing known in `src`, tensors that do not fit, an unknown option, or `dst`
            holds such a component already. Nothing is written then.
    """
    if to not in ("imprint", "torch"):
        raise InputError(f'--to is {to!r}; use "imprint" or "torch".')
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}; use {', '.join(DTYPES)}.")
    source = find(src, kind, clip_folder)
    if not source.components:
        raise InputError(f"{src} holds no weights.")
    for part in source.components:
        mapping.check(part.table, part.tensors, part.abstract, part.source)
    kept_as = DTYPES[dtype] if dtype else None
    if to == "torch":
        if source.layout != "imprint":
            raise InputError(f"{src} is in PyTorch's names already.")
        _to_torch(source, dst, kept_as)
    else:
        _to_imprint(source, dst, kept_as, licence)


def _to_imprint(source: Source, dst: Path, dtype: np.dtype | None, licence: str | None) -> None:
    released = _released(source, dst, licence)
    names = [part.name for part in source.components]
    if existing := [name for name in names if (dst / f"{name}.safetensors").exists()]:
        raise InputError(f"{dst} holds {', '.join(existing)} already; choose another folder.")
    with _adding(dst) as folder:
        for part in source.components:
            params = mapping.read(part.table, part.tensors, part.abstract, part.source, dtype)
            release.write_component(folder, part.name, params)
            log.info("%s: %s", part.source, release.component_file(dst, part.name))
        release.write_config(folder, released)


def _released(source: Source, dst: Path, licence: str | None) -> dict:
    """The config.json that `dst` will have: what is there, or the defaults, with the source's.

    Raises:
        InputError: The two do not make one model.
    """
    settings = {part.name: part.settings for part in source.components}
    there = read_json(dst / "config.json") if (dst / "config.json").is_file() else {}
    if there and ("clip" in settings or "model" not in there):
        raise InputError(
            f"{dst} holds a config.json to which the {', '.join(settings)} cannot be added: choose"
            " another folder."
        )
    if source.kind == "imprint":
        return _joined(source.released, settings, dst) if there else source.released
    licences = {name: licence or own for name, own in detect.licences(source).items()}
    if "clip" in settings:
        return {"clip": settings["clip"], "licences": licences}
    if there:
        released = release.load_config(dst).to_dict() | {"licences": there.get("licences", {})}
    else:
        released = Config().released().to_dict()
    released["model"] |= settings
    for name, value in source.released.items():
        released[name] = released[name] | value if isinstance(value, dict) else value
    if "adapter" not in settings and not (dst / "adapter.safetensors").exists():
        model = released["model"]
        model["adapter"]["width_in"] = model["dinov2"]["width"]
        model["adapter"]["width"] = model["unet"]["context_width"]
    released.setdefault("licences", {}).update(licences)
    return released


def _joined(added: dict, components: Iterable[str], dst: Path) -> dict:
    """`dst`'s config.json with components of another released folder's.

    Raises:
        InputError: The two differ in more than the networks themselves.
    """
    kept, brought = release.load_licences(dst), added.get("licences", {})
    config = ReleasedConfig.of({key: x for key, x in added.items() if key != "licences"})
    released, new = release.load_config(dst).to_dict(), config.to_dict()
    own, other = released["model"], new["model"]
    differ = [key for key in released if key != "model" and released[key] != new[key]]
    choices = [key for key, value in own.items() if not isinstance(value, dict)]
    differ += [f"model.{key}" for key in choices if own[key] != other[key]]
    if differ:
        raise InputError(
            f"{dst} is of another model, which differs in {', '.join(differ)}: choose another"
            " folder."
        )
    for name in components:
        own[name] = other[name]
    return released | {"licences": kept | {k: x for k, x in brought.items() if k in components}}


class Target(NamedTuple):
    """Where a component goes in folders of PyTorch's libraries, and under which names.

    Attributes:
        folder: The folder's name.
        file: The file's; components of one folder share it.
        table: The names.
        settings: The folder's config.json; empty: none.
    """

    folder: str
    file: str
    table: mapping.Table
    settings: dict


def _to_torch(source: Source, dst: Path, dtype: np.dtype | None) -> None:
    # Everything that can be refused is, before anything is written.
    targets = [(part, _torch_target(part, source.released)) for part in source.components]
    with atomic_folder(dst) as folder:
        for name, group in itertools.groupby(targets, lambda pair: pair[1].folder):
            (folder / name).mkdir()
            tensors: dict[str, np.ndarray] = {}
            for part, target in group:
                params = mapping.read(part.table, part.tensors, part.abstract, part.source, dtype)
                tensors |= mapping.write(target.table, params)
                log.info("%s: %s", part.source, dst / name / target.file)
            if target.settings:
                _write_json(folder / name / "config.json", target.settings)
            # Without this mark transformers and diffusers refuse the file.
            write_tensors(folder / name / target.file, tensors, {"format": "pt"})
        if _is_peer(source.released) and source.released["model"]["object_tokens"] == "class":
            for name, content in peers.pipeline_files(source.released).items():
                (folder / name).parent.mkdir(exist_ok=True)
                _write_json(folder / name, content)
        _write_json(folder / "imprint.json", source.released)
        release.write_card(folder, source.released)


def _is_peer(released: dict) -> bool:
    """Whether the object's condition comes from Paint-by-Example's kind of image encoder."""
    model = released.get("model", {})
    return (model.get("encoder"), model.get("adapter_kind")) == ("clip", "mapper")


def _torch_target(part: Component, released: dict) -> Target:
    file = f"{stable_diffusion.STEM}.safetensors"
    if part.name in ("dinov2", "adapter") and _is_peer(released):
        make_table = peers.tower_table if part.name == "dinov2" else peers.mapper_table
        model = released["model"]
        settings = peers.image_encoder_config(model["dinov2"], model["adapter"])
        return Target("image_encoder", "model.safetensors", make_table(part.abstract), settings)
    match part.name:
        case "unet":
            diffusion = released["diffusion"]
            orders = {polarity: order for order, polarity in stable_diffusion.INPAINTING.values()}
            concatenates = diffusion["background_mode"] == "concat"
            order = orders[diffusion["mask_channel"]] if concatenates else ()
            side = released["image_size"] // ModelConfig.of(released["model"]).vae.factor
            table = stable_diffusion.diffusers_table(part.abstract, order)
            return Target("unet", file, table, stable_diffusion.unet_config(part.settings, side))
        case "vae":
            if released["model"]["autoencoder"] != "kl":
                raise InputError(
                    f"{part.source} is the closed-form codec, which PyTorch's libraries do not"
                    " have; only models with Stable Diffusion's VAE can be converted."
                )
            settings = stable_diffusion.vae_config(part.settings, released["image_size"])
            return Target("vae", file, stable_diffusion.diffusers_table(part.abstract), settings)
        case "dinov2" if "projection" in part.settings:
            raise InputError(
                f"{part.source} is CLIP's; only models whose encoder is DINOv2 can be converted."
            )
        case "dinov2":
            settings = dinov2.hf_config(part.settings)
            return Target("dinov2", "model.safetensors", dinov2.hf_table(part.abstract), settings)
        case "clip":
            settings = clip.hf_config(part.settings) | {
                "architectures": ["CLIPVisionModelWithProjection"],
                "projection_dim": part.settings["projection"],
            }
            return Target("clip", "model.safetensors", clip.hf_table(part.abstract), settings)
        case "adapter":
            table = stable_diffusion.diffusers_table(part.abstract)
            return Target("adapter", "adapter.safetensors", table, {})
    raise AssertionError(part.name)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def _adding(dst: Path) -> Iterator[Path]:
    """A folder whose content moves to `dst` at the end; after an exception nothing of it does."""
    if not dst.exists():
        with atomic_folder(dst) as folder:
            yield folder
        return
    try:
        temporary = tempfile.TemporaryDirectory(dir=dst, prefix=".")
    except OSError as error:  # it is a file, or read-only
        raise InputError(f"Cannot write {dst}: {error.strerror}.") from error
    with temporary as name:
        yield Path(name)
        # config.json last: without it the folder is no model yet.
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, dst / path.name)
