"""Every field of a configuration, once: default, unit, meaning. Defaults are the paper's stage 1.

A recipe in `configs/` starts from `default()` and changes what differs. `load` reads one by name or
file and applies overrides written as `--config.a.b=value`; both are checked against the fields and
types here.
"""

import ast
import inspect
import runpy
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from imprint_jax.errors import InputError

# What `init_from` says of a component that starts at random.
RANDOM = "random"


def default() -> ConfigDict:
    """The paper's stage 1 at full size; "(open)" marks what the paper does not say."""
    c = ConfigDict()
    c.stage = 1  # 1: another view of the object on black; 2: compositing into a background
    c.seed = 0
    c.total_steps = 27_530  # 5 epochs of 1,409,545 pairs (Sec. 4.1)
    c.batch_size = 256  # over all devices (Sec. 4.1)
    c.image_size = 512  # pixels, side of target and output (Sec. 3)
    c.object_size = 224  # pixels, side of the object image (open)
    # Side of the square that the network sees over the longer side of the hole's box, in composing
    # and, where `data.share` is empty, in training (open).
    c.context = 1.75
    c.dtype = "bfloat16"  # of the computation; parameters in training stay float32
    # Weights to start from: {component: path of a released folder or of a training run, or
    # "random"}. From a run the averaged (EMA) weights are taken. "": not chosen yet, which no run
    # begins with; the closed-form codec has none.
    c.init_from = ConfigDict({"dinov2": "", "adapter": RANDOM, "unet": "", "vae": ""})

    c.model = ConfigDict()
    # What the component `dinov2` is: "dinov2", or "clip" with the fields of `CLIPVision`.
    c.model.encoder = "dinov2"
    # What the adapter is: "imprint", or "mapper" with the order of layers of Paint-by-Example and
    # ObjectStitch; and which of the encoder's tokens it reads: "all", or the "class" token alone.
    c.model.adapter_kind = "imprint"
    c.model.object_tokens = "all"
    c.model.autoencoder = "kl"  # "kl": Stable Diffusion's VAE; "lapped": a closed-form codec
    c.model.dinov2 = ConfigDict(
        dict(  # ViT-g/14 with registers (facebookresearch/dinov2, vit_giant2)
            image_size=518,
            patch_size=14,
            width=1536,
            depth=40,
            num_heads=24,
            mlp="swiglu",
            mlp_width=4096,
            num_registers=4,
        )
    )
    c.model.adapter = ConfigDict(
        dict(width_in=1536, width=768, depth=5, num_heads=12, mlp_width=3072)  # (open)
    )
    c.model.unet = ConfigDict(
        dict(  # Stable Diffusion v1.4
            in_channels=4,
            out_channels=4,
            block_widths=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_levels=(True, True, True, False),
            context_width=768,
            num_heads=8,
            norm_groups=32,
        )
    )
    c.model.vae = ConfigDict(
        dict(  # Stable Diffusion v1.4
            latent_channels=4,
            block_widths=(128, 256, 512, 512),
            layers_per_block=2,
            norm_groups=32,
            scaling_factor=0.18215,
        )
    )

    c.diffusion = ConfigDict()
    c.diffusion.num_train_timesteps = 1000
    c.diffusion.beta_start = 0.00085  # Stable Diffusion's "scaled linear" schedule
    c.diffusion.beta_end = 0.012
    c.diffusion.zero_terminal_snr = False  # rescale so that the last timestep is pure noise
    c.diffusion.prediction_type = "epsilon"  # "epsilon", "sample" or "v_prediction"
    # How the background reaches the network: "blend" (the paper), "noised" or "concat"; the last
    # wants unet.in_channels = 2 * latent channels + 1.
    c.diffusion.background_mode = "blend"
    c.diffusion.mask_channel = "hole"  # "concat" only: what 1 stands for, "hole" or "keep"
    c.diffusion.hole_fill = "grey"  # what the background shows inside the hole: "grey" or "none"
    # Whether the background's latents replace the sampled ones around the hole before decoding.
    c.diffusion.final_blend = True
    c.diffusion.sample_posterior = False  # the target's latents: a sample, or the mean

    # How the image encoder sees an object: `geometry.object_crop`.
    c.object_view = ConfigDict(
        dict(
            fit="pad",  # "pad": in the middle of a square; "stretch": to a square
            margin=0.05,  # on each side, as a share of the object's longer side (open)
            background="black",  # around the object; or "photo": what its own picture shows
            resample="lanczos",  # or "bicubic", "bilinear", as Pillow has them
        )
    )

    c.drop_probability = 0.05  # of the object's tokens, a sample (Sec. 4.1)
    # What a squared error of the clean latents counts in the loss at most (min-SNR-gamma; Hang et
    # al. 2023 take 5): keeps nearly clean timesteps from drowning the rest; 0: no limit.
    c.min_snr_gamma = 0.0

    c.data = ConfigDict()
    # Where samples come from, and how often: {kind, records, backgrounds, weight}.
    # Stage 1 takes kind "views": two views of an object on black. Stage 2 takes "photo": a photo
    # and the object in it, perturbed; "video": two frames or photos of one object; "pair": a
    # foreground and its target; "pasted": one view pasted into one of `backgrounds`; "scenes": two
    # views of one object in rendered scenes.
    c.data.sources = ()
    c.data.split = "train"
    # Frames two views of an object are apart at most (Sec. 3.1); 0: each view with itself.
    c.data.window = 7
    # Strength of the colour and light perturbation P, 0 to 1 (open). P is for stage 2's inputs only
    # (Sec. 3.3); its recipes set 0.5.
    c.data.color = 0.0
    # The affine perturbation T of the object image: degrees, log of the stretch, degrees,
    # probability of mirroring (open).
    c.data.affine = ConfigDict(dict(rotate=15.0, scale=0.2, shear=8.0, flip=0.0))
    # Of the target's area the object covers, log-uniform (open). (): the target is the square that
    # composing cuts, by `context`, and some boxes are wider or taller than their objects.
    c.data.share = (0.03, 0.35)
    c.data.brightness_match = 0.5  # how far a pasted object's brightness follows the photo's (open)
    # Blur of mask levels 1 and 2, over the square root of the bounding box's area (open).
    c.data.mask_sigmas = (0.04, 0.12)
    c.data.num_workers = 8  # processes that decode and augment; 0: threads of this process

    # What is trained, at which learning rate. The first pattern that matches a parameter's path
    # from its start decides; every parameter must match one. None: frozen. A tuple: one rate for
    # each equal share of the steps.
    c.groups = (
        ("dinov2", "dinov2/", 4e-6),  # Sec. 4.1
        ("adapter", "adapter/", 4e-5),  # (open; stage 2's)
        ("unet_decoder", "unet/(up_blocks|conv_norm_out|conv_out)/", 4e-6),  # (open; stage 2's)
        ("frozen", "(unet|vae)/", None),
    )
    c.optim = ConfigDict()
    c.optim.warmup_steps = 1000  # linear, from 0; this and the rest of the section (open)
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.weight_decay = 1e-2  # on kernels only
    c.optim.clip_norm = 1.0  # over all trained gradients together
    c.optim.ema_decay = 0.9999  # at most; (1 + step) / (10 + step) before

    c.fsdp = 0  # devices that share one copy of parameters and moments; 0: all
    c.accumulation = 1  # parts that a batch is worked through in; changes memory, not results
    # Recompute blocks' activations in the backward pass instead of keeping them; the adapter's too
    # where DINOv2's are.
    c.remat = ConfigDict(dict(dinov2=True, unet=True))
    # Of products and convolutions of float32 numbers: the VAE's, and all where `dtype` is float32.
    # "high": TF32 on NVIDIA, three passes of bfloat16 on TPU; "default": TF32, and a single pass;
    # "highest": float32 (docs/training.md).
    c.precision = "high"
    c.attention = "auto"  # kernel: "auto", "cudnn", "chunked" or "plain" (models/attention.py)
    c.log_every = 50  # steps
    c.save_every = 1000  # steps
    c.keep = 3  # newest checkpoints that stay,
    c.keep_every = 0  # and all at multiples of so many steps; 0: none
    # Loss of the averaged weights on the first `batches` of the split "validation", with the same
    # noise and timesteps each time; 0 steps: never.
    c.validation = ConfigDict(dict(every=1000, batches=4))
    # Pictures sampled by the averaged weights for the first samples of the split "validation".
    c.preview = ConfigDict(dict(every=5000, samples=4))

    # What a sampler does unless told otherwise (Sec. 4.1).
    c.sampling = ConfigDict(
        dict(
            num_steps=50,
            guidance_scale=3.0,
            sampler="ddim",  # or "dpm++2m"
            spacing="leading",  # of the timesteps; or "trailing", for zero terminal SNR
            mask_level=0,  # of the hole, 0 to 3, see `geometry.mask_level`
            # Share of the schedule the object, pasted into the hole, is noised to; 1.0: pure noise.
            strength=1.0,
        )
    )
    return c.lock()


