"""Compositor: objects, photos and holes in; the photos with the objects out.

    compositor = Compositor.from_pretrained("mini")
    picture = compositor(cup, desk, hole, seed=7)
    for result in compositor.run(requests):  # many at once, as a generator
        ...

**Seeds.** The noise of a picture comes from its request's seed, the picture's number among the
request's `num` and the number of the object, and from nothing else: not from the batch it is
computed in, nor from its place there. With the same version, settings, machine, bucket (the batch
size that was compiled) and place in the batch the same request gives the same picture bit for bit,
whatever its neighbours. Another bucket or place may sum in another order: the network's output in
[-1, 1] then differs by rounding only, up to 1e-4 in float32, a grey level at most in the picture;
in bfloat16, or on another kind of device, by a few grey levels.
"""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from PIL import Image

from imprint_jax import geometry
from imprint_jax.composing.request import Picture, Placement, Request
from imprint_jax.composing.start import paste_object
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.models.attention import Attention, Target
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


@dataclass(frozen=True)
class Settings:
    """How to sample. None stands for the model's own choice.

    Attributes:
        num_steps: Denoising steps, 1 to 1000.
        guidance_scale: Weight of the object against no object; 1 is off.
        sampler: "ddim" or "dpm++2m", see `sampling`.
        eta: DDIM's share of fresh noise, 0 to 1.
        match_colors: Shift the colours of what was made so that around the hole they are the
            photo's.
        strength: Above 0, at most 1. 1 starts from pure noise (the paper); below, the object is
            pasted into the hole and noised to that share of the schedule: the lower, the more of
            its pose and the finer its detail.
    """

    num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    eta: float = 0.0
    match_colors: bool = False
    strength: float | None = None

    def filled(self, config: ConfigDict) -> "Settings":
        """With the choices of a model in the place of None.

        Raises:
            InputError: A value out of range.
        """
        chosen = {
            name: getattr(self, name) if getattr(self, name) is not None else config.sampling[name]
            for name in ("num_steps", "guidance_scale", "sampler", "strength")
        }
        train_steps = config.diffusion.num_train_timesteps
        sampling.sampling_timesteps(
            train_steps, chosen["num_steps"], config.sampling.spacing, chosen["strength"]
        )
        sampling.check_sampler(chosen["sampler"], self.eta)
        if not math.isfinite(chosen["guidance_scale"]):
            raise InputError(
                f"The guidance scale must be a number, not {chosen['guidance_scale']}."
            )
        return replace(self, **chosen)


class Result(NamedTuple):
    """A request and its `num` pictures: RGB, of the background's size.

    Outside the holes and their feathered edges their pixels are the background's.
    """

    request: Request
    pictures: list[Image.Image]


@dataclass(eq=False)
class _Sample:
    """One picture in the making: the `number`th of a request, the photo as far as it is."""

    request: Request
    number: int
    photo: np.ndarray


class _Inputs(NamedTuple):
    """What the network is given of a photo and a part of a request, and where it comes from."""

    objects: np.ndarray  # (views s s 3) uint8
    square: np.ndarray  # (size size 3) uint8, the hole filled
    hole: np.ndarray  # (size size 1) bool
    start: np.ndarray | None  # (size size 3) uint8, the object pasted; None at strength 1
    crop: geometry.Crop


