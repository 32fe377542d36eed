"""What a path holds: the weights of which components, under which family's names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imprint_jax import config
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.models.clip import CLIPVision
from imprint_jax.weights import clip, dinov2, mapping, stable_diffusion
from imprint_jax.weights.tensors import StoredTensor, open_folder, open_tensors

KINDS = ("sd", *stable_diffusion.INPAINTING, "dinov2", "clip", "imprint")
# Licences of the public weights (their model cards).
OPENRAIL = "CreativeML OpenRAIL-M"
LICENCES = {"unet": OPENRAIL, "vae": OPENRAIL, "dinov2": "Apache-2.0", "clip": "MIT"}


@dataclass(frozen=True)
class Component:
    """One network's weights, found but not read.

    Attributes:
        name: "dinov2", "adapter", "unet", "vae" or "clip".
        settings: Its section of `config.model`; for "clip" the arguments of `CLIPVision`.
        tensors: Its tensors.
        table: Their names; `mapping.read` and `mapping.write` take it.
        abstract: Nested dict of our parameters' shapes.
        source: Where it is, for errors.
    """

    name: str
    settings: dict
    tensors: Mapping[str, StoredTensor]
    table: mapping.Table
    abstract: dict
    source: str


@dataclass(frozen=True)
class Source:
    """What a path holds.

    Attributes:
        kind: One of `KINDS`.
        layout: "imprint" or "torch".
        components: What was found.
        released: Fields of a released folder's config.json that the source determines.
    """

    kind: str
    layout: str
    components: list[Component]
    released: dict = field(default_factory=dict)


def find(path: Path, kind: str = "auto") -> Source:
    """Opens a path; reads no weights.

    Args:
        path: A file or a folder.
        kind: One of `KINDS`, or "auto" to tell by what is there.

    Raises:
        InputError: Nothing there is known, or it is not of that kind or damaged.
    """
    if kind not in (*KINDS, "auto"):
        raise InputError(f"There is no kind {kind!r}; known are auto, {', '.join(KINDS)}.")
    if not path.exists():
        raise InputError(f"There is no {path}.")
    found = _detect(path)
    if kind == "auto":
        kind = found
    if kind is None:
        raise InputError(
            f"{path} is nothing that is known: a folder of diffusers, of transformers' DINOv2 or"
            " CLIP or of a released model, or a file of Stable Diffusion or DINOv2 in the original"
            " names. See docs/weights.md."
        )
    # The families of 9-channel UNets may look alike; all else must be what it is called.
    if found != kind and not (
        found in (None, "sd") and kind in ("sd", *stable_diffusion.INPAINTING)
    ):
        raise InputError(f"{path} is of the kind {found or 'unknown'}, not {kind}.")
    match kind:
        case "imprint":
            return _find_imprint(path)
        case "dinov2":
            return Source(kind, "torch", [_find_dinov2(path)])
        case "clip":
            return Source(kind, "torch", [_find_clip(path)])
    return _find_sd(path, kind)


def _detect(path: Path) -> str | None:
    if path.is_file():
        keys = open_tensors(path).keys()
        if any(key.startswith("model.diffusion_model.") for key in keys):
            return "paint-by-example" if "learnable_vector" in keys else "sd"
        return "dinov2" if "blocks.0.attn.qkv.weight" in keys else None
    if (path / "imprint.json").is_file():
        return "imprint"
    if (path / "model_index.json").is_file():
        pipeline = _json(path / "model_index.json").get("_class_name", "")
        return {
            "PaintByExamplePipeline": "paint-by-example",
            "StableDiffusionInpaintPipeline": "sd-inpainting",
        }.get(pipeline, "sd")
    if any((path / name / "config.json").is_file() for name in ("unet", "vae")):
        return "sd"
    if not (path / "config.json").is_file():
        return None
    settings = _json(path / "config.json")
    if "model" in settings or "clip" in settings:
        return "imprint"
    if settings.get("_class_name") in ("UNet2DConditionModel", "AutoencoderKL"):
        return "sd"
    model_type = settings.get("model_type", "")
    return next((kind for kind in ("dinov2", "clip") if model_type.startswith(kind)), None)


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def _component(name: str, settings: dict, tensors, make_table, source: str) -> Component:
    """A component whose table `make_table` makes from our parameters' shapes."""
    if name == "clip":
        abstract = imprint.abstract_params(CLIPVision, **settings)
    else:
        model = config.default().model
        if name == "vae" and "patch" in settings:
            model.autoencoder = "lapped"
        model.encoder = "clip" if "projection" in settings and name == "dinov2" else "dinov2"
        with model.unlocked():
            model[name] = settings
        abstract = imprint.abstract(name, model)
    return Component(name, settings, tensors, make_table(abstract), abstract, source)


