"""`imprint evaluate`: the results of one or more methods on a manifest, measured and shown.

    manifest, folders of results, weights -> rows of scores -> report.py

Every score of a picture is kept in OUT/cache under a key that changes with the files it was
computed from and with the measure's settings, so that a run that was stopped goes on, and a second
one measures only what is new.
"""

import functools
import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from imprint_jax import geometry, images
from imprint_jax.composing import job
from imprint_jax.composing.compositor import Compositor, Settings
from imprint_jax.composing.manifest import Entry
from imprint_jax.composing.request import Request
from imprint_jax.data.preparation.filters import Reject
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.evaluation import background, distribution, encoders, identity, perceptual
from imprint_jax.evaluation.baselines import BASELINES
from imprint_jax.evaluation.batched import Cache, cached, key_of, settings_hash
from imprint_jax.evaluation.seam import WIDTH, seam_strength
from imprint_jax.runtime.files import atomic_file
from imprint_jax.weights import release
from imprint_jax.weights.tensors import file_hash

# Encoders that identity is measured by: their kind, crop rule, and what is reported.
IDENTITY = {
    "clip": (
        "clip",
        "box",
        "CLIP-score: 100 cos of CLIP's embeddings of the hole's box and the object",
    ),
    "dino": (
        "dinov2",
        "box",
        "DINO-score: 100 cos of DINOv2's class tokens of the hole's box and the object",
    ),
    "imagenet": (
        "imagenet",
        "cut",
        "100 cos of an ImageNet classifier's features of what is in the hole and the object",
    ),
    "ours": (
        "imprint",
        "cut",
        "100 cos of our encoder's mean tokens of what is in the hole and the object",
    ),
}
# The options that weights come from, for messages.
OPTIONS = {"clip": "--clip", "dino": "--dino", "imagenet": "--lpips", "ours": "--encoder"}
# What some stand in for.
STAND_INS = {"imagenet": "DINO-score", "ours": "CLIP-score, DINO-score"}
# The name of the targets among the baselines.
TRUTH = "truth"
# Around the hole's box a salient object is looked for in a square this many times as wide. Ours.
SEARCH = 1.5


