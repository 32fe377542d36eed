"""Composes a whole manifest into a folder: what can be done is done, what is done is not redone.

OUT/ID.png, OUT/ID_0.png ...  the pictures, with their provenance in a PNG text chunk
OUT/results.jsonl             a line for each finished entry, with its provenance
OUT/failures.jsonl            a line for each entry that failed, {"id", "error"}; none, no file

Where several processes share a manifest, each keeps lists of its own: results.2-of-4.jsonl and
failures.2-of-4.jsonl of the second of four. What any of them has done is done.

Nothing else in the folder is ever replaced or deleted.
"""

import json
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike
from PIL import Image, PngImagePlugin

import imprint_jax
from imprint_jax import images
from imprint_jax.composing.compositor import Compositor
from imprint_jax.composing.manifest import Entry
from imprint_jax.composing.photo import Photo
from imprint_jax.composing.request import Request
from imprint_jax.composing.settings import Filled, Settings
from imprint_jax.config.fields import ReleasedConfig
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError
from imprint_jax.runtime import devices
from imprint_jax.runtime.files import atomic_file
from imprint_jax.weights import hub, release

# What must be equal for pictures to belong into one folder.
_SAME = ("model_sha256", "dtype", "settings")
# What a report says of them.
_RECORDED = ("model", *_SAME, "mask_sigmas", "draws", "versions")
# Of a line of results.jsonl.
_RESULT_TYPES = {"id": str, "pictures": list, "entry": dict, **dict.fromkeys(_SAME, object)}
# Bytes of a file's name (NAME_MAX of Linux; other systems are not stricter).
_LONGEST_NAME = 255
# The text chunk that tells our pictures from others.
_CHUNK = "imprint_jax"


def provenance(
    folder: Path, config: ReleasedConfig, settings: Filled, shape: dict, dtype: DTypeLike
) -> dict:
    """How pictures are composed: enough to compose them again.

    Args:
        folder: The released model.
        config: Its configuration.
        settings: Filled.
        shape: What is done to every mask: fields of `Request`.
        dtype: Of the computation.

    Returns:
        Names, numbers and nested dicts, for JSON.
    """
    return {
        "model": hub.name_of(folder),
        "model_sha256": release.model_hash(folder),
        "dtype": str(np.dtype(dtype)),
        "settings": asdict(settings) | shape,
        "mask_sigmas": list(config.mask_sigmas),
        "draws": {"generator": sampling.GENERATOR, "dtype": "float32"},
        "device": devices.local()[0].device_kind,
        "versions": {"imprint_jax": imprint_jax.__version__, "jax": jax.__version__},
    }


def write_picture(
    path: Path, picture: Image.Image, photo: Photo, how: dict, seed: int, number: int
) -> None:
    """Writes a PNG with its provenance and what it carries over of the photo.

    Args:
        path: The file; replaced whole or not at all.
        picture: A result.
        photo: What it was composed into.
        how: From `provenance`.
        seed: The request's.
        number: Of the picture among the seed's.

    Raises:
        InputError: It cannot be written.
    """
    text = {_CHUNK: json.dumps(_text(how, seed, number))}
    with atomic_file(path) as file:
        file.write_bytes(images.encode_png(np.asarray(picture), text, **photo.metadata))


def _text(how: dict, seed: int, number: int) -> dict:
    return how | {"seed": seed, "sample": number}


def recorded(folder: Path) -> dict:
    """How the pictures of a folder were composed, as far as its results.jsonl says; else {}."""
    try:
        lines = (line for path in _lists(folder, "results") for line, _ in _results(path))
        line = next(lines, {})
    except InputError:  # another tool's
        return {}
    return {key: line[key] for key in _RECORDED if key in line}


