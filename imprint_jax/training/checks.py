"""What no run can do is refused here, before anything is built or written."""

import math

from imprint_jax import geometry
from imprint_jax.config import default
from imprint_jax.diffusion import losses, process
from imprint_jax.errors import InputError
from imprint_jax.models import imprint

# The smallest and the largest value of fields that would otherwise fail late, or silently.
RANGES = {
    **dict.fromkeys(("total_steps", "batch_size", "log_every", "save_every"), (1, math.inf)),
    **dict.fromkeys(("keep", "validation.batches", "preview.samples"), (1, math.inf)),
    **dict.fromkeys(("keep_every", "validation.every", "preview.every"), (0, math.inf)),
    "data.num_workers": (0, math.inf),
    "drop_probability": (0, 1),
    "min_snr_gamma": (0, math.inf),
    "context": (geometry.MIN_CONTEXT, math.inf),
}


def check_config(config, devices: int) -> None:
    """Refuses what no run on so many devices can do.

    Raises:
        InputError: Unknown stage or dtype, numbers out of range, settings that exclude each other,
            or a batch that does not divide over the devices.
    """
    for field, (low, high) in RANGES.items():
        section, _, name = field.rpartition(".")
        value = (config[section] if section else config)[name]
        if not low <= value <= high:
            allowed = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            raise InputError(f"config.{field} = {value} must be {allowed}.")
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.dtype = {config.dtype!r} must be float32 or bfloat16.")
    if config.precision not in ("default", "high", "highest"):
        raise InputError(
            f"config.precision = {config.precision!r} must be default, high or highest."
        )
    if config.stage not in losses.STAGE_LOSS:
        raise InputError(f"config.stage = {config.stage}; the stages are 1 and 2.")
    process.check_config(config)
    # As dicts: ConfigDicts differ where one is locked and the other is not.
    if config.object_view.to_dict() != default().object_view.to_dict():
        raise InputError(
            "config.object_view is for composing; training sees objects by the default."
        )
    if config.stage == 1 and config.diffusion.background_mode == "concat":
        raise InputError("Stage 1 has no background to concatenate; use another background_mode.")
    cell = imprint.latent_factor(config.model) * 2 ** (len(config.model.unet.block_widths) - 1)
    patch = config.model.dinov2.patch_size
    for field, multiple in (("image_size", cell), ("object_size", patch)):
        if config[field] % multiple:
            raise InputError(f"config.{field} = {config[field]} is no multiple of {multiple}.")
    parts = devices * config.accumulation
    if config.accumulation < 1 or config.batch_size % parts:
        raise InputError(
            f"config.batch_size = {config.batch_size} does not divide over {devices} devices"
            f" times config.accumulation = {config.accumulation}."
        )