def config_file(name: str) -> Path:
    """The recipe called `name`, or the file of that path.

    Raises:
        InputError: There is none.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"There is no config file {name}.")
        return path
    # In a checkout the recipes stand beside the package; in an installed wheel inside it.
    folders = [Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    found = {p.relative_to(f).with_suffix("") for f in folders for p in f.rglob("*.py")}
    known = sorted(path.as_posix() for path in found)
    raise InputError(f"Unknown config {name!r}; known are {', '.join(known)}, or give a .py file.")


def load(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of a recipe, with overrides applied, locked.

    Args:
        name: A recipe's name ("mini_stage1") or a path ending in .py that defines `get_config()`;
            arguments of that function may follow behind a colon ("ablations/no_swap:mini,2").
        overrides: Arguments of the form "--config.a.b=value".

    Raises:
        InputError: Unknown recipe, field, or a value of another type than the field's; or a recipe
            that has nothing to train with these arguments.
    """
    before, _, given = name.rpartition(":")
    if len(before) > 1:  # else it is the colon of a drive, or there is none
        name = before
    else:
        given = ""
    arguments = [int(x) if x.isdecimal() else x for x in given.split(",")] if given else []
    config = load_recipe(name, *arguments)
    if config is None:
        raise InputError(f"{name} trains nothing with {given}.")
    for override in overrides:
        apply(config, override)
    return config.lock()


