"""The `imprint` command: one thin function a verb."""

import logging
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import platformdirs
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import Progress, track
from rich.table import Table

from imprint_jax.errors import InputError

app = typer.Typer(
    help="Put an object from one photo into another: train and use IMPRINT in JAX.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make and prepare training data.", no_args_is_help=True)
app.add_typer(data, name="data")
testset = typer.Typer(help="Write test sets, as manifests.", no_args_is_help=True)
app.add_typer(testset, name="testset")
study = typer.Typer(help="Compare two methods by asking people.", no_args_is_help=True)
app.add_typer(study, name="study")

console = Console(stderr=True)  # progress, notes, errors
stdout = Console()  # what a command was asked for, so that it can be piped

MAX_PROBLEMS = 20  # that `imprint data check` prints


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
    out: Annotated[Path, typer.Option(help="The .png to write; with --manifest the folder.")],
    object_paths: Annotated[
        list[Path] | None,
        typer.Option("--object", help="The object; RGBA carries its mask. Again: another view."),
    ] = None,
    object_masks: Annotated[
        list[Path] | None,
        typer.Option("--object-mask", help="White where the object is; one for each --object."),
    ] = None,
    background: Annotated[
        Path | None, typer.Option(help="The photo to put it into, any size.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where to fill, of the photo's size.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="X0,Y0,X1,Y1 in pixels, instead of a mask.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Many at once: JSON lines, or a folder (docs/composing.md).")
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped model, or a released folder.")] = "mini",
    num: Annotated[
        int | None, typer.Option(help="Pictures to make: OUT_0.png, OUT_1.png... (default: 1)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same picture (default: 0).")
    ] = None,
    mask_level: Annotated[
        int | None, typer.Option(help="0 keeps the mask's shape, 3 makes it a box (default: 0).")
    ] = None,
    scribble: Annotated[
        bool, typer.Option("--scribble", help="The mask is strokes: close and fill them.")
    ] = False,
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="The mask is black where to fill.")
    ] = False,
    match_colors: Annotated[
        bool, typer.Option("--match-colors", help="Fit the colours around the hole to the photo's.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps (default: the model's own, 50).")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale, 1 is off (default: the model's own, 3.0).")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim or dpm++2m (default: the model's own, ddim).")
    ] = None,
    eta: Annotated[float, typer.Option(help="Fresh noise of ddim, 0 to 1.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Pictures at once on a device, at most.")] = 8,
) -> None:
    """Put an object into a photo, or work through a manifest.

    The hole is white in --mask, or the rectangle --box. Outside the hole and its feathered edge
    the photo stays as it is, pixel for pixel.
    """
    from imprint_jax import batch_job, pretrained
    from imprint_jax import manifest as manifests
    from imprint_jax.compose import Settings

    # Everything that can be wrong is found before the model is loaded, or anything written.
    folder = pretrained.model_folder(model)
    settings = Settings(steps, guidance, sampler, eta, match_colors)
    settings = settings.filled(pretrained.load_config(folder))
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype must be float32 or bfloat16, not {dtype!r}.")
    if batch_size < 1:
        raise InputError(f"--batch-size must be 1 or more, not {batch_size}.")
    shape = dict(mask_level=mask_level, scribble=scribble, invert_mask=invert_mask)
    describe = partial(batch_job.provenance, folder, settings, shape, dtype)
    load = partial(_load_compositor, folder, dtype=dtype, max_batch=batch_size)

    single = dict(object=object_paths, object_mask=object_masks, background=background, mask=mask)
    single |= dict(box=box, num=num, seed=seed)
    if manifest is None:
        _compose_one(_entry(out, **single), out, load, settings, describe, shape)
    elif given := [name for name, value in single.items() if value not in (None, [])]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{names} cannot be used with --manifest, which says that itself.")
    else:
        _compose_many(manifests.read(manifest), out, load, settings, describe, shape)


