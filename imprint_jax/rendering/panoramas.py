"""Places out of panoramas: the light from all around, and the ground that objects stand on.

A panorama is a picture of the whole sphere in linear light (equirectangular, the middle of its
upper edge straight up), as Poly Haven's. It lights the object, is what is seen behind it, and below
the horizon it is the ground, darkened where the object keeps the light away. y is up.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from imprint_jax.errors import InputError
from imprint_jax.rendering.raytracer import SKY_DIRECTIONS, Light, bilinear
from imprint_jax.rendering.rooms import MAP_REACH, MAP_SIDE

SUFFIXES = (".hdr",)  # Radiance's
# What is brighter than so many times the mean, and this near to the brightest spot, is the sun (or
# a window, or a lamp): it throws the sharp shadow. Ours.
SUN_FROM = 4.0
SUN_REACH = 20.0  # degrees
SUN_SOFTNESS = (2.0, 15.0)  # degrees, least and most
SMOOTH = 15.0  # degrees: the rest of the light is blurred by it, for few directions are followed
CAMERA = (1.5, 4.0)  # height it was taken from, in radii of the object: how coarse the ground is
# An upward white surface is lit as strongly as by `views.random_light`.
LEVEL = (0.9, 1.3)


@dataclass(frozen=True)
class PanoramaLight(Light):
    """The light of a panorama; a `Light` whose sky and ground have a colour in each direction.

    Attributes:
        surroundings: (h w 3) radiance without the sun, smooth.
    """

    surroundings: np.ndarray

    def directions(self, sample: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Light.directions`."""
        directions, brings = super().directions(sample, samples)
        radiance = look_up(self.surroundings, directions[1:])
        # As there: (4 pi / k) / pi a direction.
        return directions, np.vstack([brings[:1], radiance * 4 / SKY_DIRECTIONS])