def load_recipe(name: str, *arguments) -> ConfigDict | None:
    """What a recipe's `get_config` returns for these arguments.

    Raises:
        InputError: Unknown recipe, it takes other arguments, or it has unknown fields or a value of
            another type than the field's.
    """
    path = config_file(name)
    recipe = runpy.run_path(str(path))
    if "get_config" not in recipe:
        raise InputError(f"{path} defines no get_config().")
    try:
        inspect.signature(recipe["get_config"]).bind(*arguments)
    except TypeError as error:
        raise InputError(f"{path} does not take {arguments}: {error}.") from error
    try:
        config = recipe["get_config"](*arguments)
    # ml_collections' for a field that is none, and for a value of another type
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {error.args[0]}") from error
    if config is not None:
        # What is unlocked, or replaced as a whole, ml_collections does not check.
        found, known = _fields(config), _fields(default())
        unknown, missing = sorted(found - known), sorted(known - found)
        if unknown or missing:
            raise InputError(f"{path}: unknown fields {unknown}, missing fields {missing}.")
    return config


# Sections whose fields are those of the network that a recipe chooses.
OWN_FIELDS = ("model.dinov2", "model.vae")


def _fields(section: ConfigDict, prefix: str = "") -> set[str]:
    """The dotted names of all fields; of `OWN_FIELDS` their own only."""
    found = set()
    for name, value in section.items():
        if isinstance(value, ConfigDict) and prefix + name not in OWN_FIELDS:
            found |= _fields(value, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def stage_recipe(scale: str, stage: int) -> ConfigDict:
    """The recipe of a stage that ablations start from.

    Args:
        scale: "paper", "mini", or a folder with stage1.py and stage2.py.
        stage: 1 or 2.

    Raises:
        InputError: There is no such recipe.
    """
    names = {"paper": f"stage{stage}", "mini": f"mini_stage{stage}"}
    return load_recipe(names.get(scale, f"{scale}/stage{stage}.py"))


def rate(groups, name: str):
    """The learning rate of a group of `config.groups`."""
    return next(rate for group, _, rate in groups if group == name)


def with_rate(groups, name: str, rate) -> tuple:
    """`config.groups` with another rate for one group."""
    return tuple((g, pattern, rate if g == name else old) for g, pattern, old in groups)


def apply(config: ConfigDict, override: str) -> None:
    """Sets a field as "--config.a.b=value" says.

    Raises:
        InputError: Unknown field, or a value of another type than the field's.
    """
    name, equals, text = override.partition("=")
    if not name.startswith("--config.") or not equals:
        raise InputError(f"Cannot read {override!r}; overrides look like --config.seed=1.")
    *parents, field = name.removeprefix("--config.").split(".")
    section = config
    for parent in [*parents, field]:
        if not isinstance(section, ConfigDict) or parent not in section:
            fields = ", ".join(section) if isinstance(section, ConfigDict) else "none"
            raise InputError(f"Unknown config field in {override!r}; at {parent!r}: {fields}.")
        section, owner = section[parent], section
    if isinstance(section, ConfigDict):
        raise InputError(f"{override!r} sets a whole section; its fields: {', '.join(section)}.")
    owner[field] = _parse(text, section, override)


def _parse(text: str, current, override: str):
    """The text as a value of the current one's type; whole numbers may stand for floats."""
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(current):
        raise InputError(
            f"{override!r}: the field is of type {type(current).__name__}"
            f" (now {current!r}), {text!r} is not."
        )
    return value
