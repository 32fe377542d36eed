"""Masks for pictures that have none: a salient-object network in ONNX, run by ONNX Runtime.

The extra `[segment]` installs the library; the weights are a file of the user's. Networks of two
families are read, told apart by the size of their input, with the preprocessing of
danielgatis/rembg (rembg/sessions/u2net.py, dis_general_use.py):

    320 px    U2-Net     pixels / 255, minus ImageNet's mean, over its standard deviation
    1024 px   IS-Net     pixels / 255, minus 0.5

Unlike in rembg, masks are not stretched to the full range: where it sees nothing, nothing stays.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from imprint_jax.data.preparation.filters import Reject
from imprint_jax.errors import InputError
from imprint_jax.images import MASK_THRESHOLD, has_cut_out

if TYPE_CHECKING:
    import onnxruntime

# Mean and standard deviation of the input, by its side in pixels.
FAMILIES = {
    320: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1024: ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
}


class Segmenter:
    """Finds the salient object of a picture.

    Args:
        path: An ONNX file.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is missing or of no known family.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self._session, self._side = _session(str(self.path))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The object's coverage, (h w) uint8, of (h w 3) uint8.

        Raises:
            Reject: It finds none.
        """
        mean, deviation = (np.array(x, np.float32) for x in FAMILIES[self._side])
        height, width = image.shape[:2]
        size = (self._side, self._side)
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        scaled = (small.astype(np.float32) / 255 - mean) / deviation
        inputs = {self._session.get_inputs()[0].name: scaled.transpose(2, 0, 1)[None]}
        coverage = self._session.run(None, inputs)[0].reshape(size)
        square = Image.fromarray(np.rint(np.clip(coverage, 0, 1) * 255).astype(np.uint8))
        mask = np.asarray(square.resize((width, height), Image.Resampling.BILINEAR))
        if mask.max() < MASK_THRESHOLD:
            raise Reject("nothing segmented", "The network finds no object.")
        return mask

    def cut_out(self, picture: np.ndarray, name: str) -> np.ndarray:
        """A picture (h w 3 or 4) uint8 with its object's coverage as transparency, (h w 4) uint8.

        One that is cut out (`images.has_cut_out`) has it already.

        Raises:
            InputError: It finds no object.
        """
        if has_cut_out(picture):
            return picture
        try:
            return np.dstack([picture[..., :3], self(picture[..., :3])])
        except Reject as error:
            raise InputError(f"{name}: {error.detail} Give the object's mask.") from error


@functools.cache
def _session(path: str) -> "tuple[onnxruntime.InferenceSession, int]":
    """The network and the side of its input; loaded once a process."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            '--segment needs ONNX Runtime: pip install "imprint_jax[segment]".'
        ) from None
    if not Path(path).is_file():
        raise InputError(f"There is no file {path}; --segment takes an ONNX file of weights.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # processes are the parallelism; sums stay in one order
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise  # its own classes share no other base
        raise InputError(f"ONNX Runtime cannot load {path}: {error}") from error
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] not in FAMILIES:
        raise InputError(
            f"{path} takes an input of shape {shape}; it must be 1 x 3 x S x S, S = 320 (U2-Net)"
            " or 1024 (IS-Net)."
        )
    return session, shape[2]
