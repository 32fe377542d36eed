"""One chunk of a data set's groups to shards of its own: what every way of working shares.

A chunk's folder appears when it is whole, and has the same bytes whoever made it.
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from imprint_jax.data.preparation.filters import Filters, Reject
from imprint_jax.data.preparation.masks import NO_MASK
from imprint_jax.data.preparation.sources import READERS, Group, Picture
from imprint_jax.data.records import Record, ShardWriter
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.images import decode_image, encode_png, too_large
from imprint_jax.runtime.files import atomic_folder

SPLITS = ("train", "validation", "test")
NO_SPLIT = "in no split"

# Pictures that records keep as they came, by Pillow's format and mode; others are stored as RGB in
# PNG. MPO is a phone's JPEG with more pictures after the first. TFDS cannot decode grey ones.
KEPT_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
KEPT_MODES = {"RGB", "RGBA", "P", "LA", "CMYK"}

# Masks are decoded for every sample: at zlib's levels of 1 to 3 in a third of the time, of some
# kilobytes more, than at 4 and above; without PNG's filters in two thirds of that.
COMPRESSION = 1


@dataclass(frozen=True)
class Job:
    """What to do with every chunk."""

    name: str
    src: Path
    chunks: Path  # the folder for the chunks' folders
    filters: Filters
    max_side: int | None
    unit: str  # one of UNITS
    split_of: dict[str, str] | None  # of units; None: by `fractions`
    fractions: tuple[float, ...]  # shares of SPLITS
    segment: Path | None


def chunk_folder(job: Job, number: int) -> Path:
    return job.chunks / f"{number:06d}"


def do_chunk(job: Job, number: int, groups: list[Group | Reject]) -> None:
    """Reads some groups; their shards, rejects and units appear in one step, as a folder."""
    shards: dict[str, ShardWriter] = {}
    units: dict[str, set[str]] = defaultdict(set)
    rejects: Counter = Counter()
    with atomic_folder(chunk_folder(job, number)) as folder:
        with open(folder / "rejects.jsonl", "w") as log:
            for outcome in chain.from_iterable(_read_group(job, group) for group in groups):
                if isinstance(outcome, Reject):
                    log.write(reject_line(job, outcome))
                    rejects[outcome.reason] += 1
                    continue
                split, unit, record = outcome
                if split not in shards:
                    shards[split] = ShardWriter(folder / split)
                shards[split].write(record)
                units[split].add(unit)
        for shard in shards.values():
            shard.close()
        lists = {split: sorted(names) for split, names in units.items()}
        (folder / "about.json").write_text(json.dumps({"rejects": rejects, "units": lists}))


def reject_line(job: Job, reject: Reject) -> str:
    """A line of rejects.jsonl."""
    line = {"path": _relative(job, reject.path), "reason": reject.reason, "detail": reject.detail}
    return json.dumps(line) + "\n"


def _relative(job: Job, path: Path) -> str:
    return path.relative_to(job.src).as_posix() if path.is_relative_to(job.src) else str(path)


def _read_group(job: Job, group: Group | Reject) -> Iterator[Reject | tuple[str, str, Record]]:
    """Split, unit and record of each object in each picture of a group, or why there is none."""
    if isinstance(group, Reject):
        yield group
        return
    try:
        _utf8(group.name)
    except Reject as reject:
        yield Reject(reject.reason, reject.detail, group.folder)
        return
    try:
        pictures = list(READERS[job.name].pictures(group))
    except OSError as error:
        yield Reject("unreadable", f"{error.strerror}.", group.folder)
        return
    for picture in pictures:
        if isinstance(picture, Reject):
            yield picture
            continue
        try:
            yield from _read_picture(job, group, picture)
        except Reject as reject:
            yield Reject(reject.reason, reject.detail, reject.path or picture.path)


def _read_picture(
    job: Job, group: Group, picture: Picture
) -> Iterator[Reject | tuple[str, str, Record]]:
    photo = Path(_relative(job, picture.path)).with_suffix("").as_posix()
    if job.unit != "object":  # decided before anything is read
        unit = group.name if job.unit == "video" or READERS[job.name].pairs else photo
        split = _split(job, unit)
    data, image = _load(picture.path)
    job.filters.check_picture(image)
    background = _load_background(picture.background, image) if picture.background else b""
    for instance, mask in picture.masks(image):
        try:
            if job.unit == "object":
                alone = READERS[job.name].one_object or not instance
                unit = group.name if alone else f"{group.name}/{instance}"
                split = _split(job, unit)
            record = Record(
                image=data,
                mask=_encode_mask(_check_mask(job, image, mask)),
                background=background,
                group=group.name,
                instance=int(instance),
                frame=picture.frame,
                dataset=job.name,
            )
        except Reject as reject:
            what = f" (object {instance})" if instance else ""
            yield Reject(reject.reason, reject.detail + what, picture.path)
        else:
            yield split, unit, record if job.max_side is None else _shrink(record, job.max_side)


def _check_mask(job: Job, image: np.ndarray, mask: np.ndarray | Reject) -> np.ndarray:
    """The object's coverage, (h w) uint8, if it is worth keeping."""
    if isinstance(mask, Reject):
        if mask.reason != NO_MASK:
            raise mask
        if job.segment is not None:
            mask = Segmenter(job.segment)(image[..., :3])
        elif READERS[job.name].backgrounds:
            return np.zeros(image.shape[:2], np.uint8)
        else:
            raise mask
    job.filters.check_object(image, mask)
    return mask


