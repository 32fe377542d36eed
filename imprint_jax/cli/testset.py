"""`imprint testset`: the sets that methods are measured on, as manifests."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imprint_jax.cli.terminal import App, note, parse_numbers, track
from imprint_jax.errors import InputError

app = App(help="Write test sets, as manifests.", no_args_is_help=True)

Num = Annotated[int, typer.Option(help="Pictures to make of each entry, by seed.", min=1)]
Limit = Annotated[int | None, typer.Option(help="Entries at most, evenly spread.", min=1)]
Level = Annotated[int, typer.Option(help="The hole's precision: 0 outline, 3 box.", min=0, max=3)]
Split = Annotated[str, typer.Option(help="train, validation or test.")]


@app.command()
def dreambooth(
    objects: Annotated[Path, typer.Argument(help="google/dreambooth's folder dataset/.")],
    backgrounds: Annotated[Path, typer.Argument(help="Folder of the backgrounds.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    pairs: Annotated[
        Path | None, typer.Option(help="CSV: object,background,x0,y0,x1,y1 (default: our 113).")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="With --pairs: the objects' masks.")] = None,
    segment: Annotated[Path | None, typer.Option(help="With --pairs: ONNX, finds objects.")] = None,
    num: Num = 1,
) -> None:
    """Objects of the DreamBooth set in several backgrounds (docs/benchmark.md)."""
    from imprint_jax.data.segment import Segmenter
    from imprint_jax.evaluation import test_sets

    if pairs is None and (masks or segment):
        raise InputError("--masks and --segment go with --pairs: our list has its masks.")
    own: dict[str, Any] = {}
    if pairs is not None:
        segmenter = Segmenter(segment) if segment else None
        own = dict(pairs=pairs, masks=masks, segmenter=segmenter)
    written = test_sets.dreambooth(objects, backgrounds, out, num=num, track=track, **own)
    note(f"wrote {out / 'manifest.jsonl'}: {written} entries")


@app.command()
def perturbed(
    records: Annotated[Path, typer.Argument(help="A prepared set of photos with masks.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    split: Split = "test",
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides the perturbations.", min=0)] = 0,
) -> None:
    """Photos whose object is perturbed and to be put back; the photo is the truth."""
    from imprint_jax.config.fields import DataConfig
    from imprint_jax.data.records import RecordSource
    from imprint_jax.evaluation import test_sets

    source = RecordSource(records, split)
    how: dict[str, Any] = dict(num=num, limit=limit, mask_level=mask_level, seed=seed, track=track)
    written = test_sets.perturbed(DataConfig(), source, out, **how)
    note(f"wrote {out / 'manifest.jsonl'}: {written} entries")


@app.command()
def pasted(
    records: Annotated[Path, typer.Argument(help="A prepared set of views of objects.")],
    backgrounds: Annotated[Path, typer.Argument(help="A prepared set of photos.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    config: Annotated[str, typer.Option(help="The recipe whose data settings count.")] = "stage2",
    split: Split = "test",
    size: Annotated[int, typer.Option(help="Side of the photos, pixels.", min=32)] = 512,
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides pairs, places and perturbations.", min=0)] = 0,
) -> None:
    """Views of objects pasted into photos; another view is given, the pasted one is the truth."""
    from imprint_jax import config as configs
    from imprint_jax.data.records import RecordSource
    from imprint_jax.evaluation import test_sets

    settings = configs.Config.of(configs.load(config))
    how: dict[str, Any] = dict(
        size=size, num=num, limit=limit, mask_level=mask_level, seed=seed, track=track
    )
    views, photos = RecordSource(records, split), RecordSource(backgrounds, split)
    written = test_sets.pasted(settings.data, views, photos, out, **how)
    note(f"wrote {out / 'manifest.jsonl'}: {written} entries")


@app.command()
def video(
    records: Annotated[Path, typer.Argument(help="A prepared set of videos with masks.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    split: Split = "test",
    apart: Annotated[int, typer.Option(help="Frames between the two, at least.", min=1)] = 1,
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides which frames.", min=0)] = 0,
) -> None:
    """The object of one frame into another frame of the same video, which is the truth."""
    from imprint_jax.config.fields import DataConfig
    from imprint_jax.data.records import RecordSource
    from imprint_jax.evaluation import test_sets

    how: dict[str, Any] = dict(
        apart=apart, num=num, limit=limit, mask_level=mask_level, seed=seed, track=track
    )
    source = RecordSource(records, split)
    written = test_sets.video(DataConfig(), source, out, **how)
    note(f"wrote {out / 'manifest.jsonl'}: {written} entries")


@app.command()
def rendered(
    views: Annotated[Path, typer.Argument(help="What `imprint data render MODELS` wrote.")],
    scenes: Annotated[Path, typer.Argument(help="The same with --scenes, of the same models.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with manifest.jsonl.")],
    apart: Annotated[str, typer.Option(help="MIN,MAX degrees from view to scene.")] = "0,180",
    num: Num = 1,
    limit: Limit = None,
    mask_level: Level = 0,
    seed: Annotated[int, typer.Option(help="Decides which views.", min=0)] = 0,
) -> None:
    """Views of objects, and rendered scenes with and without them; the former is the truth."""
    from imprint_jax.config.fields import DataConfig
    from imprint_jax.evaluation import test_sets

    least, most = parse_numbers("--apart", apart, 2)
    how: dict[str, Any] = dict(num=num, limit=limit, mask_level=mask_level, seed=seed, track=track)
    written = test_sets.rendered(DataConfig(), views, scenes, out, apart=(least, most), **how)
    note(f"wrote {out / 'manifest.jsonl'}: {written} entries")
