"""The batch: what a training step is given, every key once.

| key    | shape (b = batch, s = object_size, h = w = image_size) | dtype | range | what |
|--------|-----------|-------|----------|---------------------------------------------------------|
| object | (b s s 3) | uint8 | 0 to 255 | the object on black, cropped by its mask                |
| target | (b h w 3) | uint8 | 0 to 255 | stage 1: the object's other view on black; stage 2: the |
|        |           |       |          | photo with the object in it                             |
| mask   | (b h w 1) | uint8 | 0 or 1   | 1 = the hole; stage 1: all ones                         |
| index  | (b)       | int32 | 0 ...    | position in the endless stream of samples, modulo 2^31  |
"""

from collections.abc import Mapping

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imprint_jax.config import Config
from imprint_jax.errors import InputError

HEADING = 18  # pixels above the columns of `picture`


def batch_spec(config: Config, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `batch_size` samples, from `image_size` and `object_size`."""
    image, crop = config.image_size, config.object_size
    return {
        "object": jax.ShapeDtypeStruct((batch_size, crop, crop, 3), np.uint8),
        "target": jax.ShapeDtypeStruct((batch_size, image, image, 3), np.uint8),
        "mask": jax.ShapeDtypeStruct((batch_size, image, image, 1), np.uint8),
        "index": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }


def check_batch(batch: dict[str, np.ndarray], config: Config) -> None:
    """Checks this host's part of a batch against the table above.

    Args:
        batch: The arrays.
        config: Its sizes, and the batch size over all hosts.

    Raises:
        InputError: A key is missing or unknown, or has the wrong shape, dtype or values.
    """
    spec = batch_spec(config, config.batch_size // jax.process_count())
    if batch.keys() != spec.keys():
        raise InputError(f"The batch has keys {sorted(batch)}; it needs {sorted(spec)}.")
    for key, want in spec.items():
        have = batch[key]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise InputError(
                f"batch[{key!r}] is {have.dtype}{have.shape}; it must be {want.dtype}{want.shape}."
            )
    if batch["mask"].max() > 1:
        raise InputError("batch['mask'] holds values other than 0 and 1.")
    if config.stage == 1 and not batch["mask"].all():
        raise InputError("batch['mask'] must be all ones in stage 1.")
    if batch["index"].min() < 0:
        raise InputError("batch['index'] is negative.")


def picture(
    batch: dict[str, np.ndarray], rows: int = 8, more: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """A host batch to look at: one sample a row, with object, target, and target with a red hole.

    Args:
        batch: This host's samples.
        rows: How many of them, at most.
        more: Further columns by their headings: pictures (rows h w 3) uint8.

    Returns:
        (HEADING + rows * side, columns * side, 3) uint8, where side is the larger of object and
        target.
    """
    target = batch["target"][:rows]
    hole = batch["mask"][:rows] * np.array([255, 0, 0], np.uint8)
    marked = np.where(batch["mask"][:rows] > 0, target // 2 + hole // 2, target)
    columns = {"object": batch["object"][:rows], "target": target, "hole": marked, **(more or {})}
    side = max(images.shape[1] for images in columns.values())
    grid = np.zeros((len(target), side, len(columns), side, 3), np.uint8)
    for column, images in enumerate(columns.values()):
        grid[:, : images.shape[1], column, : images.shape[2]] = images
    heading = Image.new("RGB", (len(columns) * side, HEADING), "white")
    for column, text in enumerate(columns):
        draw = ImageDraw.Draw(heading)
        draw.text((column * side + 2, 2), text, "black", ImageFont.load_default(HEADING - 6))
    return np.concatenate([np.asarray(heading), grid.reshape(len(target) * side, -1, 3)])


def to_device(
    batch: dict[str, np.ndarray], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
    """Makes the global batch of every host's part.

    Args:
        batch: This host's samples.
        sharding: How the first axis of every key lies over the devices.

    Returns:
        Global arrays; each first axis is the sum of the hosts'.
    """
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }
