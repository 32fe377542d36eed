"""`imprint compose`: an object into a photo, one or many."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from imprint_jax.cli.terminal import App, console, note, track, use_compilation_cache
from imprint_jax.errors import InputError

if TYPE_CHECKING:
    from imprint_jax.composing.compositor import Compositor
    from imprint_jax.composing.manifest import Entry
    from imprint_jax.composing.settings import Settings

app = App()


@app.command()
def compose(
    out: Annotated[Path, typer.Option(help="The .png to write; with --manifest the folder.")],
    object_paths: Annotated[
        list[Path] | None,
        typer.Option(
            "--object",
            metavar="<path>",
            help="The object; RGBA carries its mask. Again: another view.",
        ),
    ] = None,
    object_masks: Annotated[
        list[Path] | None,
        typer.Option(
            "--object-mask",
            metavar="<path>",
            help="White where the object is; one for each --object.",
        ),
    ] = None,
    segment: Annotated[
        Path | None,
        typer.Option(help="ONNX that finds the object in pictures without mask or transparency."),
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
    shard: Annotated[
        str, typer.Option(help="I/N, with --manifest: one of N processes that share the work.")
    ] = "1/1",
    model: Annotated[
        str, typer.Option(help="A shipped model, a folder, or ORG/NAME[@REVISION].")
    ] = "mini",
    num: Annotated[
        int | None, typer.Option(help="Pictures to make: OUT_0.png, OUT_1.png... (default: 1)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same picture (default: 0).")
    ] = None,
    mask_level: Annotated[
        int | None,
        typer.Option(help="0 keeps the mask's shape, 3 makes it a box (the model's own)."),
    ] = None,
    scribble: Annotated[
        bool, typer.Option("--scribble", help="The mask is strokes: close and fill them.")
    ] = False,
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="The mask is black where to fill; not --box.")
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
    strength: Annotated[
        float | None,
        typer.Option(
            help="1 starts from pure noise (the paper), less from the object pasted into the hole:"
            " the object's own look and pose (default: the model's own)."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Pictures at once on a device, at most.")] = 8,
) -> None:
    """Put an object into a photo, or work through a manifest.

    The hole is white in --mask, or the rectangle --box. Outside the hole and its feathered edge
    the photo stays as it is, pixel for pixel.
    """
    from imprint_jax.composing import job
    from imprint_jax.composing import manifest as manifests
    from imprint_jax.composing.request import check_numbers
    from imprint_jax.composing.settings import Settings
    from imprint_jax.data.segment import Segmenter
    from imprint_jax.weights import release
    from imprint_jax.weights.tensors import file_hash

    # Everything that can be wrong is found before the model is loaded, or anything written.
    folder = release.model_folder(model)
    config = release.load_config(folder)
    settings = Settings(steps, guidance, sampler, eta, match_colors, strength).filled(config)
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype must be float32 or bfloat16, not {dtype!r}.")
    if mask_level is not None:
        check_numbers(seed=0, num=1, mask_level=mask_level)
    elif config.sampling.mask_level:  # a model that knows no other masks
        mask_level = config.sampling.mask_level
    if batch_size < 1:
        raise InputError(f"--batch-size must be 1 or more, not {batch_size}.")
    shape: dict[str, Any] = dict(mask_level=mask_level, scribble=scribble, invert_mask=invert_mask)
    segmenter = Segmenter(segment) if segment else None
    how = shape | ({"segment": file_hash(segment)[:16]} if segment else {})
    describe = partial(job.provenance, folder, config, settings, how, dtype)
    shape["segmenter"] = segmenter
    inputs = [path for path in (manifest, segment) if path]
    load = partial(_load_compositor, folder, dtype=dtype, max_batch=batch_size)

    single: dict[str, Any] = dict(object=object_paths, object_mask=object_masks)
    single |= dict(background=background, mask=mask, box=box, num=num, seed=seed)
    if manifest is None:
        if shard != "1/1":
            raise InputError("--shard is for --manifest: one request is one process's work.")
        _compose_one(_entry(out, **single), out, inputs, load, settings, describe, shape)
    elif single_options := [name for name, value in single.items() if value not in (None, [])]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in single_options)
        raise InputError(f"{names} cannot be used with --manifest, which says that itself.")
    else:
        entries, part = manifests.read(manifest), job.parse_shard(shard)
        _compose_many(entries, part, out, inputs, load, settings, describe, shape)


def _entry(
    out: Path,
    object: list[Path] | None,
    object_mask: list[Path] | None,
    background: Path | None,
    mask: Path | None,
    box: str | None,
    num: int | None,
    seed: int | None,
) -> "Entry":
    """What a manifest would say of a command line without one."""
    from imprint_jax.composing.manifest import Entry, ObjectEntry
    from imprint_jax.composing.request import check_numbers

    if not object or background is None:
        raise InputError("Give --object and --background, or --manifest.")
    if (mask is None) == (box is None):
        raise InputError("Say where the object goes: either --mask FILE or --box X0,Y0,X1,Y1.")
    rectangle = None if box is None else _box(box)
    where = ObjectEntry(tuple(object), tuple(object_mask or ()), mask, rectangle)
    numbers: dict[str, Any] = {key: x for key, x in (("num", num), ("seed", seed)) if x is not None}
    check_numbers(**{"seed": 0, "num": 1, "mask_level": 0} | numbers)
    return Entry(out.stem, background, (where,), **numbers)


def _compose_one(
    entry: "Entry",
    out: Path,
    inputs: list[Path],
    load: Callable,
    settings: "Settings",
    describe: Callable,
    shape: dict,
) -> None:
    from imprint_jax.composing import job

    names = [Path(name).with_suffix(out.suffix).name for name in entry.names()]
    job.check_single(out, names, [*inputs, *entry.files()])
    request = entry.request(name="", **shape)
    how, compositor = describe(), load()
    with console.status("composing"):
        for result in compositor.run([request], settings):
            path = out.with_name(names[result.number])
            photo = request.original
            job.write_picture(path, result.picture, photo, how, entry.seed, result.number)
            note(f"wrote {path}")


def _compose_many(
    entries: list["Entry"],
    shard: tuple[int, int],
    out: Path,
    inputs: list[Path],
    load: Callable,
    settings: "Settings",
    describe: Callable,
    shape: dict,
) -> None:
    from imprint_jax.composing import job

    how = describe()
    todo = job.unfinished(entries, out, how, inputs, shard)
    share = len(job.share(entries, shard))
    if len(todo) < share:
        note(f"{share - len(todo)} of {share} were done before")
    if not todo:
        return
    jobs = job.compose_entries(load(), todo, out, settings, how, shard, **shape)
    failed = 0
    for entry, error in track(jobs, "composing", len(todo)):
        if error:
            failed += 1
            console.print(f"[red]{escape(entry.id)}:[/red] {escape(error)}", soft_wrap=True)
    note(f"{len(todo) - failed} done, {failed} failed, in {out}")
    if failed:
        raise typer.Exit(1)


def _load_compositor(folder: Path, **options: Any) -> "Compositor":
    from imprint_jax.composing.compositor import Compositor

    use_compilation_cache()
    with console.status("loading the model"):
        return Compositor.from_pretrained(folder, **options)


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--box wants four whole numbers X0,Y0,X1,Y1, not {text!r}.") from None
    return x0, y0, x1, y1
