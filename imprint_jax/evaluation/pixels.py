"""Measures that need no network, from result, background, hole and truth (background.py, seam.py).

`Pixels`     what happened around the hole and to its shape; PSNR and SSIM to the truth
`Diversity`  how far the pictures of one entry are apart
"""

import importlib.util
import math
from collections.abc import Iterable, Iterator

import numpy as np

from imprint_jax import geometry, images
from imprint_jax.composing.manifest import Entry
from imprint_jax.data.preparation.filters import Reject
from imprint_jax.data.segment import Segmenter
from imprint_jax.evaluation import background, perceptual
from imprint_jax.evaluation.batched import key_of
from imprint_jax.evaluation.measures import (
    Column,
    Scores,
    Shot,
    Store,
    holes,
    mean_distances,
    read_result,
    siblings,
)
from imprint_jax.evaluation.seam import WIDTH, seam_strength
from imprint_jax.weights.tensors import file_hash

# Around the hole's box a salient object is looked for in a square this many times as wide. Ours.
SEARCH = 1.5
# Columns that compare with the truth.
WITH_TARGET = ("psnr", "ssim", "seam_error")
_RIM, _RING = {"rim": background.RIM}, {"width": WIDTH}
COLUMNS = {
    "kept": Column("higher", "share of pixels outside hole and rim that are the photo's", _RIM),
    "drift": Column("lower", "mean difference from the photo there, grey levels", _RIM),
    "seam": Column("", "steepest ring of pixels along the hole's border over the median", _RING),
    "seam_error": Column("lower", "how far `seam` is from the target's", _RING),
    "changed": Column(
        "higher",
        "overlap (IoU) of what changed with the hole",
        {"threshold": background.CHANGED},
        "adherence",
    ),
    "copy": Column(
        "",
        "correlation of the detail of what is in the hole with the object's pasted as it is",
        {
            "size": background.POSE_SIZE,
            "shifts": background.SHIFTS,
            "detail": background.DETAIL,
            "flat": background.FLAT,
        },
    ),
    "copied": Column(
        "lower",
        "share of copies where the mask's shape asks for another pose",
        {
            "copy": background.COPY,
            "same_pose": background.SAME_POSE,
            "outline": "the object's, at the mask level 0 to 2 that fits best",
        },
    ),
    "psnr": Column("higher", "PSNR of the hole's box to the target's, dB", {"crop": "box"}),
    "ssim": Column(
        "higher",
        "SSIM of the hole's box to the target's",
        {"crop": "box", "library": "scikit-image", "window": "Gaussian, sigma 1.5"},
    ),
}


class Pixels:
    """What happened around the hole, and to the hole's shape.

    Args:
        segmenter: Finds the object in a result; None: its column is not computed.
    """

    def __init__(self, segmenter: Segmenter | None = None):
        self.segmenter = segmenter
        self.columns, self.not_computed = dict(COLUMNS), {}
        if segmenter:
            self.columns["adherence"] = Column(
                "higher",
                "overlap (IoU) of the object found in the result with the hole",
                {"network": file_hash(segmenter.path)[:16], "search": SEARCH},
            )
        else:
            self.not_computed["adherence"] = "needs --segment; `changed` stands in"
        if importlib.util.find_spec("skimage") is None:
            del self.columns["ssim"]
            self.not_computed["ssim"] = 'needs scikit-image: pip install "imprint_jax[metrics]"'
        self.settings = {name: column.settings for name, column in self.columns.items()}

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """As `measures.Measure`."""
        columns = self._columns(any(entry.target for entry in entries))
        return [name for name, column in columns.items() if column.better]

    def compute(self, shots: list[Shot], store: Store) -> Scores:
        """As `measures.Measure`."""
        has_target = any(shot.entry.target for shot in shots)
        columns, not_computed = self._columns(has_target), dict(self.not_computed)
        if not has_target:
            not_computed |= dict.fromkeys(WITH_TARGET, "the manifest names no target")

        def compute(items: Iterable[tuple[Shot]]) -> Iterator[np.ndarray]:
            for (shot,) in items:
                values = pixel_scores(shot, self.segmenter, "ssim" in columns)
                yield np.array([values.get(name, math.nan) for name in columns])

        settings = {name: column.settings for name, column in columns.items()}
        keys = [store.key(shot, settings) for shot in shots]
        items = {k: (lambda shot=shot: (shot,)) for k, shot in zip(keys, shots, strict=True)}
        values = store.values(items, compute, "pixels")
        rows = [dict(zip(columns, values[key].tolist(), strict=True)) for key in keys]
        return Scores(rows, columns, not_computed=not_computed)

    def _columns(self, has_target: bool) -> dict[str, Column]:
        return {k: x for k, x in self.columns.items() if has_target or k not in WITH_TARGET}


def pixel_scores(shot: Shot, segmenter: Segmenter | None, with_ssim: bool) -> dict[str, float]:
    """The values of `Pixels` for one picture; a column that does not apply has none."""
    request = shot.entry.request()
    result = read_result(shot.path, request)
    hole = holes(request)
    kept, drift = background.preserved(result, request.photo, hole)
    values = {"kept": kept, "drift": drift}
    if not hole.all():
        values["seam"] = seam_strength(result, hole)
    values["changed"] = background.changed_overlap(result, request.photo, hole)
    poses = [
        background.pose(result, part.hole, *view, request.mask_sigmas)
        for part in request.parts
        for view in part.views
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
        if with_ssim and min(target.shape[:2]) >= 11:  # SSIM's window
            values["ssim"] = perceptual.ssim(result[y0:y1, x0:x1], target)
    return values


def _adherence(segmenter: Segmenter, result: np.ndarray, hole: np.ndarray) -> float:
    crop = geometry.context_crop(hole, SEARCH)
    rows = np.clip(np.arange(crop.y0, crop.y0 + crop.side), 0, hole.shape[0] - 1)
    columns = np.clip(np.arange(crop.x0, crop.x0 + crop.side), 0, hole.shape[1] - 1)
    window = np.ix_(rows, columns)
    try:
        mask = segmenter(result[window]) >= images.MASK_THRESHOLD
    except Reject:
        return 0.0
    return background.overlap(mask, hole[window])


class Diversity:
    """How far the pictures of an entry are apart, in grey levels."""

    def __init__(self) -> None:
        self.settings = {"difference": "root mean square over the hole, grey levels"}

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """As `measures.Measure`."""
        return []

    def compute(self, shots: list[Shot], store: Store) -> Scores:
        """As `measures.Measure`."""
        scores = Scores([{} for _ in shots])
        pairs = siblings(shots)
        if not pairs:
            scores.not_computed["diversity"] = "no entry has more than one picture"
            return scores

        def difference(i: int, j: int) -> float:
            request = shots[i].entry.request()
            hole, paths = holes(request), (shots[i].path, shots[j].path)
            one, other = (read_result(path, request).astype(np.float32)[hole] for path in paths)
            return float(np.sqrt(np.mean((one - other) ** 2)))

        keys = {pair: key_of(*(store.key(shots[k], self.settings) for k in pair)) for pair in pairs}
        compute = lambda items: (np.array(difference(*pair)) for pair in items)
        items = {key: (lambda pair=pair: pair) for pair, key in keys.items()}
        values = store.values(items, compute, "diversity")
        distances = mean_distances({pair: float(values[key]) for pair, key in keys.items()})
        for i, distance in distances.items():
            scores.rows[i]["diversity"] = distance
        about = "mean difference from the other pictures of the entry in the hole, grey levels"
        scores.columns["diversity"] = Column("", about, self.settings, "diversity_lpips")
        return scores
