"""Readers of data sets as they are downloaded or rendered, and `prepare`, which makes records.

A reader is a function that lists the views of a folder without opening them, and a function that
makes one record; damaged or useless pictures are left out and counted by reason.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.images import MASK_THRESHOLD, decode_image, encode_png
from imprint_jax.inputs.records import Record, RecordWriter

logger = logging.getLogger(__name__)

MIN_SIDE = 32  # pixels: a picture's shorter side, below which it is left out
MIN_OBJECT = 16  # pixels: likewise the longer side of the object's bounding box

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class View:
    """One picture to become one record."""

    path: Path
    group: str
    instance: int
    frame: int


@dataclass(frozen=True)
class Reject:
    """A picture left out: `reason` to count by, `detail` to read."""

    path: Path
    reason: str
    detail: str


def list_objaverse(src: Path) -> Iterator[View]:
    """The layout of `imprint data render`: SRC/<object>/NNN.webp or .png, in order of name."""
    for folder in sorted(p for p in src.iterdir() if p.is_dir() and not p.name.startswith(".")):
        views = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".webp", ".png"})
        for frame, path in enumerate(views):
            yield View(path, group=folder.name, instance=0, frame=frame)


def read_objaverse(view: View) -> Record | Reject:
    """A view with the object cut out by its alpha channel, which becomes the mask."""
    data, image = _read(view.path)
    if isinstance(image, Reject):
        return image
    if image.shape[2] == 3 or image[..., 3].min() == 255:
        return Reject(view.path, "no alpha", "Nothing of the picture is transparent.")
    mask = image[..., 3]
    rows, columns = np.nonzero(mask >= MASK_THRESHOLD)
    if not rows.size:
        return Reject(view.path, "empty mask", "Everything in the picture is transparent.")
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    if extent < MIN_OBJECT:
        return Reject(view.path, "object too small", f"It extends over {extent} pixels only.")
    return _record(view, data, mask, dataset="objaverse")


def list_photos(src: Path) -> Iterator[View]:
    """A folder of photographs; the group is the file's name without suffix."""
    for path in sorted(p for p in src.iterdir() if p.suffix.lower() in PICTURES):
        yield View(path, group=path.stem, instance=0, frame=0)


def read_photo(view: View) -> Record | Reject:
    """A photo that only serves as background: its mask is empty."""
    data, image = _read(view.path)
    if isinstance(image, Reject):
        return image
    return _record(view, data, np.zeros(image.shape[:2], np.uint8), dataset="photos")


READERS: dict[str, tuple[Callable, Callable]] = {
    "objaverse": (list_objaverse, read_objaverse),
    "photos": (list_photos, read_photo),
}


def prepare(
    name: str,
    src: str | os.PathLike,
    dst: str | os.PathLike,
    splits_file: str | os.PathLike | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Makes a prepared data set (see records.py) of a folder.

    Args:
        name: One of `READERS`.
        src: The folder as downloaded or rendered.
        dst: Folder to make.
        splits_file: JSON `{"train": [...], "validation": [...], "test": [...]}` of groups, that
            is of objects or of photos' names without suffix; or, for several data sets in one file,
            such an object under the data set's name. None: everything is "train".
        workers: Threads that read and check; their number does not change the result.
        progress: Called as progress(done, total) after every picture.

    Returns:
        {"records": {split: count}, "rejects": {reason: count}}. DST/rejects.jsonl has a line
        {"path", "reason", "detail"} for each picture left out.

    Raises:
        InputError: Unknown name, missing folder, unusable splits file, no usable picture, or `dst`
            is not empty.
    """
    if name not in READERS:
        raise InputError(f"There is no reader {name!r}; known are {', '.join(READERS)}.")
    src = Path(src)
    if not src.is_dir():
        raise InputError(f"There is no folder {src}.")
    list_views, read_view = READERS[name]
    views = list(list_views(src))
    if splits_file is None:
        split_of = {view.group: "train" for view in views}
    else:
        split_of = _read_splits(splits_file, name)
        if missing := sorted(split_of.keys() - {view.group for view in views}):
            logger.warning(
                "%d groups of %s are not in %s, the first is %s",
                len(missing), splits_file, src, missing[0],
            )  # fmt: skip

    def read(view: View) -> Record | Reject:
        if view.group not in split_of:
            return Reject(view.path, "in no split", f"{splits_file} does not name {view.group}.")
        return read_view(view)

    # Grain's threads give the results in order and stay at most `4 * workers` pictures ahead.
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    outcomes = grain.MapDataset.source(views).map(read).to_iter_dataset(options)
    records, rejects = Counter(), Counter()
    with RecordWriter(dst, name) as writer:
        with open(writer.building / "rejects.jsonl", "w") as log:
            for done, (view, outcome) in enumerate(zip(views, outcomes, strict=True), start=1):
                if isinstance(outcome, Reject):
                    line = {
                        "path": outcome.path.relative_to(src).as_posix(),
                        "reason": outcome.reason,
                        "detail": outcome.detail,
                    }
                    log.write(json.dumps(line) + "\n")
                    rejects[outcome.reason] += 1
                else:
                    writer.write(split_of[view.group], outcome)
                    records[split_of[view.group]] += 1
                if progress:
                    progress(done, len(views))
        if not records:
            raise InputError(f"There is no usable picture in {src}: {dict(rejects) or 'none found'}.")
    logger.info("%s: %s records, %s left out", dst, dict(records), dict(rejects))
    return {"records": dict(records), "rejects": dict(rejects)}


def _read(path: Path) -> tuple[bytes, np.ndarray | Reject]:
    data = path.read_bytes()
    try:
        image = decode_image(data, str(path))
    except InputError as error:
        return data, Reject(path, "unreadable", str(error))
    if min(image.shape[:2]) < MIN_SIDE:
        size = f"It has {image.shape[1]}x{image.shape[0]} pixels."
        return data, Reject(path, "picture too small", size)
    return data, image


def _record(view: View, data: bytes, mask: np.ndarray, dataset: str) -> Record:
    return Record(
        image=data,
        mask=encode_png(mask),
        background=b"",
        group=view.group,
        instance=view.instance,
        frame=view.frame,
        dataset=dataset,
    )


def _read_splits(path: str | os.PathLike, name: str) -> dict[str, str]:
    """The split of each group.

    Raises:
        InputError: No such file, not the JSON described in `prepare`, or a group in two splits.
    """
    try:
        splits = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the splits file {path}: {error}.") from error
    splits = splits.get(name, splits)
    split_of = {}
    for split in ("train", "validation", "test"):
        for group in splits.get(split, ()):
            if group in split_of:
                raise InputError(f"{path} has {group} in {split_of[group]} and in {split}.")
            split_of[group] = split
    if not split_of:
        raise InputError(f'{path} names nothing under "train", "validation" or "test".')
    return split_of
