"""`imprint data`: render, prepare, show and check training data."""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.progress import Progress

from imprint_jax.cli.terminal import App, console, note, parse_numbers, stdout, track
from imprint_jax.errors import InputError

MAX_PROBLEMS = 20  # that `imprint data check` prints

app = App(help="Make and prepare training data.", no_args_is_help=True)


@app.command()
def render(
    models: Annotated[Path, typer.Argument(help="Folder of OBJ, glTF or PLY models.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write: one folder an object.")],
    scenes: Annotated[
        int | None, typer.Option(help="Render so many scenes of each model instead of bare views.")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Photos for the scenes' floors, walls and backdrops.")
    ] = None,
    panoramas: Annotated[
        Path | None,
        typer.Option(help="Panoramas (.hdr) that light most scenes and are seen behind them."),
    ] = None,
    others: Annotated[int, typer.Option(help="Other models in a scene, at most.")] = 2,
    views: Annotated[
        int | None,
        typer.Option(help="Views, 6 degrees apart at most (default: 36 of an object, 8 a scene)."),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of a view in pixels.")] = 256,
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: one a core).", min=1)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many models.")] = None,
    seed: Annotated[int, typer.Option(help="Decides camera paths, light and scenes.", min=0)] = 0,
    up: Annotated[str, typer.Option(help="The models' upward axis, y or z.")] = "y",
) -> None:
    """Render textured models along smooth camera paths. Resumable.

    RGBA views on nothing; or, with --scenes, views of a model on a floor, with and without it.
    """
    from imprint_jax.rendering import scenes as scene_renderer
    from imprint_jax.rendering import views as view_renderer

    if scenes is None and (photos is not None or panoramas is not None):
        raise InputError("--photos and --panoramas are for scenes: add --scenes N.")
    options: dict[str, Any] = dict(size=size, workers=workers, limit=limit, seed=seed, up=up)
    total = min(view_renderer.count_models(models), limit or sys.maxsize)
    if scenes is None:
        results = view_renderer.render_folder(models, dst, num_views=views or 36, **options)
    else:
        results = scene_renderer.render_scenes(
            models,
            dst,
            num_scenes=scenes,
            photos_dir=photos,
            panoramas_dir=panoramas,
            num_others=others,
            num_views=views or 8,
            **options,
        )
        total *= scenes
    counts: Counter[str] = Counter()
    for result in track(results, "rendering", total):
        counts[result.reason or result.status] += 1
    note(", ".join(f"{count} {what}" for what, count in counts.items()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def prepare(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="The layout of SRC: mvimgnet, objaverse, youtubevos, davis, vipseg, ppr10k,"
            " photos, folder or scenes; docs/data_sets.md shows each."
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
        str | None,
        typer.Option(
            help="With --split-by: shares of train, validation and test (default: 0.9,0.05,0.05)."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: one a core).", min=1)
    ] = None,
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
        typer.Option(
            "--filter",
            metavar="<str>",
            help="A limit to change, like max_area=0.8; may be repeated.",
        ),
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
    from imprint_jax.data.preparation.prepare import Options, prepare

    beam = _beam_options(runner, context.args)
    shares = None if fractions is None else parse_numbers("--fractions", fractions, 3)
    most = None if max_reject is None else parse_numbers("--max-reject", max_reject, 1)[0]
    options = Options(
        max_side=max_side,
        limit=limit,
        max_reject=most,
        split_by=split_by,
        fractions=shares,
        filters=filter_ or (),
        segment=segment,
    )
    with Progress(console=console) as progress:
        task = progress.add_task("preparing", total=None)
        counts = prepare(
            name,
            src,
            dst,
            splits,
            options,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            beam=beam,
        )
    for what, numbers in counts.items():
        text = ", ".join(f"{key} {number}" for key, number in sorted(numbers.items()))
        note(f"{what}: {text or 'none'}")


@app.command()
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
    config: Annotated[
        str | None,
        typer.Option(help="The recipe whose settings count (default: stage1 of views, or stage2)."),
    ] = None,
) -> None:
    """Write a page of pictures: records, and the samples that training makes of them."""
    from imprint_jax import config as configs
    from imprint_jax.data.preparation.show import recipe_for, show

    how: dict[str, Any] = dict(split=split, kind=kind, backgrounds=backgrounds)
    settings = configs.Config.of(configs.load(config or recipe_for(folder, **how)))
    page = show(settings, folder, out, num=num, **how)
    note(f"wrote {page}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A prepared data set.")],
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: one a core).", min=1)
    ] = None,
) -> None:
    """Read all of a prepared data set; exit code 1 if something is damaged."""
    from imprint_jax.data.preparation.check import check

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
