"""Identity that sees detail: how many of the object's local features are in the result again.

Embeddings of whole pictures forgive another print, another face, other stitching. Here keypoints of
the object's picture are matched with those of the result by XFeat (Potje et al. 2024, weights
`xfeat.pt` of verlab/accelerated_features), matches must be mutual and agree on one affine motion,
and the score is the share of the object's keypoints that are left.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax import geometry
from imprint_jax.composing.manifest import Entry
from imprint_jax.errors import InputError
from imprint_jax.evaluation.batched import Batched, key_of, settings_hash
from imprint_jax.evaluation.measures import Column, Scores, Shot, Store, read_result
from imprint_jax.weights.tensors import StoredTensor, open_tensors, weights_hash

# Side of the pictures whose keypoints are matched, in pixels; a multiple of 32, which the network
# wants. Ours.
SIZE = 320
# Keypoints of a picture, at most. Ours.
COUNT = 512
# Least value of the heatmap, and least cosine of a match (xfeat.py of accelerated_features).
LEAST_HEAT, LEAST_COSINE = 0.05, 0.82
# Non-maximum suppression, in pixels (likewise).
WINDOW = 5
# Keypoints nearer than this to the object's outline are of its surroundings, in pixels. Ours.
INSIDE = 6
# How far a match may be from the common motion, in pixels, 2.5 % of the side: objects are not flat.
# Fewer matches than `LEAST_MATCHES` agree on some motion by chance. Ours: of objects of 50 pairs of
# video frames 78 % have a score in their own frame, and 36 % in one of another video, a seventh as
# high on average; with twice the tolerance 86 % and 54 %.
TOLERANCE, LEAST_MATCHES = 8.0, 8
EPSILON = 1e-5  # of the batch and instance norms (PyTorch's default)

# The layers' (stride, padding), by block: a convolution, a norm, a ReLU each.
BLOCKS = {
    "block1": ((1, 1), (2, 1), (1, 1), (2, 1)),
    "block2": ((1, 1), (1, 1)),
    "block3": ((2, 1), (1, 1), (1, 0)),
    "block4": ((2, 1), (1, 1), (1, 1)),
    "block5": ((2, 1), (1, 1), (1, 1), (1, 0)),
    "block_fusion": ((1, 1), (1, 1)),
    "heatmap_head": ((1, 0), (1, 0)),
    "keypoint_head": ((1, 0), (1, 0), (1, 0)),
}
# Convolutions without a norm.
PLAIN = ("skip1.1", "block_fusion.2", "heatmap_head.2", "keypoint_head.3")


@dataclass(frozen=True, eq=False)
class XFeat:
    """The network with its weights.

    Attributes:
        weights: SHA-256 of its weights, 16 hexadecimal digits.
        detect: Items ((SIZE SIZE 3) uint8,) -> keypoints (COUNT 3+64) float32, in order: x, y in
            pixels, score (0: none), descriptor of unit length; the best first.
    """

    weights: str
    detect: Batched


def load(path: Path) -> XFeat:
    """XFeat from its weights' file.

    Args:
        path: `xfeat.pt`, or the same tensors as .safetensors.

    Raises:
        InputError: Tensors are missing.
    """
    tensors = {k: x for k, x in open_tensors(path).items() if not k.startswith("fine_matcher.")}
    names = [f"{block}.{i}.layer" for block, layers in BLOCKS.items() for i in range(len(layers))]
    wanted = {
        f"{n}.{end}" for n in names for end in ("0.weight", "1.running_mean", "1.running_var")
    }
    wanted |= {f"{name}.{end}" for name in PLAIN for end in ("weight", "bias")}
    if lacking := sorted(wanted - set(tensors)):
        raise InputError(f"{path} is not XFeat's: it lacks {lacking[0]}.")
    params = {name: _fold(tensors, name) for name in names}
    for name in PLAIN:
        kernel, bias = (np.asarray(tensors[f"{name}.{k}"].read()) for k in ("weight", "bias"))
        params[name] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    used = {key: tensors[key] for key in wanted}
    return XFeat(weights_hash(used)[:16], Batched(detect, params))


def _fold(tensors: dict[str, StoredTensor], name: str) -> dict[str, np.ndarray]:
    """A convolution (h w in out) with its batch norm, which has no gain, in it."""
    keys = ("0.weight", "1.running_mean", "1.running_var")
    weight, mean, variance = (np.asarray(tensors[f"{name}.{k}"].read(), np.float64) for k in keys)
    gain = 1 / np.sqrt(variance + EPSILON)
    kernel = (weight * gain[:, None, None, None]).transpose(2, 3, 1, 0)
    return {"kernel": kernel.astype(np.float32), "bias": (-mean * gain).astype(np.float32)}


def maps(params: dict, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What XFeat says of each place.

    Args:
        params: {layer: {"kernel": (h w in out), "bias": (out)}}.
        images: (b h w 3), whatever their range; h and w multiples of 32.

    Returns:
        Descriptors (b h/8 w/8 64); heat (b h w), where keypoints are; reliability (b h/8 w/8).
    """

    def conv(name: str, x: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
        layer, axes = params[name], ("NHWC", "HWIO", "NHWC")
        edges = [(padding, padding)] * 2
        y = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), edges, dimension_numbers=axes
        )
        return y + layer["bias"]

    def block(name: str, x: jax.Array) -> jax.Array:
        for i, (stride, padding) in enumerate(BLOCKS[name]):
            x = jax.nn.relu(conv(f"{name}.{i}.layer", x, stride, padding))
        return x

    grey = images.astype(jnp.float32).mean(axis=-1, keepdims=True)
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    grey = centred / jnp.sqrt((centred**2).mean(axis=(1, 2), keepdims=True) + EPSILON)
    b, h, w, _ = grey.shape
    pooled = grey.reshape(b, h // 4, 4, w // 4, 4, 1).mean(axis=(2, 4))
    eighth = block("block3", block("block2", block("block1", grey) + conv("skip1.1", pooled)))
    sixteenth = block("block4", eighth)
    coarse = block("block5", sixteenth)
    # Upsampling: no antialiasing to do, the positions are PyTorch's.
    enlarged = [jax.image.resize(x, eighth.shape, "linear") for x in (sixteenth, coarse)]
    descriptors = conv("block_fusion.2", block("block_fusion", eighth + sum(enlarged)))
    reliability = jax.nn.sigmoid(conv("heatmap_head.2", block("heatmap_head", descriptors)))
    cells = grey.reshape(b, h // 8, 8, w // 8, 8).swapaxes(2, 3).reshape(b, h // 8, w // 8, 64)
    logits = conv("keypoint_head.3", block("keypoint_head", cells))
    heat = jax.nn.softmax(logits, axis=-1)[..., :64].reshape(b, h // 8, w // 8, 8, 8)
    return descriptors, heat.swapaxes(2, 3).reshape(b, h, w), reliability[..., 0]


def detect(params: dict, images: jax.Array) -> jax.Array:
    """The keypoints of pictures, see `XFeat.detect`."""
    descriptors, heat, reliability = maps(params, images)
    b, _, w = heat.shape
    window, strides = (1, WINDOW, WINDOW), (1, 1, 1)
    highest = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, window, strides, "SAME")
    peaks = (heat == highest) & (heat > LEAST_HEAT)
    scores = jnp.where(peaks, heat * jax.image.resize(reliability, heat.shape, "linear"), 0)
    scores, places = jax.lax.top_k(scores.reshape(b, -1), COUNT)
    y, x = places // w, places % w
    unit = descriptors / jnp.linalg.norm(descriptors, axis=-1, keepdims=True)
    # Centres of the cells of 8 pixels are where descriptors are of.
    at = jnp.stack([(y + 0.5) / 8 - 0.5, (x + 0.5) / 8 - 0.5])
    sample = lambda grid, at: jax.scipy.ndimage.map_coordinates(grid, at, order=1, mode="nearest")
    sampled = jax.vmap(jax.vmap(sample, (2, None), 1), (0, 1))(unit, at)
    sampled /= jnp.linalg.norm(sampled, axis=-1, keepdims=True)
    return jnp.concatenate([jnp.stack([x, y, scores], axis=-1), sampled], axis=-1)


def matched_share(reference: np.ndarray, inside: np.ndarray, result: np.ndarray) -> float | None:
    """The share of an object's keypoints that a result has again, where they should be together.

    Args:
        reference: Keypoints of the object's picture, as `XFeat.detect` gives them.
        inside: (SIZE SIZE) bool, where in that picture the object is.
        result: Keypoints of the result.

    Returns:
        0 to 1; None if the object has fewer than `LEAST_MATCHES` keypoints.
    """
    x, y = reference[:, 0].astype(int), reference[:, 1].astype(int)
    reference = reference[(reference[:, 2] > 0) & inside[y, x]]
    result = result[result[:, 2] > 0]
    if len(reference) < LEAST_MATCHES:
        return None
    if not len(result):
        return 0.0
    cosines = reference[:, 3:] @ result[:, 3:].T
    forth, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
    places = np.arange(len(reference))
    mutual = (back[forth] == places) & (cosines[places, forth] > LEAST_COSINE)
    if mutual.sum() < LEAST_MATCHES:
        return 0.0
    pairs = reference[mutual, :2], result[forth[mutual], :2]
    # OpenCV's draws begin from the same state at each call.
    _, kept = cv2.estimateAffine2D(
        *pairs, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE, maxIters=5000
    )
    agreeing = 0 if kept is None else int(kept.sum())
    return agreeing / len(reference) if agreeing >= LEAST_MATCHES else 0.0


class Keypoints:
    """The share of the object's keypoints that are in the result again.

    Args:
        network: From `load`.
    """

    def __init__(self, network: XFeat):
        self.network = network
        self.settings = {"network": "XFeat", "weights": network.weights, "size": SIZE}
        self.settings |= {"count": COUNT, "cosine": LEAST_COSINE, "inside": INSIDE}
        self.settings |= {"motion": "affine", "tolerance": TOLERANCE, "least": LEAST_MATCHES}

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """As `measures.Measure`."""
        return ["keypoints"]

    def compute(self, shots: list[Shot], store: Store) -> Scores:
        """As `measures.Measure`."""
        items, results, views = {}, {}, {}
        for shot in shots:
            for index, one in enumerate(shot.entry.objects):
                key = key_of(store.key(shot, self.settings), str(index))
                results[shot, index] = key
                items[key] = functools.partial(_result_item, shot, index)
                for view in range(len(one.views)):
                    files = [one.views[view], *one.view_masks[view : view + 1]]
                    key = key_of(*map(store.file_hash, files), settings_hash(self.settings))
                    views[shot.entry.id, index, view] = key
                    items[key] = functools.partial(_view_item, shot.entry, index, view)
        keypoints = store.values(items, self.network.detect, "keypoints")
        inside = functools.cache(lambda entry, index, view: _inside(entry, index, view))
        scores = Scores([{} for _ in shots])
        for shot, row in zip(shots, scores.rows, strict=True):
            shares = []
            for index, one in enumerate(shot.entry.objects):
                # Of several views the one most like the result is the one to compare with.
                result = keypoints[results[shot, index]]
                of_views = [
                    matched_share(
                        keypoints[views[shot.entry.id, index, view]],
                        inside(shot.entry, index, view),
                        result,
                    )
                    for view in range(len(one.views))
                ]
                shares.append(max((x for x in of_views if x is not None), default=math.nan))
            if not math.isnan(share := float(np.mean(shares))):
                row["keypoints"] = share
        about = "share of the object's keypoints that the result has again, as one motion puts them"
        scores.columns["keypoints"] = Column("higher", about, self.settings)
        return scores


def _result_item(shot: Shot, index: int) -> tuple[np.ndarray]:
    request = shot.entry.request()
    result = read_result(shot.path, request)
    hole = request.parts[index].hole
    x0, y0, x1, y1 = geometry.bounding_box(hole)
    box = np.zeros_like(hole)
    box[y0:y1, x0:x1] = True
    return (geometry.object_crop(result, box, SIZE),)


def _view_item(entry: Entry, index: int, view: int) -> tuple[np.ndarray]:
    return (geometry.object_crop(*entry.request().parts[index].views[view], SIZE),)


def _inside(entry: Entry, index: int, view: int) -> np.ndarray:
    """Where in the crop of `_view_item` the object is, without its edge."""
    _, mask = entry.request().parts[index].views[view]
    coverage = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
    crop = geometry.object_crop(np.repeat(coverage[..., None], 3, axis=2), mask, SIZE)
    solid = (crop[..., 0] >= 128).astype(np.uint8)
    return cv2.erode(solid, np.ones((2 * INSIDE + 1,) * 2, np.uint8), borderValue=0) > 0
