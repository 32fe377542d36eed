"""Is it the same object? Pictures are cropped, embedded (see encoders.py) and compared by cosine.

Crop rules, of a result with its hole and of an object's picture with its mask:

`box`     the smallest box around the hole or mask, squashed to a square; around the object its own
          picture is kept in a result and is mid-grey in a reference (the grey is ours)
`cut`     what lies in the hole or mask on black, its shape kept, centred with a margin: what our
          encoder was trained on (`geometry.object_crop`)
`region`  Paint-by-Example's CLIP-score: the hole's box without its last row and column, squashed
          bilinearly without antialiasing; the reference whole, with its background, squashed
          (eval_tool/clip_score/test_bench_dataset.py)
`whole`   DreamBooth's CLIP-I and DINO: both pictures whole, the shorter side resized, the centre
          cut out (Ruiz et al. 2023; sizes as in CLIP's and DINO's own evaluations)
"""

import functools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from imprint_jax import geometry
from imprint_jax.composing.manifest import Entry, ObjectEntry
from imprint_jax.errors import InputError
from imprint_jax.evaluation.batched import key_of, settings_hash
from imprint_jax.evaluation.encoders import Encoder
from imprint_jax.evaluation.inception import bilinear
from imprint_jax.evaluation.measures import (
    Column,
    Scores,
    Shot,
    Store,
    box_crop,
    read_result,
    squashed,
)

CROPS = ("box", "cut", "region", "whole")
# What surrounds a reference's object in its box. Ours.
GREY = 128
# Shorter side before the centre is cut out, over the side that is cut out: 256 / 224 in DINO's and
# DINOv2's evaluations; CLIP resizes to the side itself.
RESIZED = {"clip": 1.0}
RESIZED_ELSE = 256 / 224


class Identity:
    """Is the object in the result the one that was given?

    Columns: NAME, the cosine (or distance) to the object's pictures; NAME_truth, to the truth;
    NAME_top1, whether the nearest of all the manifest's pictures of objects shows the same object.

    Args:
        name: The column's.
        encoder: What embeds.
        crop: One of `CROPS`.
        about: What is compared, for reports.
        distance: Report 1 - cosine in the place of 100 cosine.
        retrieval: Also NAME_top1.
        stand_in: What it stands in for, if it does.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        crop: str,
        about: str,
        *,
        distance: bool = False,
        retrieval: bool = True,
        stand_in: str = "",
    ):
        self.name, self.encoder, self.crop, self.about = name, encoder, crop, about
        self.distance, self.retrieval, self.stand_in = distance, retrieval, stand_in
        self.settings = encoder.settings() | {"size": encoder.size, "crop": crop}
        # The side before the centre is cut out, by the rule `whole`.
        self.short = round(encoder.size * RESIZED.get(encoder.name, RESIZED_ELSE))

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """As `measures.Measure`."""
        truth = [f"{self.name}_truth"] if any(entry.target for entry in entries) else []
        return [self.name, *truth, *([f"{self.name}_top1"] if self.retrieval else [])]

    def compute(self, shots: list[Shot], store: Store) -> Scores:
        """As `measures.Measure`."""
        results, targets, views = self._embeddings(shots, store)
        gallery = {key: i for i, key in enumerate(dict.fromkeys(views))}
        embeddings = np.stack([views[key] for key in gallery])
        same = _same_object(shots, gallery, store)
        scores, guesses = Scores([]), []
        for shot in shots:
            cosines, hits, to_truth = [], [], []
            for index, one in enumerate(shot.entry.objects):
                similar = cosine(results[shot, index][None], embeddings)
                own = [gallery[_view_key(one, v, store)] for v in range(len(one.views))]
                right = set(own) if one.object_id is None else same[one.object_id]
                cosines.append(similar[own].mean())
                hits.append(float(int(similar.argmax()) in right))
                guesses.append(len(right) / len(gallery))
                if (shot.method, shot.entry.id, index) in targets:
                    target = targets[shot.method, shot.entry.id, index]
                    to_truth.append(float(cosine(results[shot, index], target)))
            row = {self.name: self._value(cosines)}
            if to_truth:
                row[f"{self.name}_truth"] = self._value(to_truth)
            if self.retrieval:
                row[f"{self.name}_top1"] = float(np.mean(hits))
            scores.rows.append(row)
        better = "lower" if self.distance else "higher"
        scores.columns[self.name] = Column(better, self.about, self.settings, self.stand_in)
        if targets:
            about = f"the same, between the result and the truth ({self.name})"
            scores.columns[f"{self.name}_truth"] = Column(better, about, self.settings)
        if self.retrieval:
            pictures = {"objects": sorted(gallery), "same": {k: sorted(v) for k, v in same.items()}}
            scores.columns[f"{self.name}_top1"] = Column(
                "higher",
                f"share whose nearest of the {len(gallery)} pictures of objects shows their own"
                f" object (a guess: {np.mean(guesses):.2g})",
                self.settings | {"gallery": settings_hash(pictures)},
            )
        return scores

    def _value(self, cosines: list[float]) -> float:
        mean = float(np.mean(cosines))
        return 1 - mean if self.distance else 100 * mean

    def _embeddings(self, shots: list[Shot], store: Store) -> tuple[dict, ...]:
        """Of what is in each hole of each result and target, and of each view of an object."""
        items, results, targets, views = {}, {}, {}, {}
        for shot in shots:
            entry = shot.entry
            for index, one in enumerate(entry.objects):
                key = key_of(store.key(shot, self.settings), str(index))
                results[shot, index] = key
                items[key] = functools.partial(self._result_item, entry, shot.path, index)
                if entry.target:
                    truth = Shot("", entry, 0, entry.target)
                    key = key_of(store.key(truth, self.settings), str(index))
                    targets[shot.method, entry.id, index] = key
                    items[key] = functools.partial(self._result_item, entry, entry.target, index)
                for view in range(len(one.views)):
                    name = _view_key(one, view, store)
                    key = key_of(name, settings_hash(self.settings))
                    views[name] = key
                    items[key] = functools.partial(self._view_item, entry, index, view)
        values = store.values(items, self.encoder.embed, f"embedding by {self.encoder.about}")
        return tuple({k: values[key] for k, key in d.items()} for d in (results, targets, views))

    def _result_item(self, entry: Entry, path: Path, index: int) -> tuple[np.ndarray]:
        request = entry.request()
        result = read_result(path, request)
        hole, size = request.parts[index].hole, self.encoder.size
        return (result_crop(result, hole, self.crop, size, self.short),)

    def _view_item(self, entry: Entry, index: int, view: int) -> tuple[np.ndarray]:
        picture = entry.request().parts[index].views[view]
        return (reference_crop(*picture, self.crop, self.encoder.size, self.short),)


def _view_key(one: ObjectEntry, view: int, store: Store) -> str:
    files = [one.views[view], *one.view_masks[view : view + 1]]
    return key_of(*map(store.file_hash, files))


def _same_object(shots: list[Shot], gallery: dict[str, int], store: Store) -> dict[str, set[int]]:
    """Of each `object_id`, the places of its pictures in the gallery."""
    same: dict[str, set[int]] = defaultdict(set)
    for shot in shots:
        for one in shot.entry.objects:
            if one.object_id is not None:
                views = range(len(one.views))
                same[one.object_id] |= {gallery[_view_key(one, view, store)] for view in views}
    return same


def result_crop(
    picture: np.ndarray, hole: np.ndarray, crop: str, size: int, short: int
) -> np.ndarray:
    """What of a result is compared.

    Args:
        picture: (h w 3) uint8.
        hole: (h w) bool.
        crop: One of `CROPS`.
        size: Side in pixels.
        short: The shorter side before the centre is cut out, by the rule `whole`.

    Returns:
        (size size 3) uint8, or float32 0 to 255 by the rule `region`.
    """
    match crop:
        case "cut":
            return geometry.object_crop(picture, hole, size)
        case "region":
            x0, y0, x1, y1 = geometry.bounding_box(hole)
            box = picture[y0 : max(y1 - 1, y0 + 1), x0 : max(x1 - 1, x0 + 1)]
            return bilinear(box, size)
        case "whole":
            return _centre(picture, size, short)
    return box_crop(picture, hole, size)


def reference_crop(
    picture: np.ndarray, mask: np.ndarray, crop: str, size: int, short: int
) -> np.ndarray:
    """What of an object's picture is compared.

    Args:
        picture: (h w 3) uint8.
        mask: (h w) bool, or uint8 coverage.
        crop: One of `CROPS`.
        size: Side in pixels.
        short: The shorter side before the centre is cut out, by the rule `whole`.

    Returns:
        As `result_crop`.
    """
    match crop:
        case "cut":
            return geometry.object_crop(picture, mask, size)
        case "region":
            return squashed(picture, size).astype(np.float32)
        case "whole":
            return _centre(picture, size, short)
    solid = mask if mask.dtype == bool else mask >= geometry.FAINT
    return box_crop(geometry.on_grey(picture, mask, GREY), solid, size)


def _centre(picture: np.ndarray, size: int, short: int) -> np.ndarray:
    """The centre of a picture whose shorter side was resized, as torchvision does both."""
    height, width = picture.shape[:2]
    # torchvision's Resize cuts the longer side's fraction off.
    least = min(height, width)
    shape = (short * width // least, short * height // least)
    resized = Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of (... c) and (... c), over the last axis."""
    a, b = (x.astype(np.float64) for x in (a, b))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / np.maximum(lengths, 1e-12)


