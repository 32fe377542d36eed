"""Compositor: an object, a photo and a hole in; the photo with the object out."""

import logging
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from imprint_jax import geometry, images, pretrained, sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint

log = logging.getLogger(__name__)

# Side of the crop the network sees over the longer side of the hole's box. Ours.
CONTEXT = 1.75
# The paste's edge fades over this share of the crop's side. Ours.
FEATHER = 1 / 48

Picture = np.ndarray | Image.Image


class Compositor:
    """Composes objects into photos of any size.

    Args:
        config: The configuration of a released model.
        params: Its parameters, {dinov2, adapter, unet, vae}.
    """

    def __init__(self, config: ConfigDict, params: dict):
        self.config = config
        self.graphdef, _ = imprint.split(config.model)
        self.params = jax.tree.map(jnp.asarray, params)
        self._generate = jax.jit(self._generate_batch, static_argnames="num_steps")

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Compositor":
        """Loads a model that ships ("mini") or a released folder.

        Raises:
            InputError: There is no such model, or its files are missing or damaged.
        """
        folder = pretrained.model_folder(name)
        log.info("model %s on %s, float32", folder, jax.devices()[0])
        return cls(*pretrained.load(folder))

    def __call__(
        self, object_image: Picture, background: Picture, mask: Picture, **options
    ) -> Image.Image:
        """One composite; arguments as `samples`."""
        return self.samples(object_image, background, mask, num=1, **options)[0]

    def samples(
        self,
        object_image: Picture,
        background: Picture,
        mask: Picture,
        *,
        object_mask: Picture | None = None,
        num: int = 1,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
    ) -> list[Image.Image]:
        """Several composites of the same picture, which differ by their noise.

        Args:
            object_image: (h w 3) with `object_mask`, or (h w 4) whose alpha is the mask; uint8.
            background: (h w 3) uint8, any size.
            mask: (h w) bool, or uint8 of which 128 and more is the hole; the background's size.
            object_mask: (h w), as `mask`: where the object is in its image.
            num: How many.
            num_steps: Denoising steps; the model's own number if None.
            guidance_scale: 1 is off; the model's own if None.
            seed: The same seed gives the same pictures; the k-th does not depend on `num`'s value
                beyond rounding.

        Returns:
            `num` RGB pictures of the background's size. Pixels outside the hole and its feathered
            edge are the background's.

        Raises:
            InputError: Shapes, dtypes or values that do not fit, an empty mask.
        """
        cut, cut_mask, photo, hole = check_inputs(
            object_image, background, mask, object_mask=object_mask, num=num, num_steps=num_steps
        )
        if num_steps is None:
            num_steps = self.config.sampling.num_steps
        if guidance_scale is None:
            guidance_scale = self.config.sampling.guidance_scale
        cut = geometry.object_crop(cut, cut_mask, self.config.object_size)
        crop = geometry.context_crop(hole, CONTEXT)
        size = self.config.image_size
        # Filled before resizing too, so that what is in the hole cannot leak into its rim.
        filled = geometry.fill_hole(photo, hole[..., None], "grey", grey=128)
        square = geometry.extract(filled, crop, size)
        square_hole = geometry.extract(hole, crop, size)

        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(num))
        repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], num, axis=0)
        generated = self._generate(
            self.params,
            repeat(cut),
            repeat(square),
            repeat(square_hole[..., None]),
            keys,
            jnp.float32(guidance_scale),
            num_steps=num_steps,
        )
        feather = max(2, round(crop.side * FEATHER))
        return [
            Image.fromarray(geometry.paste_back(photo, picture, hole, crop, feather))
            for picture in np.asarray(generated)
        ]

    def _generate_batch(self, params, objects, squares, holes, keys, guidance_scale, *, num_steps):
        """uint8 in, uint8 out: what is compiled."""
        output = sampling.sample(
            imprint.bind(self.graphdef, params),
            imprint.to_float(objects),
            imprint.to_float(squares),
            holes.astype(jnp.float32),
            keys,
            guidance_scale,
            num_steps=num_steps,
            config=self.config,
        )
        return jnp.round((output + 1.0) * 127.5).astype(jnp.uint8)


def check_inputs(
    object_image: Picture,
    background: Picture,
    mask: Picture,
    *,
    object_mask: Picture | None = None,
    num: int = 1,
    num_steps: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Checks what `Compositor.samples` is given, without a model.

    Returns:
        The object's picture (h w 3) uint8 and its mask (h w) bool or uint8 coverage; the
        background (h w 3) uint8 and the hole (h w) bool.

    Raises:
        InputError: Shapes, dtypes or values that do not fit, an empty mask.
    """
    if num < 1:
        raise InputError(f"The number of pictures must be 1 or more, not {num}.")
    if num_steps is not None and num_steps < 1:
        raise InputError(f"The number of steps must be 1 or more, not {num_steps}.")
    image = images.as_rgb_or_rgba(object_image, "object's picture")
    if object_mask is not None:
        coverage = images.as_mask(object_mask, image.shape[:2], "object mask")
    elif image.shape[2] == 4:
        coverage = image[..., 3]
    else:
        raise InputError(
            "The object's picture has no transparency: give an object mask, or a picture with"
            " an alpha channel."
        )
    if not (coverage if coverage.dtype == bool else coverage >= images.MASK_THRESHOLD).any():
        raise InputError("The object's mask is empty: no pixel of its picture belongs to it.")
    photo = images.as_rgb(background, "background")
    hole = images.as_mask(mask, photo.shape[:2], "mask")
    if not hole.any():
        raise InputError("The mask is empty: mark where the object goes in white.")
    return image[..., :3], coverage, photo, hole
