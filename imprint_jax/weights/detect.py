"""What a path holds: the weights of which components, under which family's names."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imprint_jax.config.fields import KLConfig, network
from imprint_jax.diffusion import process
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.weights import clip, dinov2, mapping, peers, release, stable_diffusion
from imprint_jax.weights.tensors import StoredTensor, open_folder, open_tensors, read_json

KINDS = ("sd", *stable_diffusion.INPAINTING, "dinov2", "clip", "imprint")
# Licences of the public weights (their model cards), and what marks a network as one of them:
# any other network of the same kind has whatever licence its owner gave it.
OPENRAIL = "CreativeML OpenRAIL-M"
NOT_STATED = "not stated"
PUBLISHED: dict[str, tuple[str, dict[str, tuple]]] = {
    "unet": (OPENRAIL, dict(block_widths=((320, 640, 1280, 1280),), context_width=(768,))),
    "vae": (OPENRAIL, dict(block_widths=((128, 256, 512, 512),), latent_channels=(4,))),
    "dinov2": ("Apache-2.0", dict(width=(384, 768, 1024, 1536), patch_size=(14,))),
    "clip": ("MIT", dict(width=(768, 1024), patch_size=(14, 16, 32))),
}
# The fields of `config.model` that say which network a component is.
CHOICES = ("encoder", "autoencoder", "adapter_kind")
# Families that are not read, by a tensor that only they have.
OTHER_FAMILIES = (
    (r"conditioner\.embedders\..*", "Stable Diffusion XL"),
    (r"cond_stage_model\.model\.transformer\.resblocks\..*", "Stable Diffusion 2"),
    (r"(model\.diffusion_model\.)?joint_blocks\..*", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?double_blocks\..*", "FLUX"),
    (r"(model\.diffusion_model\.)?\w+_blocks\.\d+\.2\.local_norm\..*", "ControlCom"),
    (r"control_model\.zero_convs\..*", "AnyDoor or another ControlNet"),
    (r".*lora_(A|B|up|down)\..*", "a LoRA"),
    (r"reg_token|(blocks\.0|layers\.0\.blocks\.0)\.norm1\.weight", "timm"),
)


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

    def digest(self) -> str:
        """SHA-256 of the weights, hexadecimal; the same under whatever family's names they are."""
        return mapping.digest(self.table, self.tensors, self.abstract, self.source)


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


def find(path: Path, kind: str = "auto", clip_folder: Path | None = None) -> Source:
    """Opens a path; reads no weights.

    Args:
        path: A file or a folder.
        kind: One of `KINDS`, or "auto" to tell by what is there.
        clip_folder: CLIP ViT-L/14, for a compositor's file that lacks it: transformers' folder, or
            a converted one.

    Raises:
        InputError: Nothing there is known, or it is not of that kind or damaged.
    """
    if kind not in (*KINDS, "auto"):
        raise InputError(f"There is no kind {kind!r}; known are auto, {', '.join(KINDS)}.")
    if not path.exists():
        raise InputError(f"There is no {path}.")
    if path.is_file() and (family := other_family(open_tensors(path))):
        raise InputError(
            f"{path} is of {family}, which is not read; docs/weights.md lists what is."
        )
    detected = _detect(path)
    if kind == "auto":
        kind = detected or ""
    if not kind:
        raise InputError(
            f"{path} is not recognised. It may be a folder of diffusers, of transformers' DINOv2 or"
            " CLIP or of a released model, or a file of Stable Diffusion or DINOv2 in the original"
            " names. See docs/weights.md."
        )
    # The families of 9-channel UNets may look alike; all else must be what it is called.
    similar = detected in (None, "sd") and kind in ("sd", *stable_diffusion.INPAINTING)
    similar = similar or (detected, kind) == ("paint-by-example", "objectstitch")
    if detected != kind and not similar:
        raise InputError(f"{path} is of the kind {detected or 'unknown'}, not {kind}.")
    if clip_folder is not None and kind not in peers.PEERS:
        raise InputError(
            f"--clip belongs to {' and '.join(peers.PEERS)}; {path} is of kind {kind}."
        )
    match kind:
        case "imprint":
            return _find_imprint(path)
        case "paint-by-example" | "objectstitch":
            return _find_peer(path, kind, clip_folder)
        case "dinov2":
            return Source(kind, "torch", [_find_dinov2(path)])
        case "clip":
            return Source(kind, "torch", [_find_clip(path)])
    return _find_sd(path, kind)


