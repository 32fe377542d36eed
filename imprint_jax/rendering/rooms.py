"""What objects of a rendered scene stand on and before: floor, walls, photo, and their light.

Floor and walls are planes, met by rays in closed form. What falls on them is computed once a scene,
as a map of the light with the object's shadow and one without, so that soft shadows cost little and
are the same in every view. Units are those of `load_model`: an object's bounding sphere has
radius 1. y is up; colours are linear light.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from imprint_jax.rendering.raytracer import (
    GAMMA,
    Light,
    Model,
    bilinear,
    blocks_light,
    make_scene,
    trace,
)

TEXTURE_SIDE = 512  # texels, of a floor's or wall's texture
MAP_SIDE = 256  # texels of a light map, 2 * MAP_REACH wide
MAP_REACH = 5.0  # beyond, the light is that of the empty plane
LIGHT_SAMPLES = 16  # directions on the sun's disc; eight times as many over the sphere
SKIN = 2e-3  # above the plane from where its shadow rays start; as the renderer's


@dataclass(frozen=True)
class Plane:
    """A textured plane, seen from the side its normal points to.

    Attributes:
        origin: (3) where texture and light map have their middle.
        right: (3) unit.
        up: (3) unit; the normal is right x up.
        textures: Each (n n 3), half the side of the one before.
        repeat: Length that a texture covers.
        end: How far the plane goes from its origin along `up`.
    """

    origin: np.ndarray
    right: np.ndarray
    up: np.ndarray
    textures: list[np.ndarray]
    repeat: float
    end: float = np.inf

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.right, self.up)


class Caster:
    """Something that throws shadows on planes, cut-out leaves in their true shape.

    Args:
        model: Its triangles.
    """

    def __init__(self, model: Model):
        self.model, self.scene = model, make_scene(model.triangles)
        self.solid = bool(blocks_light(model).all())

    def blocks(self, start: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Which points (n 3) do not see along `direction` (3): (n) bool."""
        directions = np.broadcast_to(direction.astype(np.float32), start.shape).copy()
        if self.solid:
            return self.scene.run(start, directions, query="OCCLUDED") >= 0
        blocked = np.zeros(len(start), bool)
        blocked[trace(self.model, self.scene, start, directions, 0.5)[0]] = True
        return blocked


def light_maps(
    plane: Plane, light: Light, thing: Caster, others: Caster | None
) -> tuple[np.ndarray, np.ndarray]:
    """The light on a plane around its origin, without and with the object.

    Args:
        plane: What is lit.
        light: By what.
        thing: The object.
        others: What else stands there.

    Returns:
        Two (MAP_SIDE MAP_SIDE 3) float32: what a white plane sends back, row 0 at the far end of
        `plane.up`. The outermost texels are those of the empty plane.
    """
    ticks = (2 * np.arange(MAP_SIDE) + 1 - MAP_SIDE) / MAP_SIDE * MAP_REACH
    x, y = ticks[None, :, None], -ticks[:, None, None]
    points = plane.origin + SKIN * plane.normal + x * plane.right + y * plane.up
    points = points.reshape(-1, 3).astype(np.float32)
    empty = np.zeros(3, np.float32)
    without, with_thing = np.zeros((2, len(points), 3), np.float32)
    for sample in range(LIGHT_SAMPLES):
        for direction, brings in zip(*light.directions(sample, LIGHT_SAMPLES), strict=True):
            cosine = plane.normal @ direction
            if cosine <= 0:
                continue
            share = (cosine * brings / LIGHT_SAMPLES).astype(np.float32)
            empty += share
            lit = (
                np.ones(len(points), bool) if others is None else ~others.blocks(points, direction)
            )
            without += lit[:, None] * share
            lit &= ~thing.blocks(points, direction)
            with_thing += lit[:, None] * share
    maps = []
    for light_map in (without, with_thing):
        light_map = light_map.reshape(MAP_SIDE, MAP_SIDE, 3)
        light_map[[0, -1]] = light_map[:, [0, -1]] = empty
        maps.append(light_map)
    return maps[0], maps[1]


