"""Textured meshes in, RGBA views along a smooth camera path out.

Ray casting on the CPU with Embree (through `trimesh` and `embreex`, the extra `[render]`). One object is lit once, by a
sun and a sky that stay where they are while the camera moves, so that neighbouring views differ as the frames of a video
of a resting object do. Everything random comes from the seed.

The light is a fixed set of directions, the same for every pixel of a sample: a sun direction and a share of a sphere of sky
(and ground) directions. Occlusion of the sky directions is the ambient occlusion. No noise, so nothing to denoise.

Coordinates: y is up, x to the right and z towards the viewer at azimuth 0; angles are in degrees in everything written.
"""

import dataclasses
import json
import logging
import multiprocessing
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import numpy as np
from PIL import Image

from imprint_jax.errors import InputError

logger = logging.getLogger(__name__)

MODEL_SUFFIXES = (".obj", ".glb", ".gltf", ".ply")
MAX_TRIANGLES = 300_000
MIN_THICKNESS = (
    0.08  # smallest over largest side of the bounding box; panels and sheets are flatter
)
MIN_COVERAGE = 0.01  # share of the frame that the object covers in its emptiest view

FIELD_OF_VIEW = (
    35.0  # degrees, the whole frame; about a 55 mm lens on a full-frame camera held upright
)
FILL = 0.9  # of the half frame, reached at the view and the side where the object is widest
MAX_STEP = 6.0  # degrees of great circle between neighbouring views
ELEVATION = (5.0, 45.0)  # degrees

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

    def __reduce__(self):  # crosses process borders
        return RuntimeError, (str(self),)


@dataclasses.dataclass(frozen=True)
class Model:
    """Triangles by corner, centred on their bounding box, y up. Colours are linear light in 0..1.

    triangles (m, 3, 3), normals (m, 3, 3) unit, uv (m, 3, 2), colour (m, 3, 3), opacity (m,): float32;
    texture (m,) int32, an index into `textures` or -1. A texture is (h, w, 4) float32, row 0 at v = 1.
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
    """`sun` (3,) unit direction towards it; `softness` its angular radius in radians; RGB irradiances in linear light."""

    sun: np.ndarray
    softness: float
    sun_colour: np.ndarray
    sky_colour: np.ndarray
    ground_colour: np.ndarray
    turn: float  # rotation of the sky's directions, radians

    def directions(self, sample: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Directions (k, 3) and what each brings to a facing white surface (k, 3); entry 0 is the sun."""
        # Golden-angle spirals: over the sun's disc (Vogel), over the sphere (Fibonacci). Samples take turns on the latter.
        golden = np.pi * (3 - np.sqrt(5))
        radius = np.tan(self.softness) * np.sqrt((sample + 0.5) / samples)
        right, up = _frame(self.sun)
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


def camera_path(num_views: int, rng: np.random.Generator) -> np.ndarray:
    """Directions from the object to the camera: a sweep in azimuth with a slowly drifting elevation.

    Args:
      num_views: number of views, 1 or more; from about 80 on the path is one full turn, with smaller steps.
      rng: decides the start, the sense, the speed and the drift.

    Returns:
      (num_views, 3) float64 unit vectors, y up, elevations in 5..45 degrees, neighbours at most 6 degrees apart.
    """
    step = min(rng.uniform(4.5, 5.5), 360 / num_views)
    azimuth = rng.uniform(0, 360) + rng.choice([-1, 1]) * step * np.arange(num_views)
    low, high = ELEVATION
    swing = rng.uniform(0.3, 1) * (high - low) / 2
    middle = rng.uniform(low + swing, high - swing)
    # d(elevation)/d(azimuth) <= swing * rate = 20 deg * 0.8 = 0.28, so a step is at most 5.5 * sqrt(1 + 0.28^2) = 5.7.
    rate = rng.uniform(0.3, 0.8)
    elevation = middle + swing * np.sin(rate * np.radians(azimuth) + rng.uniform(0, 2 * np.pi))
    azimuth, elevation = np.radians(azimuth), np.radians(elevation)
    return np.stack(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ],
        1,
    )


