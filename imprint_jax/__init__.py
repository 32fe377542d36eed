"""IMPRINT in JAX: put an object from one photo into another, keeping its identity.

from imprint_jax import Compositor
picture = Compositor.from_pretrained("mini")(object_image, background, mask, seed=0)
"""

from imprint_jax.errors import InputError

__all__ = ["Compositor", "InputError"]


def __getattr__(name: str):
    # Loaded on demand: the data loader's worker processes import this package and want no JAX.
    if name == "Compositor":
        from imprint_jax.compose import Compositor

        return Compositor
    raise AttributeError(f"module 'imprint_jax' has no attribute {name!r}")
