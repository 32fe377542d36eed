"""`check`: reads all of a prepared data set, says what is damaged and what is in it."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from imprint_jax.data.records import CHECKSUMS, Record, RecordSource, sha256
from imprint_jax.errors import InputError
from imprint_jax.images import MASK_THRESHOLD, decode_image
from imprint_jax.runtime.files import check_local
from imprint_jax.runtime.processes import in_processes

# Records a task: a process reads and decodes them in a few seconds.
TASK = 512

METADATA = ("dataset_info.json", "features.json")


@dataclass
class SplitStatistics:
    """What a split holds; the arrays have an entry a record."""

    records: int = 0
    groups: int = 0
    objects: int = 0  # instances of groups
    backgrounds: int = 0  # records without a mask
    num_bytes: int = 0  # of the encoded pictures
    sides: list[int] = field(default_factory=list)  # longer side, pixels
    areas: list[float] = field(default_factory=list)  # object's share of the picture, where any


@dataclass
class Report:
    """The outcome of `check`: a data set is whole if there are no problems."""

    problems: list[str]
    splits: dict[str, SplitStatistics]
    rejects: dict[str, int]  # by reason


def check(
    folder: str | os.PathLike,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Verifies checksums, reads and decodes every record, and counts.

    Args:
        folder: A prepared data set.
        workers: Processes; 1: this one.
        progress: Called as progress(done, total) with records.

    Raises:
        InputError: The folder is no prepared data set.
    """
    check_local(folder)
    folder = Path(folder)
    splits = [path.name.split(".")[0].rpartition("-")[2] for path in folder.glob("*.index.npz")]
    if not splits:
        raise InputError(f"{folder} is no prepared data set; `imprint data prepare` makes one.")
    problems, damaged = _check_files(folder, workers)
    report = Report(problems, {}, _count_rejects(folder, problems))
    tasks = []
    for split in sorted(splits):
        if any(f"-{split}." in name for name in damaged):
            continue  # what is in a damaged file says nothing
        try:
            source = RecordSource(folder, split)
        except InputError as error:
            problems.append(str(error))
            continue
        statistics = report.splits[split] = SplitStatistics(records=len(source))
        index = source.index
        statistics.groups = len(index["group_names"])
        with_mask = index["has_mask"]
        statistics.objects = len(
            {*zip(index["group"][with_mask], index["instance"][with_mask], strict=True)}
        )
        statistics.backgrounds = int((~with_mask).sum())
        starts = range(0, len(source), TASK)
        tasks += [(split, start, min(start + TASK, len(source))) for start in starts]

    total, done = sum(stop - start for *_, start, stop in tasks), 0
    results = in_processes(_read, tasks, workers, folder)
    for (split, start, stop), result in zip(tasks, results, strict=True):
        wrong, num_bytes, sides, areas = result
        problems += wrong
        statistics = report.splits[split]
        statistics.num_bytes += num_bytes
        statistics.sides += sides
        statistics.areas += areas
        done += stop - start
        if progress:
            progress(done, total)
    _check_splits(folder, problems)
    return report


def _check_files(folder: Path, workers: int) -> tuple[list[str], set[str]]:
    """What is wrong with the files, and the names of those that are missing or changed."""
    if not (folder / CHECKSUMS).exists():
        return [f"There is no {CHECKSUMS}: whether files have changed cannot be told."], set()
    problems, damaged = [], set()
    text = (folder / CHECKSUMS).read_text(errors="replace")
    sums = {name: digest for digest, _, name in (x.partition("  ") for x in text.splitlines())}
    if not text.endswith("\n"):  # a run knows the records by this file's own checksum
        problems.append(f"{CHECKSUMS} is cut short.")
    present = {path.name for path in folder.iterdir() if path.is_file()} - {CHECKSUMS}
    for name in sorted({*METADATA, *sums} - present):
        problems.append(f"{name} is missing.")
        damaged.add(name)
    for name in sorted(present - sums.keys()):
        problems.append(f"{name} is not in {CHECKSUMS}.")
    names = sorted(sums.keys() & present)
    digests = in_processes(sha256, [(folder / name,) for name in names], workers)
    for name, digest in zip(names, digests, strict=True):
        if digest != sums[name]:
            problems.append(f"{name} has changed: its checksum differs.")
            damaged.add(name)
    return problems, damaged


def _read(
    folder: Path, split: str, start: int, stop: int
) -> tuple[list[str], int, list[int], list[float]]:
    """Problems, bytes, longer sides and area shares of some records."""
    source = RecordSource(folder, split)
    problems, num_bytes, sides, areas = [], 0, [], []
    for number in range(start, stop):
        try:
            record = source[number]
            image = decode_image(record["image"], "its image")
            mask = decode_image(record["mask"], "its mask")
            wrong = list(_wrong(record, image, mask, source.index, number))
        except (InputError, DecodeError, LookupError, ValueError, RuntimeError) as error:
            wrong = [f"it cannot be read: {error}"]
        else:
            num_bytes += sum(len(record[key]) for key in ("image", "mask", "background"))
            sides.append(max(image.shape))
            if mask.max() >= MASK_THRESHOLD:
                areas.append(float((mask[..., 0] >= MASK_THRESHOLD).mean()))
        problems += [f"Record {number} of {split}: {what}." for what in wrong]
    return problems, num_bytes, sides, areas


def _wrong(
    record: Record, image: np.ndarray, mask: np.ndarray, index: dict, number: int
) -> Iterator[str]:
    """What does not agree with records.py."""
    if mask.shape[:2] != image.shape[:2]:
        yield f"its mask is {mask.shape[:2]}, its image {image.shape[:2]} (height, width)"
    # IHDR holds width, height, bit depth and colour type: 8 bits, grey.
    if record["mask"][:8] != b"\x89PNG\r\n\x1a\n" or record["mask"][24:26] != b"\x08\x00":
        yield "its mask is no PNG with one channel of 8 bits"
    if record["background"]:
        background = decode_image(record["background"], "its background")
        if background.shape[:2] != image.shape[:2]:
            yield f"its background is {background.shape[:2]}, its image {image.shape[:2]}"
    row = {key: index[key][number] for key in ("instance", "frame", "has_mask")}
    said = {
        "group": record["group"],
        "instance": record["instance"],
        "frame": record["frame"],
        "has_mask": mask.max() >= MASK_THRESHOLD,
    }
    row["group"] = index["group_names"][index["group"][number]]
    for key, value in said.items():
        if row[key] != value:
            yield f"its {key} is {value}, in the index {row[key]}"


def _count_rejects(folder: Path, problems: list[str]) -> dict[str, int]:
    path = folder / "rejects.jsonl"
    if not path.exists():
        return {}
    try:
        with open(path) as lines:
            return dict(Counter(json.loads(line)["reason"] for line in lines).most_common())
    except (ValueError, KeyError, TypeError) as error:
        problems.append(f"rejects.jsonl cannot be read: {error}.")
        return {}


def _check_splits(folder: Path, problems: list[str]) -> None:
    path = folder / "splits.json"
    if not path.exists():
        return
    try:
        lists = {split: set(names) for split, names in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError, TypeError) as error:
        problems.append(f"splits.json cannot be read: {error}.")
        return
    for one, other in itertools.combinations(sorted(lists), 2):
        if both := lists[one] & lists[other]:
            problems.append(f"splits.json has {len(both)} names in {one} and in {other}.")
