"""The configuration: a recipe outside, frozen dataclasses inside.

A recipe in `configs/` is an ml_collections `ConfigDict`: it starts from `default()`, the paper's
stage 1, and changes what differs. `load` reads one by name or file and applies overrides written as
`--config.a.b=value` (recipes.py). `Config.of` makes frozen dataclasses of it, one a section
(fields.py), which refuse what cannot be; all else in the package takes those.
"""

from imprint_jax.config.fields import RANDOM, Config
from imprint_jax.config.recipes import (
    apply,
    config_file,
    default,
    load,
    load_recipe,
    rate,
    stage_recipe,
    with_rate,
)

__all__ = [
    "RANDOM",
    "Config",
    "apply",
    "config_file",
    "default",
    "load",
    "load_recipe",
    "rate",
    "stage_recipe",
    "with_rate",
]
