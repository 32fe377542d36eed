"""Every field of a configuration, once: type, default, unit, meaning.

"(open)" marks what the paper does not say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from ml_collections import ConfigDict

from imprint_jax import geometry
from imprint_jax.config.section import Count, NotNegative, Positive, Range, Section, Share
from imprint_jax.errors import InputError

# What `init_from` says of a component that starts at random.
RANDOM = "random"
# The kinds of sources that each stage learns from, see `SourceConfig`.
KINDS = {1: ("views",), 2: ("photo", "video", "pair", "pasted", "scenes")}
# The name of a group of parameters that do not train.
FROZEN = "frozen"
PredictionType = Literal["epsilon", "sample", "v_prediction"]
Sampler = Literal["ddim", "dpm++2m"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """What the networks that see the object have in common."""

    NAME: ClassVar[str] = "config.model.dinov2"
    image_size: Positive
    patch_size: Positive
    width: Positive
    depth: Count
    num_heads: Positive


@dataclass(frozen=True, kw_only=True)
class DINOv2Config(EncoderConfig):
    """DINOv2's network."""

    mlp: Literal["gelu", "swiglu"]
    mlp_width: Positive
    num_registers: Count


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(EncoderConfig):
    """CLIP's vision tower, in the place of DINOv2."""

    mlp_width: Positive
    projection: Count  # channels of the space that pictures share with texts; 0: none
    activation: Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Section):
    """The paper's adapter."""

    NAME: ClassVar[str] = "config.model.adapter"
    width_in: Positive
    width: Positive
    depth: Count
    num_heads: Positive
    mlp_width: Positive


class MapperConfig(AdapterConfig):
    """The adapter with the order of layers of Paint-by-Example and ObjectStitch."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Section):
    """Stable Diffusion's UNet."""

    NAME: ClassVar[str] = "config.model.unet"
    in_channels: Positive
    out_channels: Positive
    block_widths: tuple[Positive, ...]
    layers_per_block: Positive
    attention_levels: tuple[bool, ...]
    context_width: Positive
    num_heads: Positive
    norm_groups: Positive


@dataclass(frozen=True, kw_only=True)
class KLConfig(Section):
    """Stable Diffusion's VAE."""

    NAME: ClassVar[str] = "config.model.vae"
    latent_channels: Positive
    block_widths: tuple[Positive, ...]
    layers_per_block: Positive
    norm_groups: Positive
    scaling_factor: float

    @property
    def factor(self) -> int:
        """Pixels a latent in each direction."""
        return 2 ** (len(self.block_widths) - 1)


@dataclass(frozen=True, kw_only=True)
class LappedConfig(Section):
    """A closed-form codec in the place of the VAE."""

    NAME: ClassVar[str] = "config.model.vae"
    patch: Positive
    luma: Positive
    chroma: Count
    scaling_factor: float

    @property
    def factor(self) -> int:
        """Pixels a latent in each direction."""
        return self.patch


# Which network a component is: by which field of `model`, and the section of each choice.
NETWORKS: dict[str, tuple[str, dict[str, type[Section]]]] = {
    "dinov2": ("encoder", {"dinov2": DINOv2Config, "clip": CLIPConfig}),
    "adapter": ("adapter_kind", {"imprint": AdapterConfig, "mapper": MapperConfig}),
    "unet": ("", {"": UNetConfig}),
    "vae": ("autoencoder", {"kl": KLConfig, "lapped": LappedConfig}),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The networks. A file may be older than a choice, which then was the default."""

    NAME: ClassVar[str] = "config.model"
    # What the component `dinov2` is.
    encoder: Literal["dinov2", "clip"] = "dinov2"
    # The paper's adapter, or the order of layers of Paint-by-Example and ObjectStitch; and which of
    # the encoder's tokens it reads: all, or the class token alone.
    adapter_kind: Literal["imprint", "mapper"] = "imprint"
    object_tokens: Literal["all", "class"] = "all"
    autoencoder: Literal["kl", "lapped"] = "kl"  # Stable Diffusion's VAE, or a closed-form codec
    dinov2: DINOv2Config | CLIPConfig
    adapter: AdapterConfig
    unet: UNetConfig
    vae: KLConfig | LappedConfig

    def __post_init__(self) -> None:
        for component in NETWORKS:
            section = network(component, getattr(self, component), vars(self))
            object.__setattr__(self, component, section)
        super().__post_init__()


def network(component: str, settings: Mapping[str, Any], choices: Mapping[str, Any]) -> Section:
    """The section of a component of the model.

    Args:
        component: One of `NETWORKS`.
        settings: Its fields.
        choices: Fields of `model` that say which network it is; the defaults where they do not.

    Raises:
        InputError: As `Section.of`, or no such network.
    """
    field, sections = NETWORKS[component]
    choice = choices.get(field, next(iter(sections)))
    if choice not in sections:
        raise InputError(
            f"config.model.{field} is {choice!r}; it may be one of {', '.join(sections)}."
        )
    if type(settings) is sections[choice]:
        return settings
    return sections[choice].of(settings)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Section):
    """The noise process, and how the background takes part in it."""

    NAME: ClassVar[str] = "config.diffusion"
    num_train_timesteps: Positive = 1000
    beta_start: Share = 0.00085  # Stable Diffusion's "scaled linear" schedule
    beta_end: Share = 0.012
    zero_terminal_snr: bool = False  # rescale so that the last timestep is pure noise
    prediction_type: PredictionType = "epsilon"
    # How the background reaches the network: "blend" is the paper's; "concat" wants
    # unet.in_channels = 2 * latent channels + 1.
    background_mode: Literal["blend", "noised", "concat"] = "blend"
    mask_channel: Literal["hole", "keep"] = "hole"  # "concat" only: what 1 stands for
    # What the background shows inside the hole: `Imprint.encode_background`.
    hole_fill: Literal["grey", "exact", "none"] = "grey"
    # Whether the background's latents replace the sampled ones around the hole before decoding.
    final_blend: bool = True
    sample_posterior: bool = False  # the target's latents: a sample, or the mean


@dataclass(frozen=True, kw_only=True)
class ObjectViewConfig(Section):
    """How the image encoder sees an object: `geometry.object_crop`."""

    NAME: ClassVar[str] = "config.object_view"
    fit: str = "pad"  # "pad": in the middle of a square; "stretch": to a square
    margin: NotNegative = 0.05  # on each side, as a share of the object's longer side (open)
    background: str = "black"  # around the object; or "photo": what its own picture shows
    resample: str = "lanczos"  # or "bicubic", "bilinear", as Pillow has them

    def __post_init__(self) -> None:
        super().__post_init__()
        geometry.check_object_view(self.fit, self.background, self.resample)


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Section):
    """Where samples come from, and how often.

    Stage 1 takes kind "views": two views of an object on black. Stage 2 takes "photo": a photo and
    the object in it, perturbed; "video": two frames or photos of one object; "pair": a foreground
    and its target; "pasted": one view pasted into one of `backgrounds`; "scenes": two views of one
    object in rendered scenes.
    """

    NAME: ClassVar[str] = "config.data.sources"
    kind: str
    records: str
    backgrounds: str = ""
    weight: NotNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "pasted" and not self.backgrounds:
            raise InputError(f"{self.NAME}: {self.to_dict()} lacks 'backgrounds'.")

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        return {key: x for key, x in content.items() if x or key != "backgrounds"}


@dataclass(frozen=True, kw_only=True)
class AffineConfig(Section):
    """The affine perturbation T of the object image (open)."""

    NAME: ClassVar[str] = "config.data.affine"
    rotate: NotNegative = 15.0  # degrees
    scale: NotNegative = 0.2  # log of the stretch
    shear: NotNegative = 8.0  # degrees
    flip: Share = 0.0  # probability of mirroring


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """What samples are made of."""

    NAME: ClassVar[str] = "config.data"
    sources: tuple[SourceConfig, ...] = ()
    split: str = "train"
    # Frames two views of an object are apart at most (Sec. 3.1); 0: each view with itself.
    window: Count = 7
    # Strength of the colour and light perturbation P (open). P is for stage 2's inputs only
    # (Sec. 3.3); its recipes set 0.5.
    color: Share = 0.0
    affine: AffineConfig = AffineConfig()
    # Of the target's area the object covers, log-uniform (open). (): the target is the square that
    # composing cuts, by `context`, and some boxes are wider or taller than their objects.
    share: tuple[Share, ...] = (0.03, 0.35)
    brightness_match: Share = 0.5  # how far a pasted object's brightness follows the photo's (open)
    # Blur of mask levels 1 and 2, over the square root of the bounding box's area (open).
    mask_sigmas: tuple[NotNegative, NotNegative] = (0.04, 0.12)
    num_workers: Count = 8  # processes that decode and augment; 0: threads of this process

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share and (len(self.share) != 2 or not 0 < self.share[0] <= self.share[1]):
            raise InputError(
                f"{self.NAME}.share = {self.share} must be (), or the least and the largest share."
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """AdamW and the averaged weights (open)."""

    NAME: ClassVar[str] = "config.optim"
    warmup_steps: Count = 1000  # linear, from 0
    b1: Share = 0.9
    b2: Share = 0.999
    weight_decay: NotNegative = 1e-2  # on kernels only
    clip_norm: NotNegative = 1.0  # over all trained gradients together; 0: they are not clipped
    ema_decay: Share = 0.9999  # at most; (1 + step) / (10 + step) before


@dataclass(frozen=True, kw_only=True)
class InitFromConfig(Section):
    """Weights to start from: path of a released folder or of a training run, or "random".

    From a run the averaged (EMA) weights are taken. "": not chosen yet, which no run begins with;
    the closed-form codec has none.
    """

    NAME: ClassVar[str] = "config.init_from"
    dinov2: str = ""
    adapter: str = RANDOM
    unet: str = ""
    vae: str = ""


@dataclass(frozen=True, kw_only=True)
class RematConfig(Section):
    """Whose blocks' activations are recomputed in the backward pass instead of kept."""

    NAME: ClassVar[str] = "config.remat"
    dinov2: bool = True  # the adapter's too
    unet: bool = True


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Section):
    """Loss of the averaged weights on the first batches of the split "validation".

    With the same noise and timesteps each time.
    """

    NAME: ClassVar[str] = "config.validation"
    every: Count = 1000  # steps; 0: never
    batches: Positive = 4