def _entry(
    out: Path,
    object: list[Path] | None,
    object_mask: list[Path] | None,
    background: Path | None,
    mask: Path | None,
    box: str | None,
    num: int | None,
    seed: int | None,
):
    """What a manifest would say of a command line without one."""
    from imprint_jax.manifest import Entry, ObjectEntry

    if not object or background is None:
        raise InputError("Give --object and --background, or --manifest.")
    if (mask is None) == (box is None):
        raise InputError("Say where the object goes: either --mask FILE or --box X0,Y0,X1,Y1.")
    where = ObjectEntry(tuple(object), tuple(object_mask or ()), mask, box and _box(box))
    numbers = {key: x for key, x in (("num", num), ("seed", seed)) if x is not None}
    return Entry(out.stem, background, (where,), **numbers)


def _compose_one(
    entry, out: Path, load: Callable, settings, describe: Callable, shape: dict
) -> None:
    from imprint_jax import batch_job, images

    if out.suffix.lower() != ".png":
        raise InputError(
            f"--out {out} must end in .png: other formats would change the pixels of the photo."
        )
    if not out.parent.is_dir():
        raise InputError(f"The folder {out.parent} of --out does not exist.")
    request = entry.request(**shape)
    how, compositor = describe(), load()
    with console.status("composing"):
        (result,) = compositor.run([request], settings)
    for number, (name, picture) in enumerate(zip(entry.names(), result.pictures, strict=True)):
        text = batch_job.png_text(how, entry.seed, number)
        images.write_png(out.with_name(name), np.asarray(picture), text)
        console.print(f"wrote {out.with_name(name)}")


def _compose_many(
    entries, out: Path, load: Callable, settings, describe: Callable, shape: dict
) -> None:
    from imprint_jax import batch_job

    how = describe()
    todo = batch_job.unfinished(entries, out, how)
    if len(todo) < len(entries):
        console.print(f"{len(entries) - len(todo)} of {len(entries)} were done before")
    if not todo:
        return
    jobs = batch_job.compose_entries(load(), todo, out, settings, how, **shape)
    failed = 0
    for entry, error in track(jobs, "composing", total=len(todo), console=console):
        if error:
            failed += 1
            console.print(f"[red]{escape(entry.id)}:[/red] {escape(error)}", soft_wrap=True)
    console.print(f"{len(todo) - failed} done, {failed} failed, in {out}")
    if failed:
        raise typer.Exit(1)


