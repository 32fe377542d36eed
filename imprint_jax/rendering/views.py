"""Textured meshes in, RGBA views along a smooth camera path out.

One object is lit once, by a sun and a sky that stay where they are while the camera moves, so that
neighbouring views differ as the frames of a video of a resting object do. Everything random comes
from the seed. Needs the extra `[render]`.
"""

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.rendering.raytracer import (
    FIELD_OF_VIEW,
    Light,
    RejectedModel,
    blocks_light,
    camera_distance,
    fit_textures,
    import_renderer,
    load_model,
    make_scene,
    trace_view,
)
from imprint_jax.runtime.files import atomic_folder, remove_unfinished
from imprint_jax.runtime.processes import in_processes

MODEL_SUFFIXES = (".obj", ".glb", ".gltf", ".ply")
MIN_COVERAGE = 0.01  # share of the frame that the object covers in its emptiest view
ELEVATION = (5.0, 45.0)  # degrees


def camera_path(num_views: int, rng: np.random.Generator) -> np.ndarray:
    """Directions from the object to the camera: a sweep in azimuth, drifting in elevation.

    Args:
        num_views: 1 or more; from about 80 on, the path is one full turn with smaller steps.
        rng: Decides the start, the sense, the speed and the drift.

    Returns:
        (num_views 3) float64 unit vectors, y up, at elevations of 5 to 45 degrees, neighbours at
        most 6 degrees apart.
    """
    step = min(rng.uniform(4.5, 5.5), 360 / num_views)
    azimuth = rng.uniform(0, 360) + rng.choice([-1, 1]) * step * np.arange(num_views)
    low, high = ELEVATION
    swing = rng.uniform(0.3, 1) * (high - low) / 2
    middle = rng.uniform(low + swing, high - swing)
    # d(elevation) / d(azimuth) <= swing * rate = 20 degrees * 0.8 = 0.28, so that a step is at
    # most 5.5 * sqrt(1 + 0.28^2) = 5.7 degrees.
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
    """A sun on the side of the path's middle view, never right behind the object, and a sky."""
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
        num_views: Views along the camera path; neighbours are at most 6 degrees apart.
        size: Side of the square views in pixels.
        seed: Decides path and light; the same seed gives the same views.
        up: The model's upward axis, "y" (glTF, most OBJ) or "z" (most scans and CAD).
        samples: Rays a pixel, a trade of time for smoothness.

    Yields:
        (size size 4) uint8, straight (not premultiplied) sRGB colour and antialiased alpha; colour
        0 where alpha is 0.

    Raises:
        RejectedModel: An InputError; the file does not load, is flat, too large, or leaves the
            frame empty.
        InputError: The extra `[render]` is missing, or an argument is out of range.
    """
    if num_views < 1 or size < 8 or samples < 1:
        raise InputError(
            f"{num_views} views of {size} pixels with {samples} samples: need 1, 8 and 1 at least."
        )
    directions, light = _path_and_light(num_views, seed)
    model = load_model(model_path, up)
    target, distance = np.zeros(3), camera_distance(model.triangles.reshape(-1, 3), directions)
    model = dataclasses.replace(
        model, textures=fit_textures(model, size * np.sqrt(samples), distance)
    )
    scene = make_scene(model.triangles)
    # What may let light through throws no shadow: leaves are painted on cards, and whole cards
    # would darken one another.
    solid = blocks_light(model)
    shadows = make_scene(model.triangles[solid]) if solid.any() else scene
    for direction in directions:
        view = trace_view(
            model, scene, shadows, light, target + distance * direction, direction, size, samples
        )
        if view[..., 3].mean() / 255 < MIN_COVERAGE:
            raise RejectedModel(model_path, "empty", "the object covers less than 1 % of a view")
        yield view


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one model: "rendered", "complete" (was there already) or "rejected"."""

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

    OUT/<object_id>/000.webp ... and OUT/<object_id>/views.json (angles in degrees, light, source).
    Models that gave no views are listed with the reason in OUT/rejects.jsonl. The object's id is
    its path under `models_dir` (without suffix; a file named like its folder counts once). A
    folder appears under its final name only when it is whole, so a stopped run is simply started
    again: whole objects are left as they are, rejected ones are tried again.

    Args:
        models_dir: Searched to any depth for OBJ, GLB, glTF and PLY.
        out_dir: Made when missing.
        num_views: As in `render_views`.
        size: As in `render_views`.
        workers: Processes; None for one a core.
        limit: Take only the first so many models in alphabetical order.
        seed: With the object's id it decides path and light, whatever other models there are.
        image_format: "webp" (colour at quality 90, alpha without loss) or "png".
        up: As in `render_views`.
        samples: As in `render_views`.

    Yields:
        A `Result` a model, those that are there already first.

    Raises:
        InputError: No models, two models with one id, or objects in `out_dir` that were rendered
            with other settings.
    """
    if image_format not in ("webp", "png"):
        raise InputError(f"The image format must be webp or png, not {image_format!r}.")
    import_renderer()
    models_dir, out_dir = Path(models_dir), Path(out_dir)
    models = find_models(models_dir)[:limit]
    settings = {
        "num_views": num_views,
        "size": size,
        "seed": seed,
        "samples": samples,
        "up": up,
        "format": image_format,
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out_dir)
    todo = []
    for object_id, path in models:
        views_json = out_dir / object_id / "views.json"
        if not views_json.exists():
            todo.append((object_id, path))
            continue
        earlier = json.loads(views_json.read_text())["settings"]
        if earlier != settings:
            raise InputError(
                f"{views_json.parent} was rendered with {earlier}, not {settings}; choose another"
                " folder."
            )
        yield Result(object_id, str(path.relative_to(models_dir)), "complete")

    jobs = [(*job, models_dir, out_dir, settings) for job in todo]
    yield from run_jobs(_render_object, jobs, out_dir / "rejects.jsonl", workers)


def run_jobs(
    work: Callable[..., Result], jobs: list[tuple], rejects_file: Path, workers: int | None
) -> Iterator[Result]:
    """Calls `work(*job)` in several processes, and lists what was rejected.

    Args:
        work: A function of a module.
        jobs: Its arguments.
        rejects_file: Where to: a line {"model", "reason", "detail"} each.
        workers: Processes; None for one a core.

    Yields:
        The results, in the jobs' order.
    """
    with open(rejects_file, "w") as rejects:
        for result in in_processes(work, jobs, workers or os.cpu_count() or 1):
            if result.status == "rejected":
                line = {"model": result.source, "reason": result.reason, "detail": result.detail}
                rejects.write(json.dumps(line) + "\n")
                rejects.flush()
            yield result


def count_models(models_dir: str | os.PathLike) -> int:
    """How many models `render_folder` would take.

    Raises:
        InputError: There is none, or two would have one id.
    """
    return len(find_models(Path(models_dir)))


def find_models(models_dir: Path) -> list[tuple[str, Path]]:
    """Ids and files of the models under a folder, as `render_folder` takes them.

    Raises:
        InputError: There is none, or one without a usable name, or two would have one id.
    """
    models: dict[str, Path] = {}
    for path in sorted(models_dir.rglob("*")):
        if path.suffix.lower() not in MODEL_SUFFIXES or not path.is_file():
            continue
        parts = path.relative_to(models_dir).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == parts[-2]:
            parts = parts[:-1]
        object_id = re.sub(r"[^\w.-]+", "_", "-".join(parts)).strip("._")
        if not object_id:
            raise InputError(f"{path} has no letter or digit in its name; rename it.")
        if object_id in models:
            raise InputError(
                f"{path} and {models[object_id]} would both be object {object_id}; rename one."
            )
        models[object_id] = path
    if not models:
        raise InputError(f"There is no model ({', '.join(MODEL_SUFFIXES)}) under {models_dir}.")
    return list(models.items())


def _render_object(
    object_id: str, path: Path, models_dir: Path, out_dir: Path, settings: dict
) -> Result:
    """One model to one folder, built beside its place and moved there when whole."""
    source = str(path.relative_to(models_dir))
    seed = zlib.crc32(f"{settings['seed']}/{object_id}".encode())
    num_views, image_format = settings["num_views"], settings["format"]
    directions, light = _path_and_light(num_views, seed)
    about = {
        "source": source,
        "settings": settings,
        **path_in_words(directions),
        "light": light_in_words(light),
    }
    try:
        with atomic_folder(out_dir / object_id) as building:
            views = render_views(
                path,
                num_views,
                settings["size"],
                seed,
                up=settings["up"],
                samples=settings["samples"],
            )
            webp = image_format == "webp"
            options: dict[str, Any] = dict(quality=90, method=4) if webp else {}
            for index, view in enumerate(views):
                Image.fromarray(view).save(building / f"{index:03d}.{image_format}", **options)
            (building / "views.json").write_text(json.dumps(about) + "\n")
    except RejectedModel as error:
        return Result(object_id, source, "rejected", error.reason, error.detail)
    return Result(object_id, source, "rendered")


def _path_and_light(num_views: int, seed: int) -> tuple[np.ndarray, Light]:
    rng = np.random.default_rng(seed)
    directions = camera_path(num_views, rng)
    return directions, random_light(directions, rng)


def path_in_words(directions: np.ndarray) -> dict:
    """What a JSON file says of directions (n 3) to the camera: angles in degrees."""
    return {
        "azimuth": np.degrees(np.arctan2(directions[:, 0], directions[:, 2])).round(3).tolist(),
        "elevation": np.degrees(np.arcsin(directions[:, 1])).round(3).tolist(),
        "field_of_view": FIELD_OF_VIEW,
    }


def light_in_words(light: Light) -> dict:
    """What a JSON file says of a light."""
    return {
        "sun_direction": light.sun.round(4).tolist(),
        "sun_colour": light.sun_colour.round(4).tolist(),
        "sky_colour": light.sky_colour.round(4).tolist(),
    }
