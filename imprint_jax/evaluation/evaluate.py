"""`imprint evaluate`: the results of one or more methods on a manifest, measured and shown.

manifest, folders of results, measures (measures.py) -> rows of scores -> report.py
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint_jax import images
from imprint_jax.composing import job
from imprint_jax.composing.compositor import Compositor
from imprint_jax.composing.manifest import Entry, ObjectEntry
from imprint_jax.composing.settings import Settings
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.evaluation import (
    distribution,
    dreamsim,
    encoders,
    inception,
    keypoints,
    perceptual,
    pixels,
)
from imprint_jax.evaluation.baselines import BASELINES
from imprint_jax.evaluation.batched import Cache, key_of
from imprint_jax.evaluation.identity import Identity
from imprint_jax.evaluation.measures import Measure, Missing, Scores, Shot, Store, read_result
from imprint_jax.runtime.files import atomic_file
from imprint_jax.weights import release
from imprint_jax.weights.tensors import file_hash

# The fields of `Request` that decide the holes, as results say them.
HOLES = ("mask_level", "scribble", "invert_mask", "mask_sigmas")
# The name of the targets among the baselines.
TRUTH = "truth"


def load_measures(
    *,
    clip: Path | None = None,
    dino: Path | None = None,
    encoder: str | Path | None = "mini",
    lpips: Path | None = None,
    dreamsim_files: Path | None = None,
    keypoints_file: Path | None = None,
    inception_file: Path | None = None,
    backbone: str | Path | None = None,
    segmenter: Segmenter | None = None,
    reference: Path | None = None,
) -> list[Measure]:
    """The measures that there are weights for, and what is missing; call it before any long work.

    Args:
        clip: CLIP's vision tower, see encoders.py.
        dino: DINOv2, or DINO.
        encoder: A model that ships, a released model or a run; its encoder measures identity.
        lpips: See `perceptual.load_lpips`; its backbone measures identity, too.
        dreamsim_files: See `dreamsim.load`.
        keypoints_file: XFeat, see `keypoints.load`.
        inception_file: See `inception.load`.
        backbone: Another encoder for FID and KID.
        segmenter: Finds objects in results.
        reference: Folder of photographs for FID and KID; None: the entries' targets.

    Raises:
        InputError: Weights are missing, damaged, or of another kind; or `reference` is no folder.
    """
    photos = photographs(reference) if reference else None
    measures: list[Measure] = [pixels.Pixels(segmenter)]
    measures += _score_variants("clip", "CLIP", ("clip",), clip)
    measures += _score_variants("dino", "DINO", ("dinov2", "dino"), dino)
    if dreamsim_files:
        about = "DreamSim of the hole's box and the object: 1 - cos of its embeddings"
        judge = dreamsim.load(dreamsim_files)
        measures.append(Identity("dreamsim", judge, "box", about, distance=True))
    else:
        measures.append(Missing(("dreamsim",), "needs weights: --dreamsim"))
    if lpips:
        about = "100 cos of an ImageNet classifier's features of what is in the hole and the object"
        measures.append(perceptual.LpipsMeasure(perceptual.load_lpips(lpips)))
        judge = _judge("--lpips", lpips, ("imagenet",))
        measures.append(Identity("imagenet", judge, "cut", about, stand_in="DINO-score"))
    else:
        names = ("imagenet", "lpips", "diversity_lpips")
        measures.append(Missing(names, "needs weights: --lpips"))
    if encoder is not None:
        about = "100 cos of this model's own mean tokens of what is in the hole and the object"
        judge = _judge("--encoder", encoder, ("imprint",))
        name = f"{Path(encoder).name}_encoder"
        measures.append(Identity(name, judge, "cut", about, stand_in="CLIP-score, DINO-score"))
    if keypoints_file:
        measures.append(keypoints.Keypoints(keypoints.load(keypoints_file)))
    else:
        measures.append(Missing(("keypoints",), "needs weights: --keypoints"))
    measures.append(pixels.Diversity())
    if inception_file:
        measures += distribution.literature(inception.load(inception_file), photos)
    else:
        measures.append(Missing(("fid", "kid"), "needs weights: --inception"))
    if backbone:
        measures.append(distribution.with_encoder(encoders.load(backbone), photos))
    return measures


def _score_variants(
    name: str, title: str, kinds: tuple[str, ...], path: Path | None
) -> list[Measure]:
    """CLIP-score or DINO-score, cropped as we do and as the papers of this protocol do."""
    if path is None:
        return [Missing((name,), f"needs weights: --{name}")]
    judge = _judge(f"--{name}", path, kinds)
    about = f"{title}-score: 100 cos of embeddings of "
    crops = {
        "": ("box", "the hole's box and the object's box on grey"),
        "_region": ("region", "the hole's box and the object's whole picture (Paint-by-Example)"),
        "_whole": ("whole", "both whole pictures, their centres (DreamBooth)"),
    }
    return [
        Identity(f"{name}{suffix}", judge, crop, about + text, retrieval=not suffix)
        for suffix, (crop, text) in crops.items()
    ]


def _judge(option: str, path: str | Path, kinds: tuple[str, ...]) -> encoders.Encoder:
    judge = encoders.load(path)
    if judge.name not in kinds:
        raise InputError(f"{option} {path} holds {judge.name}, not {' or '.join(kinds)}.")
    return judge


def sortable(entries: list[Entry], measures: list[Measure]) -> list[str]:
    """The columns by which pictures of these entries can be sorted, worst first."""
    return [name for measure in measures for name in measure.sortable(entries)]


@dataclass(eq=False)
class Evaluation(Scores):
    """Scores, and whose they are.

    Attributes:
        shots: The pictures, one for each row, by method, in the manifest's order.
    """

    shots: list[Shot] = field(default_factory=list)


def with_cut_outs(entries: Iterable[Entry], segmenter: Segmenter, folder: Path) -> list[Entry]:
    """The entries; objects with neither masks nor transparency are cut out, as `compose` does it.

    Args:
        entries: The manifest's.
        segmenter: Finds the objects.
        folder: Where the cut-outs are written, named by what they are of; made.

    Raises:
        InputError: A picture cannot be read, or no object is found in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = file_hash(segmenter.path)

    @functools.cache
    def cut_out(view: Path) -> Path:
        path = folder / f"{key_of(network, file_hash(view))}.png"
        if path.is_file():
            return path
        picture = images.read_image(view)
        if images.has_cut_out(picture):
            return view
        with atomic_file(path) as file:
            file.write_bytes(images.encode_png(segmenter.cut_out(picture, str(view))))
        return path

    def masked(one: ObjectEntry) -> ObjectEntry:
        return one if one.view_masks else replace(one, views=tuple(map(cut_out, one.views)))

    return [replace(entry, objects=tuple(map(masked, entry.objects))) for entry in entries]


