"""Is it the same object? Pictures are cropped, embedded (see encoders.py) and compared by cosine.

Two crop rules, of a result with its hole and of an object's picture with its mask alike:

`box`  the smallest box around the hole or mask, squashed to a square; around the object its own
       picture is kept in a result and is mid-grey in a reference (the box and the squashing are
       Paint-by-Example's, eval_tool/clip_score/region_clip_score.py)
`cut`  what lies in the hole or mask on black, its shape kept, centred with a margin: what our
       encoder was trained on (`geometry.object_crop`)
"""

import numpy as np
from PIL import Image

from imprint_jax import geometry
from imprint_jax.errors import InputError

CROPS = ("box", "cut")
# What surrounds a reference's object in its box. Ours.
GREY = 128


def result_crop(picture: np.ndarray, hole: np.ndarray, crop: str, size: int) -> np.ndarray:
    """What of a result is compared.

    Args:
        picture: (h w 3) uint8.
        hole: (h w) bool.
        crop: One of `CROPS`.
        size: Side in pixels.

    Returns:
        (size size 3) uint8.
    """
    if crop == "cut":
        return geometry.object_crop(picture, hole, size)
    return box_crop(picture, hole, size)


def reference_crop(picture: np.ndarray, mask: np.ndarray, crop: str, size: int) -> np.ndarray:
    """What of an object's picture is compared.

    Args:
        picture: (h w 3) uint8.
        mask: (h w) bool, or uint8 coverage.
        crop: One of `CROPS`.
        size: Side in pixels.

    Returns:
        (size size 3) uint8.
    """
    if crop == "cut":
        return geometry.object_crop(picture, mask, size)
    solid = mask if mask.dtype == bool else mask >= geometry.FAINT
    return box_crop(geometry.on_grey(picture, mask, GREY), solid, size)


def box_crop(picture: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """The smallest box around a mask (h w) bool, resized to (size size 3), whatever its shape."""
    x0, y0, x1, y1 = geometry.bounding_box(mask)
    box = Image.fromarray(picture[y0:y1, x0:x1])
    return np.asarray(box.resize((size, size), Image.Resampling.BICUBIC))


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
    found = []
    for i in queries:
        gallery = np.flatnonzero(~near[i])
        order = gallery[np.argsort(-(unit[gallery] @ unit[i]), kind="stable")]
        hits = wanted[i][order]
        ranks = np.flatnonzero(hits) + 1
        precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        found.append([hits[0], precision, hits.mean(), random_precision(len(ranks), len(hits))])
    return tuple(np.mean(found, axis=0).tolist())


def random_precision(right: int, count: int) -> float:
    """The mean average precision of a random order of `count`, of which `right` are right.

    Rank k is right with probability right / count, and then so is each of the k - 1 before it with
    (right - 1) / (count - 1).
    """
    inverse = (1 / np.arange(1, count + 1)).sum()
    return float((inverse + (count - inverse) * (right - 1) / max(count - 1, 1)) / count)