def random_light(directions: np.ndarray, rng: np.random.Generator) -> Light:
    """A sun on the side of the path's middle view, never right behind the object, and a sky; day to late afternoon."""
    middle = directions[len(directions) // 2]
    azimuth = np.arctan2(middle[0], middle[2]) + np.radians(rng.uniform(-100, 100))
    elevation = np.radians(rng.uniform(30, 70))
    sun = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ]
    )
    share, level = rng.uniform(0.35, 0.7), rng.uniform(0.95, 1.3)
    warmth, blueness = rng.uniform(0, 0.12), rng.uniform(0, 0.12)
    sky = level * (1 - share) * np.array([1 - blueness, 1, 1 + blueness])
    return Light(
        sun=sun,
        softness=np.radians(rng.uniform(2, 8)),
        sun_colour=level * share * 1.3 * np.array([1 + warmth, 1, 1 - warmth]),
        sky_colour=sky,
        ground_colour=sky * rng.uniform(0.3, 0.6) * np.array([1.05, 1, 0.92]),
        turn=rng.uniform(0, 2 * np.pi),
    )


def render_views(
    model_path: str | os.PathLike,
    num_views: int,
    size: int,
    seed: int,
    *,
    up: str = "y",
    samples: int = 4,
) -> Iterator[np.ndarray]:
    """Views of one model, rendered one by one as they are asked for.

    Args:
      model_path: OBJ (with its MTL and textures beside it), GLB, glTF or PLY.
      num_views: views along the camera path; neighbours are at most 6 degrees apart.
      size: side of the square views in pixels.
      seed: decides path and light; the same seed gives the same views.
      up: the model's upright axis, "y" (glTF, most OBJ) or "z" (most scans and CAD).
      samples: rays a pixel, a trade of time for smoothness.

    Yields:
      (size, size, 4) uint8, straight (not premultiplied) sRGB colour and antialiased alpha; colour 0 where alpha is 0.

    Raises:
      RejectedModel: an InputError; the file does not load, is flat, too large, or leaves the frame empty.
      InputError: the extra `[render]` is missing, or an argument is out of range.
    """
    if num_views < 1 or size < 8 or samples < 1:
        raise InputError(
            f"num_views {num_views}, size {size}, samples {samples}: need at least 1, 8 and 1"
        )
    directions, light = _path_and_light(num_views, seed)
    model = _load(model_path, up)
    target, distance = np.zeros(3), _distance(model.triangles.reshape(-1, 3), directions)
    model = dataclasses.replace(
        model, textures=_fit_textures(model, size * np.sqrt(samples), distance)
    )
    scene = _scene(model.triangles)
    # What may let light through throws no shadow: leaves on cut-out cards would darken one another with whole cards.
    solid = _lets_no_light_through(model)
    shadows = _scene(model.triangles[solid]) if solid.any() else scene
    for direction in directions:
        view = _render(
            model, scene, shadows, light, target + distance * direction, direction, size, samples
        )
        if view[..., 3].mean() / 255 < MIN_COVERAGE:
            raise RejectedModel(model_path, "empty", "the object covers less than 1 % of a view")
        yield view


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one model: `status` is "rendered", "complete" (was there already) or "rejected"."""

    object_id: str
    source: str
    status: str
    reason: str = ""
    detail: str = ""


def render_folder(
    models_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    num_views: int = 36,
    size: int = 256,
    workers: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    image_format: str = "webp",
    up: str = "y",
    samples: int = 4,
) -> Iterator[Result]:
    """Renders every model under a folder; an object is a folder of views.

    Layout: `OUT/<object_id>/000.webp ...` and `OUT/<object_id>/views.json` (angles in degrees, light, source); models
    that gave no views are listed with the reason in `OUT/rejects.jsonl`. The object's id is its path under `models_dir`
    (without suffix; a file named like its folder counts once). A folder appears under its final name only when it is
    whole, so a stopped run is simply started again: whole objects are left as they are, rejected ones are tried again.

    Args:
      models_dir: searched to any depth for OBJ, GLB, glTF and PLY.
      out_dir: made when missing.
      num_views, size, up, samples: as in `render_views`.
      workers: processes; None for one a core.
      limit: take only the first so many models in alphabetical order.
      seed: with the object's id it decides its path and light; independent of which other models there are.
      image_format: "webp" (colour at quality 90, alpha without loss) or "png".

    Yields:
      a `Result` a model, in the order they finish.

    Raises:
      InputError: no models, two models with one id, or objects in `out_dir` that were rendered with other settings.
    """
    if image_format not in ("webp", "png"):
        raise InputError(f'image format "{image_format}" is not known; use webp or png')
    _import_renderer()
    models_dir, out_dir = Path(models_dir), Path(out_dir)
    models = _find_models(models_dir)[:limit]
    settings = {
        "num_views": num_views,
        "size": size,
        "seed": seed,
        "samples": samples,
        "up": up,
        "format": image_format,
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    todo = []
    for object_id, path in models:
        views_json = out_dir / object_id / "views.json"
        if not views_json.exists():
            todo.append((object_id, path))
            continue
        found = json.loads(views_json.read_text())["settings"]
        if found != settings:
            raise InputError(
                f"{views_json.parent} was rendered with {found}, not {settings}; choose another folder"
            )
        yield Result(object_id, str(path.relative_to(models_dir)), "complete")

    # A few models ahead of the workers, not all: a consumer that stops early stops the work too.
    workers = workers or os.cpu_count() or 1
    queue = iter(todo)
    with (
        open(out_dir / "rejects.jsonl", "w") as rejects,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        running = set()
        while True:
            while len(running) < 2 * workers and (job := next(queue, None)):
                running.add(pool.submit(_render_object, *job, models_dir, out_dir, settings))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for result in (future.result() for future in done):
                if result.status == "rejected":
                    line = {
                        "model": result.source,
                        "reason": result.reason,
                        "detail": result.detail,
                    }
                    rejects.write(json.dumps(line) + "\n")
                    rejects.flush()
                yield result


def _find_models(models_dir: Path) -> list[tuple[str, Path]]:
    models = {}
    for path in sorted(models_dir.rglob("*")):
        if path.suffix.lower() not in MODEL_SUFFIXES or not path.is_file():
            continue
        parts = path.relative_to(models_dir).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == parts[-2]:
            parts = parts[:-1]
        object_id = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).strip("._")
        if object_id in models:
            raise InputError(
                f"{path} and {models[object_id]} would both be object {object_id}; rename one"
            )
        models[object_id] = path
    if not models:
        raise InputError(f"no model ({', '.join(MODEL_SUFFIXES)}) under {models_dir}")
    return list(models.items())


def _render_object(
    object_id: str, path: Path, models_dir: Path, out_dir: Path, settings: dict
) -> Result:
    """One model to one folder, built beside its place and moved there when whole."""
    source = str(path.relative_to(models_dir))
    building = out_dir / f".{object_id}.part"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    seed = zlib.crc32(f"{settings['seed']}/{object_id}".encode())
    num_views, image_format = settings["num_views"], settings["format"]
    try:
        views = render_views(
            path, num_views, settings["size"], seed, up=settings["up"], samples=settings["samples"]
        )
        for index, view in enumerate(views):
            options = {"quality": 90, "method": 4} if image_format == "webp" else {}
            Image.fromarray(view).save(building / f"{index:03d}.{image_format}", **options)
    except RejectedModel as error:
        shutil.rmtree(building)
        return Result(object_id, source, "rejected", error.reason, error.detail)
    directions, light = _path_and_light(num_views, seed)
    about = {
        "source": source,
        "settings": settings,
        "azimuth": np.degrees(np.arctan2(directions[:, 0], directions[:, 2])).round(3).tolist(),
        "elevation": np.degrees(np.arcsin(directions[:, 1])).round(3).tolist(),
        "field_of_view": FIELD_OF_VIEW,
        "light": {
            "sun_direction": light.sun.round(4).tolist(),
            "sun_colour": light.sun_colour.round(4).tolist(),
            "sky_colour": light.sky_colour.round(4).tolist(),
        },
    }
    (building / "views.json").write_text(json.dumps(about) + "\n")
    os.replace(building, out_dir / object_id)
    return Result(object_id, source, "rendered")


def _path_and_light(num_views: int, seed: int) -> tuple[np.ndarray, Light]:
    rng = np.random.default_rng(seed)
    directions = camera_path(num_views, rng)
    return directions, random_light(directions, rng)


def _import_renderer():
    try:
        import embreex.mesh_construction
        import embreex.rtcore_scene
        import trimesh
    except ImportError as error:
        raise InputError(
            f"rendering needs {error.name}: pip install 'imprint_jax[render]'"
        ) from error
    return trimesh, embreex


# --- loading ---------------------------------------------------------------------------------------------------------


def _load(path: str | os.PathLike, up: str) -> Model:
    trimesh, _ = _import_renderer()
    if up not in ("y", "z"):
        raise InputError(f'up axis "{up}" is not known; use y or z')
    if not Path(path).is_file():
        raise InputError(f"no model at {path}")
    try:
        meshes = trimesh.load_scene(path, process=False).dump()
    except (
        Exception
    ) as error:  # the parsers of four formats raise whatever a broken file leads them to
        raise RejectedModel(path, "broken", f"{type(error).__name__}: {error}") from error
    meshes = [mesh for mesh in meshes if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    count = sum(len(mesh.faces) for mesh in meshes)
    if not count:
        raise RejectedModel(path, "broken", "no triangles")
    if count > MAX_TRIANGLES:
        raise RejectedModel(
            path, "large", f"{count} triangles, at most {MAX_TRIANGLES} are rendered"
        )

    parts, textures = [], []
    for mesh in meshes:
        colour, opacity, image = _surface(mesh)
        uv = getattr(mesh.visual, "uv", None) if image is not None else None
        texture = -1
        if uv is not None:
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


def _surface(mesh) -> tuple[np.ndarray, float, Image.Image | None]:
    """Linear colour (broadcastable to (m, 3, 3)), opacity and texture image of a mesh's one material."""
    material = getattr(mesh.visual, "material", None)
    if material is None:
        colours = (
            mesh.visual.vertex_colors[mesh.faces]
            if mesh.visual.defined
            else np.full((1, 1, 3), 180)
        )
        return (colours[..., :3] / 255.0) ** GAMMA, 1.0, None
    if hasattr(
        material, "baseColorFactor"
    ):  # glTF: the factor is linear light and multiplies the texture
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


