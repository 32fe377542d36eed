"""`imprint evaluate`, `probe`, `ablate`: what models are worth."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imprint_jax.cli.terminal import App, console, note, stdout, track, use_compilation_cache
from imprint_jax.errors import InputError

app = App()

# Options of the commands that measure.
Clip = Annotated[Path | None, typer.Option(help="CLIP's weights: a folder, converted or not.")]
Dino = Annotated[Path | None, typer.Option(help="DINOv2's weights: a folder or file, likewise.")]
Judge = Annotated[str, typer.Option("--encoder", help="A model whose encoder judges identity.")]
LpipsFiles = Annotated[Path | None, typer.Option(help="LPIPS's weights: a file, or a folder.")]
DreamSim = Annotated[
    Path | None, typer.Option("--dreamsim", help="DreamSim's release, unpacked: a folder.")
]
KeypointsFile = Annotated[
    Path | None, typer.Option("--keypoints", help="XFeat's weights, xfeat.pt: identity by detail.")
]
Inception = Annotated[
    Path | None, typer.Option("--inception", help="pt_inception-2015-12-05 (.pth), for FID, KID.")
]
Backbone = Annotated[
    str | None, typer.Option(help="Another encoder for FID and KID: a path, or MODEL#dinov2.")
]
Reference = Annotated[
    Path | None, typer.Option(help="Photos for FID and KID (default: the manifest's targets).")
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps (default: the model's own).")]


def _named(text: str) -> tuple[str, str]:
    """Name and path of NAME=PATH, or of a path alone.

    Raises:
        InputError: No file could have the name, which ends in file names.
    """
    from imprint_jax.composing.manifest import FILE_NAME

    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = Path(text).name, text
    if not FILE_NAME.fullmatch(name):
        raise InputError(f"{text}: {name!r} cannot be a method's name; give one: NAME=PATH.")
    return name, path


def _with_earlier(earlier: dict, folders: dict, entries: list) -> dict:
    """The methods of earlier calls whose pictures are still there, then those of this one."""
    kept = {}
    for name, folder in earlier.items():
        if name in folders:
            continue
        if all((folder / picture).is_file() for entry in entries for picture in entry.names()):
            kept[name] = folder
        else:
            note(f"left out {name} of an earlier call: {folder} has no longer all its pictures")
    if kept:
        note(f"kept from earlier calls: {', '.join(kept)} (another --out begins anew)")
    return kept | folders


def _command() -> str:
    """What the user called."""
    return shlex.join(["imprint", *sys.argv[1:]])


@app.command()
def evaluate(
    manifest: Annotated[
        Path,
        typer.Option(help="JSON lines or a folder, as `compose` takes it (docs/composing.md)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    results: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="A folder of pictures, DIR or NAME=DIR; again: more."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="A model, as of compose, that composes them; or NAME=MODEL; again: more.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="No model: paste, color, poisson, or truth, the targets; again: more.",
        ),
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
    dreamsim: DreamSim = None,
    keypoints: KeypointsFile = None,
    inception: Inception = None,
    backbone: Backbone = None,
    reference: Reference = None,
    segment: Annotated[
        Path | None,
        typer.Option(help="ONNX that finds objects, in results and in pictures without a mask."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where scores are kept (default: OUT/cache).")
    ] = None,
    worst: Annotated[
        str | None, typer.Option(help="Sort the page by this, worst first (default: --encoder's).")
    ] = None,
    compare: Annotated[
        tuple[str, str],
        typer.Option(help="Two of the methods: their differences on the same compositions."),
    ] = ("", ""),
    show_pictures: Annotated[
        int, typer.Option("--show", help="Compositions on the page, at most.", min=0)
    ] = 200,
    steps: Steps = None,
    strength: Annotated[
        float, typer.Option(help="Of each --model, as in `compose`; 1 is the paper's.")
    ] = 1.0,
) -> None:
    """Measure and show what methods make of a manifest: a table, a CSV file, a page of pictures."""
    from imprint_jax.composing import manifest as manifests
    from imprint_jax.composing.settings import Settings
    from imprint_jax.data.segment import Segmenter
    from imprint_jax.evaluation import evaluate as evaluation
    from imprint_jax.evaluation import report

    folders = {}
    result_folders = [(name, Path(folder)) for name, folder in map(_named, results or [])]
    models = [_named(path) for path in model or []]
    all_results = result_folders + [(name, out / "results" / name) for name, _ in models]
    if wrong_object:
        all_results += [(f"{name}_wrong", out / "results" / f"{name}_wrong") for name, _ in models]
    all_results += [(name, out / "results" / name) for name in baseline or []]
    for name, folder in all_results:
        if name in folders:
            raise InputError(f"Two methods are called {name!r}; name them: NAME=DIR.")
        folders[name] = folder
    if wrong_object and not models:
        raise InputError("--wrong-object needs --model: something that composes.")
    report.check_folder(out)
    entries = manifests.read(manifest)
    manifests.check_files(entries)
    described = manifests.describe(manifest, entries)
    earlier = report.earlier_results(out, described)
    methods = _with_earlier(earlier, folders, entries)
    if not methods:
        raise InputError("Give --results, --model or --baseline: something to measure.")
    for name in compare if any(compare) else ():
        if name not in methods:
            raise InputError(f"--compare: there is no method {name!r}.")
    evaluation.find_shots(entries, dict(result_folders))
    wrong = manifests.with_other_objects(entries) if wrong_object else []
    segmenter = Segmenter(segment) if segment else None
    use_compilation_cache()
    measures = evaluation.load_measures(
        clip=clip,
        dino=dino,
        encoder=encoder,
        lpips=lpips,
        dreamsim_files=dreamsim,
        keypoints_file=keypoints,
        inception_file=inception,
        backbone=backbone,
        segmenter=segmenter,
        reference=reference,
    )
    names, worst = evaluation.sortable(entries, measures), worst or f"{Path(encoder).name}_encoder"
    if worst not in names:
        raise InputError(f"--worst is {worst!r}; with these weights use one of {', '.join(names)}.")
    if segmenter:
        entries = evaluation.with_cut_outs(entries, segmenter, out / "objects")
        wrong = evaluation.with_cut_outs(wrong, segmenter, out / "objects")
    if not earlier and (out / "summary.json").is_file():
        note(f"{out} holds a report of other compositions, which is replaced")
    settings = Settings(num_steps=steps, strength=strength)
    for name in baseline or []:
        evaluation.baseline_results(name, entries, folders[name], track)
    for name, path in models:
        evaluation.compose_results(path, entries, folders[name], settings, track)
        if wrong_object:
            evaluation.compose_results(path, wrong, folders[f"{name}_wrong"], settings, track)
    evaluated = evaluation.evaluate(entries, methods, measures, cache or out / "cache", track=track)
    summary = report.summarize(evaluated, command=_command(), manifest=described)
    if any(compare):
        compared = report.compare(evaluated, *compare)
        summary["compared"] = {" minus ".join(compare): compared}
    page = report.write(evaluated, summary, out, worst=worst, limit=show_pictures)
    stdout.print(report.table(summary))
    if any(compare):
        stdout.print(report.comparison_table(compared, *compare))
    if summary["not_computed"]:
        note(f"not computed: {', '.join(summary['not_computed'])} (summary.json says why)")
    note(f"wrote {page}")


@app.command()
def probe(
    records: Annotated[Path, typer.Argument(help="A prepared data set of views of objects.")],
    encoder: Annotated[
        list[str],
        typer.Option(
            metavar="<str>", help="A model, run or weights of CLIP or DINOv2; again: more."
        ),
    ],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    apart: Annotated[
        int, typer.Option(help="Leave out views of the same object fewer frames apart.", min=1)
    ] = 9,  # probe.APART; importing it here would make --help slow
    color: Annotated[
        float, typer.Option(help="Change each view's colours and light, 0 to 1.", min=0, max=1)
    ] = 0.0,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Also with each model's initial random weights.")
    ] = False,
) -> None:
    """Ask encoders which views show the same object: top-1 and mean average precision."""
    from imprint_jax.data.records import RecordSource
    from imprint_jax.evaluation import encoders
    from imprint_jax.evaluation.identity_probe import probe as run

    source = RecordSource(records, split)
    use_compilation_cache()
    table = Table(title=f"{records}, {split}: views {apart} frames apart, colour {color}")
    for column in ("encoder", "top-1", "a guess", "mAP", "a guess", "views", "objects"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    tried = {}
    for path in encoder:
        tried[path] = encoders.load(path)
        is_imprint = tried[path].name == "imprint" or path.endswith(encoders.BARE)
        if untrained and is_imprint:
            tried[f"{path}, untrained"] = encoders.untrained(path)
        elif untrained:
            note(f"{path} is no model of ours: not tried untrained")
    for name, one in tried.items():
        result = run(one, source, apart=apart, color=color, track=track)
        top1, precision = result.top1, result.mean_precision
        shares = (top1, result.chance, precision, result.chance_precision)
        table.add_row(name, *(f"{x:.3f}" for x in shares), str(result.views), str(result.objects))
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
    seeds: Annotated[
        int | None, typer.Option(help="Pictures of each entry, by seed (default: 3).", min=1)
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="What to compose (default: a set of the test split).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Entries of that set, at most (default: 60).", min=2)
    ] = None,
    clip: Clip = None,
    dino: Dino = None,
    encoder: Judge = "mini",
    lpips: LpipsFiles = None,
    dreamsim: DreamSim = None,
    keypoints: KeypointsFile = None,
    inception: Inception = None,
    backbone: Backbone = None,
    sampling_steps: Annotated[
        int | None, typer.Option(help="Denoising steps (default: the models' own).")
    ] = None,
) -> None:
    """Train and measure the paper's ablations; `--config.a.b=value` changes all trainings."""
    from absl import flags

    from imprint_jax.composing.settings import Settings
    from imprint_jax.data.records import RecordSource
    from imprint_jax.evaluation import ablations as ablation
    from imprint_jax.evaluation import evaluate as evaluation

    variants = ablation.variants(suite, scale, steps=steps, repeats=repeats, overrides=context.args)
    stage1, stage2 = (ablation.recipe("full", scale, stage, context.args) for stage in (1, 2))
    assert stage1 is not None and stage2 is not None  # all of the paper trains in both
    if manifest is None:
        drawn = dict(seeds=seeds or 3, limit=limit or 60, size=256)
        manifest = ablation.held_out_set(stage2, out, **drawn, track=track)
    elif seeds or limit:
        raise InputError("--seeds and --limit cannot be used with --manifest, which says both.")
    flags.FLAGS(["imprint"])  # Grain's worker processes want absl's flags parsed
    use_compilation_cache()
    measures = evaluation.load_measures(
        clip=clip,
        dino=dino,
        encoder=encoder,
        lpips=lpips,
        dreamsim_files=dreamsim,
        keypoints_file=keypoints,
        inception_file=inception,
        backbone=backbone,
    )
    table = ablation.ablate(
        variants,
        out,
        test_set=manifest,
        records=RecordSource(stage1.data.sources[0].records, "test"),
        measures=measures,
        settings=Settings(num_steps=sampling_steps, strength=1.0),
        command=_command(),
        console=console,
        track=track,
    )
    stdout.print(table.read_text(), markup=False, highlight=False)
