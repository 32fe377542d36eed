"""How pictures are sampled, as a user says it."""

import numbers
from dataclasses import dataclass

import numpy as np

from imprint_jax.composing.request import is_whole
from imprint_jax.config.fields import Config, ReleasedConfig
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError

# Guidance beyond this leaves nothing of a picture; papers and tools stay below 30. Ours.
MOST_GUIDANCE = 100.0


@dataclass(frozen=True)
class Settings:
    """How to sample. None stands for the model's own choice.

    Attributes:
        num_steps: Denoising steps, 1 to 1000.
        guidance_scale: Weight of the object against no object, 0 to 100; 1 is off.
        sampler: "ddim" or "dpm++2m", see `sampling`.
        eta: DDIM's share of fresh noise, 0 to 1.
        match_colors: Shift the colours of the composed square so that around the hole they are the
            photo's.
        strength: Above 0, at most 1. 1 starts from pure noise (the paper); below, the object is
            pasted into the hole and noised to that share of the schedule: the lower, the more of
            its pose and the finer its detail.

    Raises:
        InputError: A value of another type, out of range, or a sampler that does not exist.
    """

    num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    eta: float = 0.0
    match_colors: bool = False
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and not is_whole(self.num_steps):
            raise InputError(f"num_steps must be a whole number, not {self.num_steps!r}.")
        for name in ("guidance_scale", "eta", "strength"):
            value = getattr(self, name)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not real and (value is not None or name == "eta"):
                raise InputError(f"{name} must be a number, not {value!r}.")
        if not isinstance(self.match_colors, bool | np.bool_):
            raise InputError(f"match_colors must be true or false, not {self.match_colors!r}.")
        if self.sampler is not None:
            sampling.check_sampler(self.sampler, self.eta)
        guidance = self.guidance_scale
        if guidance is not None and not 0 <= guidance <= MOST_GUIDANCE:
            raise InputError(f"The guidance scale must be 0 to {MOST_GUIDANCE:g}, not {guidance}.")

    def filled(self, config: Config | ReleasedConfig) -> "Filled":
        """With the choices of a model in the place of None.

        Raises:
            InputError: What does not go with the model's choices.
        """
        chosen = {
            name: getattr(config.sampling if getattr(self, name) is None else self, name)
            for name in ("num_steps", "guidance_scale", "sampler", "strength")
        }
        sampling.check_timesteps(
            config.diffusion, chosen["num_steps"], config.sampling.spacing, chosen["strength"]
        )
        return Filled(
            num_steps=int(chosen["num_steps"]),
            guidance_scale=float(chosen["guidance_scale"]),
            sampler=str(chosen["sampler"]),
            eta=self.eta,
            match_colors=self.match_colors,
            strength=float(chosen["strength"]),
        )


@dataclass(frozen=True, kw_only=True)
class Filled(Settings):
    """Settings with a model's choices in the place of None."""

    num_steps: int
    guidance_scale: float
    sampler: str
    strength: float