def _detect(path: Path) -> str | None:
    if path.is_file():
        keys = open_tensors(path).keys()
        if any(key.startswith("model.diffusion_model.") for key in keys):
            return "paint-by-example" if peers.ORIGINAL_NULL in keys else "sd"
        return "dinov2" if "blocks.0.attn.qkv.weight" in keys else None
    if (path / "imprint.json").is_file():
        return "imprint"
    if (path / "model_index.json").is_file():
        pipeline = str(read_json(path / "model_index.json").get("_class_name"))
        return {
            "PaintByExamplePipeline": "paint-by-example",
            "StableDiffusionInpaintPipeline": "sd-inpainting",
        }.get(pipeline, "sd")
    if any((path / name / "config.json").is_file() for name in ("unet", "vae")):
        return "sd"
    if not (path / "config.json").is_file():
        return None
    settings = read_json(path / "config.json")
    if "model" in settings or "clip" in settings:
        return "imprint"
    if settings.get("_class_name") in ("UNet2DConditionModel", "AutoencoderKL"):
        return "sd"
    model_type = str(settings.get("model_type"))
    return next((kind for kind in ("dinov2", "clip") if model_type.startswith(kind)), None)


def other_family(keys: Collection[str]) -> str | None:
    """The name of the family that a file's tensors belong to, if it is one that is not read."""
    if "mask_token" in keys and "reg_token" not in keys:
        return None  # DINOv2 in the original names
    for pattern, family in OTHER_FAMILIES:
        if any(re.fullmatch(pattern, key) for key in keys):
            return family
    return None


def licences(source: Source) -> dict[str, str]:
    """{component: licence} of the published weights that they may be, or `NOT_STATED`."""
    published = {part.name: _licence(part.name, part.settings) for part in source.components}
    if source.kind in peers.LICENCES and published.get("unet", NOT_STATED) != NOT_STATED:
        return dict.fromkeys(published, peers.LICENCES[source.kind])
    return published


def _licence(component: str, settings: dict) -> str:
    name, marks = PUBLISHED.get("clip" if "projection" in settings else component, ("", None))
    if marks is None:
        return NOT_STATED
    hashable = lambda value: tuple(value) if isinstance(value, list) else value
    same = all(hashable(settings[field]) in values for field, values in marks.items())
    return name if same else NOT_STATED


def _component(
    name: str,
    settings: dict,
    tensors: Mapping[str, StoredTensor],
    make_table: Callable[[dict], mapping.Table],
    source: str,
    **choices: str,
) -> Component:
    """A component whose table `make_table` makes from our parameters' shapes.

    `choices` are the fields of `config.model` that say which network it is.
    """
    slot = name
    if name == "clip":  # by itself, for metrics, or to start a training from
        choices, slot = {"encoder": "clip"}, "dinov2"
    try:
        section = network(slot, settings, choices)
    except InputError as error:
        raise InputError(f"The settings of {source} describe no network: {error}") from error
    abstract = release.abstract(section, source)
    return Component(name, settings, tensors, make_table(abstract), abstract, source)


def _find_sd(path: Path, kind: str) -> Source:
    if path.is_file():
        unet, vae = stable_diffusion.open_compvis(path)
        parts: dict[str, Any] = {"unet": (unet, {}), "vae": (vae, {})}
    else:
        folders = {name: path / name for name in ("unet", "vae") if (path / name).is_dir()}
        if not folders:  # one model's own folder
            is_vae = read_json(path / "config.json").get("_class_name") == "AutoencoderKL"
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


def _find_peer(path: Path, kind: str, clip_folder: Path | None) -> Source:
    """Paint-by-Example or ObjectStitch: UNet, VAE, CLIP's tower and the mapper."""
    source = _find_sd(path, kind)
    settings, encoder = {}, path / "image_encoder"
    if path.is_file():
        tensors = peers.diffusers_names(open_tensors(path))
    elif encoder.is_dir():
        tensors, settings = open_folder(encoder, "model"), read_json(encoder / "config.json")
    elif not (path / "model_index.json").is_file() and clip_folder is None:
        return source  # a UNet or a VAE by itself
    else:
        raise InputError(f"{path} lacks image_encoder/, which makes the object's condition.")
    networks = {part.name: part for part in source.components}
    if lacking := {"unet", "vae"} - networks.keys():
        raise InputError(f"{path} lacks {' and '.join(sorted(lacking))}.")

    tower, mapper = peers.split(tensors)
    name = f"the image encoder of {path}"
    mapper_settings = peers.mapper_settings(mapper, name)
    if tower and clip_folder:
        raise InputError(f"{path} holds its own CLIP: leave out --clip.")
    if tower:
        tower_settings = clip.settings(tower, settings, name)
        encoder_part = _component(
            "dinov2", tower_settings, tower, clip.hf_table, name, encoder="clip"
        )
    elif clip_folder:
        encoder_part = _find_tower(clip_folder)
    else:
        raise InputError(
            f"{path} lacks CLIP ViT-L/14: give --clip the folder openai/clip-vit-large-patch14."
        )
    adapter_part = _component(
        "adapter", mapper_settings, mapper, peers.mapper_table, name, adapter_kind="mapper"
    )
    released: dict[str, Any] = {key: dict(section) for key, section in peers.PEERS[kind].items()}
    released["diffusion"] |= source.released["diffusion"]
    released["object_size"] = encoder_part.settings["image_size"]
    if not path.is_file():
        side = read_json(path / "unet" / "config.json").get("sample_size")
        if isinstance(side, int):
            released["image_size"] = side * KLConfig.of(networks["vae"].settings).factor
    components = [encoder_part, adapter_part, networks["unet"], networks["vae"]]
    return Source(kind, "torch", components, released)


