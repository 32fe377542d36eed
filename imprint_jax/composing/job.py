"""Composes a whole manifest into a folder: what can be done is done, what is done is not redone.

OUT/ID.png, OUT/ID_0.png ...  the pictures, with their provenance in a PNG text chunk
OUT/results.jsonl             a line for each finished entry, with its provenance
OUT/failures.jsonl            a line for each entry that failed, {"id", "error"}; none, no file
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

import imprint_jax
from imprint_jax import images
from imprint_jax.composing.compositor import Compositor, Settings
from imprint_jax.composing.manifest import Entry
from imprint_jax.errors import InputError
from imprint_jax.runtime.files import atomic_file
from imprint_jax.weights import hub, release
from imprint_jax.weights.tensors import file_hash

# What must be equal for pictures to belong into one folder.
_SAME = ("model_sha256", "dtype", "settings")
# What a report says of them.
_MADE = ("model", *_SAME, "versions")


def provenance(folder: Path, settings: Settings, shape: dict, dtype) -> dict:
    """How pictures are made: enough to make them again.

    Args:
        folder: The released model.
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
        "device": jax.devices()[0].device_kind,
        "versions": {"imprint_jax": imprint_jax.__version__, "jax": jax.__version__},
    }


def png_text(how: dict, seed: int, number: int) -> dict[str, str]:
    """The text chunk of a picture: its provenance, seed, and number among the seed's pictures."""
    return {"imprint_jax": json.dumps(how | {"seed": seed, "sample": number})}


def made(folder: Path) -> dict:
    """How the pictures of a folder were made, as far as its results.jsonl says; else {}."""
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if not lines or not lines[0].endswith("\n"):
        return {}
    return {key: x for key, x in json.loads(lines[0]).items() if key in _MADE}


def unfinished(entries: Iterable[Entry], out: Path, how: dict) -> list[Entry]:
    """The entries that are still to do, for a folder that may hold some already.

    Lines of results that are cut short, or whose entry or pictures are not as they were, are taken
    out of OUT/results.jsonl; OUT/failures.jsonl is deleted.

    Args:
        entries: The manifest's.
        out: The folder; made if it does not exist.
        how: From `provenance`.

    Raises:
        InputError: The folder holds pictures made in another way, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder {out}: {error.strerror}.") from error
    (out / "failures.jsonl").unlink(missing_ok=True)
    path = out / "results.jsonl"
    if not path.exists():
        return list(entries)
    by_id = {entry.id: entry for entry in entries}
    kept = {}
    lines = path.read_text().splitlines(keepends=True)
    for text in lines:
        if not text.endswith("\n"):
            continue  # the run ended while it wrote this
        line = json.loads(text)
        for key in _SAME:
            if line[key] != how[key]:
                raise InputError(
                    f"{out} holds pictures made with another {key} ({line[key]}, not {how[key]}):"
                    " give another --out."
                )
        entry = by_id.get(line["id"])
        known = entry is None or (
            line["entry"] == entry.line
            and line.get("inputs") == _inputs(entry)
            and all((out / name).exists() for name in entry.names())
        )
        if known:
            kept[line["id"]] = text
    if len(kept) < len(lines):
        with atomic_file(path) as file:
            file.write_text("".join(kept.values()), encoding="utf-8")
    return [entry for entry in entries if entry.id not in kept]


def compose_entries(
    compositor: Compositor,
    entries: Iterable[Entry],
    out: Path,
    settings: Settings,
    how: dict,
    **shape,
) -> Iterator[tuple[Entry, str | None]]:
    """Composes entries one batch after the other, and writes each as soon as it is done.

    Args:
        compositor: The model.
        entries: What to do, see `unfinished`.
        out: The folder, which exists.
        settings: The same for all.
        how: From `provenance`, written into each picture and result.
        **shape: As `Entry.request` takes them.

    Yields:
        Each entry with None, or with what is wrong with it, about in their order.

    Raises:
        InputError: A picture cannot be written.
    """
    waiting, failed = deque(), deque()

    def requests():
        for entry in entries:
            try:
                request = entry.request(**shape)
            except InputError as error:
                failed.append((entry, str(error)))
                continue
            waiting.append(entry)
            yield request

    def failures():
        while failed:
            entry, error = failed.popleft()
            _append(out / "failures.jsonl", {"id": entry.id, "error": error})
            yield entry, error

    for result in compositor.run(requests(), settings):
        yield from failures()
        entry = waiting.popleft()
        for number, (name, picture) in enumerate(zip(entry.names(), result.pictures, strict=True)):
            text = png_text(how, entry.seed, number)
            with atomic_file(out / name) as file:
                file.write_bytes(images.encode_png(np.asarray(picture), text))
        line = {"id": entry.id, "pictures": entry.names(), "seed": entry.seed}
        line |= how | {"entry": entry.line, "inputs": _inputs(entry)}
        _append(out / "results.jsonl", line)
        yield entry, None
    yield from failures()


def _inputs(entry: Entry) -> list[str]:
    """What is in the files that an entry names; "" for one that is missing."""
    return [file_hash(path)[:16] if path.is_file() else "" for path in entry.files()]


def _append(path: Path, line: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