def retrieval(
    embeddings: np.ndarray, groups: np.ndarray, frames: np.ndarray, apart: int
) -> tuple[float, float, float, float]:
    """Same-object retrieval: each view asks for the other views of its object among all others.

    Views of the same object fewer than `apart` frames away are left out of a query's gallery, so
    that neighbours, which look the same to any encoder, do not decide.

    Args:
        embeddings: (n c).
        groups: (n,) which object.
        frames: (n,) place along the camera's path.
        apart: Frames; 1 leaves out the query itself only.

    Returns:
        top-1 accuracy; mean average precision; and the two of a guess, galleries in random order.

    Raises:
        InputError: No view has another one of its object that far away, or there is one object.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    same = groups[:, None] == groups[None]
    near = same & (np.abs(frames[:, None] - frames[None]) < apart)
    wanted = same & ~near
    queries = np.flatnonzero(wanted.any(axis=1))
    if not queries.size or same.all():
        raise InputError(
            f"Retrieval needs two objects, and views of one at least {apart} frames apart."
        )
    values = []
    for i in queries:
        gallery = np.flatnonzero(~near[i])
        order = gallery[np.argsort(-(unit[gallery] @ unit[i]), kind="stable")]
        hits = wanted[i][order]
        ranks = np.flatnonzero(hits) + 1
        precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        values.append([hits[0], precision, hits.mean(), random_precision(len(ranks), len(hits))])
    return tuple(np.mean(values, axis=0).tolist())


def random_precision(right: int, count: int) -> float:
    """The mean average precision of a random order of `count`, of which `right` are right.

    Rank k is right with probability right / count, and then so is each of the k - 1 before it with
    (right - 1) / (count - 1).
    """
    inverse = (1 / np.arange(1, count + 1)).sum()
    return float((inverse + (count - inverse) * (right - 1) / max(count - 1, 1)) / count)