def _find_sd(path: Path, kind: str) -> Source:
    if path.is_file():
        unet, vae = stable_diffusion.open_compvis(path)
        parts = {"unet": (unet, {}), "vae": (vae, {})}
    else:
        folders = {name: path / name for name in ("unet", "vae") if (path / name).is_dir()}
        if not folders:  # one model's own folder
            is_vae = _json(path / "config.json").get("_class_name") == "AutoencoderKL"
            folders = {"vae" if is_vae else "unet": path}
        parts = {
            name: stable_diffusion.open_diffusers(folder)[::-1] for name, folder in folders.items()
        }

    released = {"diffusion": _scheduler(path)}
    components = []
    for name, (tensors, settings) in parts.items():
        source = f"the {name} of {path}"
        if name == "vae":
            tensors = stable_diffusion.old_attention(tensors)
            settings = stable_diffusion.vae_settings(tensors, settings, source)
            make_table = stable_diffusion.diffusers_table
        else:
            settings = stable_diffusion.unet_settings(tensors, settings, source)
            order, polarity = _inpainting(settings, kind, source)
            if polarity:
                released["diffusion"] |= dict(background_mode="concat", mask_channel=polarity)
            make_table = lambda abstract, order=order: stable_diffusion.diffusers_table(
                abstract, order
            )
        components.append(_component(name, settings, tensors, make_table, source))
    return Source(kind, "torch", components, released)


def _inpainting(unet: dict, kind: str, source: str) -> tuple[tuple[int, ...], str]:
    """The order of the UNet's input channels and what its mask's 1 stands for; ((), "") for 4."""
    concatenates = unet["in_channels"] == 2 * unet["out_channels"] + 1
    if kind in stable_diffusion.INPAINTING and not concatenates:
        raise InputError(f"{source} takes {unet['in_channels']} channels, no mask or background.")
    if kind == "sd" and concatenates:
        raise InputError(
            f"{source} takes {unet['in_channels']} channels; say in which order:"
            f" --kind {' or --kind '.join(stable_diffusion.INPAINTING)}."
        )
    return stable_diffusion.INPAINTING[kind] if concatenates else ((), "")


def _scheduler(path: Path) -> dict:
    """What scheduler/scheduler_config.json says of the noise, if it is there."""
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    settings = _json(file)
    schedule = settings.get("beta_schedule", "scaled_linear")
    if schedule != "scaled_linear":
        raise InputError(f"{file} has the noise schedule {schedule!r}; known is scaled_linear.")
    names = dict(
        num_train_timesteps="num_train_timesteps",
        beta_start="beta_start",
        beta_end="beta_end",
        prediction_type="prediction_type",
        rescale_betas_zero_snr="zero_terminal_snr",
    )
    return {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}


def _find_dinov2(path: Path) -> Component:
    source = f"the encoder {path}"
    if path.is_file():
        tensors = open_tensors(path)
        settings = dinov2.original_settings(tensors, source)
        return _component("dinov2", settings, tensors, dinov2.original_table, source)
    tensors = open_folder(path, "model")
    settings = dinov2.hf_settings(tensors, _json(path / "config.json"), source)
    return _component("dinov2", settings, tensors, dinov2.hf_table, source)


def _find_clip(path: Path) -> Component:
    tensors, source = open_folder(path, "model"), f"the encoder {path}"
    settings = clip.settings(tensors, _json(path / "config.json"), source)
    return _component("clip", settings, tensors, clip.hf_table, source)


def _find_imprint(path: Path) -> Source:
    """A released folder, or what `convert --to torch` made of one."""
    if (path / "imprint.json").is_file():
        return _find_torch_export(path)
    released = _json(path / "config.json")
    sections = released["model"] if "model" in released else released
    components = []
    for name in (*imprint.COMPONENTS, "clip"):
        file = path / f"{name}.safetensors"
        if file.is_file():
            components.append(
                _component(name, sections[name], open_tensors(file), mapping.own_table, str(file))
            )
    return Source("imprint", "imprint", components, released)


def _find_torch_export(path: Path) -> Source:
    released = _json(path / "imprint.json")
    components = []
    if (path / "dinov2").is_dir():
        components.append(_find_dinov2(path / "dinov2"))
    if (path / "adapter").is_dir():
        tensors = open_tensors(path / "adapter" / "adapter.safetensors")
        settings, source = released["model"]["adapter"], str(path / "adapter")
        components.append(
            _component("adapter", settings, tensors, stable_diffusion.diffusers_table, source)
        )
    if (path / "unet").is_dir() or (path / "vae").is_dir():
        polarity = released["diffusion"]["mask_channel"]
        concatenates = released["diffusion"]["background_mode"] == "concat"
        kinds = {polarity: kind for kind, (_, polarity) in stable_diffusion.INPAINTING.items()}
        components += _find_sd(path, kinds[polarity] if concatenates else "sd").components
    if (path / "clip").is_dir():
        components.append(_find_clip(path / "clip"))
    return Source("imprint", "torch", components, released)
