"""Ray casting on the CPU with Embree, for `views.py`: a model and a light in, a view out.

The light is a fixed set of directions, the same for every pixel of a sample: a sun and a share of a
sphere of sky (and ground). How much of the sphere is covered is the ambient occlusion. Nothing is
random, so there is no noise to remove. y is up; colours are linear light.
"""

import dataclasses
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from imprint_jax.errors import InputError

if TYPE_CHECKING:
    from embreex.rtcore_scene import EmbreeScene
    from trimesh import Trimesh

MAX_TRIANGLES = 300_000
MIN_THICKNESS = 0.08  # smallest over largest side of the bounding box; panels are flatter

FIELD_OF_VIEW = 35.0  # degrees, the whole frame; about a 55 mm lens on a full-frame camera
FILL = 0.9  # of the half frame, reached in the view and on the side where the object is widest

GAMMA = 2.2
SKY_DIRECTIONS = 8  # a sample, over the whole sphere
GLOSS, GLOSS_POWER = 0.08, 30  # faint highlight of the sun, strength and Blinn exponent
CREASE = np.cos(np.radians(45))  # vertex normals further from the face's than this are not used
MAX_LAYERS = 8  # of cut-out or see-through surface followed along one ray


class RejectedModel(InputError):
    """A model that gives no usable views; `reason` is a short word to count by."""

    def __init__(self, path: str | os.PathLike, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{path}: {reason}: {detail}")


@dataclasses.dataclass(frozen=True)
class Model:
    """Triangles by corner, centred on their bounding box, y up. Colours are linear light, 0 to 1.

    Attributes:
        triangles: (m 3 3) float32 corners.
        normals: (m 3 3) float32, unit length.
        uv: (m 3 2) float32.
        colour: (m 3 3) float32.
        opacity: (m) float32.
        texture: (m) int32, an index into `textures`, or -1.
        textures: Each (h w 4) float32, row 0 at v = 1.
    """

    triangles: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    colour: np.ndarray
    opacity: np.ndarray
    texture: np.ndarray
    textures: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Light:
    """A sun and a sky: RGB irradiances in linear light."""

    sun: np.ndarray  # (3) unit direction towards it
    softness: float  # its angular radius, radians
    sun_colour: np.ndarray
    sky_colour: np.ndarray
    ground_colour: np.ndarray
    turn: float  # rotation of the sky's directions, radians

    def directions(self, sample: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Directions (k 3), the sun first, and what each brings to a facing white surface (k 3)."""
        # Golden-angle spirals: over the sun's disc (Vogel), and over the sphere (Fibonacci), on
        # which the samples take turns.
        golden = np.pi * (3 - np.sqrt(5))
        radius = np.tan(self.softness) * np.sqrt((sample + 0.5) / samples)
        right, up = frame(self.sun)
        around = sample * golden
        sun = self.sun + radius * (np.cos(around) * right + np.sin(around) * up)

        total = SKY_DIRECTIONS * samples
        index = np.arange(sample, total, samples)
        height = 1 - (2 * index + 1) / total
        ring, angle = np.sqrt(1 - height**2), index * golden + self.turn
        sphere = np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], 1)
        # The irradiance of a uniform sphere is (4 pi / k) / pi a direction.
        brings = (
            np.where(height[:, None] > 0, self.sky_colour, self.ground_colour) * 4 / SKY_DIRECTIONS
        )
        return np.vstack([sun / np.linalg.norm(sun), sphere]), np.vstack([self.sun_colour, brings])


def import_renderer() -> tuple[ModuleType, ModuleType]:
    """The modules `trimesh` and `embreex`.

    Raises:
        InputError: They are not installed.
    """
    try:
        import embreex.mesh_construction
        import embreex.rtcore_scene
        import trimesh
    except ImportError as error:
        raise InputError(
            f"Rendering needs {error.name}: pip install 'imprint_jax[render]'"
        ) from error
    return trimesh, embreex


def load_model(path: str | os.PathLike, up: str) -> Model:
    """Reads a mesh with its materials, scaled to a bounding sphere of radius 1.

    Args:
        path: OBJ, GLB, glTF or PLY.
        up: The model's upward axis, "y" or "z".

    Raises:
        RejectedModel: The file does not load, is flat, or too large.
        InputError: No such file or axis, or the extra `[render]` is missing.
    """
    import_renderer()
    if up not in ("y", "z"):
        raise InputError(f"The up axis must be y or z, not {up!r}.")
    if not Path(path).is_file():
        raise InputError(f"There is no model at {path}.")
    try:
        return _read_model(path, up)
    except RejectedModel:
        raise
    # A broken file leads the parsers of four formats, and what reads their meshes, to any error.
    except Exception as error:
        raise RejectedModel(path, "broken", f"{type(error).__name__}: {error}") from error


def _read_model(path: str | os.PathLike, up: str) -> Model:
    trimesh, _ = import_renderer()
    meshes = trimesh.load_scene(path, process=False).dump()
    meshes = [mesh for mesh in meshes if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    count = sum(len(mesh.faces) for mesh in meshes)
    if not count:
        raise RejectedModel(path, "broken", "no triangles")
    if count > MAX_TRIANGLES:
        raise RejectedModel(
            path, "large", f"{count} triangles, at most {MAX_TRIANGLES} are rendered"
        )

    parts = []
    textures: list[np.ndarray] = []
    for mesh in meshes:
        colour, opacity, image = _surface(mesh)
        uv = getattr(mesh.visual, "uv", None) if image is not None else None
        texture = -1
        if image is not None and uv is not None:
            texture = len(textures)
            textures.append(np.asarray(image.convert("RGBA"), np.float32) / 255)
        parts.append(
            Model(
                triangles=mesh.triangles,
                normals=_corner_normals(mesh),
                uv=np.zeros((len(mesh.faces), 3, 2)) if uv is None else np.asarray(uv)[mesh.faces],
                colour=np.broadcast_to(colour, (len(mesh.faces), 3, 3)),
                opacity=np.full(len(mesh.faces), opacity),
                texture=np.full(len(mesh.faces), texture),
                textures=[],
            )
        )
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts]).astype(kind)
        for name, kind in zip(
            ("triangles", "normals", "uv", "colour", "opacity", "texture"),
            ["f4"] * 5 + ["i4"],
            strict=True,
        )
    }
    if not np.isfinite(fields["triangles"]).all():
        raise RejectedModel(path, "broken", "coordinates that are not numbers")
    fields["uv"] = np.nan_to_num(fields["uv"])
    if up == "z":
        for name in ("triangles", "normals"):
            x, y, z = np.moveaxis(fields[name], -1, 0)
            fields[name] = np.stack([x, z, -y], -1)
    corners = fields["triangles"].reshape(-1, 3)
    low, high = corners.min(0), corners.max(0)
    sides = high - low
    if sides.min() < MIN_THICKNESS * sides.max():
        raise RejectedModel(path, "flat", f"its sides are {', '.join(f'{s:.3g}' for s in sides)}")
    # Unit radius: the offsets of shadow rays are fixed numbers.
    fields["triangles"] = (fields["triangles"] - (low + high) / 2) / (np.linalg.norm(sides) / 2)
    return Model(**fields, textures=textures)


def _surface(mesh: "Trimesh") -> tuple[np.ndarray, float, Image.Image | None]:
    """Linear colour (broadcasts to (m 3 3)), opacity and texture of a mesh's one material."""
    visual: Any = mesh.visual  # of colours or of textures, with no base that says what both have
    material = getattr(visual, "material", None)
    if material is None:
        colours = visual.vertex_colors[mesh.faces] if visual.defined else np.full((1, 1, 3), 180)
        return (colours[..., :3] / 255.0) ** GAMMA, 1.0, None
    if hasattr(material, "baseColorFactor"):
        # glTF: the factor is linear light and multiplies the texture.
        factor = (
            np.array([255] * 4 if material.baseColorFactor is None else material.baseColorFactor)
            / 255.0
        )
        image = material.baseColorTexture
        if image is not None and material.alphaMode in (None, "OPAQUE"):
            image = image.convert("RGB")
        opacity = 1.0 if material.alphaMode in (None, "OPAQUE") else factor[3]
        return factor[:3], opacity, image
    # MTL: many exporters write Kd 0 or grey beside a texture that is meant to be seen as it is.
    opacity = float(material.kwargs.get("d", ["1"])[-1])
    if material.image is not None:
        return np.ones(3), opacity, material.image
    return (np.array(material.diffuse[:3]) / 255.0) ** GAMMA, opacity, None


def _corner_normals(mesh: "Trimesh") -> np.ndarray:
    """The vertices' normals; at corners that belong to another side of an edge, the face's."""
    face = np.broadcast_to(
        unit(np.cross(*np.diff(mesh.triangles, axis=1).swapaxes(0, 1)))[:, None],
        (len(mesh.faces), 3, 3),
    )
    vertex = unit(np.nan_to_num(mesh.vertex_normals))[mesh.faces]
    cosine = np.einsum("mij,mij->mi", vertex, face)
    return np.where(
        (np.abs(cosine) > CREASE)[..., None], vertex * np.where(cosine < 0, -1, 1)[..., None], face
    )


def fit_textures(model: Model, resolution: float, distance: float) -> list[np.ndarray]:
    """Textures in linear light, each averaged down as a whole to about one texel a ray.

    Args:
        model: As loaded.
        resolution: Rays across the frame.
        distance: From the camera to the object's centre.
    """
    rays = resolution / (2 * distance * np.tan(np.radians(FIELD_OF_VIEW) / 2))
    fitted = []
    for index, texture in enumerate(model.textures):
        faces = model.texture == index
        area = _areas(model.triangles[faces]).sum() * rays**2
        height, width = texture.shape[:2]
        texels = _areas(np.pad(model.uv[faces], ((0, 0), (0, 0), (0, 1)))).sum() * height * width
        linear = np.concatenate([texture[..., :3] ** GAMMA, texture[..., 3:]], -1)
        shrink = np.sqrt(max(texels / max(area, 1e-9), 1))
        if shrink > 1.5:
            new = max(round(width / shrink), 1), max(round(height / shrink), 1)
            bands = [
                Image.fromarray(band).resize(new, Image.Resampling.BOX)
                for band in np.moveaxis(linear, -1, 0)
            ]
            linear = np.stack([np.asarray(band) for band in bands], -1)
        fitted.append(linear)
    return fitted


def blocks_light(model: Model) -> np.ndarray:
    """Which triangles (m) bool are opaque everywhere."""
    opaque_textures = [texture[..., 3].min() > 0.99 for texture in model.textures]
    solid = np.array([*opaque_textures, True])  # the last serves index -1
    return solid[model.texture] & (model.opacity > 0.99)


def make_scene(triangles: np.ndarray) -> "EmbreeScene":
    """Embree's scene of triangles (m 3 3)."""
    _, embreex = import_renderer()
    scene = embreex.rtcore_scene.EmbreeScene()
    indices = np.arange(3 * len(triangles), dtype=np.int32).reshape(-1, 3)
    vertices = np.ascontiguousarray(triangles.reshape(-1, 3), np.float32)
    embreex.mesh_construction.TriangleMesh(scene=scene, vertices=vertices, indices=indices)
    return scene


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-20)


def _areas(triangles: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.cross(*np.diff(triangles, axis=1).swapaxes(0, 1)), axis=-1) / 2


def frame(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and up of someone looking against `direction`, which is not vertical."""
    right = unit(np.cross([0.0, 1, 0], direction))
    return right, np.cross(direction, right)


def camera_distance(points: np.ndarray, directions: np.ndarray) -> float:
    """The least distance from which all points stay within FILL of the frame in every view."""
    slope = FILL * np.tan(np.radians(FIELD_OF_VIEW) / 2)
    needed = []
    for direction in directions:
        right, up = frame(direction)
        across = np.maximum(np.abs(points @ right), np.abs(points @ up))
        needed.append((points @ direction + across / slope).max())
    return float(max(needed))


def trace_view(
    model: Model,
    scene: "EmbreeScene",
    shadows: "EmbreeScene",
    light: Light,
    eye: np.ndarray,
    direction: np.ndarray,
    size: int,
    samples: int,
) -> np.ndarray:
    """One view.

    Args:
        model: What is seen.
        scene: `make_scene` of all its triangles.
        shadows: `make_scene` of those that throw shadows.
        light: What lights it.
        eye: (3) where the camera is.
        direction: (3) unit, from the object to the camera.
        size: Side of the view in pixels.
        samples: Rays a pixel.

    Returns:
        (size size 4) uint8: sRGB colour, not premultiplied, and alpha.
    """
    total = np.zeros((size * size, 4), np.float32)
    for sample in range(samples):
        # A see-through surface is hit by the share of the samples that its opacity names.
        pixel, surface = trace(
            model, scene, eye, pixel_rays(direction, size, sample), (sample + 0.5) / samples
        )
        total[pixel, :3] += shade(shadows, surface, *light.directions(sample, samples))
        total[pixel, 3] += 1
    colour = develop(total[:, :3] / np.maximum(total[:, 3:], 1))
    view = np.concatenate([colour, total[:, 3:] / samples], 1)
    return (view * 255).round().astype(np.uint8).reshape(size, size, 4)


def pixel_rays(direction: np.ndarray, size: int, sample: int) -> np.ndarray:
    """Unit vectors (size * size 3) float32 through a point of every pixel, row by row."""
    right, up = frame(direction)
    slope = np.tan(np.radians(FIELD_OF_VIEW) / 2)
    # Roberts' R2 sequence: even over the pixel for any number of samples.
    dx, dy = (0.5 + sample * np.array([0.7548776662, 0.5698402910])) % 1
    x = (2 * (np.arange(size) + dx) / size - 1) * slope
    y = (1 - 2 * (np.arange(size) + dy) / size) * slope
    rays = (x[None, :, None] * right + y[:, None, None] * up - direction).reshape(-1, 3)
    return unit(rays).astype(np.float32)


def develop(colour: np.ndarray) -> np.ndarray:
    """Linear light to sRGB, 0 to 1; highlights roll off."""
    return np.clip(colour / (1 + 0.15 * colour), 0, 1) ** (1 / GAMMA)


class Surface(NamedTuple):
    """Where rays meet a model, (h 3) each."""

    position: np.ndarray
    face_normal: np.ndarray
    normal: np.ndarray
    ray: np.ndarray  # its direction
    colour: np.ndarray


def trace(
    model: Model, scene: "EmbreeScene", eye: np.ndarray, rays: np.ndarray, threshold: float
) -> tuple[np.ndarray, Surface]:
    """First surfaces with more than `threshold` opacity.

    Returns:
        (h) indices of the rays that meet one, and what is there.
    """
    alive = np.arange(len(rays))
    origin = np.broadcast_to(eye.astype(np.float32), rays.shape).copy()
    visible = []
    for _ in range(MAX_LAYERS):
        hits = scene.run(origin[alive], rays[alive], output=True)
        hit = hits["primID"] >= 0
        alive, face = alive[hit], hits["primID"][hit]
        if not len(alive):
            break
        u, v = hits["u"][hit], hits["v"][hit]
        weight = np.stack([1 - u - v, u, v], 1)
        colour, opacity = _look_up(model, face, weight)
        ray = rays[alive]
        position = origin[alive] + hits["tfar"][hit][:, None] * ray
        seen = opacity > threshold
        towards = -np.sign(np.einsum("hi,hi->h", hits["Ng"][hit], ray))[:, None]
        face_normal = unit(hits["Ng"][hit]) * towards
        normal = unit(np.einsum("hc,hci->hi", weight, model.normals[face]))
        normal *= np.where(np.einsum("hi,hi->h", normal, face_normal) < 0, -1, 1)[:, None]
        visible.append(
            [array[seen] for array in (alive, position, face_normal, normal, ray, colour)]
        )
        origin[alive] = position + 1e-4 * ray
        alive = alive[~seen]
    if not visible:
        return np.zeros(0, int), Surface(*(np.zeros((0, 3), np.float32),) * 5)
    pixel, *surface = (np.concatenate(arrays) for arrays in zip(*visible, strict=True))
    return pixel, Surface(*surface)


def _look_up(model: Model, face: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour (h 3) and opacity (h) at points of faces, by barycentric weights (h 3)."""
    colour = np.einsum("hc,hci->hi", weight, model.colour[face])
    opacity = model.opacity[face].copy()
    uv = np.einsum("hc,hci->hi", weight, model.uv[face])
    index = model.texture[face]
    for texture in np.unique(index[index >= 0]):
        here = np.flatnonzero(index == texture)
        texels = bilinear(model.textures[texture], uv[here])
        colour[here] *= texels[:, :3]
        opacity[here] *= texels[:, 3]
    return colour, opacity


def bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = texture.shape[:2]
    x, y = (uv[:, 0] % 1) * width - 0.5, ((1 - uv[:, 1]) % 1) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, low_share = (x - left)[:, None], (y - top)[:, None]
    rows, columns = (top % height, (top + 1) % height), (left % width, (left + 1) % width)
    upper = (
        texture[rows[0], columns[0]] * (1 - right_share)
        + texture[rows[0], columns[1]] * right_share
    )
    lower = (
        texture[rows[1], columns[0]] * (1 - right_share)
        + texture[rows[1], columns[1]] * right_share
    )
    return upper * (1 - low_share) + lower * low_share


def shade(
    shadows: "EmbreeScene", surface: Surface, directions: np.ndarray, brings: np.ndarray
) -> np.ndarray:
    """Linear light (h 3) that leaves a matt surface with a faint gloss; see Light.directions."""
    position, face_normal, normal, ray, colour = surface
    directions = directions.astype(np.float32)
    cosine = np.maximum(normal @ directions.T, 0)
    cosine[face_normal @ directions.T <= 0] = 0
    point, towards = np.nonzero(cosine)
    start = (position + 2e-3 * face_normal).astype(np.float32)
    if len(point):
        blocked = shadows.run(start[point], directions[towards], query="OCCLUDED") >= 0
        cosine[point[blocked], towards[blocked]] = 0
    half = unit(directions[0] - ray)
    gloss = np.maximum(np.einsum("hi,hi->h", normal, half), 0) ** GLOSS_POWER * (cosine[:, 0] > 0)
    return colour * (cosine @ brings) + GLOSS * gloss[:, None] * brings[0]
