"""`imprint ui`: the page."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from imprint_jax.cli.terminal import App, console, note, use_compilation_cache
from imprint_jax.errors import InputError

app = App()
# In a checkout the shipped samples stand beside the package; an installed wheel has none.
SAMPLES = Path(__file__).parent.parent.parent / "data" / "samples"


@app.command()
def ui(
    model: Annotated[str, typer.Option(help="A shipped model, or a released folder.")] = "mini",
    segment: Annotated[
        Path | None,
        typer.Option(help="ONNX that finds the object in pictures without mask or transparency."),
    ] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port (default: a free one from 7860).", min=1, max=65535),
    ] = None,
) -> None:
    """Compose in the browser: pick, draw the hole, look, download."""
    try:
        from imprint_jax.ui import page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("The page needs Gradio: pip install 'imprint_jax[ui]'.") from error
    from imprint_jax.data.segment import Segmenter
    from imprint_jax.ui.studio import Studio

    use_compilation_cache()
    with console.status("loading the model"):
        studio = Studio(model, Segmenter(segment) if segment else None)
    with closing(studio):
        built = page.build(studio, SAMPLES if SAMPLES.is_dir() else None)
        address = page.serve(built, host=host, port=port)
        note(f"the page is at {address} (Ctrl-C ends it)")
        built.block_thread()
