"""Readers of data sets as they are downloaded or rendered, and `prepare`, which makes records.

A reader is two functions: one lists the views in a folder without opening them, one makes a record
of a view, or raises `Reject`.
"""

import io
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


class Reject(Exception):
    """A picture is left out: `reason` is a short word to count by, `detail` a sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def list_objaverse(src: Path) -> Iterator[View]:
    """The layout of `imprint data render`: SRC/<object>/NNN.webp or .png, in order of name."""
    for folder in sorted(p for p in src.iterdir() if p.is_dir() and not p.name.startswith(".")):
        views = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".webp", ".png"})
        for frame, path in enumerate(views):
            yield View(path, group=folder.name, instance=0, frame=frame)


def read_objaverse(view: View) -> Record:
    """A view with the object cut out by its alpha channel, which becomes the mask."""
    data, image = _read(view.path)
    if image.shape[2] == 3 or image[..., 3].min() == 255:
        raise Reject("no alpha", "Nothing of the picture is transparent.")
    mask = image[..., 3]
    rows, columns = np.nonzero(mask >= MASK_THRESHOLD)
    if not rows.size:
        raise Reject("empty mask", "Everything in the picture is transparent.")
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    if extent < MIN_OBJECT:
        raise Reject("object too small", f"It extends over {extent} pixels only.")
    return _record(view, data, mask, dataset="objaverse")


def list_photos(src: Path) -> Iterator[View]:
    """A folder of photographs; the group is the file's name without suffix."""
    for path in sorted(p for p in src.iterdir() if p.suffix.lower() in PICTURES):
        yield View(path, group=path.stem, instance=0, frame=0)


def read_photo(view: View) -> Record:
    """A photo that only serves as background: its mask is empty."""
    data, image = _read(view.path)
    return _record(view, data, np.zeros(image.shape[:2], np.uint8), dataset="photos")


READERS: dict[str, tuple[Callable[[Path], Iterator[View]], Callable[[View], Record]]] = {
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
    *,
    max_side: int | None = None,
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
        max_side: Pictures with a longer side are shrunk to it (pixels) and stored as JPEG of
            quality 95; decoding is what a large photo costs the training. None: all as they came.

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
    groups = {view.group for view in views}
    split_of = _read_splits(splits_file, name) if splits_file else dict.fromkeys(groups, "train")
    if missing := sorted(split_of.keys() - groups):
        logger.warning("%s lacks %d groups of %s: %s", src, len(missing), splits_file, missing)

    def read(view: View) -> Record | Reject:
        try:
            if view.group not in split_of:
                raise Reject("in no split", f"{splits_file} does not name {view.group}.")
            record = read_view(view)
            return record if max_side is None else _shrink(record, max_side)
        except Reject as reject:
            return reject

    # Grain's threads give the results in order and stay at most `4 * workers` pictures ahead.
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    results = grain.MapDataset.source(views).map(read).to_iter_dataset(options)
    records, rejects = Counter(), Counter()
    with RecordWriter(dst, name) as writer:
        with open(writer.building / "rejects.jsonl", "w") as log:
            for done, (view, result) in enumerate(zip(views, results, strict=True), start=1):
                if isinstance(result, Reject):
                    path = view.path.relative_to(src).as_posix()
                    line = {"path": path, "reason": result.reason, "detail": result.detail}
                    log.write(json.dumps(line) + "\n")
                    rejects[result.reason] += 1
                else:
                    writer.write(split_of[view.group], result)
                    records[split_of[view.group]] += 1
                if progress:
                    progress(done, len(views))
        if not records:
            raise InputError(f"{src} holds no usable picture; left out: {dict(rejects) or 'none'}.")
    logger.info("%s: %s records, %s left out", dst, dict(records), dict(rejects))
    return {"records": dict(records), "rejects": dict(rejects)}


def _read(path: Path) -> tuple[bytes, np.ndarray]:
    """A file and its pixels."""
    data = path.read_bytes()
    try:
        image = decode_image(data, path.name)
    except InputError as error:
        raise Reject("unreadable", str(error)) from error
    if min(image.shape[:2]) < MIN_SIDE:
        raise Reject("picture too small", f"It has {image.shape[1]}x{image.shape[0]} pixels.")
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


def _shrink(record: Record, max_side: int) -> Record:
    """The record with its pictures at most `max_side` pixels high and wide."""
    image = Image.fromarray(decode_image(record["image"], record["group"]))
    mask = Image.fromarray(decode_image(record["mask"], record["group"])[..., 0])
    if max(image.size) <= max_side:
        return record
    size = tuple(max(round(side * max_side / max(image.size)), 1) for side in image.size)

    def jpeg(picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture = picture.resize(size, Image.Resampling.LANCZOS).convert("RGB")
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()

    background = record["background"]
    if background:
        background = jpeg(Image.fromarray(decode_image(background, record["group"])))
    mask = encode_png(np.asarray(mask.resize(size, Image.Resampling.LANCZOS)))
    return record | {"image": jpeg(image), "mask": mask, "background": background}


def _read_splits(path: str | os.PathLike, name: str) -> dict[str, str]:
    """The split of each group.

    Raises:
        InputError: No such file, not the JSON described in `prepare`, or a group in two splits.
    """
    try:
        splits = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the splits file {path}: {error}.") from error
    if not isinstance(splits, dict):
        raise InputError(f"{path} must be a JSON object of lists of names, by split.")
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