class Compositor:
    """Composes objects into photos of any size.

    Args:
        config: The configuration of a released model.
        params: Its parameters, {dinov2, adapter, unet, vae}.
        dtype: Of the computation: `jnp.float32`, or `jnp.bfloat16` for half the memory and, on an
            accelerator, less time. The VAE and the sampler always use float32.
        precision: Of float32 products and convolutions, as a configuration's `precision`.
        max_batch: Samples computed together on one device, at most.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: dict,
        *,
        dtype=jnp.float32,
        precision: str = "high",
        max_batch: int = 8,
    ):
        if max_batch < 1:
            raise InputError(f"The batch size must be 1 or more, not {max_batch}.")
        self.config = config
        self.max_batch = max_batch
        self.devices = jax.local_devices()
        attention = Attention(Target.of(self.devices[0]))
        self.graphdef, abstract = imprint.split(config.model, dtype, attention=attention)
        self._cell = imprint.bind(self.graphdef, abstract).vae.factor  # pixels
        self.dtype = jnp.dtype(dtype)
        self.precision = precision
        cast = lambda tree, dtype: jax.tree.map(lambda x: x.astype(dtype, copy=False), tree)
        self.params = {name: cast(tree, dtype) for name, tree in params.items()}
        self.params["vae"] = cast(params["vae"], jnp.float32)
        self.params = jax.device_put(self.params, self.devices[0])
        self._copies = [self.params]  # on the first so many devices
        self._programs = {}

    @classmethod
    def from_pretrained(cls, name: str | Path, **options) -> "Compositor":
        """Loads a model that ships ("mini") or a released folder; options as the constructor.

        Raises:
            InputError: There is no such model, or its files are missing or damaged.
        """
        folder = release.model_folder(name)
        config, params = release.load(folder)
        compositor = cls(config, params, **options)
        devices = compositor.devices
        kind = devices[0].device_kind
        log.info("model %s on %d x %s, %s", folder, len(devices), kind, compositor.dtype)
        if devices[0].platform == "cpu" and compositor.dtype != jnp.float32:
            log.warning(
                "on CPU XLA computes %s in float32: no faster, more memory", compositor.dtype
            )
        return compositor

    def __call__(
        self,
        object_image: Picture | Sequence[Picture],
        background: Picture,
        mask: Picture,
        **options,
    ) -> Image.Image:
        """One composite; arguments as `samples`."""
        return self.samples(object_image, background, mask, num=1, **options)[0]

    def samples(
        self,
        object_image: Picture | Sequence[Picture],
        background: Picture,
        mask: Picture,
        *,
        object_mask: Picture | Sequence[Picture | None] | None = None,
        num: int = 1,
        seed: int = 0,
        mask_level: int | None = None,
        **settings,
    ) -> list[Image.Image]:
        """Several composites of the same pictures, which differ by their noise.

        Args:
            object_image: The object, as in `Placement`.
            background: As in `Request`.
            mask: As in `Placement`.
            object_mask: As in `Placement`.
            num: As in `Request`.
            seed: As in `Request`; the k-th picture does not depend on `num`.
            mask_level: As in `Request`; the model's own if None.
            **settings: The fields of `Settings`.

        Returns:
            `num` RGB pictures of the background's size.

        Raises:
            InputError: As `Request` and `Settings.filled`.
        """
        if mask_level is None:
            mask_level = self.config.sampling.mask_level
        placement = Placement(object_image, mask, object_mask)
        request = Request(background, [placement], seed=seed, num=num, mask_level=mask_level)
        return next(self.run([request], Settings(**settings))).pictures

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
            The result of each request, in their order, as soon as it is there.

        Raises:
            InputError: As `Settings.filled`; before the first request is taken.
        """
        settings = (settings or Settings()).filled(self.config)
        samples = (_Sample(r, number, r.photo) for r in requests for number in range(r.num))
        pictures = []
        for sample in self._compose(samples, settings):
            pictures.append(Image.fromarray(sample.photo))
            if len(pictures) == sample.request.num:
                yield Result(sample.request, pictures)
                pictures = []

    def _compose(self, samples: Iterator[_Sample], settings: Settings) -> Iterator[_Sample]:
        """The samples with their photos finished, in order."""
        running = [], []  # samples, and their last batches, still on the devices
        while chunk := list(itertools.islice(samples, self.max_batch * len(self.devices))):
            batches = []
            for index in range(max(len(sample.request.parts) for sample in chunk)):
                for batch in batches:  # the next object sees this one
                    self._paste(*batch, settings)
                batches = [
                    (*self._start(group, index, settings), index) for group in _groups(chunk, index)
                ]
            yield from self._finish(*running, settings)
            running = chunk, batches
        yield from self._finish(*running, settings)

    def _finish(self, samples: list[_Sample], batches: list, settings: Settings):
        for batch in batches:
            self._paste(*batch, settings)
        yield from samples

    def _start(self, samples: list[_Sample], index: int, settings: Settings):
        """Starts a batch: object `index` of every sample; does not wait for it."""
        inputs = []
        for sample in samples:
            # The samples of one request start from the same photo.
            same = inputs and index == 0 and sample.request is samples[len(inputs) - 1].request
            inputs.append(inputs[-1] if same else self._inputs(sample, index, settings))
        draws = np.array([(s.request.seed, s.number, index) for s in samples], np.uint32)
        columns = list(zip(*inputs, strict=True))[: 3 if settings.strength == 1 else 4]
        arrays = [draws, *(np.stack(column) for column in columns)]
        count = 1 if len(samples) == 1 else len(self.devices)
        size = count * bucket(math.ceil(len(samples) / count), self.max_batch)
        arrays = [np.concatenate([a, a[-1:].repeat(size - len(a), axis=0)]) for a in arrays]
        generated = self._program(count, settings)(
            self._params_on(count), np.float32(settings.guidance_scale), *arrays
        )
        return samples, inputs, generated

    def _inputs(self, sample: _Sample, index: int, settings: Settings) -> _Inputs:
        views, hole = sample.request.parts[index]
        size = self.config.image_size
        crop = geometry.context_crop(hole, self.config.context, math.ceil(size / MAX_ENLARGED))
        # Filled before resizing too, so that what is in the hole cannot leak into its rim.
        mode = self.config.diffusion.hole_fill
        filled = geometry.fill_hole(sample.photo, hole[..., None], mode, grey=128)
        see = partial(geometry.object_crop, size=self.config.object_size, **self.config.object_view)
        cuts = [see(*view) for view in views]
        square_hole = geometry.extract(hole, crop, size)[..., None]
        if sample.number == 0:
            self._mention(hole, square_hole, crop)
        square = geometry.extract(filled, crop, size)
        start = None
        if settings.strength < 1:
            start = paste_object(square, square_hole[..., 0], *views[0])
        return _Inputs(np.stack(cuts), square, square_hole, start, crop)

    def _mention(self, hole: np.ndarray, square_hole: np.ndarray, crop: geometry.Crop) -> None:
        """Says what a user should know of a hole's size."""
        x0, y0, x1, y1 = geometry.bounding_box(hole)
        cells = int(geometry.latent_mask(square_hole[None], self._cell).sum())
        if cells < FEW_CELLS:
            log.warning(
                "the hole is %d x %d pixels, %d cells of the model's grid: too small to show an"
                " object",
                *(x1 - x0, y1 - y0, cells),
            )
        if hole.mean() > MUCH:
            log.warning(
                "the hole is %.0f %% of the photo: little is left to fit the object to",
                100 * hole.mean(),
            )
        if crop.side > 2 * self.config.image_size:
            log.info("composed at %d pixels, enlarged to %d", self.config.image_size, crop.side)

    def _paste(
        self,
        samples: list[_Sample],
        inputs: list[_Inputs],
        generated,
        index: int,
        settings: Settings,
    ) -> None:
        """Waits for a batch and pastes it into its samples' photos."""
        for sample, given, picture in zip(samples, inputs, np.asarray(generated), strict=False):
            hole = sample.request.parts[index].hole
            if settings.match_colors:
                picture = self._match_colors(picture, sample.photo, given)
            feather = max(2, round(given.crop.side * FEATHER))
            sample.photo = geometry.paste_back(sample.photo, picture, hole, given.crop, feather)

    def _match_colors(self, picture: np.ndarray, photo: np.ndarray, given: _Inputs) -> np.ndarray:
        # A cell that the hole touches is made anew as a whole: the ring begins around it.
        cells = geometry.latent_mask(given.hole[None], self._cell)[0, ..., 0]
        made = cells.repeat(self._cell, axis=0).repeat(self._cell, axis=1)
        ring = geometry.ring_around(made, RING * self.config.image_size)
        original = geometry.extract(photo, given.crop, self.config.image_size)
        return geometry.match_colors(picture, original, ring)

    def _params_on(self, count: int) -> dict:
        """The parameters on the first `count` devices; copied to each once, when it is needed."""
        for device in self.devices[len(self._copies) : count]:
            self._copies.append(jax.device_put(self.params, device))
        sharding = NamedSharding(self._mesh(count), P())
        whole = lambda *copies: jax.make_array_from_single_device_arrays(
            copies[0].shape, sharding, list(copies)
        )
        return jax.tree.map(whole, *self._copies[:count])

    def _mesh(self, count: int) -> Mesh:
        return Mesh(np.array(self.devices[:count]), ("data",))

    def _program(self, count: int, settings: Settings):
        """The jitted function for `count` devices, each of which computes its share of the batch.

        A program is compiled for each bucket and number of views it meets.
        """
        choices = settings.num_steps, settings.sampler, settings.eta, settings.strength
        if (count, choices) not in self._programs:
            run = partial(generate, self.graphdef, self.config, choices)

            def one_device(*args):
                with jax.default_matmul_precision(self.precision):
                    return imprint.to_uint8(run(*args))

            program = jax.shard_map(
                one_device,
                mesh=self._mesh(count),
                in_specs=(P(), P(), *[P("data")] * (4 if settings.strength == 1 else 5)),
                out_specs=P("data"),
                check_vma=False,
            )
            self._programs[count, choices] = jax.jit(program)
        return self._programs[count, choices]


