"""The `imprint` command: one thin function a verb."""

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import platformdirs
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import Progress, track

from imprint_jax.errors import InputError

app = typer.Typer(
    help="Put an object from one photo into another: train and use IMPRINT in JAX.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make and prepare training data.", no_args_is_help=True)
app.add_typer(data, name="data")

console = Console(stderr=True)


@app.callback()
def _set_up(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    logging.getLogger("imprint_jax").setLevel(logging.DEBUG if verbose else logging.INFO)


def _use_compilation_cache() -> None:
    """Compiled programs are kept in the user's cache folder, unless JAX is told otherwise."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        folder = platformdirs.user_cache_path("imprint_jax") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


@app.command()
def compose(
    object_path: Annotated[
        Path, typer.Option("--object", help="Picture of the object; RGBA carries its mask.")
    ],
    background: Annotated[Path, typer.Option(help="The photo to put it into, any size.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png.")],
    object_mask: Annotated[
        Path | None, typer.Option(help="White where the object is, of its picture's size.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where to fill, of the photo's size.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="X0,Y0,X1,Y1 in pixels, instead of a mask.")
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped model, or a released folder.")] = "mini",
    num: Annotated[int, typer.Option(help="Pictures to make: OUT_0.png, OUT_1.png...")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps (default: the model's own, 50).")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale, 1 is off (default: the model's own, 3.0).")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
) -> None:
    """Put an object into a photo.

    The hole is white in --mask, or the rectangle --box. Outside the hole and its feathered edge
    the photo stays as it is, pixel for pixel.
    """
    from imprint_jax import geometry, images, pretrained
    from imprint_jax.compose import Compositor, check_inputs

    # Everything that can be wrong is found before the model is loaded, or anything written.
    pretrained.model_folder(model)
    outputs = _output_paths(out, num)
    object_image = images.read_image(object_path)
    object_cut = object_mask and images.read_mask(object_mask, object_image.shape[:2])
    photo = images.read_image(background)[..., :3]
    if (mask is None) == (box is None):
        raise InputError("Say where the object goes: either --mask FILE or --box X0,Y0,X1,Y1.")
    if mask is not None:
        hole = images.read_mask(mask, photo.shape[:2])
    else:
        hole = geometry.box_mask(_box(box), *photo.shape[:2])
    request = dict(object_mask=object_cut, num=num, num_steps=steps)
    check_inputs(object_image, photo, hole, **request)

    _use_compilation_cache()
    with console.status("loading the model"):
        compositor = Compositor.from_pretrained(model)
    with console.status("composing"):
        pictures = compositor.samples(
            object_image, photo, hole, **request, guidance_scale=guidance, seed=seed
        )
    for path, picture in zip(outputs, pictures, strict=True):
        images.write_png(path, np.asarray(picture))
        console.print(f"wrote {path}")


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--box wants four whole numbers X0,Y0,X1,Y1, not {text!r}.") from None
    return x0, y0, x1, y1


def _output_paths(out: Path, num: int) -> list[Path]:
    if out.suffix.lower() != ".png":
        raise InputError(
            f"--out {out} must end in .png: other formats would change the pixels of the photo."
        )
    if not out.parent.is_dir():
        raise InputError(f"The folder {out.parent} of --out does not exist.")
    return [out] if num == 1 else [out.with_stem(f"{out.stem}_{k}") for k in range(num)]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe's name, or a .py file.")],
    workdir: Annotated[Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run there.")] = False,
) -> None:
    """Train one stage: `--config mini_stage1 --workdir runs/stage1 [--config.a.b=value ...]`."""
    from absl import flags

    from imprint_jax import config as configs

    settings = configs.load(config, context.args)
    flags.FLAGS(["imprint"])  # Grain's worker processes want absl's flags parsed
    _use_compilation_cache()
    from imprint_jax.train import train as run

    run(settings, workdir, resume=resume, overwrite=overwrite, console=console)


@app.command()
def export(
    workdir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write: config.json, *.safetensors.")],
    ema: Annotated[bool, typer.Option(help="The averaged weights, or the last step's.")] = True,
) -> None:
    """Write a run's newest weights as a released folder, in half precision."""
    from imprint_jax import checkpoint, pretrained

    pretrained.save(dst, *checkpoint.load_params(workdir, ema=ema))
    console.print(f"wrote {dst}")


@data.command()
def render(
    models: Annotated[Path, typer.Argument(help="Folder of OBJ, glTF or PLY models.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write: one folder an object.")],
    scenes: Annotated[
        int | None, typer.Option(help="Render so many scenes of each model instead of bare views.")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Photos for the scenes' floors, walls and backdrops.")
    ] = None,
    others: Annotated[int, typer.Option(help="Other models in a scene, at most.")] = 2,
    views: Annotated[
        int | None,
        typer.Option(help="Views, 6 degrees apart at most (default: 36 of an object, 8 a scene)."),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of a view in pixels.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Processes (default: one a core).")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many models.")] = None,
    seed: Annotated[int, typer.Option(help="Decides camera paths, light and scenes.")] = 0,
    up: Annotated[str, typer.Option(help="The models' upward axis, y or z.")] = "y",
) -> None:
    """Render textured models along smooth camera paths. Resumable.

    RGBA views on nothing; or, with --scenes, views of a model on a floor, with and without it.
    """
    from imprint_jax import render
    from imprint_jax import scenes as scene_renderer

    if scenes is None and photos is not None:
        raise InputError("--photos are for scenes: add --scenes N, or leave them out.")
    options = dict(size=size, workers=workers, limit=limit, seed=seed, up=up)
    total = min(render.count_models(models), limit or sys.maxsize)
    if scenes is None:
        results = render.render_folder(models, dst, num_views=views or 36, **options)
    else:
        results = scene_renderer.render_scenes(
            models,
            dst,
            num_scenes=scenes,
            photos_dir=photos,
            num_others=others,
            num_views=views or 8,
            **options,
        )
        total *= scenes
    counts = Counter()
    for result in track(results, "rendering", total=total, console=console):
        counts[result.reason or result.status] += 1
    console.print(", ".join(f"{count} {what}" for what, count in counts.items()))


@data.command()
def prepare(
    name: Annotated[str, typer.Argument(help="The layout of SRC: objaverse or photos.")],
    src: Annotated[Path, typer.Argument(help="The data set as downloaded or rendered.")],
    dst: Annotated[Path, typer.Argument(help="Folder to make: records and an index.")],
    splits: Annotated[
        Path | None, typer.Option(help="JSON of groups by split (default: all train).")
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads that read and check.")] = 2,
) -> None:
    """Turn a data set into records that training reads."""
    from imprint_jax.inputs import sources

    with Progress(console=console) as progress:
        task = progress.add_task("preparing", total=None)
        update = lambda done, total: progress.update(task, completed=done, total=total)
        counts = sources.prepare(name, src, dst, splits, workers, update)
    for what, numbers in counts.items():
        text = ", ".join(f"{key} {number}" for key, number in sorted(numbers.items()))
        console.print(f"{what}: {text or 'none'}")


def main() -> None:
    """Runs the command; input that a user can mend ends in one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        console.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