def _corner_normals(mesh) -> np.ndarray:
    """The vertices' normals, or the face's at corners where they belong to another side of an edge."""
    face = np.broadcast_to(
        _unit(np.cross(*np.diff(mesh.triangles, axis=1).swapaxes(0, 1)))[:, None],
        (len(mesh.faces), 3, 3),
    )
    vertex = _unit(np.nan_to_num(mesh.vertex_normals))[mesh.faces]
    cosine = np.einsum("mij,mij->mi", vertex, face)
    return np.where(
        (np.abs(cosine) > CREASE)[..., None], vertex * np.where(cosine < 0, -1, 1)[..., None], face
    )


def _fit_textures(model: Model, resolution: float, distance: float) -> list[np.ndarray]:
    """Textures in linear light, each averaged down to about a texel a ray: one mip level for the whole of it.

    `resolution` is the number of rays across the frame, whose width at the object is 2 distance tan(fov / 2).
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


def _lets_no_light_through(model: Model) -> np.ndarray:
    solid = np.array(
        [*(texture[..., 3].min() > 0.99 for texture in model.textures), True]
    )  # the last serves index -1
    return solid[model.texture] & (model.opacity > 0.99)


def _scene(triangles: np.ndarray):
    _, embreex = _import_renderer()
    scene = embreex.rtcore_scene.EmbreeScene()
    indices = np.arange(3 * len(triangles), dtype=np.int32).reshape(-1, 3)
    vertices = np.ascontiguousarray(triangles.reshape(-1, 3), np.float32)
    embreex.mesh_construction.TriangleMesh(scene=scene, vertices=vertices, indices=indices)
    return scene


# --- camera and shading ----------------------------------------------------------------------------------------------


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-20)


def _areas(triangles: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.cross(*np.diff(triangles, axis=1).swapaxes(0, 1)), axis=-1) / 2


def _frame(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and up of someone looking against `direction`, which is not vertical."""
    right = _unit(np.cross([0.0, 1, 0], direction))
    return right, np.cross(direction, right)


