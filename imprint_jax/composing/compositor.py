"""Compositor: objects, photos and holes in; the photos with the objects out.

    compositor = Compositor.from_pretrained("mini")
    picture = compositor(cup, desk, hole, seed=7)
    for result in compositor.run(requests):  # many at once, one picture after the other
        result.picture.save(...)

**Seeds.** The noise of a picture comes from its request's seed, the picture's number among the
request's `num` and the number of the object, and from nothing else: not from the batch it is
computed in, nor from its place there. With the same version, settings, machine, bucket (the batch
size that was compiled) and place in the batch the same request gives the same picture bit for bit,
whatever its neighbours. Another bucket or place may sum in another order: the network's output in
[-1, 1] then differs by rounding only, up to 1e-4 in float32, a grey level at most in the picture;
in bfloat16, or on another kind of device, by a few grey levels. JAX's process-wide settings (its
default generator, x64, rank promotion) change nothing.
"""

import functools
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from PIL import Image

from imprint_jax import geometry
from imprint_jax.composing.batching import Batching
from imprint_jax.composing.photo import Pictures
from imprint_jax.composing.request import Picture, Placement, Request, is_whole
from imprint_jax.composing.settings import Filled, Settings
from imprint_jax.composing.start import paste_object
from imprint_jax.config.fields import DiffusionConfig, ReleasedConfig
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.models.attention import Attention, Target
from imprint_jax.runtime import devices
from imprint_jax.weights import release

log = logging.getLogger(__name__)

# A crop is enlarged this many times at most: further there is no scene left to see. Ours.
MAX_ENLARGED = 8
# The paste's edge fades over this share of the crop's side. Ours.
FEATHER = 1 / 48
# Colours are matched on a ring of this share of the model's image side. Ours.
RING = 1 / 16
# A hole of fewer cells of the latent grid cannot show an object (3 x 3). Ours.
FEW_CELLS = 9
# A hole of more of the photo than this leaves little to fit the object to. Ours.
MUCH = 0.8


class Result(NamedTuple):
    """The `number`th picture of a request, of its background's size.

    RGB, or RGBA where the background has transparency, in the background's colour space; its
    profile, EXIF and resolution are in `picture.info`. Outside the holes and their feathered edges
    the pixels are the background's.
    """

    request: Request
    number: int
    picture: Image.Image


@dataclass(eq=False)
class _Sample:
    """One picture in the making."""

    request: Request
    number: int  # among the request's
    holes: list[np.ndarray]  # of the request's placements, at the mask level
    photo: np.ndarray  # as far as it is composed, in the background's colour space
    error: str = ""


class _Inputs(NamedTuple):
    """What the networks see of a photo and a placement, and where it comes from."""

    objects: np.ndarray  # (views s s 3) uint8
    square: np.ndarray  # (size size 3) uint8, the hole filled
    hole: np.ndarray  # (size size 1) bool
    start: np.ndarray | None  # (size size 3) uint8, the object pasted; None at strength 1
    crop: geometry.Crop


class _Batch(NamedTuple):
    """One object of every sample, on the devices."""

    samples: list[_Sample]
    inputs: list[_Inputs]
    generated: tuple[jax.Array, jax.Array]  # as `generate`, but uint8
    part: int  # which object it is, of the request's