@dataclass(frozen=True)
class Panorama:
    """A photo at infinity, seen where no plane is, mirrored beyond its edges.

    Attributes:
        texture: (h w 3), the photo with its mirror images on its right and below.
        azimuth: Of its middle, radians, from z to x.
        elevation: Of its middle, radians.
        width: Angle it covers, radians.
        height: Likewise.
    """

    texture: np.ndarray
    azimuth: float
    elevation: float
    width: float
    height: float

    def colours_along(self, rays: np.ndarray) -> np.ndarray:
        """Colours (n 3) along unit vectors (n 3)."""
        turn = (np.arctan2(rays[:, 0], rays[:, 2]) - self.azimuth + np.pi) % (2 * np.pi) - np.pi
        rise = np.arcsin(np.clip(rays[:, 1], -1, 1)) - self.elevation
        # Seen from inside, what is further round to the left has the larger azimuth. The photo is
        # the left upper quarter of the texture.
        uv = np.stack([0.25 - turn / self.width / 2, 0.75 + rise / self.height / 2], 1)
        return bilinear(self.texture, uv)


@dataclass(frozen=True)
class Room:
    """Planes with their light maps, and what is behind them."""

    planes: list[Plane]
    maps: list[tuple[np.ndarray, np.ndarray]]
    panorama: Panorama | None

    def colours_along(
        self, eye: np.ndarray, rays: np.ndarray, spread: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """What rays meet, objects apart: colours (n 3) float32 without and with their shadow.

        Args:
            eye: (3) where the rays start.
            rays: (n 3) unit vectors.
            spread: Angle between neighbouring rays, radians: decides how sharp textures are.
        """
        nearest = np.full(len(rays), np.inf)
        which = np.full(len(rays), -1)
        for number, plane in enumerate(self.planes):
            slope = rays @ plane.normal
            height = (eye - plane.origin) @ plane.normal
            with np.errstate(divide="ignore"):
                distance = np.where(slope < 0, -height / slope, np.inf)
            along = (eye - plane.origin) @ plane.up + distance * (rays @ plane.up)
            hit = (distance < nearest) & ((along < plane.end) | np.isinf(plane.end))
            nearest[hit], which[hit] = distance[hit], number
        without, with_thing = np.zeros((2, len(rays), 3), np.float32)
        for number, (plane, maps) in enumerate(zip(self.planes, self.maps, strict=True)):
            here = which == number
            offset = eye + nearest[here, None] * rays[here] - plane.origin
            place = np.stack([offset @ plane.right, offset @ plane.up], 1)
            footprint = nearest[here] * spread / np.sqrt(-(rays[here] @ plane.normal))
            colour = _textured(plane, place, footprint)
            edge = 0.5 / MAP_SIDE
            uv = np.clip(place / (2 * MAP_REACH) + 0.5, edge, 1 - edge)
            without[here], with_thing[here] = (colour * bilinear(light, uv) for light in maps)
        if self.panorama is not None:
            behind = which < 0
            without[behind] = with_thing[behind] = self.panorama.colours_along(rays[behind])
        return without, with_thing


def _textured(plane: Plane, place: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """The texture's colour (n 3) at places (n 2) seen with rays of that footprint (n)."""
    texel = plane.repeat / TEXTURE_SIDE
    level = np.log2(np.maximum(footprint / texel, 1)).round().astype(int)
    level = np.minimum(level, len(plane.textures) - 1)
    colour = np.empty((len(place), 3), np.float32)
    for number in np.unique(level):
        here = level == number
        colour[here] = bilinear(plane.textures[number], place[here] / plane.repeat)
    return colour


def pyramid(texture: np.ndarray) -> list[np.ndarray]:
    """A texture (n n 3), n a power of two, in halves of its size down to 4 texels."""
    levels = [texture.astype(np.float32)]
    while len(levels[-1]) > 4:
        n = len(levels[-1]) // 2
        levels.append(levels[-1].reshape(n, 2, n, 2, 3).mean((1, 3)))
    return levels


def mirrored(texture: np.ndarray) -> np.ndarray:
    """The texture with its mirror images, which repeats without a seam."""
    wide = np.concatenate([texture, texture[:, ::-1]], 1)
    return np.concatenate([wide, wide[::-1]])


def photo_texture(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random square of a photo (h w 3) uint8 as a texture that repeats."""
    height, width = photo.shape[:2]
    side = rng.uniform(0.3, 1) * min(height, width)
    x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
    half = TEXTURE_SIDE // 2
    square = Image.fromarray(photo).resize(
        (half, half), Image.Resampling.HAMMING, box=(x, y, x + side, y + side)
    )
    return mirrored((np.asarray(square) / 255.0) ** GAMMA)


def panorama(
    photo: np.ndarray, direction: np.ndarray, rays: float, rng: np.random.Generator
) -> Panorama:
    """A photo around what a camera sees.

    Args:
        photo: (h w 3) uint8.
        direction: (3) from the object to the camera.
        rays: Rays a radian, which decides the resolution.
        rng: Decides how large the photo appears, and how much out of focus.
    """
    height, width = photo.shape[:2]
    angle = np.radians(rng.uniform(35, 55))  # of the shorter side; the frame's is 35
    focus = np.exp(rng.uniform(0, np.log(4)))  # rays a texel
    scale = min(angle * rays / focus / min(height, width), 1)
    small = Image.fromarray(photo).resize(
        (max(round(width * scale), 2), max(round(height * scale), 2)), Image.Resampling.HAMMING
    )
    return Panorama(
        texture=mirrored((np.asarray(small) / 255.0) ** GAMMA).astype(np.float32),
        azimuth=float(np.arctan2(-direction[0], -direction[2])),
        elevation=float(-np.arcsin(direction[1])),
        width=angle * width / min(height, width),
        height=angle * height / min(height, width),
    )


def procedural_texture(rng: np.random.Generator) -> np.ndarray:
    """Random boards, tiles, plaster or stripes: (TEXTURE_SIDE TEXTURE_SIDE 3), which repeats."""
    n = TEXTURE_SIDE
    base = rng.uniform(0.15, 0.85) * (1 + rng.uniform(-0.25, 0.25, 3))
    other = base * rng.uniform(0.4, 0.9) * (1 + rng.uniform(-0.15, 0.15, 3))
    kind = rng.choice(["boards", "tiles", "plaster", "stripes"])
    y, x = np.mgrid[:n, :n] / n
    if kind == "boards":
        rows = int(rng.integers(4, 13))
        grain = _clouds(rng, 24.0, 1.0)
        row = (y * rows).astype(int)
        tone = rng.uniform(-0.5, 0.5, rows)[row]
        joint = np.abs((x + rng.uniform(0, 1, rows)[row]) % 1 - 0.5) * rows
        gap = np.minimum(np.abs((y * rows) % 1 - 0.5) * -1 + 0.5, joint / 2) < 0.03
        mix = 0.5 + 0.25 * grain + 0.5 * tone
    elif kind == "tiles":
        rows = 2 * int(rng.integers(1, 7))
        odd = ((x * rows).astype(int) + (y * rows).astype(int)) % 2
        contrast = rng.choice([0.0, 0.3, 0.8])
        edge = 0.5 - np.maximum(np.abs((x * rows) % 1 - 0.5), np.abs((y * rows) % 1 - 0.5))
        gap = edge < 0.02
        mix = 0.5 + contrast * (odd - 0.5) + 0.12 * _clouds(rng, 4.0, 4.0)
    elif kind == "plaster":
        scale = np.exp(rng.uniform(np.log(1.5), np.log(30)))
        mix, gap = 0.5 + rng.uniform(0.1, 0.5) * _clouds(rng, scale, scale), np.zeros((n, n), bool)
    else:
        bands = int(rng.integers(3, 25))
        mix = 0.5 + 0.4 * np.tanh(rng.uniform(1, 6) * np.sin(2 * np.pi * bands * x))
        mix, gap = mix + 0.06 * _clouds(rng, 1.0, 1.0), np.zeros((n, n), bool)
    colour = other + np.clip(mix, 0, 1)[..., None] * (base - other)
    colour = np.where(gap[..., None], colour * 0.45, colour)
    return np.clip(np.rot90(colour, int(rng.integers(2))), 0.02, 0.95) ** GAMMA


def _clouds(rng: np.random.Generator, across: float, along: float) -> np.ndarray:
    """Smooth noise of unit deviation that repeats, with blots of about that many texels."""
    total = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE))
    for octave in range(3):
        noise = rng.standard_normal(total.shape)
        sigma = (along / 2**octave, across / 2**octave)
        smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
        total += smooth / smooth.std() / 2**octave
    return total / total.std()


def place_planes(
    away: np.ndarray,
    end: float,
    walls: list[tuple[np.ndarray, float]],
    textures: list[tuple[np.ndarray, float]],
) -> list[Plane]:
    """A floor at height 0 under the origin, and walls.

    Args:
        away: (3) horizontal unit vector, along which the floor ends.
        end: Distance from the origin at which it does; infinite if it does not.
        walls: Normals (3) and distances from the origin.
        textures: Of the floor and each wall, and the length it covers.
    """
    upright = np.array([0.0, 1, 0])
    levels = [(pyramid(texture), repeat) for texture, repeat in textures]
    planes = [Plane(np.zeros(3), np.cross(away, upright), away, *levels[0], end=end)]
    for (normal, distance), level in zip(walls, levels[1:], strict=True):
        origin = upright - distance * normal
        planes.append(Plane(origin, np.cross(upright, normal), upright, *level))
    return planes