def _load_compositor(folder: Path, **options):
    from imprint_jax.compose import Compositor

    _use_compilation_cache()
    with console.status("loading the model"):
        return Compositor.from_pretrained(folder, **options)


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--box wants four whole numbers X0,Y0,X1,Y1, not {text!r}.") from None
    return x0, y0, x1, y1


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe's name, or a .py file.")],
    workdir: Annotated[Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show configuration, groups and shardings.")
    ] = False,
    multi_process: Annotated[
        bool,
        typer.Option("--distributed", help="One of several processes (SLURM, Open MPI, TPU pod)."),
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, where nothing tells.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="With --coordinator.")] = None,
    process_id: Annotated[int | None, typer.Option(help="With --coordinator, from 0.")] = None,
) -> None:
    """Train one stage: `--config mini_stage1 --workdir runs/stage1 [--config.a.b=value ...]`.

    Ends with exit code 0 when all steps are done, and 143 after SIGTERM, with the state saved.
    """
    from absl import flags

    from imprint_jax import config as configs
    from imprint_jax import distributed

    settings = configs.load(config, context.args)
    flags.FLAGS(["imprint"])  # Grain's worker processes want absl's flags parsed
    _use_compilation_cache()
    if multi_process or coordinator or num_processes or process_id is not None:
        distributed.initialize(coordinator, num_processes, process_id)
    from imprint_jax.train import train as run

    code = run(
        settings,
        workdir,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        console=stdout if dry_run else console,
    )
    raise typer.Exit(code)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe's name, or a .py file.")],
    devices: Annotated[int, typer.Option(help="GPUs, or TPU chips.")],
    mesh: Annotated[
        str | None, typer.Option(help="data=2,fsdp=4 (default: the recipe's fsdp).")
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option(help="Samples a step over all devices; steps for as many samples in all."),
    ] = None,
    accelerator: Annotated[
        list[str] | None, typer.Option(help="One of the table; again: more (default: all).")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak FLOP/s that is reached.", min=0.01, max=1)
    ] = 0.4,
) -> None:
    """Say what a training will need: memory, FLOPs, traffic, days.

    Compiles the step for fake CPU devices, which takes minutes at full size; runs nothing.
    `--config.a.b=value` works as in `imprint train`.
    """
    from imprint_jax import config as configs
    from imprint_jax import plan as plans
    from imprint_jax.accelerators import ACCELERATORS

    if unknown := sorted(set(accelerator or ()) - ACCELERATORS.keys()):
        known = ", ".join(ACCELERATORS)
        raise InputError(f"Unknown --accelerator {unknown[0]}; known are {known}.")
    overrides = list(context.args)
    if global_batch is not None:
        recipe = configs.load(config, overrides)
        steps = round(recipe.total_steps * recipe.batch_size / max(global_batch, 1))
        overrides.append(f"--config.batch_size={global_batch}")
        overrides.append(f"--config.total_steps={max(steps, 1)}")
    with console.status("compiling"):
        found = plans.plan(config, overrides, devices, mesh)
    for table in plans.tables(found, accelerator or list(ACCELERATORS), utilisation):
        stdout.print(table)
    for line in plans.remarks(found):
        stdout.print(line, soft_wrap=True, highlight=False)


@app.command()
def export(
    workdir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write: config.json, *.safetensors.")],
    ema: Annotated[bool, typer.Option(help="The averaged weights, or the last step's.")] = True,
) -> None:
    """Write a run's newest weights as a released folder, in half precision."""
    from imprint_jax import checkpoint, pretrained

    licences = pretrained.load_licences(str(workdir))
    pretrained.save(dst, *checkpoint.load_params(workdir, ema=ema), licences)
    console.print(f"wrote {dst}")


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="Weights: a file or a folder.")],
    dst: Annotated[Path, typer.Argument(help="Folder to make, or to add components to.")],
    kind: Annotated[
        str, typer.Option(help="auto, sd, sd-inpainting, paint-by-example, dinov2, clip, imprint.")
    ] = "auto",
    to: Annotated[str, typer.Option(help="imprint, or torch from a folder of ours.")] = "imprint",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16 (default: as they are).")
    ] = None,
) -> None:
    """Convert public PyTorch weights to a folder of ours, or a folder of ours to PyTorch's.

    Reads diffusers' folders and original files of Stable Diffusion v1, and DINOv2 and CLIP. Files
    are checked against what the network needs, name by name, before anything is written; pickles
    are read as tensors only.
    """
    from imprint_jax.convert.convert import convert

    convert(src, dst, kind=kind, to=to, dtype=dtype)
    console.print(f"wrote {dst}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A shipped model, a folder or a file of weights.")],
) -> None:
    """Show what weights a path holds: components, parameters, dtypes, SHA-256."""
    from imprint_jax import pretrained
    from imprint_jax.convert.sources import find
    from imprint_jax.tensors import weights_hash

    path = path if path.exists() else pretrained.model_folder(path)
    source = find(path)
    table = Table(title=f"{path}: {source.kind}, {source.layout} names")
    for column in ("component", "parameters", "tensors", "dtype", "sha256 of the weights"):
        table.add_column(column, justify="right" if column in ("parameters", "tensors") else "left")
    for part in source.components:
        tensors = part.tensors.values()
        dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))
        size = sum(math.prod(tensor.shape) for tensor in tensors)
        digest = weights_hash(part.tensors)[:16]
        table.add_row(part.name, f"{size:,}", str(len(tensors)), dtypes, digest)
    stdout.print(table)


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


