"""`imprint ablate`: the paper's Sec. 4.7 as one command: train what is missing, measure, tabulate.

OUT/runs/NAME-STAGE-HASH/   trainings; the hash is of the configuration, so that variants share
                            what they have in common, and nothing stale is taken for new
OUT/models/NAME/            released folders of the second stages
OUT/set-HASH/               the test set, unless a manifest is given
OUT/ablation.md             the table; with metrics.csv, summary.json and index.html of report.py
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from imprint_jax import config
from imprint_jax.composing import job, manifest
from imprint_jax.composing.settings import Settings
from imprint_jax.config import Config
from imprint_jax.data import pipeline
from imprint_jax.data.records import RecordSource, content_hash
from imprint_jax.errors import InputError
from imprint_jax.evaluation import encoders, evaluate, identity_probe, report, test_sets
from imprint_jax.evaluation.measures import Column, Measure
from imprint_jax.runtime.files import atomic_file
from imprint_jax.training import checkpoint, initialize, sharding
from imprint_jax.training.train import train
from imprint_jax.weights import release
from imprint_jax.weights.tensors import file_hash

log = logging.getLogger(__name__)

# "full" is the method itself; the others are configs/ablations/NAME.py.
CORE = ("full", "single_stage", "frozen_dinov2", "no_swap")
SUITES = {
    "core": CORE,
    "paper": (
        *CORE,
        "dinov2_in_stage2",
        "multiview_in_stage2",
        "no_multiview",
        "clip_encoder",
        "background_noised",
        "background_concat",
        "no_hole_fill",
        "window_1",
        "window_3",
        "window_15",
    ),
}
# What the table shows where it was computed, beside the columns of `--encoder`.
COLUMNS = {"clip", "dino", "dreamsim", "imagenet", "imagenet_top1", "lpips", "psnr", "ssim",
           "seam_error", "copied", "fid", "probe_top1", "probe_map"}  # fmt: skip
OF_ENCODER = ("_encoder", "_encoder_top1")


@dataclass(frozen=True)
class Variant:
    """A variant in one training seed: its stages' configurations; no first one in `single_stage`.

    Attributes:
        name: Of the ablation.
        seed: Of the training.
        stage1: Configuration, or None.
        stage2: Configuration without where its encoder starts from.
        inherits: Components that start from stage 1.
    """

    name: str
    seed: int
    stage1: Config | None
    stage2: Config
    inherits: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name, with the seed where it is not the first."""
        return f"{self.name}_{self.seed}" if self.seed else self.name


def variants(
    suite: str,
    scale: str,
    *,
    steps: int | None = None,
    repeats: int = 1,
    overrides: Sequence[str] = (),
) -> list[Variant]:
    """The variants of a suite.

    Args:
        suite: A name in `SUITES`, or names of ablations joined by commas.
        scale: "mini", "paper", or a folder with stage1.py and stage2.py.
        steps: Steps of the plain second stage; other trainings' steps, warm-up and saving go in
            proportion. None: as the recipes say.
        repeats: Trainings of each variant, which differ by their seed.
        overrides: `--config.a.b=value`, for both stages of all.

    Raises:
        InputError: No such suite, ablation, scale or field.
    """
    if any(override.startswith("--config.total_steps=") for override in overrides):
        raise InputError("Stages have different lengths: use --steps, not --config.total_steps.")
    names = SUITES.get(suite, tuple(suite.split(",")))
    full = config.stage_recipe(scale, 2)
    share = 1.0 if steps is None else steps / full.total_steps
    # At full size the UNet starts from Stable Diffusion in both stages; at mini size, where the
    # adapter does, from stage 1.
    start = full.init_from
    inherits = ("dinov2", "adapter", *(["unet"] if start.unet == start.adapter != "" else []))
    chosen = []
    for name in names:
        stages = [_shortened(recipe(name, scale, stage, overrides), share) for stage in (1, 2)]
        for seed in range(repeats):
            first, second = (c and replace(c, seed=c.seed + seed) for c in stages)
            assert second is not None  # only a first stage may train nothing
            chosen.append(Variant(name, seed, first, second, inherits if first else ()))
    _check_encoders(chosen)
    return chosen


