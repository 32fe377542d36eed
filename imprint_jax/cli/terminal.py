"""What the commands share: where they write, and how they read options."""

from collections.abc import Iterable
from pathlib import Path

import platformdirs
from rich import progress
from rich.console import Console

from imprint_jax.errors import InputError

console = Console(stderr=True)  # progress, notes, errors
stdout = Console()  # what a command was asked for, so that it can be piped


def note(text: str) -> None:
    """Says something beside the results; brackets are no markup, paths stay on one line."""
    console.print(text, markup=False, soft_wrap=True)


def track(items: Iterable, about: str, total: int) -> Iterable:
    """The items, with a progress bar."""
    return progress.track(items, about, total=total, console=console)


def cache_folder() -> Path:
    """Where compiled programs are kept: the user's cache folder, unless JAX is told otherwise."""
    import jax

    chosen = jax.config.jax_compilation_cache_dir
    return Path(chosen) if chosen else platformdirs.user_cache_path("imprint_jax") / "compiled"


def use_compilation_cache() -> None:
    """Keeps compiled programs in `cache_folder`."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


def parse_numbers(option: str, text: str, count: int) -> list[float]:
    """The numbers of an option like `--apart 45,180`.

    Raises:
        InputError: No numbers, or another count of them.
    """
    try:
        found = [float(part) for part in text.removesuffix("%").split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise InputError(f"{option} wants {count} number(s), not {text!r}.")
    return found