def check_single(path: Path, names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Checks the --out of one request, before anything is loaded.

    Args:
        path: The file to write, or what the files' names begin with.
        names: Of the files to write.
        inputs: Files that are read.

    Raises:
        InputError: It cannot be written, or would replace anything but an earlier result.
    """
    if os.path.isdir(path):
        raise InputError(f"--out {path} is a folder: give the name of a .png file.")
    if path.suffix.lower() != ".png":
        raise InputError(
            f"--out {path} must end in .png: other formats would change the pixels of the photo."
        )
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} of --out does not exist.")
    _check_writable(path.parent)
    outputs = [path.with_name(name) for name in names]
    _check_replaced(outputs, inputs, lambda file: _provenance_of(file) is not None)


def parse_shard(text: str) -> tuple[int, int]:
    """What I/N says: which of how many processes, from 1.

    Raises:
        InputError: It is something else.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, count = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(
            f"--shard wants I/N, such as 1/4 for the first of four processes, not {text!r}."
        )
    return number, count


def share(entries: Iterable[Entry], shard: tuple[int, int]) -> list[Entry]:
    """A process's part of a manifest's entries: of N processes each does every Nth."""
    number, count = shard
    return list(entries)[number - 1 :: count]


def _list(folder: Path, kind: str, shard: tuple[int, int]) -> Path:
    """A process's own list, of "results" or "failures"."""
    number, count = shard
    return folder / (f"{kind}.jsonl" if count == 1 else f"{kind}.{number}-of-{count}.jsonl")


def _lists(folder: Path, kind: str) -> list[Path]:
    """The lists of all processes that have worked in a folder."""
    name = re.compile(rf"{kind}(\.\d+-of-\d+)?\.jsonl")
    return sorted(path for path in folder.glob(f"{kind}*.jsonl") if name.fullmatch(path.name))


def unfinished(
    entries: Iterable[Entry],
    out: Path,
    how: dict,
    inputs: Iterable[Path] = (),
    shard: tuple[int, int] = (1, 1),
) -> list[Entry]:
    """The entries that are still to do, for a folder that may hold some already.

    Call it before anything is loaded: it says whether `compose_entries` may write to the folder.
    Lines of results that are cut short, or whose entry or pictures are not as they were, are taken
    out of the process's own list of results, and its list of failures is deleted; where it works
    alone, so it is with the lists of all others.

    Args:
        entries: The manifest's, all of them.
        out: The folder; created if it does not exist.
        how: From `provenance`.
        inputs: Files that are read beside the entries', such as the manifest.
        shard: From `parse_shard`; decides the `share`.

    Raises:
        InputError: The folder holds pictures composed in another way, cannot be written to, or a
            file in it would be replaced that no job wrote.
    """
    entries = share(entries, shard)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder {out}: {error.strerror}.") from error
    _check_writable(out)
    path, failures = (_list(out, kind, shard) for kind in ("results", "failures"))
    lines = {listed: list(_results(listed)) for listed in _lists(out, "results")}
    alone = shard[1] == 1
    # Others may be at work on theirs.
    old_failures = _lists(out, "failures") if alone else [failures]
    for listed in old_failures:
        _check_failures(listed)
    done = [line for listed in lines.values() for line, _ in listed]
    own = {path.name, failures.name} | {name for line in done for name in line["pictures"]}
    _check_replaced(
        [out / name for entry in entries for name in entry.names()] + [path, failures],
        [*inputs, *(file for entry in entries for file in entry.files())],
        lambda file: file.name in own or _same_way(_provenance_of(file), how),
    )
    for line in done:
        for key in _SAME:
            if line[key] != how[key]:
                raise InputError(
                    f"{out} holds pictures made with different {key} ({line[key]}, not"
                    f" {how[key]}): give another --out."
                )
    for listed in old_failures:
        listed.unlink(missing_ok=True)
    by_id = {entry.id: entry for entry in entries}
    still_holds = lambda line: _still_holds(line, by_id.get(line["id"]), out)
    for listed in lines.keys() if alone else lines.keys() & {path}:
        kept = {line["id"]: text for line, text in lines[listed] if still_holds(line)}
        if listed == path or len(kept) < len(lines[listed]):
            with atomic_file(listed) as file:
                file.write_text("".join(kept.values()), encoding="utf-8")
    finished = {line["id"] for line in done if still_holds(line)}
    return [entry for entry in entries if entry.id not in finished]


def _still_holds(line: dict, entry: Entry | None, out: Path) -> bool:
    """Whether a result is that of its entry as it is now, or of none here."""
    return entry is None or (
        line["entry"] == entry.line
        and line.get("inputs") == entry.digests()
        and all((out / name).exists() for name in entry.names())
    )


def _results(path: Path) -> Iterator[tuple[dict, str]]:
    """The whole lines of results.jsonl, and their text."""
    if not path.exists():
        return
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a list of results of `imprint compose` ({error}): give another --out."
        ) from error
    for number, text in enumerate(texts[:-1], start=1):  # a run may have ended in the last one
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        sound = isinstance(line, dict) and all(
            isinstance(line.get(key), kind) for key, kind in _RESULT_TYPES.items()
        )
        if not sound or not all(key in line for key in _SAME):
            raise InputError(
                f"{path}, line {number}, is not a result of `imprint compose`: give another --out."
            )
        yield line, text + "\n"


