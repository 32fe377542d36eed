"""The `imprint` command: one thin function a verb."""

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

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
from imprint_jax.cli.terminal import console
from imprint_jax.errors import InputError

app = typer.Typer(
    help="Put an object from one photo into another: train and use IMPRINT in JAX.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verbs in (compose, train, plan, weights, evaluate, ui, doctor):
    app.add_typer(verbs.app)
for noun in (data, testset, study):
    app.add_typer(noun.app, name=noun.__name__.rpartition(".")[-1])


@app.callback()
def _set_up(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    logging.getLogger("imprint_jax").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Runs the command; input that a user can mend ends in one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        console.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
