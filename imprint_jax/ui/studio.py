"""What the page does, without the page: uploads and a drawing in, finished pictures out."""

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from imprint_jax import images
from imprint_jax.composing import job
from imprint_jax.composing.compositor import Compositor
from imprint_jax.composing.manifest import Entry, ObjectEntry
from imprint_jax.composing.settings import Settings
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.weights import release

# The hole is drawn on a picture of this many pixels at most, whatever the photo's size. Ours.
DRAWING_SIDE = 768
# At a click, uploads and results are deleted that are older than this many seconds. Ours.
KEPT_SECONDS = 6 * 3600
# Pictures of one click, at most. Ours.
MOST_PICTURES = 8


@dataclass(frozen=True)
class Choices:
    """What is chosen beside the pictures; the names are the command's.

    Attributes:
        mask_level: 0 keeps the hole as drawn, 3 makes it its bounding box.
        num: Pictures, 1 to `MOST_PICTURES`.
        seed: 0 to 2**32 - 1.
        num_steps: Denoising steps.
        guidance_scale: Weight of the object, 1 is off.
        strength: 1 starts from noise, less from the object pasted into the hole.
    """

    mask_level: int
    num: int
    seed: int
    num_steps: int
    guidance_scale: float
    strength: float


class Studio:
    """A loaded model and a folder of its own, which goes with it, for what it makes.

    Args:
        model: A shipped model, a released folder or a hub name.
        segmenter: Finds objects in pictures with neither mask nor transparency.

    Raises:
        InputError: There is no such model, or it is damaged.
    """

    def __init__(self, model: str, segmenter: Segmenter | None = None):
        self.folder = release.model_folder(model)
        self.compositor = Compositor.from_pretrained(self.folder)
        self.segmenter = segmenter
        self.defaults = Settings().filled(self.compositor.config)
        self._files = tempfile.TemporaryDirectory(prefix="imprint_ui_")
        self._at_work = threading.Lock()

    def close(self) -> None:
        """Deletes what was made."""
        self._files.cleanup()

    def compose(
        self,
        object_file: Path,
        mask_file: Path | None,
        photo_file: Path,
        layers: Sequence[np.ndarray],
        choices: Choices,
    ) -> Iterator[Path]:
        """Composes; callers wait for each other's batches.

        Args:
            object_file: The object's picture.
            mask_file: White where the object is; None: its transparency, or the segmenter, says it.
            photo_file: The photo.
            layers: What was drawn, (h w 4) uint8 each; see `hole_of`.
            choices: The rest.

        Yields:
            PNG files with their provenance, one a picture, as `imprint compose` writes them.

        Raises:
            InputError: Something is missing, cannot be read, or does not fit; the sentence names no
                path of this machine.
        """
        if not 1 <= choices.num <= MOST_PICTURES:
            raise InputError(f"Make 1 to {MOST_PICTURES} pictures at once, not {choices.num}.")
        settings = Settings(
            num_steps=choices.num_steps,
            guidance_scale=choices.guidance_scale,
            strength=choices.strength,
        ).filled(self.compositor.config)
        self._delete_old()
        folder = Path(tempfile.mkdtemp(dir=self._files.name))
        hole_file = folder / "hole.png"
        names = {object_file: "the object's picture", photo_file: "the photo"}
        names |= {hole_file: "the hole"} | ({mask_file: "the object's mask"} if mask_file else {})
        for path, name in names.items():
            if path.is_file():
                _check_size(path, name)
        try:
            height, width = images.read_image(photo_file).shape[:2]
            hole_file.write_bytes(images.encode_png(hole_of(layers, (height, width))))
            masks = (mask_file,) if mask_file else ()
            where = ObjectEntry((object_file,), masks, hole_file, None)
            entry = Entry("picture", photo_file, (where,), seed=choices.seed, num=choices.num)
            request = entry.request(
                name="", mask_level=choices.mask_level, segmenter=self.segmenter
            )
        except InputError as error:
            sentence = str(error)
            for path, name in names.items():
                sentence = sentence.replace(str(path), name)
            raise InputError(sentence) from error
        config, shape = self.compositor.config, {"mask_level": choices.mask_level}
        how = job.provenance(self.folder, config, settings, shape, self.compositor.dtype)
        files = [folder / name for name in entry.names()]
        results = self.compositor.run([request], settings)
        while True:
            with self._at_work:
                result = next(results, None)
            if result is None:
                return
            file, number = files[result.number], result.number
            job.write_picture(file, result.picture, request.original, how, choices.seed, number)
            yield file

    def _delete_old(self) -> None:
        for folder in Path(self._files.name).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another click deleted it
                if folder.stat().st_mtime < time.time() - KEPT_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def drawing_board(photo_file: Path) -> np.ndarray:
    """The photo (h w 3) uint8 to draw the hole on, `DRAWING_SIDE` pixels at most.

    Raises:
        InputError: It cannot be read; the sentence names no path of this machine.
    """
    _check_size(photo_file, "the photo")
    try:
        photo = images.read_image(photo_file)[..., :3]
    except InputError as error:
        raise InputError(str(error).replace(str(photo_file), "the photo")) from error
    height, width = photo.shape[:2]
    scale = min(1.0, DRAWING_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA) if scale < 1 else photo


def _check_size(path: Path, name: str) -> None:
    if images.too_large(path.read_bytes()):
        raise InputError(f"{name} has more than 89 million pixels: make it smaller first.")


def hole_of(layers: Sequence[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """The hole (h w) bool of the photo's size: wherever something was drawn.

    Args:
        layers: (h w 4) uint8 each, the drawing alone on nothing; any size of the photo's shape.
        size_hw: Height and width of the photo.

    Raises:
        InputError: Nothing was drawn.
    """
    height, width = size_hw
    drawn = np.zeros((height, width), bool)
    for layer in layers:
        alpha = cv2.resize(layer[..., 3], (width, height), interpolation=cv2.INTER_LINEAR)
        drawn |= alpha > 127
    if not drawn.any():
        raise InputError("Draw on the photo where the object should go.")
    return drawn