@dataclass(frozen=True, kw_only=True)
class PreviewConfig(Section):
    """Pictures by the averaged weights for the first samples of the split "validation"."""

    NAME: ClassVar[str] = "config.preview"
    every: Count = 5000  # steps; 0: never
    samples: Positive = 4


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Section):
    """What a sampler does unless told otherwise (Sec. 4.1)."""

    NAME: ClassVar[str] = "config.sampling"
    num_steps: Positive = 50
    guidance_scale: NotNegative = 3.0
    sampler: Sampler = "ddim"
    spacing: Literal["leading", "trailing"] = "leading"  # "trailing" for zero terminal SNR
    mask_level: Annotated[int, Range(0, 3)] = 0  # of the hole, see `geometry.mask_level`
    # Share of the schedule the object, pasted into the hole, is noised to; 1.0: pure noise.
    strength: Share = 1.0


@dataclass(frozen=True, kw_only=True)
class ReleasedConfig(Section):
    """What of a configuration a model needs to be used; the rest is how it was trained.

    Fields that came after a folder was written have defaults, by which it was made.
    """

    image_size: Positive
    object_size: Positive
    context: Annotated[float, Range(geometry.MIN_CONTEXT)] = 1.75
    object_view: ObjectViewConfig = ObjectViewConfig()
    mask_sigmas: tuple[NotNegative, NotNegative] = DataConfig.mask_sigmas
    model: ModelConfig
    diffusion: DiffusionConfig
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_channels(self.model.unet, self.diffusion)

    def to_dict(self) -> dict[str, Any]:
        """As `Section.to_dict`; each section in the alphabet's order, as released files are."""
        return {name: _sorted(value) for name, value in super().to_dict().items()}


