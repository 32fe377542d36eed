"""The record on disk: one view of one object, in ArrayRecord shards that TFDS reads too.

A prepared data set is a folder:

    <name>-<split>.array_record-00000-of-0000N   records, `tf.train.Example` messages
    <name>-<split>.index.npz                     what pairs are chosen by, one row a record
    dataset_info.json, features.json             TFDS metadata
    SHA256SUMS                                   checksums of all the files, as `sha256sum -c` reads
    rejects.jsonl                                what was left out, and why (written by prepare.py)
    splits.json                                  what is in which split (written by prepare.py)

so that `tfds.builder_from_directory(folder).as_data_source(split)` works, also without
TensorFlow. TFDS ignores the orientation in a picture's EXIF data, while masks are upright: turn
such pictures, as `images.decode_image` does.

The index holds `group` (int64, counted from 0 in order of appearance), `group_names` (the text of
each), `instance`, `frame` (int64) and `has_mask` (bool).
"""

import hashlib
import os
import shutil
import struct
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from imprint_jax.errors import InputError
from imprint_jax.images import MASK_THRESHOLD, decode_image
from imprint_jax.runtime.files import atomic_folder, check_local, check_unused

VERSION = "1.0.0"

# One record a chunk, for random access; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_BYTES = 512 * 2**20  # RecordWriter begins another shard after so many
CHECKSUMS = "SHA256SUMS"
LFS_POINTER = b"version https://git-lfs"  # how the files begin that stand for others


class Record(TypedDict):
    """One view of one object, or a photo that only serves as background."""

    image: bytes  # the file as it came: JPEG, PNG or WebP, in colours of 8 bits
    mask: bytes  # PNG, one 8-bit channel, size of the upright image: 255 = object, 0 = not, between
    # for the soft edge of a cut-out; all 0 for a photo that only serves as background
    background: bytes  # the same scene without the object, encoded; empty if unknown
    group: str  # object, video or photo
    instance: int  # which object within the group
    frame: int  # true order in time or along the camera's path
    dataset: str  # where it comes from