@dataclass(frozen=True)
class Measure:
    """A column of the report.

    Attributes:
        better: "higher", "lower", or "" where neither is better.
        about: What it says, one line.
        settings: All that its values depend on beside the pictures; for JSON.
        stand_in: What it stands in for, if it does.
    """

    better: str
    about: str
    settings: dict = field(default_factory=dict)
    stand_in: str = ""


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks that measure; a measure whose network is None is not computed.

    Attributes:
        judges: Encoders by their names in `IDENTITY`.
        lpips: LPIPS.
        backbone: The encoder for FID and KID.
        segmenter: Finds objects.
    """

    judges: dict[str, encoders.Encoder]
    lpips: perceptual.Lpips | None
    backbone: encoders.Encoder | None
    segmenter: Segmenter | None


def load_networks(
    *,
    clip: Path | None = None,
    dino: Path | None = None,
    ours: str | Path | None = "mini",
    lpips: Path | None = None,
    backbone: Path | None = None,
    segment: Path | None = None,
) -> Networks:
    """Loads what there are weights of; call it before any long work.

    Args:
        clip: CLIP's vision tower, see encoders.py.
        dino: DINOv2.
        ours: A model that ships, a released model or a run; its encoder measures identity.
        lpips: See `perceptual.load_lpips`; its backbone measures identity, too.
        backbone: An encoder for FID and KID.
        segment: ONNX weights that find objects, see data/segment.py.

    Raises:
        InputError: Weights are missing, damaged, or of another kind.
    """
    distance = perceptual.load_lpips(lpips) if lpips else None
    judges = {}
    given = (("clip", clip), ("dino", dino), ("imagenet", lpips), ("ours", ours))
    for name, path in given:
        if path is not None:
            judges[name], kind = encoders.load(path), IDENTITY[name][0]
            if judges[name].name != kind:
                raise InputError(f"{OPTIONS[name]} {path} holds {judges[name].name}, not {kind}.")
    return Networks(
        judges,
        distance,
        encoders.load(backbone) if backbone else None,
        Segmenter(segment) if segment else None,
    )


def sortable(entries: list[Entry], networks: Networks) -> list[str]:
    """The measures by which pictures of these entries can be sorted, worst first."""
    names = ["kept", "drift", "changed", "copied"]
    names += ["adherence"] if networks.segmenter else []
    if any(entry.target for entry in entries):
        names += ["seam_error", "psnr", *(["ssim"] if _has_skimage() else [])]
        names += ["lpips"] if networks.lpips else []
    return names + [name for judge in networks.judges for name in (judge, f"{judge}_top1")]


def _has_skimage() -> bool:
    return importlib.util.find_spec("skimage") is not None


@dataclass(frozen=True)
class Shot:
    """One picture of a method: the `number`th of an entry."""

    method: str
    entry: Entry
    number: int
    path: Path


@dataclass(eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        shots: The pictures, by method, in the manifest's order.
        rows: One {measure: value} for each of `shots`; nan where a measure does not apply.
        sets: {method: {measure: value}} of measures that a whole set has.
        measures: {name: `Measure`} of all of them.
        not_computed: {name: why}.
    """

    shots: list[Shot]
    rows: list[dict[str, float]]
    sets: dict[str, dict[str, float]]
    measures: dict[str, Measure]
    not_computed: dict[str, str]


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
    shape = {"mask_level": level} if (level := config.sampling.mask_level) else {}
    how = job.provenance(folder, filled, shape, np.float32)
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
        baseline: "paste", "poisson", or "truth": the entries' own targets, which say what a measure
            makes of perfect pictures.
        entries: The manifest's.
        out: Folder of results; made.
        track: As in `compose_results`.

    Raises:
        InputError: No such baseline, an entry cannot be read or, for "truth", has no target.
    """
    known = (*BASELINES, TRUTH)
    if baseline not in known:
        raise InputError(f"There is no baseline {baseline!r}; known are {', '.join(known)}.")
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
                picture = BASELINES[baseline](picture, *part.views[0], part.hole)
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
        for entry in entries
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


def evaluate(
    entries: list[Entry],
    results: dict[str, Path],
    networks: Networks,
    cache: Path,
    *,
    reference: Path | None = None,
    track: Callable,
) -> Evaluation:
    """Measures everything that can be.

    Args:
        entries: The manifest's.
        results: {method: folder of pictures, named as `Entry.names` says}.
        networks: From `load_networks`.
        cache: Folder of the scores that are known, see the module.
        reference: Folder of photographs for FID and KID; None: the entries' targets.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Raises:
        InputError: Pictures are missing or cannot be read.
    """
    run = _Run(find_shots(entries, results), Cache(cache), track)
    run.plain(networks.segmenter)
    for name, option in OPTIONS.items():
        if name in networks.judges:
            run.identity(name, networks.judges[name])
        else:
            run.not_computed[name] = f"needs weights: {option}"
    run.lpips(networks.lpips)
    run.diversity()
    photos = photographs(reference) if reference else [e.target for e in entries if e.target]
    run.distribution(networks.backbone, photos)
    run.not_computed["dreamsim"] = "not implemented here: it is a mix of three networks"
    return Evaluation(run.shots, run.rows, run.sets, run.measures, run.not_computed)


class _Run:
    """One evaluation in the making; each method adds measures to `rows`."""

    def __init__(self, shots: list[Shot], cache: Cache, track: Callable):
        self.shots, self.cache, self.track = shots, cache, track
        self.rows: list[dict[str, float]] = [{} for _ in shots]
        self.sets: dict[str, dict[str, float]] = {shot.method: {} for shot in shots}
        self.measures: dict[str, Measure] = {}
        self.not_computed: dict[str, str] = {}
        self.hash_of = functools.cache(file_hash)

    def inputs_hash(self, entry: Entry) -> str:
        """Changes when anything that an entry names does."""
        boxes = [one.box for one in entry.objects]
        return key_of(*map(self.hash_of, entry.files()), f"{boxes} {entry.mask_level}")

    def key(self, shot: Shot, settings: dict) -> str:
        """Of a score of a picture."""
        return key_of(
            self.hash_of(shot.path), self.inputs_hash(shot.entry), settings_hash(settings)
        )

    def results(self, wanted: dict, function: Callable, about: str) -> dict[str, np.ndarray]:
        """`cached`, with a progress bar over what is wanted."""
        bar = iter(self.track(range(len(wanted)), about, len(wanted)))
        found = cached(self.cache, function, wanted, lambda _: next(bar))
        next(bar, None)  # closes it
        return found

    def plain(self, segmenter: Segmenter | None) -> None:
        """What needs no network."""
        has_skimage = _has_skimage()
        measures = _plain_measures()
        if segmenter:
            digest = file_hash(segmenter.path)[:16]
            measures["adherence"] = Measure(
                "higher",
                "overlap (IoU) of the object found in the result with the hole",
                {"network": digest, "search": SEARCH},
            )
        else:
            self.not_computed["adherence"] = "needs --segment; `changed` stands in"
        if not any(shot.entry.target for shot in self.shots):
            for name in ("psnr", "ssim", "seam_error"):
                del measures[name]
                self.not_computed[name] = "the manifest names no target"
        elif not has_skimage:
            del measures["ssim"]
            self.not_computed["ssim"] = 'needs scikit-image: pip install "imprint_jax[metrics]"'
        settings = {name: measure.settings for name, measure in measures.items()}
        names = list(measures)

        def compute(items):
            for (shot,) in items:
                values = _plain(shot, segmenter, has_skimage)
                yield np.array([values.get(name, math.nan) for name in names])

        keys = [self.key(shot, settings) for shot in self.shots]
        wanted = {
            key: (lambda shot=shot: (shot,)) for key, shot in zip(keys, self.shots, strict=True)
        }
        found = self.results(wanted, compute, "pixels")
        for key, row in zip(keys, self.rows, strict=True):
            row |= dict(zip(names, found[key].tolist(), strict=True))
        self.measures |= measures

    def identity(self, name: str, encoder: encoders.Encoder) -> None:
        """Cosines with the object, and whether it is the nearest of all the manifest's objects."""
        _, crop, about = IDENTITY[name]
        settings = encoder.settings() | {"size": encoder.size, "crop": crop}
        made, asked = self._embeddings(encoder, crop, settings)
        objects = {key: i for i, key in enumerate(dict.fromkeys(asked))}
        gallery = np.stack([asked[key] for key in objects])
        same = self._same_object(objects)
        guesses = []
        for shot, row in zip(self.shots, self.rows, strict=True):
            cosines, hits = [], []
            for index, one in enumerate(shot.entry.objects):
                embedding = made[shot, index]
                views = [self._view_key(shot.entry, index, v) for v in range(len(one.views))]
                similar = identity.cosine(embedding[None], gallery)
                own = [objects[key] for key in views]
                cosines.append(100 * similar[own].mean())
                right = same.get(one.object_id, own)
                hits.append(float(int(similar.argmax()) in right))
                guesses.append(len(right) / len(objects))
            row[name], row[f"{name}_top1"] = float(np.mean(cosines)), float(np.mean(hits))
        gallery_of = {"objects": sorted(objects), "same": {k: sorted(v) for k, v in same.items()}}
        self.measures[name] = Measure("higher", about, settings, STAND_INS.get(name, ""))
        self.measures[f"{name}_top1"] = Measure(
            "higher",
            f"share whose nearest of the {len(objects)} pictures of objects shows their own object"
            f" (a guess: {np.mean(guesses):.2g})",
            settings | {"gallery": settings_hash(gallery_of)},
        )

    def _same_object(self, objects: dict[str, int]) -> dict[str, set[int]]:
        """Of each `object_id`, the numbers of its pictures."""
        same = defaultdict(set)
        for shot in self.shots:
            for index, one in enumerate(shot.entry.objects):
                if one.object_id is not None:
                    views = range(len(one.views))
                    same[one.object_id] |= {
                        objects[self._view_key(shot.entry, index, view)] for view in views
                    }
        return same

    def _view_key(self, entry: Entry, index: int, view: int) -> str:
        one = entry.objects[index]
        files = [one.views[view], *one.view_masks[view : view + 1]]
        return key_of(*map(self.hash_of, files))

    def _embeddings(self, encoder: encoders.Encoder, crop: str, settings: dict):
        """Of what is in each hole of each shot, and of each distinct view of an object."""
        wanted, place, asked = {}, {}, {}
        for shot in self.shots:
            for index, one in enumerate(shot.entry.objects):
                key = key_of(self.key(shot, settings), str(index))
                place[shot, index] = key
                wanted[key] = functools.partial(_result_item, shot, index, crop, encoder.size)
                for view in range(len(one.views)):
                    name = self._view_key(shot.entry, index, view)
                    key = key_of(name, settings_hash(settings))
                    asked[name] = key
                    wanted[key] = functools.partial(
                        _reference_item, shot.entry, index, view, crop, encoder.size
                    )
        found = self.results(wanted, encoder.embed, f"embedding by {encoder.about}")
        made = {where: found[key] for where, key in place.items()}
        return made, {name: found[key] for name, key in asked.items()}

    def lpips(self, network: perceptual.Lpips | None) -> None:
        """To the target, and between the pictures of an entry."""
        if network is None:
            for name in ("lpips", "diversity_lpips"):
                self.not_computed[name] = "needs weights: --lpips"
            return
        settings = {"network": network.network, "weights": network.weights}
        settings |= {"crop": "box", "size": perceptual.LPIPS_SIZE}
        with_target = [i for i, shot in enumerate(self.shots) if shot.entry.target]
        pairs = list(self._siblings())
        wanted, keys = {}, {}
        for i in with_target:
            keys[i] = key_of(self.key(self.shots[i], settings), "target")
            wanted[keys[i]] = functools.partial(
                _box_items, self.shots[i].entry, self.shots[i].path, self.shots[i].entry.target
            )
        for i, j in pairs:
            one, other = self.shots[i], self.shots[j]
            keys[i, j] = key_of(self.key(one, settings), self.key(other, settings))
            wanted[keys[i, j]] = functools.partial(_box_items, one.entry, one.path, other.path)
        found = self.results(wanted, network.distance, f"LPIPS ({network.network})")
        if with_target:
            for i in with_target:
                self.rows[i]["lpips"] = float(found[keys[i]])
            about = "LPIPS of the hole's box to the target's"
            self.measures["lpips"] = Measure("lower", about, settings)
        else:
            self.not_computed["lpips"] = "the manifest names no target"
        if pairs:
            distances = {pair: float(found[keys[pair]]) for pair in pairs}
            self._spread("diversity_lpips", distances)
            about = "mean LPIPS to the other pictures of the entry, in the hole's box"
            self.measures["diversity_lpips"] = Measure("", about, settings)
        else:
            self.not_computed["diversity_lpips"] = "no entry has more than one picture"

    def diversity(self) -> None:
        """How far the pictures of an entry are apart, in grey levels."""
        pairs = list(self._siblings())
        if not pairs:
            self.not_computed["diversity"] = "no entry has more than one picture"
            return

        def apart(i: int, j: int) -> float:
            request = self.shots[i].entry.request()
            hole, paths = _holes(request), (self.shots[i].path, self.shots[j].path)
            one, other = (read_result(path, request).astype(np.float32)[hole] for path in paths)
            return float(np.sqrt(np.mean((one - other) ** 2)))

        settings = {"difference": "root mean square over the hole, grey levels"}
        keys = {pair: key_of(*(self.key(self.shots[k], settings) for k in pair)) for pair in pairs}
        compute = lambda items: (np.array(apart(*pair)) for pair in items)
        wanted = {key: (lambda pair=pair: pair) for pair, key in keys.items()}
        found = self.results(wanted, compute, "diversity")
        self._spread("diversity", {pair: float(found[key]) for pair, key in keys.items()})
        about = "mean difference from the other pictures of the entry in the hole, grey levels"
        self.measures["diversity"] = Measure("", about, settings, "diversity_lpips")

    def _siblings(self) -> Iterable[tuple[int, int]]:
        """The pairs of shots of one entry and method."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, shot in enumerate(self.shots):
            groups.setdefault((shot.method, shot.entry.id), []).append(i)
        for group in groups.values():
            yield from ((i, j) for n, i in enumerate(group) for j in group[n + 1 :])

    def _spread(self, name: str, distances: dict[tuple[int, int], float]) -> None:
        """Each shot's mean distance to its siblings becomes a column."""
        mine: dict[int, list[float]] = {}
        for pair, distance in distances.items():
            for i in pair:
                mine.setdefault(i, []).append(distance)
        for i, values in mine.items():
            self.rows[i][name] = float(np.mean(values))

    def distribution(self, encoder: encoders.Encoder | None, photos: list[Path]) -> None:
        """FID and KID of a method's pictures to photographs."""
        reason = ""
        if encoder is None:
            reason = "needs a backbone and photographs: --backbone, --reference"
        elif len(photos) < 2:
            reason = "needs photographs: --reference, or targets in the manifest"
        elif len(self.shots) < 2 * len(self.sets):
            reason = "needs two pictures of every method"
        if reason:
            self.not_computed |= {"fid": reason, "kid": reason}
            return
        settings = encoder.settings() | {"size": encoder.size, "crop": "whole picture, squashed"}
        features = self._whole_pictures(photos, encoder, settings)
        known = key_of("statistics", *sorted(map(self.hash_of, photos)), settings_hash(settings))
        packed = self.cache.get(known)
        if packed is None:
            of_photos = distribution.statistics(features)
            self.cache.put(known, np.concatenate([of_photos.mean[None], of_photos.covariance]))
        else:
            of_photos = distribution.Statistics(packed[0], packed[1:])
        for method in self.sets:
            shots = [shot.path for shot in self.shots if shot.method == method]
            made = self._whole_pictures(shots, encoder, settings)
            self.sets[method]["fid"] = distribution.frechet_distance(
                distribution.statistics(made), of_photos
            )
            self.sets[method]["kid"] = distribution.kernel_distance(made, features)
        settings |= {"photographs": len(photos), "set": known[:12]}
        stand_in = "FID and KID with Inception's features"
        self.measures["fid"] = Measure("lower", "Frechet distance", settings, stand_in)
        self.measures["kid"] = Measure("lower", "kernel distance", settings, stand_in)

    def _whole_pictures(self, paths: list[Path], encoder, settings: dict) -> np.ndarray:
        keys = [key_of(self.hash_of(path), settings_hash(settings)) for path in paths]
        wanted = {
            key: functools.partial(_whole_item, path, encoder.size)
            for key, path in zip(keys, paths, strict=True)
        }
        found = self.results(wanted, encoder.embed, f"embedding by {encoder.about}")
        return np.stack([found[key] for key in keys])


