import jax
import pytest

from imprint_jax.errors import InputError
from imprint_jax.runtime import devices


def test_missing_devices_are_one_sentence(monkeypatch):
    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    assert devices.local() == jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match="no device of JAX_PLATFORMS=cuda"):
        devices.local()
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(RuntimeError, match="cuda"):  # not asked for: a fault, said in full
        devices.local()