@data.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def prepare(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="The layout of SRC: mvimgnet, objaverse, youtubevos, vipseg, ppr10k, photos,"
            " folder or scenes; docs/data_sets.md shows each."
        ),
    ],
    src: Annotated[Path, typer.Argument(help="The data set as downloaded or rendered.")],
    dst: Annotated[Path, typer.Argument(help="Folder to make: records and an index.")],
    splits: Annotated[
        Path | None, typer.Option(help="JSON of names by split (default: all train).")
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="What is never divided between splits: object, video or photo."),
    ] = None,
    fractions: Annotated[
        str, typer.Option(help="With --split-by: shares of train, validation and test.")
    ] = "0.9,0.05,0.05",
    workers: Annotated[int | None, typer.Option(help="Processes (default: one a core).")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many objects, videos or photos.", min=1)
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink larger pictures to so many pixels.", min=64)
    ] = None,
    max_reject: Annotated[
        str | None, typer.Option(help="Fail if more than so many percent are left out.")
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", help="A limit to change, like max_area=0.8; may be repeated."),
    ] = None,
    segment: Annotated[
        Path | None, typer.Option(help="ONNX weights that find objects where masks are missing.")
    ] = None,
    runner: Annotated[
        str,
        typer.Option(
            help="local, or beam: Apache Beam, with its own options behind; beam:NAME names Beam's"
            " runner (default: DirectRunner)."
        ),
    ] = "local",
) -> None:
    """Turn a data set into records that training reads. Stopped, it is started again."""
    from imprint_jax.inputs.prepare import prepare

    beam = _beam_options(runner, context.args)
    with Progress(console=console) as progress:
        task = progress.add_task("preparing", total=None)
        counts = prepare(
            name,
            src,
            dst,
            splits,
            workers or os.cpu_count() or 1,
            lambda done, total: progress.update(task, completed=done, total=total),
            max_side=max_side,
            limit=limit,
            max_reject=None if max_reject is None else _numbers("--max-reject", max_reject, 1)[0],
            split_by=split_by,
            fractions=_numbers("--fractions", fractions, 3),
            filters=filter_ or (),
            segment=segment,
            beam=beam,
        )
    for what, numbers in counts.items():
        text = ", ".join(f"{key} {number}" for key, number in sorted(numbers.items()))
        console.print(f"{what}: {text or 'none'}")