class Compositor:
    """Composes objects into photos of any size.

        compositor = Compositor.from_pretrained("mini")
        picture = compositor("cup.png", "desk.jpg", box=(40, 60, 200, 220), seed=7)
        picture.save("out.png")

    Args:
        config: The configuration of a released model.
        params: Its parameters, {dinov2, adapter, unet, vae}.
        dtype: Of the computation: `jnp.float32`, or `jnp.bfloat16` for half the memory and, on an
            accelerator, less time. The VAE and the sampler always use float32.
        precision: Of float32 products and convolutions, as a configuration's `precision`.
        max_batch: Samples computed together on one device, at most.

    Raises:
        InputError: No such batch size, or no device of the kind that JAX_PLATFORMS asks for.
    """

    def __init__(
        self,
        config: ReleasedConfig,
        params: dict,
        *,
        dtype: DTypeLike = jnp.float32,
        precision: str = "high",
        max_batch: int = 8,
    ):
        if not is_whole(max_batch) or max_batch < 1:
            raise InputError(f"The batch size must be 1 or more, not {max_batch}.")
        self.config = config
        attention = Attention(Target.of(devices.local()[0]))
        self.graphdef, abstract = imprint.split(config.model, dtype, attention=attention)
        self._cell = imprint.bind(self.graphdef, abstract).vae.factor  # pixels
        self.dtype = jnp.dtype(dtype)
        self.precision = precision
        cast = lambda tree, dtype: jax.tree.map(lambda x: x.astype(dtype, copy=False), tree)
        self.params = {name: cast(tree, dtype) for name, tree in params.items()}
        self.params["vae"] = cast(params["vae"], jnp.float32)
        self.batching = Batching(self.params, max_batch)
        self._functions: dict[tuple[sampling.Choices, bool], Callable] = {}
        self._told: set[str] = set()  # what is said once, not with every picture

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        precision: str = "high",
        max_batch: int = 8,
    ) -> "Compositor":
        """Loads a model that ships ("mini") or a released folder; options as the constructor.

        Raises:
            InputError: There is no such model, or its files are missing or damaged.
        """
        folder = release.model_folder(name)
        first, count = devices.local()[0], len(devices.local())
        options: dict[str, Any] = dict(dtype=dtype, precision=precision, max_batch=max_batch)
        compositor = cls(*release.load(folder), **options)
        log.info("model %s on %d x %s, %s", folder, count, first.device_kind, compositor.dtype)
        if first.platform == "cpu" and compositor.dtype != jnp.float32:
            log.warning(
                "on CPU XLA computes %s in float32: no faster, more memory", compositor.dtype
            )
        return compositor

    def __call__(
        self,
        object: Picture | Sequence[Picture],
        background: Picture,
        mask: Picture | None = None,
        *,
        box: geometry.Box | None = None,
        object_mask: Picture | Sequence[Picture | None] | None = None,
        seed: int = 0,
        mask_level: int | None = None,
        scribble: bool = False,
        invert_mask: bool = False,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        match_colors: bool = False,
        strength: float | None = None,
    ) -> Image.Image:
        """One composite; arguments as `samples`."""
        (picture,) = self.samples(
            object,
            background,
            mask,
            box=box,
            object_mask=object_mask,
            num=1,
            seed=seed,
            mask_level=mask_level,
            scribble=scribble,
            invert_mask=invert_mask,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            eta=eta,
            match_colors=match_colors,
            strength=strength,
        )
        return picture

    def samples(
        self,
        object: Picture | Sequence[Picture],
        background: Picture,
        mask: Picture | None = None,
        *,
        box: geometry.Box | None = None,
        object_mask: Picture | Sequence[Picture | None] | None = None,
        num: int = 1,
        seed: int = 0,
        mask_level: int | None = None,
        scribble: bool = False,
        invert_mask: bool = False,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        match_colors: bool = False,
        strength: float | None = None,
    ) -> Pictures:
        """Several composites of the same pictures, which differ by their noise.

        Args:
            object: As in `Placement`.
            background: As in `Request`.
            mask: As in `Placement`.
            box: As in `Placement`; in the place of a mask.
            object_mask: As in `Placement`.
            num: As in `Request`.
            seed: As in `Request`; the k-th picture does not depend on `num`.
            mask_level: As in `Request`; None is the model's own.
            scribble: As in `Request`.
            invert_mask: As in `Request`.
            num_steps: As in `Settings`; None is the model's own, as of all that follow.
            guidance_scale: As in `Settings`.
            sampler: As in `Settings`.
            eta: As in `Settings`.
            match_colors: As in `Settings`.
            strength: As in `Settings`.

        Returns:
            `num` pictures, as in `Result`, in a list that a notebook shows side by side.

        Raises:
            InputError: As `Request` and `run`.
        """
        request = Request(
            background,
            [Placement(object, mask, object_mask, box)],
            seed=seed,
            num=num,
            mask_level=self.config.sampling.mask_level if mask_level is None else mask_level,
            scribble=scribble,
            invert_mask=invert_mask,
        )
        settings = Settings(num_steps, guidance_scale, sampler, eta, match_colors, strength)
        return Pictures(result.picture for result in self.run([request], settings))

    def run(
        self, requests: Iterable[Request], settings: Settings | None = None
    ) -> Iterator[Result]:
        """Composes many requests, of any sizes, in batches.

        Requests are taken as they are needed, and a batch's pictures are pasted while the next
        batch is on the devices.

        Args:
            requests: A list or a generator.
            settings: The same for all; the model's own if None.

        Yields:
            The pictures of each request, in their order, each as soon as it is composed.

        Raises:
            InputError: As `Settings.filled`, before the first request is taken; or numbers of a
                picture that are not finite.
        """
        for request, number, outcome in self.attempt(requests, settings):
            if isinstance(outcome, str):
                raise InputError(outcome)
            yield Result(request, number, outcome)

    def attempt(
        self, requests: Iterable[Request], settings: Settings | None = None
    ) -> Iterator[tuple[Request, int, Image.Image | str]]:
        """As `run`, but goes on after a picture whose numbers are not finite.

        Yields:
            Request, number, and the picture or what is wrong with it.

        Raises:
            InputError: As `Settings.filled`; before the first request is taken.
        """
        settings = (settings or Settings()).filled(self.config)
        for sample in self._compose(self._samples(requests), settings):
            outcome = sample.error or sample.request.original.finished(sample.photo)
            yield sample.request, sample.number, outcome

    def _samples(self, requests: Iterable[Request]) -> Iterator[_Sample]:
        for request in requests:
            holes = request.holes(self.config.mask_sigmas)
            for number in range(request.num):
                yield _Sample(request, number, holes, request.original.visible)

    def _compose(self, samples: Iterator[_Sample], settings: Filled) -> Iterator[_Sample]:
        """The samples with their photos finished, in order."""
        # Samples, and their last batches, still on the devices.
        running: tuple[deque[_Sample], list[_Batch]] = deque(), []
        while chunk := deque(itertools.islice(samples, self.batching.most_rows)):
            batches: list[_Batch] = []
            for index in range(max(len(sample.holes) for sample in chunk)):
                for batch in batches:  # the next object sees this one
                    self._paste(batch, settings)
                batches = [self._start(group, index, settings) for group in _groups(chunk, index)]
            yield from self._finish(*running, settings)
            running = chunk, batches
        yield from self._finish(*running, settings)

    def _finish(
        self, samples: deque[_Sample], batches: list[_Batch], settings: Filled
    ) -> Iterator[_Sample]:
        for batch in batches:
            self._paste(batch, settings)
        batches.clear()
        while samples:  # each is let go once it is handed on
            yield samples.popleft()

    def _start(self, samples: list[_Sample], index: int, settings: Filled) -> _Batch:
        """Starts a batch: object `index` of every sample; does not wait for it."""
        inputs: list[_Inputs] = []
        for sample in samples:
            # The samples of one request start from the same photo.
            same = inputs and index == 0 and sample.request is samples[len(inputs) - 1].request
            inputs.append(inputs[-1] if same else self._inputs(sample, index, settings))
        rows = []
        for sample, (objects, square, hole, start, _) in zip(samples, inputs, strict=True):
            draw = np.array([sample.request.seed, sample.number, index], np.uint32)
            rows.append((draw, objects, square, hole, *([] if start is None else [start])))
        guidance = () if settings.guidance_scale == 1 else (np.float32(settings.guidance_scale),)
        generated = self.batching.start(self._function(settings), rows, *guidance)
        return _Batch(samples, inputs, generated, index)

    def _inputs(self, sample: _Sample, index: int, settings: Filled) -> _Inputs:
        views, hole = sample.request.parts[index].views, sample.holes[index]
        size = self.config.image_size
        crop = geometry.context_crop(hole, self.config.context, math.ceil(size / MAX_ENLARGED))
        # Filled before resizing too, so that what is in the hole cannot leak into its rim.
        mode = self.config.diffusion.hole_fill
        filled = geometry.fill_hole(sample.photo[..., :3], hole[..., None], mode, grey=128)
        config = self.config
        how = vars(config.object_view)
        cuts = [geometry.object_crop(*view, config.object_size, **how) for view in views]
        if config.object_view.background == "photo":
            self._tell_surroundings(views)
        square_hole = geometry.extract(hole, crop, size)[..., None]
        if sample.number == 0:
            self._mention(sample.request, hole, square_hole, crop)
        square = sample.request.original.to_srgb(geometry.extract(filled, crop, size))
        start = None
        if settings.strength < 1:
            start = paste_object(square, square_hole[..., 0], *views[0])
        return _Inputs(np.stack(cuts), square, square_hole, start, crop)

    def _mention(
        self, request: Request, hole: np.ndarray, square_hole: np.ndarray, crop: geometry.Crop
    ) -> None:
        """Says what a user should know of a hole's size."""
        x0, y0, x1, y1 = geometry.bounding_box(hole)
        cells = int(geometry.latent_mask(square_hole[None], self._cell).sum())
        if cells < FEW_CELLS:
            request.tell(
                logging.WARNING,
                "the hole is %d x %d pixels, %d cells of the model's grid: too small to show an"
                " object",
                *(x1 - x0, y1 - y0, cells),
            )
        if hole.mean() > MUCH:
            request.tell(
                logging.WARNING,
                "the hole is %.0f %% of the photo: little is left to fit the object to",
                100 * hole.mean(),
            )
        if crop.side > 2 * self.config.image_size and "enlarged" not in self._told:
            self._told.add("enlarged")
            log.info("composed at %d pixels, enlarged to %d", self.config.image_size, crop.side)

    def _tell_surroundings(self, views: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Says once that a model which looks around the object sees a cut-out on one colour."""
        if "surroundings" in self._told:
            return
        colors = [geometry.surroundings(*view) for view in views]
        color = next((color for color in colors if color is not None), None)
        if color is None:
            return
        self._told.add("surroundings")
        names = {(0, 0, 0): "black", (255, 255, 255): "white"}
        name = names.get(tuple(color.tolist()), "of the colour #" + bytes(color).hex())
        log.warning(
            "the object is a cut-out, and what surrounds it is %s: this model was trained on"
            " objects in their photos; give the photo and --object-mask (object_mask) if there is"
            " one",
            name,
        )

    def _paste(self, batch: _Batch, settings: Filled) -> None:
        """Waits for a batch and pastes it into its samples' photos."""
        samples, inputs, generated, index = batch
        pictures, finite = map(np.asarray, generated)
        for sample, seen, picture, stages in zip(samples, inputs, pictures, finite, strict=False):
            if sample.error or not stages.all():
                sample.error = sample.error or _non_finite(sample, stages)
                continue
            original = sample.request.original
            if settings.match_colors:
                square = geometry.extract(sample.photo[..., :3], seen.crop, self.config.image_size)
                picture = self._match_colors(picture, original.to_srgb(square), seen.hole)
            feather = max(2, round(seen.crop.side * FEATHER))
            sample.photo = geometry.paste_back(
                sample.photo, original.from_srgb(picture), sample.holes[index], seen.crop, feather
            )

    def _match_colors(
        self, picture: np.ndarray, square: np.ndarray, hole: np.ndarray
    ) -> np.ndarray:
        # A cell that the hole touches is generated as a whole: the ring begins around it.
        cells = geometry.latent_mask(hole[None], self._cell)[0, ..., 0]
        generated = cells.repeat(self._cell, axis=0).repeat(self._cell, axis=1)
        ring = geometry.ring_around(generated, RING * self.config.image_size)
        return geometry.match_colors(picture, square, ring)

    def _function(self, settings: Filled) -> Callable:
        """`generate` for `Batching`: the same object for the same choices."""
        guided = settings.guidance_scale != 1
        choices = sampling.Choices(
            settings.num_steps,
            settings.sampler,
            self.config.sampling.spacing,
            settings.eta,
            settings.strength,
        )
        if (choices, guided) not in self._functions:
            run = functools.partial(generate, self.graphdef, self.config.diffusion, choices)

            def function(params: dict, *args: Any) -> tuple[jax.Array, jax.Array]:
                with jax.default_matmul_precision(self.precision):
                    images, finite = run(params, *(args if guided else (None, *args)))
                return imprint.to_uint8(images), finite

            self._functions[choices, guided] = function
        return self._functions[choices, guided]


def generate(
    graphdef: nnx.GraphDef,
    diffusion: DiffusionConfig,
    choices: sampling.Choices,
    params: dict,
    guidance_scale: jax.Array | None,
    draws: jax.Array,
    objects: jax.Array,
    squares: jax.Array,
    holes: jax.Array,
    starts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A batch of squares composed. Jit it, with the first three arguments bound.

    Args:
        graphdef: The model's, from `imprint.split`.
        diffusion: What the model was trained for.
        choices: How to denoise.
        params: The model's.
        guidance_scale: Scalar, or None for no guidance.
        draws: (b 3) uint32: seed, number of the sample, number of the object.
        objects: (b views s s 3) uint8, on black.
        squares: (b h w 3) uint8.
        holes: (b h w 1) bool.
        starts: (b h w 3) uint8, the objects pasted into the holes; below strength 1 only.

    Returns:
        (b h w 3) float32 in [-1, 1]; and (b stages) bool, whether the numbers of each of
        `sampling.STAGES` are finite.
    """
    return sampling.generate(
        imprint.bind(graphdef, params),
        objects,
        squares,
        holes,
        jax.vmap(_key)(draws),
        guidance_scale,
        diffusion=diffusion,
        choices=choices,
        starts=starts,
    )


def _non_finite(sample: _Sample, stages: np.ndarray) -> str:
    return (
        f"Picture {sample.number} of seed {sample.request.seed} has numbers that are not finite,"
        f" from {sampling.STAGES[int(np.argmin(stages))]} on: the model's weights are damaged, or"
        " too large for the precision."
    )


def _key(draw: jax.Array) -> jax.Array:
    """The key of a sample from its seed, its number and its object's number, (3,) uint32."""
    key = jax.random.key(draw[0], impl=sampling.GENERATOR)
    return jax.random.fold_in(jax.random.fold_in(key, draw[1]), draw[2])


def _groups(samples: Iterable[_Sample], index: int) -> Iterator[list[_Sample]]:
    """The samples that have an object `index`, by its number of views."""
    views = lambda sample: len(sample.request.parts[index].views)
    having = [sample for sample in samples if len(sample.holes) > index]
    for _, group in itertools.groupby(sorted(having, key=views), views):
        yield list(group)
