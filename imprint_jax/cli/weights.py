"""`imprint convert`, `inspect` and `push`: weights from and to PyTorch, and to the hub."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imprint_jax.cli.terminal import App, note, stdout

app = App()


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="Weights: a file, a folder, or hub:ORG/NAME.")],
    dst: Annotated[Path, typer.Argument(help="Folder to make, or to add components to.")],
    kind: Annotated[
        str,
        typer.Option(
            help="auto, sd, sd-inpainting, paint-by-example, objectstitch, dinov2, clip, imprint."
        ),
    ] = "auto",
    to: Annotated[str, typer.Option(help="imprint, or torch from a folder of ours.")] = "imprint",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16 (default: as they are).")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP ViT-L/14, for a compositor's file that lacks it.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights (default: the published ones', by size).")
    ] = None,
) -> None:
    """Convert public PyTorch weights to a folder of ours, or a folder of ours to PyTorch's.

    Reads diffusers' folders and original files of Stable Diffusion v1, Paint-by-Example and
    ObjectStitch, and DINOv2 and CLIP. Files are checked against what the network needs, name by
    name, before anything is written; pickles are read as tensors only.
    """
    from imprint_jax.weights.convert import convert

    clip_folder = _source(clip, "clip") if clip else None
    path = _source(src, kind)
    convert(path, dst, kind=kind, to=to, dtype=dtype, licence=licence, clip_folder=clip_folder)
    note(f"wrote {dst}")


def _source(text: str, kind: str) -> Path:
    """The path of weights to convert, fetched if they are on the hub."""
    from imprint_jax.weights import hub

    if text.startswith("hub:"):
        return hub.fetch_to_convert(text.removeprefix("hub:"), kind)
    return Path(text)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A released folder.")],
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the hub; made if it is missing.")],
    trained: Annotated[str, typer.Option(help="How it was trained, for the model card.")],
    licence: Annotated[
        str | None, typer.Option(help="As the hub calls it (default: the public weights').")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="A .png for the model card.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Open to nobody else.")] = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a model card."""
    from imprint_jax.weights import publish

    address = publish.push(
        folder, repository, trained=trained, licence=licence, picture=picture, private=private
    )
    note(f"pushed {address}")


@app.command()
def inspect(
    weights: Annotated[str, typer.Argument(help="A shipped model, a folder or a file of weights.")],
) -> None:
    """Show what weights a path holds: components, parameters, dtypes, SHA-256.

    The SHA-256 is of names, dtypes and values as our networks have them: converting weights, or
    cutting their files otherwise, does not change it.
    """
    from imprint_jax.weights import release
    from imprint_jax.weights.detect import find

    path = release.resolve(weights)
    source = find(path)
    table = Table(title=f"{path}: {source.kind}, {source.layout} names")
    for column in ("component", "parameters", "tensors", "dtype", "sha256 of the weights"):
        table.add_column(column, justify="right" if column in ("parameters", "tensors") else "left")
    for part in source.components:
        tensors = part.tensors.values()
        dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))
        size = sum(math.prod(tensor.shape) for tensor in tensors)
        digest = part.digest()[:16]
        table.add_row(part.name, f"{size:,}", str(len(tensors)), dtypes, digest)
    stdout.print(table)