def _sorted(value: object) -> object:
    return {k: _sorted(value[k]) for k in sorted(value)} if isinstance(value, dict) else value


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """A whole configuration; the defaults are the paper's stage 1 at full size.

    "(open)" marks what the paper does not say.
    """

    stage: int = 1  # 1: another view of the object on black; 2: compositing into a background
    seed: Count = 0
    total_steps: Positive = 27_530  # 5 epochs of 1,409,545 pairs (Sec. 4.1)
    batch_size: Positive = 256  # over all devices (Sec. 4.1)
    image_size: Positive = 512  # pixels, side of target and output (Sec. 3)
    object_size: Positive = 224  # pixels, side of the object image (open)
    # Side of the square that the network sees over the longer side of the hole's box, in composing
    # and, where `data.share` is empty, in training (open).
    context: Annotated[float, Range(geometry.MIN_CONTEXT)] = ReleasedConfig.context
    dtype: str = "bfloat16"  # of the computation; parameters in training stay float32
    init_from: InitFromConfig = InitFromConfig()
    model: ModelConfig = ModelConfig(
        dinov2=DINOv2Config(  # ViT-g/14 with registers (facebookresearch/dinov2, vit_giant2)
            image_size=518,
            patch_size=14,
            width=1536,
            depth=40,
            num_heads=24,
            mlp="swiglu",
            mlp_width=4096,
            num_registers=4,
        ),
        adapter=AdapterConfig(width_in=1536, width=768, depth=5, num_heads=12, mlp_width=3072),
        unet=UNetConfig(  # Stable Diffusion v1.4
            in_channels=4,
            out_channels=4,
            block_widths=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_levels=(True, True, True, False),
            context_width=768,
            num_heads=8,
            norm_groups=32,
        ),
        vae=KLConfig(  # Stable Diffusion v1.4
            latent_channels=4,
            block_widths=(128, 256, 512, 512),
            layers_per_block=2,
            norm_groups=32,
            scaling_factor=0.18215,
        ),
    )
    diffusion: DiffusionConfig = DiffusionConfig()
    object_view: ObjectViewConfig = ObjectViewConfig()
    drop_probability: Share = 0.05  # of the object's tokens, a sample (Sec. 4.1)
    # What a squared error of the clean latents counts in the loss at most (min-SNR-gamma; Hang et
    # al. 2023 take 5): keeps nearly clean timesteps from drowning the rest; 0: no limit.
    min_snr_gamma: NotNegative = 0.0
    data: DataConfig = DataConfig()
    # What is trained, at which learning rate. The first pattern that matches a parameter's path
    # from its start decides; every parameter must match one. None: frozen. A tuple: one rate for
    # each equal share of the steps.
    groups: Any = (
        ("dinov2", "dinov2/", 4e-6),  # Sec. 4.1
        ("adapter", "adapter/", 4e-5),  # (open; stage 2's)
        ("unet_decoder", "unet/(up_blocks|conv_norm_out|conv_out)/", 4e-6),  # (open; stage 2's)
        ("frozen", "(unet|vae)/", None),
    )
    optim: OptimConfig = OptimConfig()
    fsdp: Count = 0  # devices that share one copy of parameters and moments; 0: all
    accumulation: Positive = 1  # parts a batch is worked through in; changes memory, not results
    remat: RematConfig = RematConfig()
    # Of products and convolutions of float32 numbers: the VAE's, and all where `dtype` is float32.
    # "high": TF32 on NVIDIA, three passes of bfloat16 on TPU; "default": TF32, and a single pass;
    # "highest": float32 (docs/training.md).
    precision: Literal["default", "high", "highest"] = "high"
    attention: str = "auto"  # kernel: "auto", "cudnn", "chunked" or "plain" (models/attention.py)
    log_every: Positive = 50  # steps
    save_every: Positive = 1000  # steps
    keep: Positive = 3  # newest checkpoints that stay,
    keep_every: Count = 0  # and all at multiples of so many steps; 0: none
    validation: ValidationConfig = ValidationConfig()
    preview: PreviewConfig = PreviewConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"config.dtype = {self.dtype!r} must be float32 or bfloat16.")
        if self.stage not in KINDS:
            raise InputError(f"config.stage = {self.stage}; the stages are 1 and 2.")
        for source in self.data.sources:
            if source.kind not in KINDS[self.stage]:
                kinds = "; ".join(f"stage {k} takes {', '.join(KINDS[k])}" for k in KINDS)
                raise InputError(
                    f"config.data.sources has kind {source.kind!r} in stage {self.stage}; {kinds}."
                )
        check_groups(self.groups)
        _check_channels(self.model.unet, self.diffusion)
        if self.object_view != ObjectViewConfig():
            raise InputError(
                "config.object_view is for composing; training sees objects by the default."
            )
        if self.stage == 1 and self.diffusion.background_mode == "concat":
            raise InputError(
                "Stage 1 has no background to concatenate; use another background_mode."
            )
        cell = self.model.vae.factor * 2 ** (len(self.model.unet.block_widths) - 1)
        patch = self.model.dinov2.patch_size
        for field, multiple in (("image_size", cell), ("object_size", patch)):
            if (size := getattr(self, field)) % multiple:
                raise InputError(f"config.{field} = {size} is no multiple of {multiple}.")

    def recipe(self) -> ConfigDict:
        """What this is the configuration of, to be changed."""
        return ConfigDict(self.to_dict())

    def released(self) -> ReleasedConfig:
        """The part that a released folder keeps."""
        own: dict[str, Any] = {
            field.name: getattr(self, field.name, None) for field in fields(ReleasedConfig)
        }
        return ReleasedConfig(**own | {"mask_sigmas": self.data.mask_sigmas})