@data.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A prepared data set.")],
    out: Annotated[Path, typer.Option(help="Folder to make, with index.html.")],
    num: Annotated[int, typer.Option(help="Records and samples to show.", min=1)] = 24,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    kind: Annotated[
        str | None,
        typer.Option(
            help="How samples are made: views, video, photo, pair, scenes or pasted (default: as"
            " the set is meant)."
        ),
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="A prepared set of photos, to paste views into.")
    ] = None,
    config: Annotated[str, typer.Option(help="The recipe whose settings count.")] = "stage2",
) -> None:
    """Write a page of pictures: records, and the samples that training makes of them."""
    from imprint_jax import config as configs
    from imprint_jax.inputs.show import show

    settings = configs.load(config)
    page = show(settings, folder, out, num=num, split=split, kind=kind, backgrounds=backgrounds)
    console.print(f"wrote {page}")


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A prepared data set.")],
    workers: Annotated[int | None, typer.Option(help="Processes (default: one a core).")] = None,
) -> None:
    """Read all of a prepared data set; exit code 1 if something is damaged."""
    from imprint_jax.inputs.check import check

    with Progress(console=console) as progress:
        task = progress.add_task("checking", total=None)
        report = check(
            folder,
            workers or os.cpu_count() or 1,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for split, s in report.splits.items():
        stdout.print(
            f"{split}: {s.records} records ({s.objects} objects, {s.groups} groups,"
            f" {s.backgrounds} backgrounds), {s.num_bytes / 1e6:.1f} MB"
        )
        for what, values, form in (
            ("longer side, pixels", s.sides, "{:.0f}"),
            ("object's share of the area", s.areas, "{:.1%}"),
        ):
            if values:
                least, *middle, most = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
                numbers = ", ".join(form.format(value) for value in (least, *middle, most))
                stdout.print(f"  {what} (least, quartiles, most): {numbers}", soft_wrap=True)
    rejects = ", ".join(f"{reason} {count}" for reason, count in report.rejects.items())
    stdout.print(f"left out: {rejects or 'none'}")
    for problem in report.problems[:MAX_PROBLEMS]:
        stdout.print(f"[red]damaged:[/red] {escape(problem)}", soft_wrap=True)
    if len(report.problems) > MAX_PROBLEMS:
        stdout.print(f"and {len(report.problems) - MAX_PROBLEMS} more")
    if report.problems:
        raise typer.Exit(1)
    stdout.print("nothing is damaged")


# Options of the commands that measure.
Clip = Annotated[Path | None, typer.Option(help="CLIP's weights: a folder, converted or not.")]
Dino = Annotated[Path | None, typer.Option(help="DINOv2's weights: a folder or file, likewise.")]
Judge = Annotated[str, typer.Option("--encoder", help="A model whose encoder judges identity.")]
LpipsFiles = Annotated[Path | None, typer.Option(help="LPIPS's weights: a file, or a folder.")]
Backbone = Annotated[Path | None, typer.Option(help="Weights of an encoder, for FID and KID.")]
Reference = Annotated[
    Path | None, typer.Option(help="Photos for FID and KID (default: the manifest's targets).")
]
SegmentFile = Annotated[Path | None, typer.Option("--segment", help="ONNX that finds objects.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps (default: the model's own).")]


def _track(items, about: str, total: int):
    return track(items, about, total=total, console=console)


def _named(text: str) -> tuple[str, str]:
    """Name and path of NAME=PATH, or of a path alone."""
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).name, text)


@app.command()
def evaluate(
    manifest: Annotated[
        Path,
        typer.Option(help="JSON lines or a folder, as `compose` takes it (docs/composing.md)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    results: Annotated[
        list[str] | None, typer.Option(help="A folder of pictures, DIR or NAME=DIR; again: more.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that composes them first, or NAME=MODEL; again: more."),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="paste or poisson, no model; again: the other.")
    ] = None,
    wrong_object: Annotated[
        bool,
        typer.Option(
            "--wrong-object",
            help="Each --model also with another entry's object, as NAME_wrong: a control.",
        ),
    ] = False,
    clip: Clip = None,
    dino: Dino = None,
    encoder: Judge = "mini",
    lpips: LpipsFiles = None,
    backbone: Backbone = None,
    reference: Reference = None,
    segment: SegmentFile = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where scores are kept (default: OUT/cache).")
    ] = None,
    worst: Annotated[
        str | None, typer.Option(help="Sort the page by this measure, worst first.")
    ] = "ours",
    show_pictures: Annotated[
        int, typer.Option("--show", help="Compositions on the page, at most.", min=0)
    ] = 200,
    steps: Steps = None,
) -> None:
    """Measure and show what methods make of a manifest: a table, a CSV file, a page of pictures."""
    from imprint_jax import evaluate as evaluation
    from imprint_jax import manifest as manifests
    from imprint_jax import report
    from imprint_jax.compose import Settings

    folders = {}
    asked = [(name, Path(folder)) for name, folder in map(_named, results or [])]
    models = [_named(path) for path in model or []]
    asked += [(name, out / "results" / name) for name, _ in models]
    if wrong_object:
        asked += [(f"{name}_wrong", out / "results" / f"{name}_wrong") for name, _ in models]
    asked += [(name, out / "results" / name) for name in baseline or []]
    for name, folder in asked:
        if name in folders:
            raise InputError(f"Two methods are called {name!r}; name them: NAME=DIR.")
        folders[name] = folder
    if not folders:
        raise InputError("Give --results, --model or --baseline: something to measure.")
    if wrong_object and not models:
        raise InputError("--wrong-object needs --model: something that composes.")
    if worst is not None and worst not in evaluation.SORTABLE:
        raise InputError(f"--worst is {worst!r}; use one of {', '.join(evaluation.SORTABLE)}.")
    entries = manifests.read(manifest)
    wrong = manifests.with_other_objects(entries) if wrong_object else []
    _use_compilation_cache()
    networks = evaluation.load_networks(
        clip=clip, dino=dino, ours=encoder, lpips=lpips, backbone=backbone, segment=segment
    )
    settings = Settings(num_steps=steps)
    for name, path in models:
        evaluation.compose_results(path, entries, folders[name], settings, _track)
        if wrong_object:
            evaluation.compose_results(path, wrong, folders[f"{name}_wrong"], settings, _track)
    for name in baseline or []:
        evaluation.paste_results(name, entries, folders[name], _track)
    found = evaluation.evaluate(
        entries, folders, networks, cache or out / "cache", reference=reference, track=_track
    )
    summary = report.summarize(found)
    page = report.write(found, summary, out, worst=worst, limit=show_pictures)
    stdout.print(report.table(summary))
    for name, reason in summary["not_computed"].items():
        console.print(f"not computed: {name} ({reason})", soft_wrap=True)
    console.print(f"wrote {page}", soft_wrap=True)


