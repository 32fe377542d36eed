"""Files and folders that are there whole or not at all, whenever the process ends.

Whatever the project writes for others to read is published by one of the two functions here.
"""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from imprint_jax.errors import InputError

# What is being written has a name of this form; a killed process leaves it behind.
UNFINISHED = ".*.tmp"


def check_local(path: str | os.PathLike) -> None:
    """Raises `InputError` for an address (gs://, s3://): a path of its text would be made here."""
    if url := re.match(r"(\w{2,}):/+(.*)", os.fspath(path)):
        raise InputError(
            f"{url[1]}://{url[2]} is an address, and only files are read and written here: copy"
            " it to a disk, or mount it (gcsfuse, mount-s3, rclone) and give the path."
        )


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, which becomes `path` when the block ends; replaces what is there.

    After an exception `path` is as it was.

    Args:
        path: The file, in a folder that exists.

    Raises:
        InputError: It cannot be written: a missing or read-only folder, a full disk, a long name.
    """
    check_local(path)
    path = Path(path)
    partial = path.with_name(_unfinished_name())
    with _errors_of_writing(path, partial):
        if path.is_dir():  # now, and not when all is written; so is a name that is too long
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):  # the cause is on its way already
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike, *, replace: bool = False, building: Path | None = None
) -> Iterator[Path]:
    """Yields a new folder to fill, which becomes `path` when the block ends.

    Until then nothing of `path`, nor of folders above it that are missing, is there.

    Args:
        path: The folder, missing or empty.
        replace: It may hold something, which is deleted when the block has ended.
        building: A folder on the same disk to fill, made if it is missing. An exception leaves it,
            so that a later call goes on with it. None: a new one, which an exception removes.

    Raises:
        InputError: `path` is not empty, or it cannot be written.
    """
    check_local(path)
    path = Path(path)
    # Beside the first folder that is missing: a rename is atomic only within one file system.
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    folder = building or above / _unfinished_name()
    with _errors_of_writing(path, folder):
        try:
            if not replace:
                check_unused(path)
            folder.mkdir(exist_ok=building is not None)
            yield folder
            path.parent.mkdir(parents=True, exist_ok=True)
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            os.replace(folder, path)
        finally:
            if building is None:
                shutil.rmtree(folder, ignore_errors=True)  # gone already if all went well


def check_unused(folder: Path) -> None:
    """Raises `InputError` unless the folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already; choose another folder, or delete it.")


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left in a folder that no other process writes to."""
    for leftover in folder.glob(UNFINISHED):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _unfinished_name() -> str:
    # Its length does not depend on that of the final name, which may be as long as names can be.
    return f".{uuid.uuid4().hex}.tmp"


@contextlib.contextmanager
def _errors_of_writing(path: Path, partial: Path) -> Iterator[None]:
    """Turns what the system says of writing `partial` or `path` into one sentence about `path`."""
    try:
        yield
    except OSError as error:
        # A full disk comes without a name; what names another file is not about this one.
        if isinstance(error.filename, str | bytes | os.PathLike):
            named = Path(os.fsdecode(error.filename))
            if not (named.is_relative_to(partial) or named in (path, *path.parents)):
                raise
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
