"""The `imprint` command: one thin function a verb."""

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

import imprint_jax
from imprint_jax.cli import (
    compose,
    data,
    doctor,
    evaluate,
    plan,
    study,
    testset,
    train,
    ui,
    weights,
)
from imprint_jax.cli.terminal import App, Lines, console, stdout
from imprint_jax.errors import InputError

app = App(
    help="Put an object from one photo into another: train and use IMPRINT in JAX.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verbs in (compose, train, plan, weights, evaluate, ui, doctor):
    app.add_typer(verbs.app)
for noun in (data, testset, study):
    app.add_typer(noun.app, name=noun.__name__.rpartition(".")[-1])


def _show_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"imprint_jax {imprint_jax.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _set_up(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log details, other libraries' too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="The version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[Lines(verbose)])
    logging.captureWarnings(True)
    logging.getLogger("imprint_jax").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Runs the command.

    What a user can mend ends in one sentence: wrong input with exit code 2, what the system refuses
    (a full disk, a folder that may not be written) with 1.
    """
    # XLA's own messages: a compilation that takes minutes is no error. It raises what is one.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.unraisablehook = _show_unraisable
    try:
        app()
    except InputError as error:
        _end(str(error), 2)
    except BrokenPipeError:  # whoever read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        where = f"{error.filename}: " if error.filename is not None else ""
        _end(f"{where}{error.strerror or error}.", 1)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """As Python does, but for a full disk's echoes.

    Of hundreds of writes that TensorStore has begun the first that fails is raised; the others find
    the event loop that waited for them gone, in threads of its own.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _end(sentence: str, code: int) -> NoReturn:
    console.print(f"[red]Error:[/red] {escape(sentence)}", soft_wrap=True, highlight=False)
    sys.exit(code)
