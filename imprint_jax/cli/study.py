"""`imprint study`: two methods compared by people."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imprint_jax.cli.terminal import App, note, stdout

app = App(help="Compare two methods by asking people.", no_args_is_help=True)


@app.command()
def make(
    first: Annotated[Path, typer.Argument(help="A method's results.")],
    second: Annotated[Path, typer.Argument(help="The other's.")],
    manifest: Annotated[Path, typer.Option(help="What both composed.")],
    out: Annotated[Path, typer.Option(help="Folder to make: page/ and key.json.")],
    limit: Annotated[int | None, typer.Option(help="Pairs to ask about, drawn.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides order and sides.")] = 0,
) -> None:
    """Write a page that shows both methods' pictures side by side, not saying which is whose."""
    from imprint_jax.composing import manifest as manifests
    from imprint_jax.evaluation import user_study as studies

    page = studies.make(manifests.read(manifest), first, second, out, limit=limit, seed=seed)
    note(f"wrote {page}; keep {out / 'key.json'} to yourself")


@app.command()
def count(
    folder: Annotated[Path, typer.Argument(help="What `study make` wrote.")],
    answers: Annotated[list[Path], typer.Argument(help="Files of answers.")],
) -> None:
    """Count the answers that people saved from the page."""
    from imprint_jax.evaluation import user_study as studies

    methods, people, counts = studies.count(folder, answers)
    table = Table(title=f"answers of {people} people")
    for column in ("question", methods["first"], methods["second"], "same", "p (sign test)"):
        table.add_column(column, justify="left" if column == "question" else "right")
    for question, c in counts.items():
        table.add_row(question, str(c.first), str(c.second), str(c.same), f"{c.p:.2g}")
    stdout.print(table)
