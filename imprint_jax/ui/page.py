"""The page itself: what is on it and what each click does. Needs the extra `[ui]`, Gradio."""

import os
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path

# Gradio reports its use to its makers unless it is told not to before it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np

from imprint_jax.errors import InputError
from imprint_jax.ui import studio as studios
from imprint_jax.ui.studio import KEPT_SECONDS, MOST_PICTURES, Choices, Studio

# Requests that may wait at once; a further one is told to come again. Ours.
QUEUE = 64
# An uploaded file may have so many bytes. Ours.
MAX_FILE_SIZE = "50mb"
LEVELS = [("as drawn", 0), ("a little looser", 1), ("much looser", 2), ("its bounding box", 3)]
INTRODUCTION = """# imprint
Pick an object and a photo, draw on the photo where the object should go, and compose.
Outside the hole the photo stays as it is, pixel for pixel."""


def build(studio: Studio, examples: Path | None = None) -> gr.Blocks:
    """The page over a loaded model.

    Args:
        studio: Composes.
        examples: A folder with objects/ and photos/ to pick from, where there is one.

    Returns:
        The page, its queue set; `serve` shows it.
    """
    defaults = studio.defaults
    with gr.Blocks(
        title="imprint", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                picture = partial(
                    gr.Image, type="filepath", image_mode=None, sources=["upload", "clipboard"]
                )
                object_file = picture(label="1. The object", elem_id="object", height=240)
                with gr.Accordion("Its mask, unless it is transparent around it", open=False):
                    mask_file = picture(label="White where the object is", elem_id="object-mask")
                photo_file = picture(label="2. The photo", elem_id="photo", height=240)
                if examples:
                    _examples(examples, object_file, photo_file)
            with gr.Column():
                board = gr.ImageEditor(
                    label="3. Draw the hole",
                    elem_id="board",
                    sources=(),
                    transforms=(),
                    layers=False,
                    type="numpy",
                    brush=gr.Brush(colors=["#ff3b30"], color_mode="fixed", default_size=40),
                    canvas_size=(studios.DRAWING_SIDE, studios.DRAWING_SIDE),
                )
                level = studio.compositor.config.sampling.mask_level
                mask_level = gr.Radio(LEVELS, value=level, label="The hole is", elem_id="level")
            with gr.Column():
                with gr.Row():
                    num = gr.Slider(1, MOST_PICTURES, 2, step=1, label="Pictures", elem_id="num")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                fresh = gr.Checkbox(True, label="A new seed each time", elem_id="fresh")
                with gr.Accordion("Sampling", open=False):
                    steps = gr.Slider(1, 200, defaults.num_steps, step=1, label="Steps")
                    guidance = gr.Slider(
                        1,
                        10,
                        defaults.guidance_scale,
                        step=0.1,
                        label="Guidance: weight of the object",
                    )
                    strength = gr.Slider(
                        0.05,
                        1,
                        defaults.strength,
                        step=0.05,
                        label="Strength: 1 paints anew, less keeps pose and detail",
                    )
                with gr.Row():
                    start = gr.Button("Compose", variant="primary", elem_id="compose")
                    again = gr.Button("Again with this seed", elem_id="again")
                    cancel = gr.Button("Cancel", elem_id="cancel")
                gallery = gr.Gallery(
                    label="The photo, and the results",
                    elem_id="results",
                    format="png",
                    columns=2,
                    object_fit="contain",
                    buttons=["download", "fullscreen"],
                )
                onto = gr.Button("Put another object into the selected result", elem_id="onto")

        chosen = gr.State(None)  # the result that is selected, as a path
        results = gr.State([])

        def compose(
            object_file: str | None,
            mask_file: str | None,
            photo_file: str | None,
            board: dict | None,
            level: int,
            num: float,
            seed: int | None,
            fresh: bool,
            *sampling: float,
        ) -> Iterator[tuple[list[tuple[str, str]], list[str], str, int]]:
            if not object_file or not photo_file:
                raise gr.Error("Pick an object and a photo first.", print_exception=False)
            seed = secrets.randbelow(10**6) if fresh else int(seed or 0)
            choices = Choices(level, int(num), seed, int(sampling[0]), *sampling[1:])
            layers = (board or {}).get("layers") or []
            shown, paths = [(photo_file, "the photo")], []
            try:
                # What is yielded is shown; Cancel ends it when the batch at work is done.
                for file in studio.compose(
                    Path(object_file),
                    Path(mask_file) if mask_file else None,
                    Path(photo_file),
                    layers,
                    choices,
                ):
                    paths.append(str(file))
                    shown.append((str(file), f"seed {seed}, {len(paths)}"))
                    yield shown, paths, paths[0], seed
            except InputError as error:
                raise gr.Error(str(error), print_exception=False) from error

        def show_board(photo_file: str | None) -> np.ndarray | None:
            if not photo_file:
                return None
            try:
                return studios.drawing_board(Path(photo_file))
            except InputError as error:
                raise gr.Error(str(error), print_exception=False) from error

        def select(paths: list[str], event: gr.SelectData) -> str | None:
            return paths[event.index - 1] if event.index else None

        inputs = [object_file, mask_file, photo_file, board, mask_level, num, seed]
        sampling = [steps, guidance, strength]
        outputs = [gallery, results, chosen, seed]
        photo_file.change(show_board, photo_file, board, api_visibility="private")
        running = [
            start.click(compose, [*inputs, fresh, *sampling], outputs, api_name="compose"),
            again.click(lambda: False, None, fresh, api_visibility="private").then(
                compose, [*inputs, fresh, *sampling], outputs, api_visibility="private"
            ),
        ]
        cancel.click(None, cancels=running, api_visibility="private")
        gallery.select(select, results, chosen, api_visibility="private")
        onto.click(lambda path: path or gr.skip(), chosen, photo_file, api_visibility="private")
    # One picture is composed at a time: two would only share the same device.
    return page.queue(default_concurrency_limit=1, max_size=QUEUE)


def _examples(folder: Path, object_file: gr.Image, photo_file: gr.Image) -> None:
    objects = sorted((folder / "objects").glob("*/000.webp"))
    photos = sorted((folder / "photos").glob("*.jpg"))
    gr.Examples(
        [[str(path)] for path in objects], object_file, label="Objects", examples_per_page=12
    )
    gr.Examples([[str(path)] for path in photos], photo_file, label="Photos", examples_per_page=12)


def serve(page: gr.Blocks, *, host: str, port: int | None) -> str:
    """Shows the page on this machine's network address `host`; returns at once.

    Args:
        page: From `build`.
        host: "127.0.0.1" is this machine alone.
        port: The port, or None for the first free one from 7860 on.

    Returns:
        The address.

    Raises:
        InputError: The port is taken.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_FILE_SIZE,
            show_error=False,
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        raise InputError(f"The page cannot be served on {host}:{port or ''}: {error}.") from error
    return address
