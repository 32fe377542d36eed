"""Records to samples: the perturbation P(T(.)) of the paper's Sec. 3.3, view pairs, composites.

A sample is `object` (s s 3), `target` (h w 3), `mask` (h w 1), all uint8; see batch.py. What is
random comes from Grain's `rng`, which depends on the sample's place in the stream only.
"""

import math
from typing import NamedTuple

import cv2
import grain
import numpy as np
from PIL import Image, ImageChops, ImageFilter
from scipy import ndimage

from imprint_jax.config.fields import Config, DataConfig
from imprint_jax.data.pairs import make_pairs
from imprint_jax.data.records import Record, RecordSource
from imprint_jax.data.resample import resize, resize_cut, warp_framed
from imprint_jax.errors import InputError
from imprint_jax.geometry import (
    FAINT,
    MIN_CONTEXT,
    Box,
    Crop,
    bounding_box,
    box_mask,
    centre,
    crop_around,
    cut_out,
    extract,
    mask_level,
)
from imprint_jax.images import open_image

# Points of the tables of colours, an axis: the curves are straight between them to about 1/255.
LATTICE = 9
VALUES = np.linspace(0, 1, LATTICE)
# The two sines a channel's curve is bent by.
SINES = np.sin(np.pi * VALUES), np.sin(2 * np.pi * VALUES)
# Bernstein's polynomials of degree 3 at the points (4 LATTICE): the weights of control points in a
# free-form deformation (Sederberg and Parry 1986).
BERNSTEIN = np.stack([math.comb(3, i) * VALUES**i * (1 - VALUES) ** (3 - i) for i in range(4)])
# How strong the colours of the table are (LATTICE LATTICE LATTICE 1), 0 for greys.
CHROMA = np.ptp(np.stack(np.meshgrid(VALUES, VALUES, VALUES)), axis=0)[..., None]
# The smallest background crop, as a share of the photo's shorter side.
MIN_ZOOM = 0.3
# How often the hole in a scene holds the object's shadow too; how much darker than the background a
# shadow is, of 255; how far from the object it is looked for, of the object's longer side. Ours.
SHADOW_SHARE = 0.5
SHADOW_DEPTH = 6
SHADOW_REACH = 0.5
# Objects are perturbed at so many times the size they will have: sharp enough, and many times
# faster than at that of a photo. Ours.
OVERSIZE = 1.25
# How far a target is enlarged at most: an upsampled one teaches blur. What is smaller keeps more of
# its surroundings, or stays smaller on black. (The paper only says "resized to 512x512".) Ours.
MAX_ENLARGED = 2
# Limits of the factor by which a pasted object is made darker or brighter.
MAX_GAIN = 1.6
# How often a hole is a box that its object does not fill, and how many times as wide or as tall as
# the object such a box is at most. Ours.
LOOSE_SHARE = 0.15
MAX_LOOSE = 2.5