def _split(job: Job, unit: str) -> str:
    """The split of a unit: that of the file, or by its name's hash."""
    if job.split_of is not None:
        if unit not in job.split_of:
            raise Reject(NO_SPLIT, f"The splits file does not name {unit}.")
        return job.split_of[unit]
    place = int.from_bytes(hashlib.sha256(_utf8(unit)).digest()[:8]) / 2**64
    bounds = np.cumsum(job.fractions)
    return SPLITS[min(int(np.searchsorted(bounds, place, side="right")), 2)]


def _utf8(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise Reject("name not UTF-8", "Records hold names as UTF-8; rename it.") from None


def _load(path: Path) -> tuple[bytes, np.ndarray]:
    """A picture's file, in a format that records hold, and its pixels."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Reject("missing picture", "There is no such file.", path) from None
    except OSError as error:
        raise Reject("unreadable", f"{error.strerror}.", path) from error
    if too_large(data):
        raise Reject("too large", "It has more pixels than are read safely, 89 million.", path)
    try:
        image = decode_image(data, path.name)
    except InputError as error:
        raise Reject("unreadable", str(error), path) from error
    return data if _is_kept(data) else encode_png(image), image


def _is_kept(data: bytes) -> bool:
    header = Image.open(io.BytesIO(data))
    # IHDR has the bits a channel; of 16, TFDS takes the lower 8.
    deep = header.format == "PNG" and data[24] == 16
    return header.format in KEPT_FORMATS and header.mode in KEPT_MODES and not deep


def _load_background(path: Path, image: np.ndarray) -> bytes:
    """The file of the picture without the object, which must be as large."""
    data, background = _load(path)
    if background.shape[:2] != image.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (background.shape[:2], image.shape[:2])]
        what = f"It is {sizes[0]}, the picture with the object {sizes[1]}."
        raise Reject("background of another size", what, path)
    return data


def _shrink(record: Record, max_side: int) -> Record:
    """The record with its pictures at most `max_side` pixels high and wide."""
    image = Image.fromarray(decode_image(record["image"], record["group"]))
    mask = Image.fromarray(decode_image(record["mask"], record["group"])[..., 0])
    if max(image.size) <= max_side:
        return record
    shrunk = lambda side: max(round(side * max_side / max(image.size)), 1)
    size = shrunk(image.width), shrunk(image.height)

    def jpeg(picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture = picture.resize(size, Image.Resampling.LANCZOS).convert("RGB")
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()

    background = record["background"]
    if background:
        background = jpeg(Image.fromarray(decode_image(background, record["group"])))
    small = _encode_mask(np.asarray(mask.resize(size, Image.Resampling.LANCZOS)))
    return record | {"image": jpeg(image), "mask": small, "background": background}


def _encode_mask(mask: np.ndarray) -> bytes:
    """(h w) uint8 as a PNG."""
    filters = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    done, data = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, COMPRESSION, *filters])
    if not done:
        raise ValueError(f"OpenCV cannot encode a mask {mask.shape}")
    return data.tobytes()