def _plain_measures() -> dict[str, Measure]:
    rim, ring = {"rim": background.RIM}, {"width": WIDTH}
    return {
        "kept": Measure("higher", "share of pixels outside hole and rim that are the photo's", rim),
        "drift": Measure("lower", "mean difference from the photo there, grey levels", rim),
        "seam": Measure(
            "", "steepest ring of pixels along the hole's border over the median one", ring
        ),
        "seam_error": Measure("lower", "how far `seam` is from the target's", ring),
        "changed": Measure(
            "higher",
            "overlap (IoU) of what changed with the hole",
            {"threshold": background.CHANGED},
            "adherence",
        ),
        "copy": Measure(
            "",
            "correlation of the detail of what is in the hole with the object's pasted as it is",
            {
                "size": background.POSE_SIZE,
                "shifts": background.SHIFTS,
                "detail": background.DETAIL,
                "flat": background.FLAT,
            },
        ),
        "copied": Measure(
            "lower",
            "share of copies where the mask's shape asks for another pose",
            {
                "copy": background.COPY,
                "same_pose": background.SAME_POSE,
                "outline": "the object's, at the mask level 0 to 2 that fits best",
            },
        ),
        "psnr": Measure("higher", "PSNR of the hole's box to the target's, dB", {"crop": "box"}),
        "ssim": Measure(
            "higher",
            "SSIM of the hole's box to the target's",
            {"crop": "box", "library": "scikit-image", "window": "Gaussian, sigma 1.5"},
        ),
    }