def recipe(name: str, scale: str, stage: int, overrides: Sequence[str] = ()) -> Config | None:
    """A stage of an ablation at its full length; None where it trains nothing.

    Args:
        name: "full" or an ablation's.
        scale: As `variants`.
        stage: 1 or 2.
        overrides: As `variants`.

    Raises:
        InputError: No such ablation, scale or field.
    """
    if name == "full":
        c = config.stage_recipe(scale, stage)
    else:
        c = config.load_recipe(f"ablations/{name}", scale, stage)
    if c is None:
        return None
    # The suite measures what comes out; a data set for it may have no split "validation".
    c.validation.every = c.preview.every = 0
    for override in overrides:
        config.apply(c, override)
    return Config.of(c)


def _check_encoders(suite: list[Variant]) -> None:
    """One folder of weights cannot suit encoders of two kinds."""
    loaded: dict[str, dict[str, Variant]] = {}
    for variant in suite:
        # The second stage starts where the first ends, whatever its recipe names.
        first = variant.stage2 if variant.stage1 is None else variant.stage1
        loaded.setdefault(first.init_from.dinov2, {})[first.model.encoder] = variant
    for weights, kinds in loaded.items():
        if weights not in ("", config.RANDOM) and len(kinds) > 1:
            raise InputError(
                f"init_from.dinov2 = {weights} cannot suit both encoders:"
                f" {' and '.join(f'{kind} ({v.name})' for kind, v in kinds.items())}."
                " Run each in a suite by itself, --suite NAMES with its own weights and --out."
            )


def _shortened(c: Config | None, share: float) -> Config | None:
    if c is None or share == 1.0:
        return c
    shorter = lambda steps: max(round(steps * share), 1)
    return replace(
        c,
        total_steps=shorter(c.total_steps),
        optim=replace(c.optim, warmup_steps=shorter(c.optim.warmup_steps)),
        save_every=shorter(c.save_every),
    )


def ablate(
    suite: list[Variant],
    out: Path,
    *,
    test_set: Path,
    records: RecordSource,
    measures: list[Measure],
    settings: Settings,
    command: str,
    console: Console,
    track: Callable,
) -> Path:
    """Trains what is missing, composes, measures and writes the table as it came out.

    Args:
        suite: From `variants`.
        out: Folder of it all, see the module.
        test_set: Manifest of what every model composes; the k-th picture of each is seed k.
        records: What the identity probe of each encoder looks at.
        measures: What is measured, from `evaluate.load_measures`.
        settings: How to sample.
        command: What the user called, for the table.
        console: A rich console, for `train`.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Returns:
        The table's file.

    Raises:
        InputError: As `train`, `evaluate.evaluate` and `report.check_folder`; what can be found
            before the first training is.
        SystemExit: A training was told to stop and has saved; the same call goes on from there.
    """
    report.check_folder(out)
    entries = manifest.read(test_set)
    manifest.check_files(entries)
    for variant in suite:
        _check(variant, settings, out / "results" / variant.label)
    results, probes = {}, {}
    progress = Progress(len(missing(suite, out / "runs")))
    for variant in suite:
        run = _trained(variant, out / "runs", console, progress)
        results[variant.label] = out / "results" / variant.label
        model = _exported(run, out / "models" / variant.label, results[variant.label])
        evaluate.compose_results(model, entries, results[variant.label], settings, track)
        probes[variant.label] = identity_probe.probe(encoders.load(model), records, track=track)
    baselines = ["paste", "poisson"]
    for baseline in baselines:
        results[baseline] = out / "results" / baseline
        evaluate.baseline_results(baseline, entries, results[baseline], track)
    evaluated = evaluate.evaluate(entries, results, measures, out / "cache", track=track)
    about = {"records": "test split", "apart": identity_probe.APART, "crop": "cut"}
    for name, text in (("probe_top1", "top-1 accuracy"), ("probe_map", "mean average precision")):
        evaluated.columns[name] = Column(
            "higher", f"the encoder alone: {text} of same-object retrieval across views", about
        )
    for label, result in probes.items():
        evaluated.sets[label] |= {"probe_top1": result.top1, "probe_map": result.mean_precision}
    described = manifest.describe(test_set, entries)
    summary = report.summarize(evaluated, command=command, manifest=described)
    report.write(evaluated, summary, out, worst=None, limit=60)
    steps = {v.label: _steps(v) for v in suite}
    with atomic_file(out / "ablation.md") as file:
        file.write_text(_table(suite, baselines, summary, steps), encoding="utf-8")
    return out / "ablation.md"