def random_colors(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A random smooth change of colour and light, P, as a 3-D look-up table for `recolor`.

    Each channel passes through a curve (two sines, so that black and white stay and it rises
    everywhere up to strength 1), then channels mix a little, then all is made brighter or darker.
    Colours that are not grey move besides, the more the stronger they are, and as those near them
    do: control points bend the cube of colours. Greys do not, so that they go on rising.

    Args:
        rng: Source of randomness.
        strength: 0 = no change, 1 = strong.

    Returns:
        (blue green red 3) float32, `LATTICE` points an axis: what each colour becomes; outside
        [0, 1] is clipped.
    """
    low = rng.uniform(-0.15, 0.15) + rng.uniform(-0.07, 0.07, 3)
    high = rng.uniform(-0.04, 0.04, 3)
    mixing = np.eye(3) + strength * rng.uniform(-0.08, 0.08, (3, 3))
    mixing /= mixing.sum(axis=1, keepdims=True)  # greys stay grey
    mixing *= math.exp(strength * rng.uniform(-0.25, 0.25))
    bend = rng.uniform(-0.3, 0.3, (4, 4, 4, 3))
    for _ in range(3):  # an axis of control points becomes one of the table
        bend = np.einsum("ijkc,il->jklc", bend, BERNSTEIN)

    curves = VALUES[:, None] + strength * (np.outer(SINES[0], low) + np.outer(SINES[1], high))
    red, green, blue = (np.outer(curve, to) for curve, to in zip(curves.T, mixing.T, strict=True))
    table = blue[:, None, None] + green[:, None] + red
    return (table + strength * CHROMA * bend).astype(np.float32)


def recolor(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Applies a table of `random_colors` to (h w 3) uint8, trilinearly."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.Color3DLUT(LATTICE, table)))


def random_affine(
    rng: np.random.Generator, rotate: float, scale: float, shear: float, flip: float
) -> np.ndarray:
    """A random change of geometry, T: a (2 2) matrix, applied by `warp`.

    Args:
        rng: Source of randomness.
        rotate: Largest rotation either way, degrees.
        scale: Largest change of the width and of the height, as natural logarithm; what both have
            in common is undone when the object is framed.
        shear: Largest shear either way, degrees.
        flip: Probability of mirroring.
    """
    angle, slant = np.radians([rng.uniform(-rotate, rotate), rng.uniform(-shear, shear)])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shearing = np.array([[1, np.tan(slant)], [0, 1]])
    stretch = np.exp(rng.uniform(-scale, scale, 2))
    if rng.random() < flip:
        stretch[0] *= -1
    return rotation @ shearing @ np.diag(stretch)


def warp(image: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Applies a (2 2) matrix to an object, on a canvas that holds all of it.

    Args:
        image: (h w 3) uint8.
        mask: (h w) uint8 coverage.
        matrix: Maps offsets (x, y) from the object's centre to offsets from the canvas's.

    Returns:
        Image (h' w' 3) and coverage (h' w'), uint8.
    """
    x0, y0, x1, y1 = bounding_box(mask >= FAINT)
    rgba = Image.fromarray(np.dstack([image, mask])[y0:y1, x0:x1])
    width, height = np.ceil(np.abs(matrix) @ rgba.size).astype(int)
    inverse = np.linalg.inv(matrix)
    shift = np.array(rgba.size) / 2 - inverse @ [width / 2, height / 2]
    coefficients = np.column_stack([inverse, shift]).ravel().tolist()
    # Pillow multiplies by alpha before and divides after, so no colour seeps in from outside.
    picture = rgba.transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    warped = np.asarray(picture)
    return warped[..., :3], warped[..., 3]


def paste(
    photo: np.ndarray,
    view: tuple[np.ndarray, np.ndarray],
    share: float,
    match: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes an object with its soft edge into a photo, at a random place inside of it.

    Args:
        photo: (s s 3) uint8.
        view: The object's image (h w 3) and coverage (h w), uint8.
        share: Share of the photo's area the object covers; less where it would not leave the
            context of `MIN_CONTEXT`, or the object would be enlarged beyond `MAX_ENLARGED`.
        match: How far its mean brightness moves towards that of the photo there: 0 not, 1 wholly.
        rng: Source of randomness.

    Returns:
        The composite (s s 3) uint8 and the hole that holds the object (s s) bool.
    """
    size = photo.shape[0]
    _, mask = view
    x0, y0, x1, y1 = bounding_box(mask >= FAINT)
    scale = math.sqrt(share * size * size / (mask.sum() / 255))
    scale = min(scale, size / MIN_CONTEXT / max(x1 - x0, y1 - y0), MAX_ENLARGED)
    width, height = (max(round(side * scale), 1) for side in (x1 - x0, y1 - y0))
    x0, y0 = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    return paste_into(photo, view, (x0, y0, x0 + width, y0 + height), match)


def paste_into(
    photo: np.ndarray, view: tuple[np.ndarray, np.ndarray], box: Box, match: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes an object with its soft edge into a photo, so that it fills a box.

    Args:
        photo: As in `paste`.
        view: Likewise.
        box: Inside the photo.
        match: As in `paste`.

    Returns:
        As `paste`.
    """
    size = photo.shape[0]
    image, mask = view
    x0, y0, x1, y1 = bounding_box(mask >= FAINT)
    width, height = box[2] - box[0], box[3] - box[1]
    color, coverage = resize_cut(image[y0:y1, x0:x1], mask[y0:y1, x0:x1], width, height)
    window = np.s_[box[1] : box[3], box[0] : box[2]]

    alpha = coverage.astype(np.float32)[..., None] / 255
    old = photo[window].astype(np.float32)
    brightness = (color * alpha).sum() / (3 * alpha.sum())
    gain = ((old.mean() + 1) / (brightness + 1)) ** match
    color = np.minimum(color * np.clip(gain, 1 / MAX_GAIN, MAX_GAIN), 255)
    composite = photo.copy()
    composite[window] = np.rint(old + alpha * (color - old))
    hole = np.zeros((size, size), bool)
    # With the soft edge, which would tell the network the outline.
    hole[window] = coverage >= FAINT
    return composite, hole


def random_square(photo: Record, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a photo, of random side, resized to (size size 3) uint8."""
    zoom = math.exp(rng.uniform(math.log(MIN_ZOOM), 0))
    image = open_rgb(photo["image"], photo["group"], least=math.ceil(size / zoom))
    width, height = image.size
    shorter = min(height, width)
    side = max(round(zoom * shorter), min(size, shorter))
    x0, y0 = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return square_of(image, Crop(x0, y0, side), size)


def square_of(image: Image.Image, crop: Crop, size: int) -> np.ndarray:
    """A square of an image of mode "RGB", resized to (size size 3) uint8; edges go on outside."""
    # Cropped first: turning all of a photo into an array costs half as much as decoding it.
    box = (crop.x0, crop.y0, crop.x0 + crop.side, crop.y0 + crop.side)
    if box[0] < 0 or box[1] < 0 or box[2] > image.width or box[3] > image.height:
        return extract(np.asarray(image), crop, size)
    return resize(np.asarray(image.crop(box)), size, size)


class Outline(NamedTuple):
    """Where an object is in its picture, found once for all that ask."""

    coverage: np.ndarray  # (h w) uint8
    inside: np.ndarray  # (h w) bool, true from `FAINT` on
    box: Box
    area: int  # pixels


def outline(coverage: np.ndarray) -> Outline:
    """The outline of an object's coverage (h w) uint8, which is not empty."""
    inside = coverage >= FAINT
    x0, y0, x1, y1 = box = bounding_box(inside)
    return Outline(coverage, inside, box, int(np.count_nonzero(inside[y0:y1, x0:x1])))


def context_side(silhouette: Outline, share: float, size: int) -> int:
    """Side of the square of a photo of which the object covers `share`.

    It is larger where the context of `MIN_CONTEXT` or the limit of `MAX_ENLARGED` asks for it, and
    never larger than the photo.

    Args:
        silhouette: The object's.
        share: Of the square's area.
        size: Side that the square is resized to.

    Returns:
        Pixels.
    """
    x0, y0, x1, y1 = silhouette.box
    least = max(math.ceil(max(x1 - x0, y1 - y0) * MIN_CONTEXT), math.ceil(size / MAX_ENLARGED))
    return min(max(round(math.sqrt(silhouette.area / share)), least), *silhouette.inside.shape)


def random_context(silhouette: Outline, side: int, rng: np.random.Generator) -> Crop:
    """A random square of a photo with all of the object in it, or some where it is too long.

    Args:
        silhouette: The object's outline.
        side: Pixels, from `context_side`.
        rng: Source of randomness.
    """

    def start(low: int, high: int, length: int, across: int) -> int:
        if high - low <= side:
            return int(rng.integers(max(high - side, 0), min(low, length - side) + 1))
        # The object may have gaps.
        seen = rng.choice(np.flatnonzero(silhouette.inside.any(axis=across)))
        return int(np.clip(rng.integers(seen - side + 1, seen + 1), low, high - side))

    (x0, y0, x1, y1), (height, width) = silhouette.box, silhouette.inside.shape
    return Crop(start(x0, x1, width, 0), start(y0, y1, height, 1), side)


class AnyShare(NamedTuple):
    """A random square of a photo around an object, of which the object covers some share."""

    share: float  # of its area, but see `context_side`
    size: int  # side that it is resized to

    def side(self, silhouette: Outline) -> int:
        """The square's side, in pixels."""
        return context_side(silhouette, self.share, self.size)

    def square(self, silhouette: Outline, rng: np.random.Generator) -> Crop:
        """The square."""
        return random_context(silhouette, self.side(silhouette), rng)

    def box(self, silhouette: Outline) -> Box | None:
        """The hole's box where it is not the object's: none."""
        return None


class AsComposed(NamedTuple):
    """The square that composing cuts around a hole, which may be a box larger than the object.

    The object stands on the box's lower edge.
    """

    context: float  # of `config.context`
    wider: float = 1.0  # times the object's width
    taller: float = 1.0  # times its height
    left: float = 0.5  # of the room beside the object, the share on its left

    def side(self, silhouette: Outline) -> int:
        """The square's side, in pixels."""
        return self._square(silhouette).side

    def square(self, silhouette: Outline, rng: np.random.Generator) -> Crop:
        """The square, which may reach outside of the photo; nothing about it is random."""
        del rng
        return self._square(silhouette)

    def _square(self, silhouette: Outline) -> Crop:
        height, width = silhouette.inside.shape
        return crop_around(self.box(silhouette) or silhouette.box, height, width, self.context)

    def box(self, silhouette: Outline) -> Box | None:
        """The hole's box, inside the photo, where it is not the object's."""
        if self.wider == self.taller == 1:
            return None
        x0, y0, x1, y1 = silhouette.box
        room = (self.wider - 1) * (x1 - x0)
        x0, x1 = x0 - round(self.left * room), x1 + round((1 - self.left) * room)
        y0 = y0 - round((self.taller - 1) * (y1 - y0))
        return max(x0, 0), max(y0, 0), min(x1, silhouette.inside.shape[1]), y1

    def place(self, width: float, height: float, size: int) -> tuple[Box, Box]:
        """Where an object is pasted.

        Args:
            width: The object's.
            height: The object's.
            size: Side of the square.

        Returns:
            The object's box and the hole's, which has its middle in the square's middle.
        """
        wide, tall = self.wider * width, self.taller * height
        scale = size / self.context / max(wide, tall)
        wide, tall, width, height = (
            max(round(scale * side), 1) for side in (wide, tall, width, height)
        )
        x0, y0 = (size - wide) // 2, (size - tall) // 2
        left, top = x0 + round(self.left * (wide - width)), y0 + tall - height
        return (left, top, left + width, top + height), (x0, y0, x0 + wide, y0 + tall)


def random_framing(config: Config, rng: np.random.Generator) -> AnyShare | AsComposed:
    """How a sample shows its object, by `config.data.share`."""
    if config.data.share:
        return AnyShare(math.exp(rng.uniform(*np.log(config.data.share))), config.image_size)
    if rng.random() >= LOOSE_SHARE:
        return AsComposed(config.context)
    factor = math.exp(rng.uniform(0, math.log(MAX_LOOSE)))
    wider, taller = (factor, 1.0) if rng.random() < 0.5 else (1.0, factor)
    return AsComposed(config.context, wider, taller, rng.random())


def decode_view(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """A record's image (h w 3) and mask (h w), uint8; the mask's values are coverage."""
    return np.asarray(open_rgb(record["image"], record["group"])), decode_coverage(record)


def open_rgb(data: bytes, name: str, least: int | None = None) -> Image.Image:
    """As `images.open_image`, without transparency: of mode "RGB"."""
    image = open_image(data, name, least)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_coverage(record: Record) -> np.ndarray:
    """A record's mask (h w), uint8."""
    return np.asarray(open_image(record["mask"], record["group"]))


def open_shrunk(record: Record, mask: np.ndarray, scale: float) -> tuple[Image.Image, np.ndarray]:
    """A record's image of mode "RGB", and its mask (h w) at the image's size.

    A JPEG is decoded at a half, a quarter or an eighth of its size, which is faster, where that is
    at least `scale` times the size.
    """
    least = math.ceil(min(mask.shape) * min(scale, 1))
    image = open_rgb(record["image"], record["group"], least)
    if image.size != mask.shape[::-1]:
        mask = cv2.resize(mask, image.size, interpolation=cv2.INTER_AREA)
    return image, mask


def open_outlined(record: Record, silhouette: Outline, scale: float) -> tuple[Image.Image, Outline]:
    """As `open_shrunk`, with the outline in place of its mask."""
    image, coverage = open_shrunk(record, silhouette.coverage, scale)
    return image, silhouette if coverage is silhouette.coverage else outline(coverage)


class Perturbation(NamedTuple):
    """P(T(.)): how an object image is changed."""

    colors: np.ndarray  # from `random_colors`
    matrix: np.ndarray  # (2 2)


def random_perturbation(data: DataConfig, rng: np.random.Generator) -> Perturbation:
    """A random perturbation."""
    return Perturbation(random_colors(rng, data.color), random_affine(rng, **vars(data.affine)))


def object_scale(silhouette: Outline, size: int) -> float:
    """How much of an image's resolution an object image of `size` pixels needs."""
    x0, y0, x1, y1 = silhouette.box
    return OVERSIZE * size / max(x1 - x0, y1 - y0)


def perturbed_object(
    image: Image.Image, silhouette: Outline, perturbation: Perturbation, size: int
) -> np.ndarray:
    """The object image (size size 3) uint8, perturbed.

    Args:
        image: Of mode "RGB".
        silhouette: The object in it.
        perturbation: From `random_perturbation`.
        size: Side of the object image.
    """
    x0, y0, x1, y1 = silhouette.box
    cut, edge = np.asarray(image.crop(silhouette.box)), silhouette.coverage[y0:y1, x0:x1]
    scale = OVERSIZE * size / max(edge.shape)
    if scale < 1:
        width, height = (max(round(side * scale), 1) for side in (x1 - x0, y1 - y0))
        cut, edge = resize_cut(cut, edge, width, height)
    cut = cut_out(recolor(cut, perturbation.colors), edge)
    return warp_framed(cut, edge >= FAINT, perturbation.matrix, size)


def object_of(record: Record, perturbation: Perturbation, size: int) -> np.ndarray:
    """The object image of a record, perturbed, (size size 3) uint8."""
    silhouette = outline(decode_coverage(record))
    image, silhouette = open_outlined(record, silhouette, object_scale(silhouette, size))
    return perturbed_object(image, silhouette, perturbation, size)


def view_on_black(record: Record, colors: np.ndarray, size: int) -> np.ndarray:
    """All of a record's view without its background, (size size 3) uint8.

    Its longer side becomes `size`, but for the limit of `MAX_ENLARGED`; it is centred on black.
    """
    mask = decode_coverage(record)
    scale = min(size / max(mask.shape), MAX_ENLARGED)
    height, width = (max(round(side * scale), 1) for side in mask.shape)
    picture, mask = open_shrunk(record, mask, scale)
    image, mask = resize_cut(np.asarray(picture), mask, width, height)
    return centre(cut_out(recolor(image, colors), mask), size)


def object_on_black(record: Record, colors: np.ndarray, size: int, context: float) -> np.ndarray:
    """A record's object, (size size 3) uint8, as `view_on_black`, but as large as when composed.

    Its longer side is `size` / `context`.
    """
    silhouette = outline(decode_coverage(record))
    x0, y0, x1, y1 = silhouette.box
    longest = size / context
    image, silhouette = open_outlined(record, silhouette, longest / max(x1 - x0, y1 - y0))
    x0, y0, x1, y1 = silhouette.box
    scale = longest / max(x1 - x0, y1 - y0)
    width, height = (max(round(side * scale), 1) for side in (x1 - x0, y1 - y0))
    cut, edge = np.asarray(image.crop(silhouette.box)), silhouette.coverage[y0:y1, x0:x1]
    cut, edge = resize_cut(cut, edge, width, height)
    return centre(cut_out(recolor(cut, colors), edge), size)


class Scene(NamedTuple):
    """A sample but for the level of its mask."""

    object: np.ndarray  # (s s 3) uint8
    target: np.ndarray  # (h h 3) uint8
    hole: np.ndarray  # (h h) bool, the object's outline in the target
    records: tuple[int, int]  # the object's and the target's
    background: np.ndarray | None = None  # (h h 3) uint8, the target without object and shadow
    box: np.ndarray | None = None  # (h h) bool, the hole if it is a box larger than the object's


class ViewPair(grain.transforms.RandomMap):
    """Stage 1: pair number -> the object from one view, the other view on black as target.

    Both views get the same colours, so that the object's are to be kept.
    """

    def __init__(self, config: Config, records: RecordSource):
        self.config, self.records = config, records
        self.pairs = make_pairs("views", records.index, config.data.window)

    def __len__(self) -> int:
        return len(self.pairs)

    def scene(self, k: int, rng: np.random.Generator) -> Scene:
        """Pair `k`; the hole is all of the target."""
        first, second = self.pairs.draw(k, rng)
        same = Perturbation(random_colors(rng, self.config.data.color), np.eye(2))
        crop = object_of(self.records[first], same, self.config.object_size)
        size = self.config.image_size
        if self.config.data.share:
            target = view_on_black(self.records[second], same.colors, size)
        else:
            context = self.config.context
            target = object_on_black(self.records[second], same.colors, size, context)
        return Scene(crop, target, np.ones((size, size), bool), (first, second))

    def random_map(self, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        scene = self.scene(k, rng)
        return make_sample(scene, scene.hole)


class Pasted(grain.transforms.RandomMap):
    """Stage 2 without photos of the object: pair number -> one view, and the other in a photo.

    The photo is an untouched random square; the pasted view keeps its colours but for a partial
    match of brightness; the object image is perturbed, P(T(.)).
    """

    def __init__(self, config: Config, records: RecordSource, backgrounds: RecordSource):
        self.config, self.records, self.backgrounds = config, records, backgrounds
        self.pairs = make_pairs("pasted", records.index, config.data.window)

    def __len__(self) -> int:
        return len(self.pairs)

    def scene(self, k: int, rng: np.random.Generator) -> Scene:
        """Pair `k` in a photo."""
        config, data = self.config, self.config.data
        first, second = self.pairs.draw(k, rng)
        crop = object_of(self.records[first], random_perturbation(data, rng), config.object_size)
        background = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        photo = random_square(background, config.image_size, rng)
        framing = random_framing(config, rng)
        view = decode_view(self.records[second])
        if isinstance(framing, AnyShare):
            target, hole = paste(photo, view, framing.share, data.brightness_match, rng)
            return Scene(crop, target, hole, (first, second))
        x0, y0, x1, y1 = bounding_box(view[1] >= FAINT)
        place, box = framing.place(x1 - x0, y1 - y0, config.image_size)
        target, hole = paste_into(photo, view, place, data.brightness_match)
        loose = None if box == place else box_mask(box, *hole.shape)
        return Scene(crop, target, hole, (first, second), box=loose)

    def random_map(self, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return _with_random_level(self.scene(k, rng), self.config.data.mask_sigmas, rng)


class InPlace(grain.transforms.RandomMap):
    """Stage 2 from photos and videos: pair number -> the object from one picture, and another.

    The target is an untouched random square of the second picture, with the object where it is;
    the object image is perturbed, P(T(.)). See pairs.py for the pairs.
    """

    def __init__(self, config: Config, records: RecordSource, kind: str):
        self.config, self.records = config, records
        self.pairs = make_pairs(kind, records.index, config.data.window)

    def __len__(self) -> int:
        return len(self.pairs)

    def scene(self, k: int, rng: np.random.Generator) -> Scene:
        """Pair `k`."""
        config, size = self.config, self.config.image_size
        first, second = self.pairs.draw(k, rng)
        perturbation = random_perturbation(config.data, rng)
        framing = random_framing(config, rng)
        record = self.records[second]
        silhouette = outline(decode_coverage(record))
        scale = size / framing.side(silhouette)
        if first == second:
            scale = max(scale, object_scale(silhouette, config.object_size))
        image, silhouette = open_outlined(record, silhouette, scale)
        if first == second:
            crop = perturbed_object(image, silhouette, perturbation, config.object_size)
        else:
            crop = object_of(self.records[first], perturbation, config.object_size)
        square = framing.square(silhouette, rng)
        target = square_of(image, square, size)
        hole = extract(silhouette.inside, square, size)
        return Scene(
            crop, target, hole, (first, second), box=loose_box(framing, silhouette, square, size)
        )

    def random_map(self, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return _with_random_level(self.scene(k, rng), self.config.data.mask_sigmas, rng)


class InScene(grain.transforms.RandomMap):
    """Stage 2 from rendered scenes: pair number -> the object from one view, and another with it.

    The target is a random square of the second view. In use, a photo has neither the object nor
    its shadow, and nothing outside the hole changes. So the sample's target is the scene with the
    object inside the hole, and the scene without it outside: the network does not see a shadow
    beyond the hole, which would tell it where the light comes from and what shape the object has,
    and what it learns to paint ends where its paste-back will end. Half of the holes hold the
    object's shadow too, or what is near of it: where a user leaves room for a shadow, it is to be
    painted. The object image is perturbed, P(T(.)).
    """

    def __init__(self, config: Config, records: RecordSource):
        self.config, self.records = config, records
        self.pairs = make_pairs("scenes", records.index, config.data.window)

    def __len__(self) -> int:
        return len(self.pairs)

    def scene(self, k: int, rng: np.random.Generator) -> Scene:
        """Pair `k`.

        Raises:
            InputError: The record has no background.
        """
        size = self.config.image_size
        first, second = self.pairs.draw(k, rng)
        perturbation = random_perturbation(self.config.data, rng)
        crop = object_of(self.records[first], perturbation, self.config.object_size)
        record = self.records[second]
        if not record["background"]:
            raise InputError(f'{record["group"]} has no background; the kind "scenes" needs it.')
        framing = random_framing(self.config, rng)
        silhouette = outline(decode_coverage(record))
        square = framing.square(silhouette, rng)
        pictures = (open_rgb(record[key], record["group"]) for key in ("image", "background"))
        target, background = (square_of(picture, square, size) for picture in pictures)
        hole = extract(silhouette.inside, square, size)
        if rng.random() < SHADOW_SHARE:
            hole = with_shadow(target, background, hole)
        loose = loose_box(framing, silhouette, square, size)
        return Scene(crop, target, hole, (first, second), background, loose)

    def random_map(self, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return _with_random_level(self.scene(k, rng), self.config.data.mask_sigmas, rng)


def with_shadow(target: np.ndarray, background: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The object and where it darkens what is next to it: (h w) bool.

    Args:
        target: (h w 3) uint8, with the object.
        background: (h w 3) uint8, without it.
        hole: (h w) bool, the object.
    """
    x0, y0, x1, y1 = bounding_box(hole)
    reach = round(SHADOW_REACH * max(x1 - x0, y1 - y0))
    near = np.s_[max(y0 - reach, 0) : y1 + reach, max(x0 - reach, 0) : x1 + reach]
    bright, shaded = (Image.fromarray(picture[near]) for picture in (background, target))
    difference = ImageChops.subtract(bright, shaded)
    # The noise of compression is as strong as a faint shadow, but fine.
    smooth = difference.convert("L").filter(ImageFilter.BoxBlur(len(hole) / 64))
    dark = (np.asarray(smooth) >= SHADOW_DEPTH) | hole[near]
    parts, count = ndimage.label(dark)
    touching = np.bincount(parts[hole[near]], minlength=count + 1) > 0
    result = np.zeros_like(hole)
    result[near] = touching[parts]
    return result


def loose_box(
    framing: AnyShare | AsComposed, silhouette: Outline, square: Crop, size: int
) -> np.ndarray | None:
    """The hole in a square, (size size) bool, if it is a box larger than the object's."""
    box = framing.box(silhouette)
    return None if box is None else extract(box_mask(box, *silhouette.inside.shape), square, size)


def _with_random_level(
    scene: Scene, sigmas: tuple[float, float], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    if scene.box is not None:
        return make_sample(scene, scene.box)
    return make_sample(scene, mask_level(scene.hole, int(rng.integers(4)), sigmas))


def make_sample(scene: Scene, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What the stream holds; see batch.py."""
    mask, target = mask[..., None], scene.target
    if scene.background is not None:
        target = np.where(mask, target, scene.background)
    return {"object": scene.object, "target": target, "mask": mask.astype(np.uint8)}