def _plain(shot: Shot, segmenter: Segmenter | None, has_skimage: bool) -> dict[str, float]:
    request = shot.entry.request()
    result = read_result(shot.path, request)
    hole = _holes(request)
    kept, drift = background.preserved(result, request.photo, hole)
    values = {"kept": kept, "drift": drift}
    if not hole.all():
        values["seam"] = seam_strength(result, hole)
    values["changed"] = background.changed_overlap(result, request.photo, hole)
    poses = [
        background.pose(result, part.hole, *view) for part in request.parts for view in part.views
    ]
    # Of several views the one most like the result is the one that may have been copied.
    values["copy"], same = max(poses, key=lambda pose: -2 if math.isnan(pose[0]) else pose[0])
    x0, y0, x1, y1 = geometry.bounding_box(hole)
    is_box = hole[y0:y1, x0:x1].mean() > 0.98  # a box asks for no pose
    if same < background.SAME_POSE and not is_box and not math.isnan(values["copy"]):
        values["copied"] = float(values["copy"] >= background.COPY)
    if segmenter:
        values["adherence"] = _adherence(segmenter, result, hole)
    if shot.entry.target:
        truth = read_result(shot.entry.target, request)
        if "seam" in values:
            values["seam_error"] = abs(values["seam"] - seam_strength(truth, hole))
        target = truth[y0:y1, x0:x1]
        values["psnr"] = perceptual.psnr(result[y0:y1, x0:x1], target)
        if has_skimage and min(target.shape[:2]) >= 11:  # SSIM's window
            values["ssim"] = perceptual.ssim(result[y0:y1, x0:x1], target)
    return values