@dataclass(frozen=True)
class Place:
    """What is seen of a panorama around an object, which stands at the origin.

    Attributes:
        panorama: (h w 3) radiance.
        height: Of the point it was taken from, above the origin.
        shades: Two (MAP_SIDE MAP_SIDE 3) around the origin, without and with the object: what is
            left of the light that falls on the ground. North is -z.
    """

    panorama: np.ndarray
    height: float
    shades: tuple[np.ndarray, np.ndarray]

    def colours_along(
        self, eye: np.ndarray, rays: np.ndarray, spread: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Room.colours_along`."""
        del spread  # a panorama is coarser than the view
        down = rays[:, 1] < -1e-3
        point = eye + (-eye[1] / np.where(down, rays[:, 1], -1))[:, None] * rays
        # Ground is seen as from the camera above the origin, sky along the ray.
        towards = np.where(down[:, None], point - [0, self.height, 0], rays)
        colour = look_up(self.panorama, towards / np.linalg.norm(towards, axis=1, keepdims=True))
        edge = 0.5 / MAP_SIDE
        place = np.stack([point[:, 0], -point[:, 2]], 1)
        uv = np.clip(place / (2 * MAP_REACH) + 0.5, edge, 1 - edge)
        without, with_thing = (
            np.where(down[:, None], colour * bilinear(shade, uv), colour) for shade in self.shades
        )
        return without, with_thing


def read_panorama(path: str | os.PathLike) -> np.ndarray:
    """A panorama as radiance, (h w 3) float32.

    Raises:
        InputError: It is no Radiance picture, or not twice as wide as high.
    """
    picture = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.float32 or picture.ndim != 3:
        raise InputError(f"{path} is no panorama in Radiance's format (.hdr).")
    if picture.shape[1] != 2 * picture.shape[0]:
        raise InputError(
            f"{path} is {picture.shape[1]}x{picture.shape[0]} pixels; a panorama of the whole"
            " sphere is twice as wide as high."
        )
    return np.nan_to_num(np.maximum(picture[..., ::-1], 0))


def find_panoramas(folder: str | os.PathLike) -> list[Path]:
    """The panoramas under a folder, all of which are readable.

    Raises:
        InputError: There is none, or one is not readable.
    """
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"There is no panorama ({', '.join(SUFFIXES)}) under {folder}.")
    for path in paths:  # now, not hours later in the first scene that draws it
        read_panorama(path)
    return paths


def turned(panorama: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The panorama, turned about the upward axis at random and as bright as `LEVEL` says."""
    panorama = np.roll(panorama, int(rng.integers(panorama.shape[1])), axis=1)
    directions, solid = _sphere(panorama.shape[:2])
    upward = (panorama * (solid * np.maximum(directions[..., 1], 0))[..., None]).sum((0, 1)) / np.pi
    return panorama * np.float32(rng.uniform(*LEVEL) / max(upward.mean(), 1e-6))


def light_of(panorama: np.ndarray, rng: np.random.Generator) -> PanoramaLight:
    """The light of a panorama: its brightest spot, and the rest, blurred.

    Args:
        panorama: (h w 3) radiance.
        rng: Decides the turn of the sphere's directions.
    """
    directions, solid = _sphere(panorama.shape[:2])
    brightness = panorama.mean(-1)
    # The brightest spot of some extent, not a single pixel of glitter.
    spot = ndimage.uniform_filter(brightness, 3, mode=("nearest", "wrap"))
    spot = np.where(directions[..., 1] > 0.05, spot, 0)
    brightest = directions.reshape(-1, 3)[spot.argmax()]
    limit = SUN_FROM * (brightness * solid).sum() / solid.sum()
    near = directions @ brightest > np.cos(np.radians(SUN_REACH))
    share = np.where(near, 1 - limit / np.maximum(brightness, limit), 0)
    excess = panorama * share[..., None]
    weight = excess.mean(-1) * solid
    if weight.sum() > 0:
        sun = (directions * weight[..., None]).sum((0, 1))
        sun /= np.linalg.norm(sun)
        angle = np.arccos(np.clip(directions @ sun, -1, 1))
        # The mean distance from the middle of a disc is two thirds of its radius.
        softness = 1.5 * (angle * weight).sum() / weight.sum()
    else:
        sun, softness = brightest, 0.0
    sigma = panorama.shape[0] * SMOOTH / 180
    return PanoramaLight(
        sun=sun,
        softness=float(np.clip(softness, *np.radians(SUN_SOFTNESS))),
        sun_colour=(excess * solid[..., None]).sum((0, 1)) / np.pi,
        sky_colour=np.zeros(3),
        ground_colour=np.zeros(3),
        turn=rng.uniform(0, 2 * np.pi),
        surroundings=ndimage.gaussian_filter(
            panorama - excess, (sigma, sigma, 0), mode=("nearest", "wrap", "nearest")
        ),
    )


def look_up(panorama: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """What a panorama (h w 3) shows along unit vectors (n 3): (n 3)."""
    height = panorama.shape[0]
    azimuth = np.arctan2(directions[:, 0], -directions[:, 2])  # 0 in the panorama's middle
    elevation = np.arcsin(np.clip(directions[:, 1], -1, 1))
    # The uppermost and lowest rows have no neighbours beyond the poles.
    v = np.clip(0.5 + elevation / np.pi, 0.5 / height, 1 - 0.5 / height)
    return bilinear(panorama, np.stack([0.5 + azimuth / (2 * np.pi), v], 1))


def shades(maps: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Maps of the light on the ground (`rooms.light_maps`) as shares of the empty ground's."""
    empty = np.maximum(maps[0][0, 0], 1e-6)  # the outermost texels are those of the empty plane
    return maps[0] / empty, maps[1] / empty


def _sphere(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Directions (h w 3) of a panorama's pixels and the solid angles (h w) they cover."""
    height, width = shape
    elevation = np.pi * (0.5 - (np.arange(height) + 0.5) / height)[:, None]
    azimuth = 2 * np.pi * ((np.arange(width) + 0.5) / width - 0.5)[None, :]
    across = np.cos(elevation)
    directions = np.stack(
        np.broadcast_arrays(across * np.sin(azimuth), np.sin(elevation), -across * np.cos(azimuth)),
        -1,
    )
    solid = np.broadcast_to(across * (np.pi / height) * (2 * np.pi / width), shape)
    return directions, solid