def tfds_features() -> tfds.features.FeaturesDict:
    """The record in TFDS's words; `background` is text since an empty picture cannot be decoded."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, None)),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "background": tfds.features.Text(),
            "group": tfds.features.Text(),
            "instance": np.int64,
            "frame": np.int64,
            "dataset": tfds.features.Text(),
        }
    )


def encode(record: Record) -> bytes:
    """Serializes a record, the same record always to the same bytes."""
    example = tf_example_pb2.Example()
    for key, value in record.items():
        feature = example.features.feature[key]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """The inverse of `encode`; pictures stay encoded."""
    feature = tf_example_pb2.Example.FromString(data).features.feature
    record: Any = {}
    for key, kind in Record.__annotations__.items():
        value = (feature[key].int64_list if kind is int else feature[key].bytes_list).value[0]
        record[key] = value.decode() if kind is str else value
    return record


class RecordWriter:
    """Writes a prepared data set; it appears under its name only when it is whole.

    Used as a context manager: leaving it normally finishes the folder, leaving it by an exception
    removes what was written. The same records in the same order give the same bytes.

    Args:
        folder: Where to; made if missing.
        name: Data set's name, as in the files' names.

    Raises:
        InputError: The folder exists and is not empty.
    """

    def __init__(self, folder: str | os.PathLike, name: str):
        self.folder, self.name = Path(folder), name
        check_unused(self.folder)
        self.shards: dict[str, list[ShardWriter]] = {}
        self._publishing = ExitStack()

    def __enter__(self) -> "RecordWriter":
        self.building = self._publishing.enter_context(atomic_folder(self.folder))
        (self.building / ".shards").mkdir()
        self._publishing.push(self._finish)  # before the folder gets its name
        return self

    def write(self, split: str, record: Record) -> None:
        """Appends a record to a split."""
        shards = self.shards.setdefault(split, [])
        if not shards or shards[-1].num_bytes >= SHARD_BYTES:
            if shards:
                shards[-1].close()
            stem = self.building / ".shards" / f"{split}-{len(shards):05d}"
            shards.append(ShardWriter(stem))
        shards[-1].write(record)

    def __exit__(self, *error: Any) -> bool | None:
        return self._publishing.__exit__(*error)

    def _finish(self, error_type: type[BaseException] | None, *_: object) -> None:
        for shards in self.shards.values():
            shards[-1].close()
        if error_type is None:
            stems = {split: [s.stem for s in shards] for split, shards in self.shards.items()}
            merge_shards(self.building, self.name, stems)
            shutil.rmtree(self.building / ".shards")


class ShardWriter:
    """Writes a shard on its own: STEM.array_record, and STEM.index.npz and STEM.sha256 of it.

    Attributes:
        stem: The path up to the suffixes.
        num_bytes: Written so far.
    """

    def __init__(self, stem: Path):
        self.stem, self.num_bytes = stem, 0
        self._shard = ArrayRecordWriter(f"{stem}.array_record", WRITER_OPTIONS)
        self._group_numbers: dict[str, int] = {}
        self._rows: list[tuple[int, int, int, bool]] = []

    def write(self, record: Record) -> None:
        """Appends a record."""
        data = encode(record)
        self._shard.write(data)
        self.num_bytes += len(data)
        group = self._group_numbers.setdefault(record["group"], len(self._group_numbers))
        mask = decode_image(record["mask"], "the mask")
        has_mask = mask.max() >= MASK_THRESHOLD
        self._rows.append((group, record["instance"], record["frame"], has_mask))

    def close(self) -> None:
        """Finishes the shard and writes the files beside it."""
        self._shard.close()
        group, instance, frame, has_mask = zip(*self._rows, strict=True)
        _write_index(
            Path(f"{self.stem}.index.npz"),
            group=np.array(group, np.int64),
            group_names=np.array(list(self._group_numbers)),
            instance=np.array(instance, np.int64),
            frame=np.array(frame, np.int64),
            has_mask=np.array(has_mask, bool),
        )
        Path(f"{self.stem}.sha256").write_text(sha256(f"{self.stem}.array_record"))


def merge_shards(folder: Path, name: str, stems: dict[str, list[Path]]) -> dict[str, int]:
    """Makes a prepared data set of shards, by moving them; call it again after it was stopped.

    Args:
        folder: Where to. Files that are there already are part of the data set.
        name: Data set's name.
        stems: What `ShardWriter` has written, by split, in order.

    Returns:
        Records by split.
    """
    infos, sums = [], {}
    for split, paths in stems.items():
        lengths: list[int] = []
        num_bytes = 0
        for number, stem in enumerate(paths):
            shard = folder / f"{name}-{split}.array_record-{number:05d}-of-{len(paths):05d}"
            if not shard.exists():
                os.replace(f"{stem}.array_record", shard)
            num_bytes += shard.stat().st_size
            sums[shard.name] = Path(f"{stem}.sha256").read_text()
        index = _merge_indexes([Path(f"{stem}.index.npz") for stem in paths], lengths)
        _write_index(folder / f"{name}-{split}.index.npz", **index)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds_features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,  # it would read with TensorFlow
        description="Views of objects with masks; see imprint_jax/data/records.py.",
    )
    for path in folder.iterdir():
        if path.is_file() and path.name not in (CHECKSUMS, *sums):
            sums[path.name] = sha256(path)
    lines = [f"{digest}  {file}\n" for file, digest in sorted(sums.items())]
    (folder / CHECKSUMS).write_text("".join(lines))
    return {info.name: sum(info.shard_lengths) for info in infos}


def _merge_indexes(paths: list[Path], lengths: list[int]) -> dict[str, np.ndarray]:
    """One index of those of many shards, whose lengths are appended to `lengths`."""
    numbers: dict[str, int] = {}
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            part = dict(arrays)
        names = [numbers.setdefault(str(n), len(numbers)) for n in part.pop("group_names")]
        part["group"] = np.array(names, np.int64)[part["group"]]
        lengths.append(len(part["group"]))
        parts.append(part)
    index = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return index | {"group_names": np.array(list(numbers))}


def content_hash(folder: str | os.PathLike) -> str:
    """Changes when anything in a prepared data set does, hexadecimal.

    Raises:
        InputError: It is not there, or has no checksums.
    """
    check_local(folder)
    path = Path(folder) / CHECKSUMS
    if not Path(folder).is_dir():
        raise InputError(
            f"There is no folder {folder} of records; if it was moved, --config.data.sources says"
            " where it is."
        )
    if not path.is_file():
        raise InputError(f"{folder} has no {CHECKSUMS}; `imprint data prepare` writes it.")
    return sha256(path)


def sha256(path: str | os.PathLike) -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_index(path: Path, **arrays: np.ndarray) -> None:
    """`np.savez_compressed` without the time of day in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy")  # dated 1980
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