def _adherence(segmenter: Segmenter, result: np.ndarray, hole: np.ndarray) -> float:
    crop = geometry.context_crop(hole, SEARCH)
    rows = np.clip(np.arange(crop.y0, crop.y0 + crop.side), 0, hole.shape[0] - 1)
    columns = np.clip(np.arange(crop.x0, crop.x0 + crop.side), 0, hole.shape[1] - 1)
    window = np.ix_(rows, columns)
    try:
        found = segmenter(result[window]) >= images.MASK_THRESHOLD
    except Reject:
        return 0.0
    return background.overlap(found, hole[window])


def read_result(path: Path, request: Request) -> np.ndarray:
    """A result or target (h w 3) uint8, scaled to its background's size if it has another."""
    picture = images.read_image(path)[..., :3]
    height, width = request.photo.shape[:2]
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _holes(request: Request) -> np.ndarray:
    """All holes of a request in one mask."""
    return functools.reduce(np.logical_or, [part.hole for part in request.parts])


def _result_item(shot: Shot, index: int, crop: str, size: int) -> tuple[np.ndarray]:
    request = shot.entry.request()
    result = read_result(shot.path, request)
    return (identity.result_crop(result, request.parts[index].hole, crop, size),)


def _reference_item(entry: Entry, index: int, view: int, crop: str, size: int) -> tuple[np.ndarray]:
    picture = entry.request().parts[index].views[view]
    return (identity.reference_crop(*picture, crop, size),)


def _box_items(entry: Entry, *paths: Path) -> tuple[np.ndarray, ...]:
    """What several pictures show in the box around an entry's holes."""
    request = entry.request()
    hole, size = _holes(request), perceptual.LPIPS_SIZE
    return tuple(identity.box_crop(read_result(path, request), hole, size) for path in paths)


def _whole_item(path: Path, size: int) -> tuple[np.ndarray]:
    picture = Image.fromarray(images.read_image(path)[..., :3])
    return (np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)),)


def photographs(folder: Path) -> list[Path]:
    """The pictures of a folder, in order.

    Raises:
        InputError: It is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"--reference {folder} is no folder.")
    known = Image.registered_extensions()
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in known)