def _distance(points: np.ndarray, directions: np.ndarray) -> float:
    """The least distance from which all points stay within FILL of the frame in every view."""
    slope = FILL * np.tan(np.radians(FIELD_OF_VIEW) / 2)
    needed = []
    for direction in directions:
        right, up = _frame(direction)
        across = np.maximum(np.abs(points @ right), np.abs(points @ up))
        needed.append((points @ direction + across / slope).max())
    return float(max(needed))


def _render(model, scene, shadows, light, eye, direction, size, samples) -> np.ndarray:
    right, up = _frame(direction)
    slope = np.tan(np.radians(FIELD_OF_VIEW) / 2)
    total = np.zeros((size * size, 4), np.float32)
    for sample in range(samples):
        # Roberts' R2 sequence: even over the pixel for any number of samples.
        dx, dy = (0.5 + sample * np.array([0.7548776662, 0.5698402910])) % 1
        x = (2 * (np.arange(size) + dx) / size - 1) * slope
        y = (1 - 2 * (np.arange(size) + dy) / size) * slope
        rays = (x[None, :, None] * right + y[:, None, None] * up - direction).reshape(-1, 3)
        # A see-through surface is hit by the share of the samples that its opacity names.
        pixel, *surface = _trace(
            model, scene, eye, _unit(rays).astype(np.float32), (sample + 0.5) / samples
        )
        total[pixel, :3] += _shade(shadows, *surface, *light.directions(sample, samples))
        total[pixel, 3] += 1
    colour = total[:, :3] / np.maximum(total[:, 3:], 1)
    colour = colour / (1 + 0.15 * colour)  # highlights roll off
    view = np.concatenate([np.clip(colour, 0, 1) ** (1 / GAMMA), total[:, 3:] / samples], 1)
    return (view * 255).round().astype(np.uint8).reshape(size, size, 4)