def _check_failures(path: Path) -> None:
    if not path.exists():
        return
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        own = all(line.keys() == {"id", "error"} for line in lines)
    except (OSError, ValueError, AttributeError, RecursionError):
        own = False
    if not own:
        raise InputError(f"{path} was not written by `imprint compose`: give another --out.")


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"Cannot write to the folder {folder}: {error.strerror}.") from error


def _check_replaced(
    outputs: Iterable[Path], inputs: Iterable[Path], is_own: Callable[[Path], bool]
) -> None:
    """Checks that writing `outputs` harms nothing.

    Raises:
        InputError: One is also read, by this or another name, or exists and `is_own` denies it.
    """
    read = {_identity(path): path for path in inputs if path.exists()}
    for path in outputs:
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise InputError(f"The name {path.name[:20]}... is too long for a file.")
        if not os.path.lexists(path):
            continue
        if path.exists() and _identity(path) in read:
            raise InputError(
                f"{path} would be replaced, but is also read ({read[_identity(path)]}): give"
                " another --out."
            )
        if path.is_symlink() or not path.is_file() or not is_own(path):
            raise InputError(
                f"{path} exists and is not a result of `imprint compose` that may be replaced: give"
                " another --out, or move it away."
            )


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of one file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _provenance_of(path: Path) -> dict | None:
    """What our text chunk in a PNG says; None if it has none."""
    try:
        with Image.open(path) as image:
            if not isinstance(image, PngImagePlugin.PngImageFile):
                return None
            content = json.loads(image.text[_CHUNK])
    except Exception:  # any other file, and decoders raise anything
        return None
    return content if isinstance(content, dict) else None


def _same_way(content: dict | None, how: dict) -> bool:
    """Whether a picture was composed as `how` says, by a run that was stopped then."""
    return content is not None and all(content.get(key) == how[key] for key in _SAME)


def compose_entries(
    compositor: Compositor,
    entries: Iterable[Entry],
    out: Path,
    settings: Settings,
    how: dict,
    shard: tuple[int, int] = (1, 1),
    **shape: Any,
) -> Iterator[tuple[Entry, str | None]]:
    """Composes entries one batch after the other, and writes each picture when it is composed.

    Args:
        compositor: The model.
        entries: What to do, see `unfinished`.
        out: The folder, which exists.
        settings: The same for all.
        how: From `provenance`, written into each picture and result.
        shard: As `unfinished` takes it.
        **shape: As `Entry.request` takes them.

    Yields:
        Each entry with None, or with what is wrong with it, about in their order.

    Raises:
        InputError: A list of results or failures cannot be written.
    """
    waiting: deque[Entry] = deque()
    unreadable: deque[tuple[Entry, str]] = deque()

    def requests() -> Iterator[Request]:
        for entry in entries:
            try:
                request = entry.request(**shape)
            except InputError as error:
                unreadable.append((entry, str(error)))
                continue
            waiting.append(entry)
            yield request

    def failed(entry: Entry, error: str) -> tuple[Entry, str]:
        _append(_list(out, "failures", shard), {"id": entry.id, "error": error})
        return entry, error

    error = None
    for request, number, outcome in compositor.attempt(requests(), settings):
        while unreadable:
            yield failed(*unreadable.popleft())
        entry = waiting[0]
        try:
            if isinstance(outcome, str):
                raise InputError(outcome)
            path = out / entry.names()[number]
            write_picture(path, outcome, request.original, how, entry.seed, number)
        except InputError as failure:
            error = error or str(failure)
        if number < request.num - 1:
            continue
        waiting.popleft()
        if error:
            yield failed(entry, error)
        else:
            line = {"id": entry.id, "pictures": entry.names(), "seed": entry.seed}
            line |= how | {"entry": entry.line, "inputs": entry.digests()}
            _append(_list(out, "results", shard), line)
            yield entry, None
        error = None
    while unreadable:
        yield failed(*unreadable.popleft())


def _append(path: Path, line: dict) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from error