def held_out_set(
    c: Config,
    out: Path,
    *,
    seeds: int,
    limit: int | None,
    size: int,
    track: Callable = test_sets.untracked,
) -> Path:
    """What the suite is measured on unless told otherwise: the test split of the plain stage 2.

    Args:
        c: The plain stage 2, see `recipe`.
        out: Where its folder is made, or read if it is there; its name has a hash of the rest.
        seeds: Pictures of each entry.
        limit: Entries at most.
        size: Side of the pictures that objects are pasted into, pixels.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Returns:
        Its manifest.

    Raises:
        InputError: The recipe's first source is no prepared data set with a test split.
    """
    source = c.data.sources[0]
    folders = {"records": source.records, "backgrounds": source.backgrounds}
    held = {name: content_hash(folder) for name, folder in folders.items() if folder}
    data = c.data.to_dict() | {"sources": {"kind": source.kind} | held}
    drawn = {"data": data, "seeds": seeds, "limit": limit, "size": size}
    digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / f"set-{digest}"
    if not folder.exists():
        records = RecordSource(source.records, "test")
        if source.kind == "pasted":
            photos = RecordSource(source.backgrounds, "test")
            how: dict[str, Any] = dict(size=size, num=seeds, limit=limit, track=track)
            test_sets.pasted(c.data, records, photos, folder, **how)
        else:
            test_sets.perturbed(c.data, records, folder, num=seeds, limit=limit, track=track)
    return folder / "manifest.jsonl"


def _check(variant: Variant, settings: Settings, results: Path) -> None:
    """Finds what no training or sampling of a variant can do before hours have gone into others."""
    stages = [c for c in (variant.stage1, variant.stage2) if c is not None]
    try:
        for c in stages:
            sharding.check_batch_size(c.batch_size, c.accumulation, jax.device_count())
            pipeline.check_sources(c)
            follows = c is variant.stage2 and variant.stage1 is not None
            if lacking := {*initialize.unchosen(c)} - {*(variant.inherits if follows else ())}:
                raise InputError(
                    f"nothing says what {', '.join(sorted(lacking))} of stage {c.stage} should"
                    " start from: add --config.init_from.NAME=FOLDER, or =random."
                )
        filled = asdict(settings.filled(variant.stage2))
    except InputError as error:
        raise InputError(f"{variant.label}: {error}") from error
    before = job.recorded(results).get("settings", filled)
    if changed := [f"{k} = {before.get(k)}" for k, x in filled.items() if before.get(k) != x]:
        raise InputError(
            f"{results} was sampled with other settings ({', '.join(changed)}): call it with the"
            " same, or delete it; its trainings stay."
        )


@dataclass
class Progress:
    """How many trainings a suite still has, and how long they take.

    Attributes:
        total: Trainings to do.
        started: How many of them have been begun.
        seconds: Of a step, by stage, from the trainings that are done.
    """

    total: int
    started: int = 0
    seconds: dict[int, float] = field(default_factory=dict)

    def next(self, c: Config) -> str:
        """Counts a training and says which it is and how long it takes, where that is known."""
        self.started += 1
        text = f"training {self.started} of {self.total}"
        if c.stage in self.seconds:
            minutes = max(round(self.seconds[c.stage] * c.total_steps / 60), 1)
            text += f", about {minutes} minute{'s' * (minutes > 1)}"
        return text


def missing(suite: list[Variant], runs: Path) -> list[Path]:
    """The runs of a suite that are not trained, each once, in order."""
    workdirs: dict[str, tuple[Path, int]] = {}

    def workdir(c: Config, variant: Variant) -> Path:
        digest = _digest(c, runs)
        default = _workdir(c, runs, variant.label, digest), c.total_steps
        return workdirs.setdefault(f"{c.stage}-{digest}", default)[0]

    for variant in suite:
        first = workdir(variant.stage1, variant) if variant.stage1 is not None else None
        workdir(_second(variant, first), variant)
    return [path for path, steps in workdirs.values() if not _is_whole(path, steps)]


def _second(variant: Variant, first: Path | None) -> Config:
    """The second stage's configuration, with where it starts from."""
    if first is None:
        return variant.stage2
    start = replace(variant.stage2.init_from, **dict.fromkeys(variant.inherits, str(first)))
    return replace(variant.stage2, init_from=start)


def _trained(variant: Variant, runs: Path, console: Console, progress: Progress) -> Path:
    """The second stage's run, after training what is missing of both."""
    first = None
    if variant.stage1 is not None:
        first = _run(variant.stage1, runs, variant, console, progress)
    return _run(_second(variant, first), runs, variant, console, progress)