def _trace(model, scene, eye, rays, threshold):
    """First surfaces with more than `threshold` opacity: indices (h,) of the rays that meet one; position, face normal,
    normal, direction of the ray and colour there, (h, 3) each."""
    alive = np.arange(len(rays))
    origin = np.broadcast_to(eye.astype(np.float32), rays.shape).copy()
    found = []
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
        face_normal = _unit(hits["Ng"][hit]) * towards
        normal = _unit(np.einsum("hc,hci->hi", weight, model.normals[face]))
        normal *= np.where(np.einsum("hi,hi->h", normal, face_normal) < 0, -1, 1)[:, None]
        found.append([array[seen] for array in (alive, position, face_normal, normal, ray, colour)])
        origin[alive] = position + 1e-4 * ray
        alive = alive[~seen]
    if not found:
        return np.zeros(0, int), *(np.zeros((0, 3), np.float32),) * 5
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


def _look_up(model: Model, face: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour (h, 3) and opacity (h,) at points of faces, given by barycentric weights (h, 3)."""
    colour = np.einsum("hc,hci->hi", weight, model.colour[face])
    opacity = model.opacity[face].copy()
    uv = np.einsum("hc,hci->hi", weight, model.uv[face])
    index = model.texture[face]
    for texture in np.unique(index[index >= 0]):
        here = np.flatnonzero(index == texture)
        texels = _bilinear(model.textures[texture], uv[here])
        colour[here] *= texels[:, :3]
        opacity[here] *= texels[:, 3]
    return colour, opacity


def _bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
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


def _shade(shadows, position, face_normal, normal, ray, colour, directions, brings) -> np.ndarray:
    """Linear light (h, 3) that leaves a matt surface with a faint gloss; `directions`, `brings` from Light."""
    directions = directions.astype(np.float32)
    cosine = np.maximum(normal @ directions.T, 0)
    cosine[face_normal @ directions.T <= 0] = 0
    point, towards = np.nonzero(cosine)
    start = (position + 2e-3 * face_normal).astype(np.float32)
    if len(point):
        blocked = shadows.run(start[point], directions[towards], query="OCCLUDED") >= 0
        cosine[point[blocked], towards[blocked]] = 0
    half = _unit(directions[0] - ray)
    gloss = np.maximum(np.einsum("hi,hi->h", normal, half), 0) ** GLOSS_POWER * (cosine[:, 0] > 0)
    return colour * (cosine @ brings) + GLOSS * gloss[:, None] * brings[0]