@app.command()
def probe(
    records: Annotated[Path, typer.Argument(help="A prepared data set of views of objects.")],
    encoder: Annotated[
        list[str], typer.Option(help="A model, run or weights of CLIP or DINOv2; again: more.")
    ],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    apart: Annotated[
        int, typer.Option(help="Leave out views of the same object fewer frames apart.", min=1)
    ] = 9,
    color: Annotated[
        float, typer.Option(help="Change each view's colours and light, 0 to 1.", min=0, max=1)
    ] = 0.0,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Also with each model's initial random weights.")
    ] = False,
) -> None:
    """Ask encoders which views show the same object: top-1 and mean average precision."""
    from imprint_jax.inputs.records import RecordSource
    from imprint_jax.metrics import encoders
    from imprint_jax.probe import probe as run

    source = RecordSource(records, split)
    _use_compilation_cache()
    table = Table(title=f"{records}, {split}: views {apart} frames apart, colour {color}")
    for column in ("encoder", "top-1", "mAP", "chance", "views", "objects"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for path in encoder:
        tried = {path: encoders.load(path)}
        if untrained:
            tried[f"{path}, untrained"] = encoders.untrained(path)
        for name, one in tried.items():
            found = run(one, source, apart=apart, color=color, track=_track)
            shares = (f"{x:.3f}" for x in (found.top1, found.mean_precision, found.chance))
            table.add_row(name, *shares, str(found.views), str(found.objects))
    stdout.print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ablate(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of runs, pictures and the table.")],
    suite: Annotated[
        str, typer.Option(help="core, paper, or names of ablations joined by commas.")
    ] = "core",
    scale: Annotated[
        str, typer.Option(help="mini, paper, or a folder with stage1.py and stage2.py.")
    ] = "mini",
    steps: Annotated[
        int | None, typer.Option(help="Steps of a second stage; all else goes along.", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Trainings of each, by seed.", min=1)] = 1,
    seeds: Annotated[int, typer.Option(help="Pictures of each entry, by seed.", min=1)] = 3,
    manifest: Annotated[
        Path | None, typer.Option(help="What to compose (default: a set of the test split).")
    ] = None,
    limit: Annotated[int, typer.Option(help="Entries of that set, at most.", min=2)] = 60,
    clip: Clip = None,
    dino: Dino = None,
    encoder: Judge = "mini",
    lpips: LpipsFiles = None,
    backbone: Backbone = None,
    sampling_steps: Annotated[
        int | None, typer.Option(help="Denoising steps (default: the models' own).")
    ] = None,
) -> None:
    """Train and measure the paper's ablations; `--config.a.b=value` changes all trainings."""
    from absl import flags

    from imprint_jax import ablate as ablation
    from imprint_jax import evaluate as evaluation
    from imprint_jax import manifest as manifests
    from imprint_jax.compose import Settings
    from imprint_jax.inputs.records import RecordSource

    variants = ablation.variants(suite, scale, steps=steps, repeats=repeats, overrides=context.args)
    stage1, stage2 = (ablation.recipe("full", scale, stage, context.args) for stage in (1, 2))
    if manifest is None:
        entries = ablation.held_out_set(stage2, out / "set", seeds=seeds, limit=limit, size=256)
    else:
        entries = manifests.read(manifest)
    flags.FLAGS(["imprint"])  # Grain's worker processes want absl's flags parsed
    _use_compilation_cache()
    networks = evaluation.load_networks(
        clip=clip, dino=dino, ours=encoder, lpips=lpips, backbone=backbone
    )
    table = ablation.ablate(
        variants,
        out,
        entries=entries,
        records=RecordSource(stage1.data.sources[0]["records"], "test"),
        networks=networks,
        settings=Settings(num_steps=sampling_steps),
        command=shlex.join(["imprint", *sys.argv[1:]]),
        console=console,
        track=_track,
    )
    stdout.print(table.read_text(), markup=False, highlight=False)


@study.command("make")
def make_study(
    first: Annotated[Path, typer.Argument(help="A method's results.")],
    second: Annotated[Path, typer.Argument(help="The other's.")],
    manifest: Annotated[Path, typer.Option(help="What both composed.")],
    out: Annotated[Path, typer.Option(help="Folder to make: page/ and key.json.")],
    limit: Annotated[int | None, typer.Option(help="Pairs to ask about, drawn.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides order and sides.")] = 0,
) -> None:
    """Write a page that shows both methods' pictures side by side, not saying which is whose."""
    from imprint_jax import manifest as manifests
    from imprint_jax import study as studies

    page = studies.make(manifests.read(manifest), first, second, out, limit=limit, seed=seed)
    console.print(f"wrote {page}; keep {out / 'key.json'} to yourself", soft_wrap=True)


@study.command("count")
def count_answers(
    folder: Annotated[Path, typer.Argument(help="What `study make` wrote.")],
    answers: Annotated[list[Path], typer.Argument(help="Files of answers.")],
) -> None:
    """Count the answers that people saved from the page."""
    from imprint_jax import study as studies

    methods, counts = studies.count(folder, answers)
    table = Table(title=f"{len(answers)} files of answers")
    for column in ("question", methods["first"], methods["second"], "same", "p (sign test)"):
        table.add_column(column, justify="left" if column == "question" else "right")
    for question, c in counts.items():
        table.add_row(question, str(c.first), str(c.second), str(c.same), f"{c.p:.2g}")
    stdout.print(table)


Num = Annotated[int, typer.Option(help="Pictures to make of each entry, by seed.", min=1)]
Limit = Annotated[int | None, typer.Option(help="Entries at most, evenly spread.", min=1)]
Level = Annotated[int, typer.Option(help="The hole's precision: 0 outline, 3 box.", min=0, max=3)]
Split = Annotated[str, typer.Option(help="train, validation or test.")]


@testset.command("dreambooth")
def dreambooth_set(
    pairs: Annotated[Path, typer.Argument(help="CSV: object,background,x0,y0,x1,y1.")],
    objects: Annotated[Path, typer.Argument(help="Folder of the objects' pictures.")],
    backgrounds: Annotated[Path, typer.Argument(help="Folder of the backgrounds.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    masks: Annotated[Path | None, typer.Option(help="Folder of the objects' masks.")] = None,
    segment: SegmentFile = None,
    num: Num = 1,
) -> None:
    """Objects in several backgrounds, from a list of pairs (docs/evaluation.md)."""
    from imprint_jax import protocols
    from imprint_jax.inputs.segment import Segmenter

    segmenter = Segmenter(segment) if segment else None
    options = dict(masks=masks, segmenter=segmenter, num=num)
    written = protocols.dreambooth(pairs, objects, backgrounds, out, **options)
    console.print(f"wrote {out / 'manifest.jsonl'}: {written} entries", soft_wrap=True)


@testset.command("perturbed")
def perturbed_set(
    records: Annotated[Path, typer.Argument(help="A prepared set of photos with masks.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    split: Split = "test",
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides the perturbations.")] = 0,
) -> None:
    """Photos whose object is perturbed and to be put back; the photo is the truth."""
    from imprint_jax import config, protocols
    from imprint_jax.inputs.records import RecordSource

    options = dict(num=num, limit=limit, mask_level=mask_level, seed=seed)
    source = RecordSource(records, split)
    written = protocols.perturbed(config.default(), source, out, **options)
    console.print(f"wrote {out / 'manifest.jsonl'}: {written} entries", soft_wrap=True)


@testset.command("pasted")
def pasted_set(
    records: Annotated[Path, typer.Argument(help="A prepared set of views of objects.")],
    backgrounds: Annotated[Path, typer.Argument(help="A prepared set of photos.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    config: Annotated[str, typer.Option(help="The recipe whose data settings count.")] = "stage2",
    split: Split = "test",
    size: Annotated[int, typer.Option(help="Side of the photos, pixels.", min=32)] = 512,
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides pairs, places and perturbations.")] = 0,
) -> None:
    """Views of objects pasted into photos; another view is given, the pasted one is the truth."""
    from imprint_jax import config as configs
    from imprint_jax import protocols
    from imprint_jax.inputs.records import RecordSource

    options = dict(size=size, num=num, limit=limit, mask_level=mask_level, seed=seed)
    sources = (RecordSource(folder, split) for folder in (records, backgrounds))
    written = protocols.pasted(configs.load(config), *sources, out, **options)
    console.print(f"wrote {out / 'manifest.jsonl'}: {written} entries", soft_wrap=True)


@testset.command("rendered")
def rendered_set(
    views: Annotated[Path, typer.Argument(help="What `imprint data render MODELS` wrote.")],
    scenes: Annotated[Path, typer.Argument(help="The same with --scenes, of the same models.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    apart: Annotated[str, typer.Option(help="MIN,MAX degrees from view to scene.")] = "0,180",
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides which views.")] = 0,
) -> None:
    """Views of objects, and rendered scenes with and without them; the former is the truth."""
    from imprint_jax import config, protocols

    least, most = _numbers("--apart", apart, 2)
    options = dict(num=num, limit=limit, mask_level=mask_level, seed=seed)
    written = protocols.rendered(
        config.default(), views, scenes, out, apart=(least, most), **options
    )
    console.print(f"wrote {out / 'manifest.jsonl'}: {written} entries", soft_wrap=True)


def _beam_options(runner: str, extra: list[str]) -> list[str] | None:
    """What `prepare` takes as `beam`, of --runner and the options that are not ours."""
    kind, _, name = runner.partition(":")
    if kind == "local" and not name:
        if extra:
            raise InputError(f"There is no option {extra[0]}; Beam's need --runner beam.")
        return None
    if kind != "beam":
        raise InputError(f"--runner is local, beam or beam:NAME, not {runner!r}.")
    return [f"--runner={name or 'DirectRunner'}", *extra]


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.removesuffix("%").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise InputError(f"{option} wants {count} number(s), not {text!r}.")
    return numbers


def main() -> None:
    """Runs the command; input that a user can mend ends in one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        console.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
