"""The devices of this process."""

import os

import jax

from imprint_jax.errors import InputError


def local() -> list[jax.Device]:
    """As `jax.local_devices`.

    Raises:
        InputError: There is none of the kind that JAX_PLATFORMS asks for.
    """
    try:
        return jax.local_devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        if not platforms:
            raise
        raise InputError(
            f"JAX finds no device of JAX_PLATFORMS={platforms}: install JAX for it, or unset the"
            " variable to compute on CPU."
        ) from error