def _digest(c: Config, runs: Path) -> str:
    content = c.to_dict()
    # Runs are known by their names, so that `runs` may be moved.
    for component, path in content["init_from"].items():
        if path and Path(path).parent == runs:
            content["init_from"][component] = Path(path).name
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _workdir(c: Config, runs: Path, label: str, digest: str) -> Path:
    """Where a training is, or will be."""
    trained = sorted(runs.glob(f"*-stage{c.stage}-{digest}"))
    return trained[0] if trained else runs / f"{label}-stage{c.stage}-{digest}"


def _is_whole(workdir: Path, steps: int) -> bool:
    return (workdir / "checkpoints" / str(steps)).is_dir()


def _run(c: Config, runs: Path, variant: Variant, console: Console, progress: Progress) -> Path:
    workdir = _workdir(c, runs, variant.label, _digest(c, runs))
    if _is_whole(workdir, c.total_steps):
        log.info("%s: stage %d is trained: %s", variant.label, c.stage, workdir)
        return workdir
    resumes = workdir.exists()
    log.info("%s: %s, stage %d in %s", variant.label, progress.next(c), c.stage, workdir)
    begun = time.monotonic()
    if code := train(c, workdir, resume=True, console=console):
        raise SystemExit(code)  # told to stop: nothing may start from what is half trained
    if not resumes:
        progress.seconds[c.stage] = (time.monotonic() - begun) / c.total_steps
    return workdir


def _exported(run: Path, folder: Path, results: Path) -> Path:
    """A released folder of a run; `from` in it says of which, so that it is renewed.

    What a model before it composed goes with it.
    """
    mark = folder / "from"
    # The same configuration may have been trained anew: Orbax's notes have the time of saving.
    newest = max((run / "checkpoints").glob("[0-9]*"), key=lambda step: int(step.name))
    source = f"{run.name} {file_hash(newest / '_CHECKPOINT_METADATA')}"
    if not mark.is_file() or mark.read_text() != source:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(results, ignore_errors=True)
        licences = initialize.load_licences(str(run))
        trained, params = checkpoint.load_params(run)
        release.save(folder, trained.released(), params, licences)
        with atomic_file(mark) as file:
            file.write_text(source)
    return folder


def _steps(variant: Variant) -> str:
    first = variant.stage1.total_steps if variant.stage1 is not None else 0
    return f"{first} + {variant.stage2.total_steps}"


def _table(suite: list[Variant], baselines: list[str], summary: dict, steps: dict[str, str]) -> str:
    """Markdown: a row a variant; over several trainings the mean and spread of their means."""
    columns = [c for c in summary["measures"] if c in COLUMNS or c.endswith(OF_ENCODER)]
    repeated = any(v.seed for v in suite)
    rows = []
    for name in dict.fromkeys(v.name for v in suite):
        labels = [v.label for v in suite if v.name == name]
        rows.append([name, steps[labels[0]], *_cells(labels, columns, summary, repeated)])
    for name in baselines:
        rows.append([name, "-", *_cells([name], columns, summary, repeated)])
    measures, test_set = summary["measures"], summary["manifest"]
    heads = [c + report.ARROWS[measures[c]["better"]] for c in columns]
    spread = "the standard error over objects"
    if repeated:
        spread = f"the standard deviation between trainings; {spread} is in summary.json"
    lines = [
        f"Made by `{summary['command']}`.",
        "",
        f"| variant | steps | {' | '.join(heads)} |",
        f"|---|---|{'---:|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"{test_set['entries']} entries of {test_set['objects']} objects. Means over pictures; ± is"
        f" {spread}.",
        "",
        *(
            f"- `{c}` ({measures[c]['hash']}): {measures[c]['about']}"
            + (
                f"; stands in for {stand_in}"
                if (stand_in := measures[c].get("stand_in_for"))
                else ""
            )
            for c in columns
        ),
        "",
        "Not computed: "
        + "; ".join(f"{name} ({why})" for name, why in summary["not_computed"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _cells(labels: list[str], columns: list[str], summary: dict, repeated: bool) -> list[str]:
    """Each measure's mean over the trainings of a variant, with the error that the table has."""
    cells = []
    for column in columns:
        values = [summary["methods"][label].get(column, {"mean": None}) for label in labels]
        means = [one["mean"] for one in values if one["mean"] is not None]
        error = None if repeated else values[0].get("standard_error")
        if len(means) > 1:
            error = float(np.std(means, ddof=1))
        cells.append(report.cell(float(np.mean(means)) if means else None, error))
    return cells
