"""`prepare`: a data set as its authors distribute it becomes records; what is left out is listed.

    groups of the set -> chunks -> each, in some process, to shards of its own -> merged

Chunks depend on the groups only, and a chunk's folder appears when it is whole. So the result has
the same bytes for any number of processes, and a run that was stopped goes on where it was.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from imprint_jax.data.preparation.chunks import (
    NO_SPLIT,
    SPLITS,
    Job,
    chunk_folder,
    do_chunk,
    reject_line,
)
from imprint_jax.data.preparation.filters import Filters, Reject
from imprint_jax.data.preparation.sources import ARCHIVES, READERS, Group
from imprint_jax.data.records import VERSION, merge_shards
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.runtime.files import (
    atomic_file,
    atomic_folder,
    check_local,
    check_unused,
    remove_unfinished,
)
from imprint_jax.runtime.processes import in_processes

logger = logging.getLogger(__name__)

UNITS = ("video", "object", "photo")
DEFAULT_FRACTIONS = (0.9, 0.05, 0.05)

# A chunk becomes a shard a split. As many pictures make some 1 GB of frames; small sets still give
# `MIN_CHUNKS` processes something to do.
CHUNK_PICTURES = 4096
MIN_CHUNKS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What of a data set is taken, and how it is kept.

    Attributes:
        max_side: Pictures with a longer side are shrunk to it (pixels) and stored as JPEG of
            quality 95; decoding is what a large photo costs the training. None: all as they came.
        limit: Only the first so many groups, not counting what is left out already as it is listed.
        max_reject: Percent of pictures and objects; more rejects are an error.
        split_by: What is never divided between splits: "video" (a record's group, also for a photo
            or an object alone; the default), "object" (GROUP/INSTANCE, or the group where the
            instance is 0 or a scene of the object) or "photo" (a picture's path without suffix).
        fractions: With `split_by`: shares of train, validation and test; a unit's name decides, by
            its hash. None: 0.9, 0.05 and 0.05.
        filters: Limits to change, "name=number"; see filters.py.
        segment: An ONNX file that finds objects in pictures without masks; see segment.py.
    """

    max_side: int | None = None
    limit: int | None = None
    max_reject: float | None = None
    split_by: str | None = None
    fractions: Sequence[float] | None = None
    filters: Iterable[str] = ()
    segment: str | os.PathLike | None = None