def generate(
    graphdef, config, choices, params, guidance_scale, draws, objects, squares, holes, starts=None
) -> jax.Array:
    """A batch of squares composed. Jit it, with the first three arguments bound.

    Args:
        graphdef: The model's, from `imprint.split`.
        config: Of the released model.
        choices: Steps, sampler, eta and strength.
        params: The model's.
        guidance_scale: Scalar.
        draws: (b 3) uint32: seed, number of the sample, number of the object.
        objects: (b views s s 3) uint8, on black.
        squares: (b h w 3) uint8.
        holes: (b h w 1) bool.
        starts: (b h w 3) uint8, the objects pasted into the holes; below strength 1 only.

    Returns:
        (b h w 3) float32 in [-1, 1].
    """
    num_steps, sampler, eta, strength = choices
    return sampling.generate(
        imprint.bind(graphdef, params),
        objects,
        squares,
        holes,
        jax.vmap(_key)(draws),
        guidance_scale,
        config=config,
        starts=starts,
        num_steps=num_steps,
        sampler=sampler,
        eta=eta,
        strength=strength,
    )


def _key(draw: jax.Array) -> jax.Array:
    """The key of a sample from its seed, its number and its object's number, (3,) uint32."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(draw[0]), draw[1]), draw[2])


def bucket(size: int, largest: int) -> int:
    """The batch size to compile for `size` samples: 1, 2, 4, 8, ... up to `largest`."""
    return min(1 << (size - 1).bit_length(), largest)


def _groups(samples: list[_Sample], index: int) -> Iterator[list[_Sample]]:
    """The samples that have an object `index`, by its number of views."""
    views = lambda sample: len(sample.request.parts[index].views)
    having = [sample for sample in samples if len(sample.request.parts) > index]
    for _, group in itertools.groupby(sorted(having, key=views), views):
        yield list(group)