def _check_channels(unet: UNetConfig, diffusion: DiffusionConfig) -> None:
    channels = unet.out_channels
    if diffusion.background_mode == "concat":
        channels = 2 * channels + 1
    if unet.in_channels != channels:
        raise InputError(
            f"config.model.unet.in_channels is {unet.in_channels}; with background_mode"
            f" {diffusion.background_mode!r} it must be {channels}."
        )


def check_groups(groups: Any) -> None:
    """Refuses a table of groups that means something else than it says, or nothing.

    Raises:
        InputError: A row that is no (name, pattern, rate), a pattern that is no regular expression,
            or a trained group whose name is another row's or `FROZEN`; or no table at all.
    """
    if not isinstance(groups, tuple | list):
        raise InputError(f"config.groups is {groups!r}, must be rows of (name, pattern, rate).")
    names = []
    for row in groups:
        if not _is_row(row):
            raise InputError(
                f"config.groups: {row!r} is no (name, pattern, rate), whose rate is a number from 0"
                " on, a tuple of such, or None for frozen."
            )
        try:
            re.compile(row[1])
        except re.error as error:
            raise InputError(
                f"config.groups: {row[1]!r} is no regular expression: {error}."
            ) from error
        names.append(row[0])
    for name, _, rate in groups:
        if rate is not None and name == FROZEN:
            raise InputError(f"config.groups: {FROZEN!r} is the name of what has the rate None.")
        if rate is not None and names.count(name) > 1:
            raise InputError(
                f"config.groups: several rows are called {name!r}; each trained group needs its own"
                " name."
            )


def _is_row(row: object) -> bool:
    if not isinstance(row, tuple | list) or [*map(type, row[:2])] != [str, str] or len(row) != 3:
        return False
    if row[2] is None:
        return True
    rates = row[2] if isinstance(row[2], tuple | list) else (row[2],)
    return len(rates) > 0 and all(type(x) in (int, float) and x >= 0 for x in rates)
