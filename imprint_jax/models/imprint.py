"""The whole model: what it is made of and how its parts meet.

    object image -> DINOv2 -> adapter -> context -> the UNet's keys and values
    background   -> VAE -> latents ------------> UNet -> prediction

Outside `models/`, a model is two things: a graph definition (static) and its parameters, a plain
nested dict of arrays with string keys: {dinov2, adapter, unet, vae}. `bind` puts them together
inside a jitted function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax import geometry
from imprint_jax.config.fields import (
    AdapterConfig,
    CLIPConfig,
    DINOv2Config,
    KLConfig,
    LappedConfig,
    MapperConfig,
    ModelConfig,
    RematConfig,
    UNetConfig,
)
from imprint_jax.config.section import Section
from imprint_jax.models.adapter import Adapter, Mapper
from imprint_jax.models.attention import PORTABLE, Attention
from imprint_jax.models.clip import CLIPVision
from imprint_jax.models.dinov2 import DINOv2
from imprint_jax.models.layers import Rngs
from imprint_jax.models.unet import UNet
from imprint_jax.models.vae import AutoencoderKL, LappedCodec

COMPONENTS = ("dinov2", "adapter", "unet", "vae")

# Pixels, at the network's size, that the fill is wider than the hole. Resizing a photo with an
# object leaves up to 30 grey levels of it in the first pixel outside its mask, up to 7 in the
# second, and 1 at most beyond the third (measured). Ours.
FILL_MARGIN = 3


class Imprint(nnx.Module):
    """DINOv2, content adapter, UNet and VAE.

    The component `dinov2` is the image encoder, and is CLIP's vision tower where `config.encoder`
    says so. It keeps the name of the first encoder because that names a file in every released
    folder, an item in every checkpoint and the paths that recipes' groups match: with another name
    none of them could be read without a table of old names.

    Args:
        config: What they are.
        remat: Whose blocks' activations are recomputed in the backward pass; None: nobody's.
        attention: Computes attention in all of them.
        dtype: Dtype of the computation; parameters stay float32. The VAE always runs in float32:
            its activations overflow half precision.
        rngs: Source of the initial parameters.
    """

    dinov2: DINOv2 | CLIPVision
    adapter: Adapter
    unet: UNet
    vae: AutoencoderKL | LappedCodec

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: RematConfig | None = None,
        attention: Attention = PORTABLE,
        rngs: Rngs,
    ):
        remat = remat or RematConfig(dinov2=False, unet=False)
        self.object_tokens = config.object_tokens
        make: dict[str, Any] = dict(attention=attention, dtype=dtype, rngs=rngs)
        self.dinov2 = build(config.dinov2, remat=remat.dinov2, **make)
        self.adapter = build(config.adapter, remat=remat.dinov2, **make)
        self.unet = build(config.unet, remat=remat.unet, **make)
        self.vae = build(config.vae, **make | dict(dtype=jnp.float32))

    def encode_object(self, objects: jax.Array) -> jax.Array:
        """The object's tokens: class and patches, without the registers; or the class alone.

        Args:
            objects: (b s s 3) in [-1, 1], the object on black.

        Returns:
            (b 1+patches context_width) float32, or (b 1 context_width).
        """
        tokens = self.dinov2.class_and_patches(objects)
        if self.object_tokens == "class":
            tokens = tokens[:, :1]
        return self.adapter(tokens)

    def encode_background(
        self, images: jax.Array, mask: jax.Array, hole_fill: str
    ) -> tuple[jax.Array, jax.Array]:
        """The background's latents, which know nothing of what is in the hole, and the hole.

        The encoder sees beyond a cell's own pixels, so the hole is filled before encoding: in
        training it shows the object itself, in use whatever was there. What is filled is
        `FILL_MARGIN` pixels wider than the hole: a photo that was resized shows the object's colour
        in a rim outside its mask, which in use nothing shows.

        Args:
            images: (b H W 3) in [-1, 1].
            mask: (b H W 1) of 0 and 1, 1 in the hole.
            hole_fill: "grey" fills the hole and its rim with mid-grey, "exact" the hole alone,
                "none" leaves both.

        Returns:
            latents (b h w c) float32, and the mask on their grid (b h w 1) float32: a cell is hole
            if any of its pixels is.
        """
        widened = mask if hole_fill == "exact" else _widened(mask)
        filled = geometry.fill_hole(images, widened, hole_fill, grey=0.0)
        cells = geometry.latent_mask(mask, self.vae.factor)
        return self.vae.encode(filled), cells.astype(jnp.float32)


def _widened(mask: jax.Array) -> jax.Array:
    """(b H W 1) of 0 and 1, with 1 also where one is at most `FILL_MARGIN` pixels away."""
    side = 2 * FILL_MARGIN + 1
    return jax.lax.reduce_window(
        mask, jnp.zeros((), mask.dtype), jax.lax.max, (1, side, side, 1), (1, 1, 1, 1), "SAME"
    )


NETWORKS: dict[type[Section], Callable[..., nnx.Module]] = {
    DINOv2Config: DINOv2,
    CLIPConfig: CLIPVision,
    AdapterConfig: Adapter,
    MapperConfig: Mapper,
    UNetConfig: UNet,
    KLConfig: AutoencoderKL,
    LappedConfig: LappedCodec,
}


def build(section: Section, **make: Any) -> Any:
    """The network that a section of `config.model` describes.

    Args:
        section: Of one component.
        **make: `attention`, `dtype`, `rngs`, and but for the VAE `remat`.
    """
    return NETWORKS[type(section)](**vars(section), **make)


def abstract_params(make: Callable[..., nnx.Module], *args: Any, **arguments: Any) -> dict:
    """The shapes of a module's parameters, a nested dict of `jax.ShapeDtypeStruct`.

    Args:
        make: The module's class, or a function; called with the arguments and `rngs`.
    """
    module = nnx.eval_shape(lambda: make(*args, **arguments, rngs=Rngs(jax.random.key(0))))
    return _string_keys(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def abstract(section: Section) -> dict:
    """The shapes of the parameters of `build`'s network."""
    return abstract_params(build, section, dtype=jnp.float32)


def split(
    config: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    remat: RematConfig | None = None,
    attention: Attention = PORTABLE,
) -> tuple[nnx.GraphDef, dict]:
    """The model's graph definition and the shapes of its parameters; allocates nothing.

    Args:
        config: As `Imprint` takes it.
        dtype: Dtype of the computation.
        remat: As `Imprint` takes it.
        attention: As `Imprint` takes it.

    Returns:
        graphdef: For `bind`; hashable.
        abstract_params: Nested dict of `jax.ShapeDtypeStruct`.
    """
    make: dict[str, Any] = dict(dtype=dtype, remat=remat, attention=attention)
    model = nnx.eval_shape(lambda: Imprint(config, **make, rngs=Rngs(jax.random.key(0))))
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, _string_keys(nnx.to_pure_dict(params))


def bind(graphdef: nnx.GraphDef, params: dict) -> Imprint:
    """The model with these parameters; free inside a jitted function."""
    return nnx.merge(graphdef, params)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 0 to 255 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """[-1, 1] -> uint8 0 to 255."""
    return jnp.round((images + 1.0) * 127.5).astype(jnp.uint8)


def _string_keys(tree: Any) -> Any:
    """Lists come out of NNX with integer keys; paths and files want strings."""
    if isinstance(tree, dict):
        return {str(key): _string_keys(value) for key, value in tree.items()}
    return tree
