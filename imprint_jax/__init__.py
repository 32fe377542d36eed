"""IMPRINT in JAX: put an object from one photo into another, keeping its identity.

from imprint_jax import Compositor
picture = Compositor.from_pretrained("mini")("cup.png", "desk.jpg", "hole.png", seed=0)
"""

import importlib
from typing import Any

from imprint_jax.errors import InputError

__version__ = "0.1.0"

_MODULES = {
    "Compositor": "composing.compositor",
    "Placement": "composing.request",
    "Request": "composing.request",
    "Settings": "composing.settings",
}
__all__ = ["Compositor", "InputError", "Placement", "Request", "Settings"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Loaded on demand: the data loader's worker processes import this package and want no JAX.
    if name in _MODULES:
        return getattr(importlib.import_module(f"imprint_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'imprint_jax' has no attribute {name!r}")
