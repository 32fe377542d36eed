"""Picture files for tests."""

from pathlib import Path

import numpy as np

from imprint_jax.images import encode_png


def write_png(path: Path, array: np.ndarray, text: dict[str, str] | None = None) -> None:
    """Writes a PNG; see `encode_png`."""
    Path(path).write_bytes(encode_png(array, text))
