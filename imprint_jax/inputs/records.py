"""The record on disk: one view of one object, in ArrayRecord shards that TFDS reads too.

A prepared data set is a folder:

    <name>-<split>.array_record-00000-of-0000N   records, `tf.train.Example` messages
    <name>-<split>.index.npz                     what pairs are chosen by, one row a record
    dataset_info.json, features.json             TFDS metadata
    rejects.jsonl                                what was left out, and why (written by sources.py)

so that `tfds.builder_from_directory(folder).as_data_source(split)` works, also without
TensorFlow. The index holds `group` (int64, counted from 0 in order of appearance), `group_names`
(the text of each), `instance`, `frame` (int64) and `has_mask` (bool).
"""

import os
import shutil
import uuid
import zipfile
from pathlib import Path
from typing import TypedDict

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from imprint_jax.errors import InputError
from imprint_jax.images import MASK_THRESHOLD, decode_image

VERSION = "1.0.0"

# One record a chunk, for random access; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_BYTES = 512 * 2**20


class Record(TypedDict):
    """One view of one object, or a photo that only serves as background."""

    image: bytes  # the file as it came: JPEG, PNG or WebP
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
    record = {}
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
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{folder} exists already; choose another folder, or delete it.")
        # Beside the final place: a rename is atomic only within one file system.
        self.building = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}")
        self.splits: dict[str, _SplitWriter] = {}

    def __enter__(self):
        self.building.mkdir(parents=True)
        return self

    def write(self, split: str, record: Record) -> None:
        """Appends a record to a split."""
        if split not in self.splits:
            self.splits[split] = _SplitWriter(self.building / f"{self.name}-{split}")
        self.splits[split].write(record)

    def __exit__(self, error_type, error, traceback):
        try:
            infos = [writer.close(split) for split, writer in self.splits.items()]
            if error_type is None:
                tfds.folder_dataset.write_metadata(
                    data_dir=self.building,
                    features=tfds_features(),
                    split_infos=infos,
                    version=VERSION,
                    check_data=False,  # it would read with TensorFlow
                    description="Views of objects with masks; see imprint_jax/inputs/records.py.",
                )
                os.replace(self.building, self.folder)
        finally:
            shutil.rmtree(self.building, ignore_errors=True)  # gone already if all went well


class _SplitWriter:
    """The shards and the index of one split; `stem` is the path up to the suffixes."""

    def __init__(self, stem: Path):
        self.stem = stem
        self.shard: ArrayRecordWriter | None = None
        self.shard_bytes: list[int] = []
        self.shard_lengths: list[int] = []
        self.group_numbers: dict[str, int] = {}
        self.rows: list[tuple[int, int, int, bool]] = []

    def write(self, record: Record) -> None:
        data = encode(record)
        if self.shard is None or self.shard_bytes[-1] + len(data) > SHARD_BYTES:
            self._next_shard()
        self.shard.write(data)
        self.shard_bytes[-1] += len(data)
        self.shard_lengths[-1] += 1
        group = self.group_numbers.setdefault(record["group"], len(self.group_numbers))
        mask = decode_image(record["mask"], "the mask")
        self.rows.append((group, record["instance"], record["frame"], mask.max() >= MASK_THRESHOLD))

    def _next_shard(self) -> None:
        if self.shard is not None:
            self.shard.close()
        # How many there will be is known only at the end.
        self.shard = ArrayRecordWriter(
            f"{self.stem}.array_record-{len(self.shard_lengths):05d}", WRITER_OPTIONS
        )
        self.shard_bytes.append(0)
        self.shard_lengths.append(0)

    def close(self, split: str) -> tfds.core.SplitInfo:
        self.shard.close()
        count = len(self.shard_lengths)
        for number in range(count):
            shard = f"{self.stem}.array_record-{number:05d}"
            os.rename(shard, f"{shard}-of-{count:05d}")
        group, instance, frame, has_mask = zip(*self.rows, strict=True)
        _write_index(
            Path(f"{self.stem}.index.npz"),
            group=np.array(group, np.int64),
            group_names=np.array(list(self.group_numbers)),
            instance=np.array(instance, np.int64),
            frame=np.array(frame, np.int64),
            has_mask=np.array(has_mask, bool),
        )
        return tfds.core.SplitInfo(
            name=split, shard_lengths=self.shard_lengths, num_bytes=sum(self.shard_bytes)
        )


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
        InputError: The folder or the split is missing or incomplete.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        indexes = sorted(Path(folder).glob(f"*-{split}.index.npz"))
        if len(indexes) != 1:
            raise InputError(
                f"{folder} is no prepared data set with a split {split!r}; "
                "`imprint data prepare` makes one."
            )
        with np.load(indexes[0], allow_pickle=False) as arrays:
            self.index: dict[str, np.ndarray] = dict(arrays)
        stem = indexes[0].name.removesuffix(".index.npz")
        shards = sorted(Path(folder).glob(f"{stem}.array_record-*-of-*"))
        if not shards or len(shards) != int(shards[0].name[-5:]):
            raise InputError(
                f"{folder} lacks shards of its split {split!r}; copy or prepare it again."
            )
        self._records = grain.sources.ArrayRecordDataSource([str(path) for path in shards])
        if len(self._records) != len(self.index["frame"]):
            raise InputError(
                f"{indexes[0]} has {len(self.index['frame'])} rows for {len(self._records)} "
                "records; prepare the data set again."
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Record:
        return decode(self._records[i])