def compose_results(
    model: str | Path, entries: list[Entry], out: Path, settings: Settings, track: Callable
) -> None:
    """Composes what is not in `out` yet, by a model.

    Args:
        model: A shipped model or released folder.
        entries: The manifest's.
        out: Folder of results; made.
        settings: How to sample.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Raises:
        InputError: No such model, other pictures in `out`, or an entry that cannot be composed.
    """
    folder = release.model_folder(model)
    config = release.load_config(folder)
    filled = settings.filled(config)
    # A model that knows boxes only gets every hole as one; others take the entries' own levels.
    shape: dict[str, Any] = {"mask_level": level} if (level := config.sampling.mask_level) else {}
    how = job.provenance(folder, config, filled, shape, np.float32)
    todo = job.unfinished(entries, out, how)
    if not todo:
        return
    compositor = Compositor.from_pretrained(folder)
    jobs = job.compose_entries(compositor, todo, out, filled, how, **shape)
    for entry, error in track(jobs, f"composing with {folder.name}", len(todo)):
        if error:
            raise InputError(f"{entry.id} cannot be composed: {error}")


def baseline_results(baseline: str, entries: list[Entry], out: Path, track: Callable) -> None:
    """Makes pictures without a model, as often as each entry wants pictures.

    Pictures that are there are made anew: it takes less time than to see whether they still fit.

    Args:
        baseline: "paste", "color", "poisson" (baselines.py), or "truth": the entries' own targets,
            which say what a measure makes of perfect pictures.
        entries: The manifest's.
        out: Folder of results; made.
        track: As in `compose_results`.

    Raises:
        InputError: No such baseline, an entry cannot be read or, for "truth", has no target.
    """
    names = (*BASELINES, TRUTH)
    if baseline not in names:
        raise InputError(f"There is no baseline {baseline!r}; known are {', '.join(names)}.")
    lacking = [entry.id for entry in entries if baseline == TRUTH and not entry.target]
    if lacking:
        raise InputError(
            f"--baseline {TRUTH} needs a target in every entry; {lacking[0]} has none."
        )
    out.mkdir(parents=True, exist_ok=True)
    for entry in track(entries, baseline, len(entries)):
        request = entry.request()
        if baseline == TRUTH:
            picture = read_result(entry.target, request)
        else:
            picture = request.photo
            for part in request.parts:
                view, mask = part.views[0]
                picture = BASELINES[baseline](picture, view, mask, part.hole)
        for name in entry.names():
            with atomic_file(out / name) as file:
                file.write_bytes(images.encode_png(picture))


def find_shots(entries: Iterable[Entry], results: dict[str, Path]) -> list[Shot]:
    """The pictures of every method.

    Args:
        entries: The manifest's.
        results: {method: folder}.

    Raises:
        InputError: Pictures are missing; methods are compared on the same pictures only.
    """
    shots = [
        Shot(method, entry, number, folder / name)
        for method, folder in results.items()
        for entry in _with_holes_of(folder, entries)
        for number, name in enumerate(entry.names())
    ]
    for method, folder in results.items():
        lacking = [s.path for s in shots if s.method == method and not s.path.is_file()]
        if lacking:
            raise InputError(
                f"{folder} lacks {len(lacking)} pictures of the manifest, the first is"
                f" {lacking[0].name}: compose them, or leave these entries out."
            )
    return shots


def _with_holes_of(folder: Path, entries: Iterable[Entry]) -> list[Entry]:
    """The entries with the holes into which a folder's pictures were composed."""
    recorded = job.recorded(folder)
    how = recorded | recorded.get("settings", {})
    shape = {name: how[name] for name in HOLES if how.get(name) is not None}
    return [replace(entry, read_as=entry.read_as | shape) for entry in entries]


def evaluate(
    entries: list[Entry],
    results: dict[str, Path],
    measures: list[Measure],
    cache: Path,
    *,
    track: Callable,
) -> Evaluation:
    """Computes all measures of all pictures.

    Args:
        entries: The manifest's.
        results: {method: folder of pictures, named as `Entry.names` says}.
        measures: From `load_measures`.
        cache: Folder of the values that are known, see `measures.Store`.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Raises:
        InputError: Pictures are missing or cannot be read.
    """
    shots = find_shots(entries, results)
    evaluation = Evaluation([{} for _ in shots], sets={name: {} for name in results}, shots=shots)
    store = Store(Cache(cache), track)
    for measure in measures:
        evaluation.add(measure.compute(shots, store))
    return evaluation


def photographs(folder: Path) -> list[Path]:
    """The pictures of a folder, in order.

    Raises:
        InputError: It is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"--reference {folder} is no folder.")
    extensions = Image.registered_extensions()
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in extensions)
