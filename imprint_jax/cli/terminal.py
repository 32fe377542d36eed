"""What the commands share: where they write, and how they read options."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import platformdirs
import typer
from rich import progress
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from imprint_jax.errors import InputError

console = Console(stderr=True)  # progress, notes, errors
stdout = Console()  # what a command was asked for, so that it can be piped


def _plain_flags(params: list) -> list:
    """In the help of a command, what is given or not (`--resume`) has no type."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list:
        return _plain_flags(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list:
        return _plain_flags(super().get_params(ctx))


class App(typer.Typer):
    """A group of commands; arguments as Typer's."""

    def __init__(self, **settings: Any):
        super().__init__(cls=_Group, **settings)

    def command(self, *args: Any, **settings: Any) -> Callable:
        """A decorator, as Typer's."""
        return super().command(*args, cls=_Command, **settings)


class Lines(logging.Handler):
    """Shows log records as lines, long ones whole; a warning once; of other libraries errors only.

    Orbax (which logs as absl) and asyncio log errors of background threads with their tracebacks
    and raise them, too: those are shown once, by whoever catches them.

    Args:
        verbose: Shows everything.
    """

    def __init__(self, verbose: bool):
        super().__init__()
        self.verbose = verbose
        self._warnings: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is shown."""
        library = record.name.split(".")[0]
        raised = library in ("absl", "asyncio")
        error = record.levelno >= logging.ERROR and not raised
        shown = self.verbose or library == "imprint_jax" or error
        if shown and record.levelno == logging.WARNING:
            shown = record.getMessage() not in self._warnings
            self._warnings.add(record.getMessage())
        return shown

    def emit(self, record: logging.LogRecord) -> None:
        """Shows it."""
        line = Text(self.format(record))
        if record.levelno >= logging.WARNING:
            style = "red" if record.levelno >= logging.ERROR else "yellow"
            line = Text.assemble((record.levelname.lower(), style), ": ", line)
        console.print(line, soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """Says something beside the results; brackets are no markup, paths stay on one line."""
    console.print(text, markup=False, soft_wrap=True)


def track(items: Iterable, about: str, total: int) -> Iterable:
    """The items, with a progress bar."""
    return progress.track(items, about, total=total, console=console)


def cache_folder() -> Path:
    """Where compiled programs are kept: the user's cache folder, unless JAX is told otherwise."""
    import jax

    # jax makes its options attributes only at run time.
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
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
        numbers = [float(part) for part in text.removesuffix("%").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise InputError(f"{option} wants {count} number(s), not {text!r}.")
    return numbers
