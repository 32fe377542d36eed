"""`imprint study`: methods compared by people."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from imprint_jax.cli.terminal import App, note, stdout

app = App(help="Compare methods by asking people.", no_args_is_help=True)


@app.command()
def make(
    results: Annotated[list[Path], typer.Argument(help="Each method's results, two or more.")],
    manifest: Annotated[Path, typer.Option(help="What all of them composed.")],
    out: Annotated[Path, typer.Option(help="Folder to make: page/ and key.json.")],
    limit: Annotated[
        int | None, typer.Option(help="Compositions to ask about, drawn.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides order, pairs and sides.", min=0)] = 0,
    segment: Annotated[
        Path | None, typer.Option(help="ONNX that finds objects in pictures without a mask.")
    ] = None,
) -> None:
    """Write a page that shows two methods' pictures side by side, not saying which is whose."""
    from imprint_jax.composing import manifest as manifests
    from imprint_jax.data.segment import Segmenter
    from imprint_jax.evaluation import user_study as studies

    segmenter = Segmenter(segment) if segment else None
    how: dict[str, Any] = dict(limit=limit, seed=seed, segmenter=segmenter)
    page = studies.make(manifests.read(manifest), results, out, **how)
    note(f"wrote {page}; keep {out / 'key.json'} to yourself")


@app.command()
def count(
    folder: Annotated[Path, typer.Argument(help="What `study make` wrote.")],
    answers: Annotated[list[Path], typer.Argument(help="Files of answers.")],
) -> None:
    """Count the answers that people saved from the page; strengths of more than two methods."""
    from imprint_jax.evaluation import user_study as studies

    tally = studies.read(folder, answers)
    table = Table(title=f"answers of {tally.people} people")
    for column in ("question", "chosen", "over", "same", "p (sign test)"):
        table.add_column(column, justify="right" if column in ("same", "p (sign test)") else "left")
    for c in studies.count(tally):
        first, second = (f"{m}: {n}" for m, n in zip(c.methods, (c.first, c.second), strict=True))
        table.add_row(c.question, first, second, str(c.same), f"{c.p:.2g}")
    stdout.print(table)
    if len(tally.methods) > 2:
        table = Table(title="strengths (Bradley-Terry, log-odds), 95 % intervals")
        for column in ("question", "method", "strength", "interval"):
            table.add_column(column)
        for s in studies.scores(tally):
            table.add_row(s.question, s.method, f"{s.strength:.2f}", f"{s.low:.2f} to {s.high:.2f}")
        stdout.print(table)