def _find_tower(folder: Path) -> Component:
    """CLIP's vision tower, without the projection that compares pictures with texts."""
    part = next(iter(find(folder, "auto").components), None)
    if part is None or part.name != "clip":
        raise InputError(f"{folder} is no CLIP: --clip takes transformers' folder of it.")
    settings = part.settings | {"projection": 0}
    converted = any(key == "proj.kernel" for key in part.tensors)
    make_table = mapping.own_table if converted else clip.hf_table
    tensors = {k: x for k, x in part.tensors.items() if k not in ("proj.kernel", clip.PROJECTION)}
    return _component("dinov2", settings, tensors, make_table, part.source, encoder="clip")


def _inpainting(unet: dict, kind: str, source: str) -> tuple[tuple[int, ...], str]:
    """The order of the UNet's input channels and what its mask's 1 stands for; ((), "") for 4."""
    concatenates = unet["in_channels"] == 2 * unet["out_channels"] + 1
    if not concatenates and unet["in_channels"] != unet["out_channels"]:
        raise InputError(
            f"{source} takes {unet['in_channels']} channels; read are {unet['out_channels']}, and"
            f" {2 * unet['out_channels'] + 1} of the inpainting kinds."
        )
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
    settings = {key: value for key, value in read_json(file).items() if value is not None}
    schedule = settings.get("beta_schedule", "scaled_linear")
    if schedule != "scaled_linear" or "trained_betas" in settings:
        schedule = "of trained_betas" if "trained_betas" in settings else repr(schedule)
        raise InputError(f"{file} has the noise schedule {schedule}; known is scaled_linear.")
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in process.PREDICTION_TYPES:
        raise InputError(
            f"{file} has the prediction_type {prediction!r}; known are"
            f" {', '.join(process.PREDICTION_TYPES)}."
        )
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
    settings = dinov2.hf_settings(tensors, read_json(path / "config.json"), source)
    return _component("dinov2", settings, tensors, dinov2.hf_table, source)


def _find_clip(path: Path) -> Component:
    tensors, source = open_folder(path, "model"), f"the encoder {path}"
    settings = clip.settings(tensors, read_json(path / "config.json"), source)
    if not settings["projection"]:
        raise InputError(f"{source} is no whole CLIP: it lacks {clip.PROJECTION}.")
    return _component("clip", settings, tensors, clip.hf_table, source)


def _find_imprint(path: Path) -> Source:
    """A released folder, or what `convert --to torch` made of one."""
    if (path / "imprint.json").is_file():
        return _find_torch_export(path)
    released = read_json(path / "config.json")
    sections = released.get("model", released)
    if not isinstance(sections, dict):
        raise InputError(f"{path / 'config.json'} is damaged: 'model' is no section.")
    choices = {key: sections[key] for key in CHOICES if key in sections}
    components = []
    for name in (*imprint.COMPONENTS, "clip"):
        file = path / f"{name}.safetensors"
        if file.is_file():
            if not isinstance(sections.get(name), dict):
                raise InputError(f"{path / 'config.json'} does not describe {file.name}.")
            tensors = open_tensors(file)
            part = _component(
                name, sections[name], tensors, mapping.own_table, str(file), **choices
            )
            components.append(part)
    if "model" in released:
        licences = released.get("licences", {})
        released = release.load_config(path).to_dict() | {"licences": licences}
    return Source("imprint", "imprint", components, released)


def _find_torch_export(path: Path) -> Source:
    released = read_json(path / "imprint.json")
    components = []
    if (path / "image_encoder").is_dir():
        tower, mapper = peers.split(open_folder(path / "image_encoder", "model"))
        name = str(path / "image_encoder")
        for part, tensors, make_table, choice in (
            ("dinov2", tower, clip.hf_table, {"encoder": "clip"}),
            ("adapter", mapper, peers.mapper_table, {"adapter_kind": "mapper"}),
        ):
            settings = released["model"][part]
            components.append(_component(part, settings, tensors, make_table, name, **choice))
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