def prepare(
    name: str,
    src: str | os.PathLike,
    dst: str | os.PathLike,
    splits_file: str | os.PathLike | None = None,
    options: Options | None = None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    beam: Sequence[str] | None = None,
) -> dict[str, dict[str, int]]:
    """Makes a prepared data set (see records.py) of a folder. Stopped, it is started again.

    Args:
        name: One of `READERS`.
        src: The folder as downloaded or rendered.
        dst: Folder to make. Until it is whole, the work is in .NAME.building beside it.
        splits_file: JSON `{"train": [...], "validation": [...], "test": [...]}` of units (see
            `Options`); or, for several data sets in one file, such an object under the data set's
            name. What it does not name is left out. None: everything is "train", or what
            `options.fractions` says where `split_by` is given.
        options: See `Options`; None: its defaults.
        workers: Processes that read and check; 1: this one. Their number does not change the
            result.
        progress: Called as progress(done, total) with groups (objects, videos or photos).
        beam: Options of an Apache Beam pipeline that does the work in place of processes of this
            machine; SRC and DST must lie where all its workers see them. The result is the same.

    Returns:
        {"records": {split: count}, "rejects": {reason: count}}. DST/rejects.jsonl has a line
        {"path", "reason", "detail"} for everything left out, DST/splits.json the units by split.

    Raises:
        InputError: Unknown name, missing folder, unusable splits file, no usable picture, too many
            rejects, `dst` is not empty, or a stopped run had other settings.
    """
    check_local(src)
    check_local(dst)
    src, dst, options = Path(src).absolute(), Path(dst), options or Options()
    if dst.name in ("", ".."):
        raise InputError(f"{dst} cannot be the folder to make: give it a name.")
    check_unused(dst)
    if name not in READERS:
        raise InputError(f"There is no reader {name!r}; known are {', '.join(READERS)}.")
    if not src.is_dir():
        hint = "; unpack it first" if src.suffix.lower() in ARCHIVES and src.exists() else ""
        raise InputError(f"There is no folder {src}{hint}.")
    if options.segment and READERS[name].labels:
        raise InputError(
            f"--segment does not go with {name}: of a frame without labels it cannot tell which"
            " object of the video it finds."
        )
    building = dst.with_name(f".{dst.name}.building")
    job = Job(
        name=name,
        src=src,
        chunks=building / "chunks",
        filters=Filters.changed(READERS[name].filters, options.filters),
        max_side=options.max_side,
        unit=_check_unit(options.split_by),
        split_of=_read_splits(splits_file, name) if splits_file else None,
        fractions=_check_fractions(options.fractions, options.split_by, splits_file),
        segment=Segmenter(options.segment).path if options.segment else None,
    )
    try:
        groups = list(_first(READERS[name].groups(src), options.limit))
    except OSError as error:
        raise InputError(f"Cannot list {error.filename}: {error.strerror}.") from error
    rejects = [group for group in groups if isinstance(group, Reject)]
    if len(rejects) == len(groups):
        reasons = Counter(reject.reason for reject in rejects)
        raise _nothing_usable(src, dst, reasons, (reject_line(job, reject) for reject in rejects))
    size = min(-(-len(groups) // MIN_CHUNKS), CHUNK_PICTURES // READERS[name].group_size)
    chunks = [groups[start : start + size] for start in range(0, len(groups), size)]
    if beam is None:
        run = functools.partial(_run, workers=workers)
    else:
        run = functools.partial(_beam().run, options=beam)
    with _alone(building):
        _start(building, _fingerprint(job, chunks))
        done = 0
        for number in _finished(job, chunks, run):
            done += len(chunks[number])
            if progress:
                progress(done, len(groups))
        return _finish(job, len(chunks), building, dst, options.max_reject)


def _first(groups: Iterator[Group | Reject], limit: int | None) -> Iterator[Group | Reject]:
    """The groups up to the `limit`-th, and what is left out before it."""
    count = 0
    for group in groups:
        yield group
        count += isinstance(group, Group)
        if count == limit:
            return


# ---------------------------------------------------------------------------- all chunks


@contextlib.contextmanager
def _alone(building: Path) -> Iterator[None]:
    """Makes the folder of the work, and keeps others from working in it.

    Raises:
        InputError: Another process does.
    """
    building.mkdir(parents=True, exist_ok=True)
    with open(building / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another `prepare` is at work in {building}.") from None
        yield


def _start(building: Path, fingerprint: dict) -> None:
    """Begins, or finds what a stopped run has left.

    Raises:
        InputError: That run had other settings.
    """
    plan = building / "plan.json"
    if plan.exists():
        earlier = json.loads(plan.read_text())
        if earlier != fingerprint:
            changed = [k for k, value in fingerprint.items() if earlier.get(k) != value]
            raise InputError(
                f"{building} is a stopped run with other {', '.join(changed)}; start it again as it"
                " was, or delete that folder."
            )
        remove_unfinished(building / "chunks")
        return
    for leftover in ("chunks", "final"):  # of a run that was killed when it had finished
        shutil.rmtree(building / leftover, ignore_errors=True)
    (building / "chunks").mkdir()
    with atomic_file(plan) as file:
        file.write_text(json.dumps(fingerprint, indent=1))


def _fingerprint(job: Job, chunks: list) -> dict:
    """What must be the same for a stopped run to go on, as JSON."""
    listing = hashlib.sha256()
    for chunk in chunks:
        listing.update(repr(chunk).encode("utf-8", "surrogateescape"))
    return {
        "version": VERSION,
        "reader": job.name,
        "source folder": str(job.src.absolute()),
        "files": listing.hexdigest(),
        "filters": dataclasses.asdict(job.filters),
        "max_side": job.max_side,
        "split_by": job.unit,
        "splits": hashlib.sha256(json.dumps(job.split_of).encode()).hexdigest(),
        "fractions": list(job.fractions),
        "segment": str(job.segment),
    }


def _beam() -> ModuleType:
    """The module that works by Apache Beam, which is an extra.

    Raises:
        InputError: Beam is not installed.
    """
    try:
        from imprint_jax.data.preparation import beam
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise InputError("--runner beam needs pip install 'imprint_jax[beam]'.") from error
    return beam


def _finished(job: Job, chunks: list, run: Callable) -> Iterator[int]:
    """Does what chunks are missing, by `run`; yields the number of each when it is there."""
    todo = []
    for number in range(len(chunks)):
        if chunk_folder(job, number).exists():
            yield number
        else:
            todo.append(number)
    if todo:
        yield from run(job, chunks, todo)


def _run(job: Job, chunks: list, todo: list[int], workers: int) -> Iterator[int]:
    """Does some chunks in processes of this machine; yields the number of each when it is there."""
    jobs = [(number, chunks[number]) for number in todo]
    for number, _ in zip(todo, in_processes(do_chunk, jobs, workers, job), strict=True):
        yield number


def _finish(job: Job, count: int, building: Path, dst: Path, max_reject: float | None) -> dict:
    """Merges the chunks to DST."""
    rejects: Counter[str] = Counter()
    units: dict[str, set[str]] = defaultdict(set)
    stems: dict[str, list[Path]] = {}
    for number in range(count):
        folder = chunk_folder(job, number)
        about = json.loads((folder / "about.json").read_text())
        rejects.update(about["rejects"])
        for split, names in about["units"].items():
            units[split].update(names)
            stems.setdefault(split, []).append(folder / split)
    lines = ((chunk_folder(job, k) / "rejects.jsonl").read_text() for k in range(count))
    if not stems:
        error = _nothing_usable(job.src, dst, rejects, lines)
        (building / "plan.json").unlink()
        shutil.rmtree(building)
        raise error
    _report_unused(job, units)
    stems = {split: stems[split] for split in SPLITS if split in stems}
    counts = {s: sum(_length(stem) for stem in stems[s]) for s in stems}
    with atomic_folder(dst, building=building / "final") as final:
        with open(final / "rejects.jsonl", "w") as log:
            log.writelines(lines)
        lists = {split: sorted(units.get(split, ())) for split in SPLITS}
        (final / "splits.json").write_text(json.dumps(lists, indent=1) + "\n")
        _check_rejects(rejects, sum(counts.values()), max_reject, final)
        merge_shards(final, job.name, stems)
        check_unused(dst)
        # Without its plan nothing goes on with chunks whose shards have moved.
        (building / "plan.json").unlink()
    shutil.rmtree(building)
    logger.debug("%s: %s records, %s left out", dst, counts, dict(rejects))
    return {"records": counts, "rejects": dict(rejects)}


def _nothing_usable(src: Path, dst: Path, counts: Counter, lines: Iterable[str]) -> InputError:
    """Says that everything was left out, and keeps why, line by line, beside where DST would be."""
    said = f"{src} holds no usable picture{_archives(src)}; left out: {_list(counts)}."
    if not counts:
        return InputError(said)
    path = dst.with_name(f"{dst.name}.rejects.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file, open(file, "w") as log:
        log.writelines(lines)
    return InputError(f"{said} {path} says why.")


def _length(stem: Path) -> int:
    with np.load(f"{stem}.index.npz", allow_pickle=False) as index:
        return len(index["frame"])


def _check_rejects(rejects: Counter, records: int, max_reject: float | None, final: Path) -> None:
    left_out = rejects.total() - rejects[NO_SPLIT]
    share = 100 * left_out / max(left_out + records, 1)
    if max_reject is not None and share > max_reject:
        raise InputError(
            f"{share:.1f} % were left out, more than --max-reject {max_reject:g}: {_list(rejects)}."
            f" {final / 'rejects.jsonl'} lists them. With a higher limit the same command keeps"
            " what was made."
        )


def _report_unused(job: Job, units: dict[str, set[str]]) -> None:
    if job.split_of:
        missing = sorted(job.split_of.keys() - set().union(*units.values()))
        if missing:
            some = ", ".join(missing[:10])
            logger.warning("%d names in the splits file have no record: %s", len(missing), some)


# ---------------------------------------------------------------------------- what users say


def _check_unit(split_by: str | None) -> str:
    unit = split_by or "video"
    if unit not in UNITS:
        raise InputError(f"--split-by is {unit!r}; it must be one of {', '.join(UNITS)}.")
    return unit


def _check_fractions(
    fractions: Sequence[float] | None, split_by: str | None, splits_file: str | os.PathLike | None
) -> tuple[float, ...]:
    """Shares of SPLITS: all is "train" where nothing says how to split."""
    if fractions is None:
        return DEFAULT_FRACTIONS if split_by else (1.0, 0.0, 0.0)
    if split_by is None or splits_file is not None:
        raise InputError(
            "--fractions are shares of what --split-by keeps together: give that, and no --splits."
        )
    fractions = tuple(float(share) for share in fractions)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"The shares of train, validation and test must be three numbers that add up to 1, not"
            f" {', '.join(f'{share:g}' for share in fractions)}."
        )
    return fractions


def _archives(src: Path) -> str:
    archives = sorted(path.name for path in src.iterdir() if path.suffix.lower() in ARCHIVES)
    return f" but archives ({', '.join(archives[:3])}...): unpack them" if archives else ""


def _list(counts: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"


def _read_splits(path: str | os.PathLike, name: str) -> dict[str, str]:
    """The split of each unit.

    Raises:
        InputError: No such file, not the JSON described in `prepare`, or a unit in two splits.
    """
    try:
        splits = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the splits file {path}: {error}.") from error
    if not isinstance(splits, dict):
        raise InputError(f"{path} must be a JSON object of lists of names, by split.")
    splits = splits.get(name, splits)
    if not isinstance(splits, dict):
        raise InputError(f"{path} must hold lists of names by split under {name!r}.")
    split_of: dict[str, str] = {}
    for split in SPLITS:
        units = splits.get(split, [])
        if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
            raise InputError(f"{path} must hold a list of names under {split!r}.")
        for unit in units:
            if unit in split_of:
                raise InputError(f"{path} has {unit} in {split_of[unit]} and in {split}.")
            split_of[unit] = split
    if not split_of:
        raise InputError(f'{path} names nothing under "train", "validation" or "test".')
    return split_of