class RecordSource:
    """Random access to the records of one split: `len(source)`, `source[i] -> Record`.

    Opens its files when first read from and can be sent to other processes.

    Args:
        folder: A prepared data set.
        split: "train", "validation" or "test".

    Attributes:
        index: Arrays of the index file (see the module's docstring), one row a record.

    Raises:
        InputError: The folder or the split is missing, incomplete or damaged.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        check_local(folder)
        indexes = sorted(Path(folder).glob(f"*-{split}.index.npz"))
        if len(indexes) > 1:
            raise InputError(f"{folder} holds {len(indexes)} data sets with a split {split!r}.")
        if not indexes:
            raise _no_split(Path(folder), split)
        self.index: dict[str, np.ndarray] = _read_index(indexes[0])
        stem = indexes[0].name.removesuffix(".index.npz")
        self._shards = sorted(Path(folder).glob(f"{stem}.array_record-*-of-*"))
        if not self._shards or len(self._shards) != int(self._shards[0].name[-5:]):
            raise InputError(
                f"{folder} lacks shards of its split {split!r}; copy or prepare it again."
            )
        try:
            self._records = _open_shards(self._shards)
        except RuntimeError:  # array_record's for any damage
            for shard in self._shards:
                _shard_length(shard)
            raise
        if len(self._records) != len(self.index["frame"]):
            raise InputError(
                f"{indexes[0]} has {len(self.index['frame'])} rows for {len(self._records)} "
                "records; prepare the data set again."
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Record:
        """Record `i`.

        Raises:
            InputError: It is damaged.
        """
        try:
            return decode(self._records[i])
        except (RuntimeError, DecodeError, LookupError, ValueError) as error:
            # Opened anew: one may have lost its end since.
            ends = np.cumsum([_shard_length(shard) for shard in self._shards])
            shard = self._shards[np.searchsorted(ends, i, side="right")]
            raise InputError(
                f"{shard} is damaged: its record {i - (ends[ends <= i].max(initial=0))} cannot be"
                f" read ({error}). Copy or prepare the data set again."
            ) from error


def _open_shards(paths: list[Path]) -> grain.sources.ArrayRecordDataSource:
    return grain.sources.ArrayRecordDataSource([str(path) for path in paths])


def _shard_length(path: Path) -> int:
    """How many records a shard has.

    Raises:
        InputError: It cannot be opened, and why.
    """
    try:
        return len(_open_shards([path]))
    except RuntimeError as error:
        with open(path, "rb") as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        what = "is a pointer of git-LFS: `git lfs pull` brings the file" if pointer else ""
        what = what or f"is damaged ({error}): copy or prepare the data set again"
        raise InputError(f"{path} {what}.") from error


# The arrays of an index, and what reading a damaged one raises: found by damaging some at random.
INDEX_ARRAYS = {"group", "group_names", "instance", "frame", "has_mask"}
_DAMAGED = (
    *(OSError, ValueError, EOFError, LookupError, SyntaxError, MemoryError, OverflowError),
    *(NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error),
)


def _read_index(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            index = dict(arrays)
    except _DAMAGED as error:
        raise InputError(
            f"{path} is damaged ({error}): copy or prepare the data set again."
        ) from error
    if index.keys() != INDEX_ARRAYS:
        raise InputError(f"{path} is damaged: it holds {', '.join(sorted(index))}.")
    return index


def _no_split(folder: Path, split: str) -> InputError:
    names = (path.name.removesuffix(".index.npz") for path in folder.glob("*.index.npz"))
    there = sorted(name.rpartition("-")[2] for name in names)
    if not there:
        return InputError(f"{folder} is no prepared data set; `imprint data prepare` makes one.")
    hint = "prepare it with --splits or --fractions, which say what is held out"
    if split == "validation":
        hint += "; a training with --config.validation.every=0 --config.preview.every=0 needs none"
    return InputError(f"{folder} has no split {split!r}, only {', '.join(there)}: {hint}.")
