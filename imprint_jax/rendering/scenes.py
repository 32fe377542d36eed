"""Scenes of textured meshes: an object on a floor, rendered with and without it.

A scene has one object, other objects beside and behind it, a floor that ends at walls or before a
photo, a sun and a sky, and several views along a smooth camera path. The background is what is left
when the object is taken away together with its shadow; the mask is the antialiased coverage of
what is seen of it. Everything random comes from the seed. Needs the extra `[render]`.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.images import MASK_THRESHOLD, read_image
from imprint_jax.rendering.panoramas import (
    CAMERA,
    Place,
    find_panoramas,
    light_of,
    read_panorama,
    shades,
    turned,
)
from imprint_jax.rendering.raytracer import (
    FIELD_OF_VIEW,
    FILL,
    GAMMA,
    Light,
    Model,
    RejectedModel,
    Surface,
    blocks_light,
    camera_distance,
    develop,
    fit_textures,
    frame,
    import_renderer,
    load_model,
    make_scene,
    pixel_rays,
    shade,
    trace,
)
from imprint_jax.rendering.rooms import (
    Caster,
    Plane,
    Room,
    light_maps,
    panorama,
    photo_texture,
    place_planes,
    procedural_texture,
)
from imprint_jax.rendering.views import (
    Result,
    camera_path,
    find_models,
    light_in_words,
    path_in_words,
    random_light,
    run_jobs,
)
from imprint_jax.runtime.files import atomic_folder, remove_unfinished

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PANORAMA_SHARE = 0.7  # of the scenes, where there are panoramas
WALL_TURN = 25.0  # degrees, of the wall behind, either way
MAX_VIEWS = 12  # more would lead the camera beside the walls
FRONT = 45.0  # degrees: views of all scenes of an object look at one side of it, more or less
FILLS = (0.4, 0.8)  # share of the half frame that the object reaches to
MIN_COVERAGE = 0.01  # share of the frame in which the object is seen, in its emptiest view
QUALITY = 95  # of WebP: the pictures differ from one another by little where no shadow is


@dataclass(frozen=True)
class View:
    """One view of a scene.

    Attributes:
        target: (size size 3) uint8, sRGB, with the object.
        background: (size size 3) uint8, without it and its shadow.
        mask: (size size) uint8, coverage of what is seen of the object.
    """

    target: np.ndarray
    background: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A scene ready to be rendered; `random_scene` makes one.

    Attributes:
        model: The object.
        others: What else stands there, as one model.
        directions: (num_views 3) unit, from the object to the camera.
        eyes: (num_views 3) where the camera is.
        light: What lights it.
        room: Floor, walls and photo, or a panorama.
        about: What scene.json says of it.
    """

    model: Model
    others: Model | None
    directions: np.ndarray
    eyes: np.ndarray
    light: Light
    room: Room | Place
    about: dict


def random_scene(
    model_path: str | os.PathLike,
    num_views: int,
    size: int,
    seed: int,
    *,
    front: float = 0.0,
    others: Sequence[str | os.PathLike] = (),
    photos: Sequence[str | os.PathLike] = (),
    panoramas: Sequence[str | os.PathLike] = (),
    up: str = "y",
    samples: int = 4,
) -> Scene:
    """Draws a scene of one model.

    Args:
        model_path: OBJ, GLB, glTF or PLY.
        num_views: 1 to 12, along a camera path as `render.camera_path`'s.
        size: Side of the square views in pixels.
        seed: Decides all that is random.
        front: Angle about the upward axis, degrees, of the side of the model that is seen; the
            path's middle is at most 45 degrees from it.
        others: Models that stand beside and behind it where there is room.
        photos: Pictures to take textures and backdrops from; without any they are procedural.
        panoramas: Places of which one takes the place of floor, walls and light in
            `PANORAMA_SHARE` of the scenes.
        up: The models' upward axis, "y" or "z".
        samples: Rays a pixel.

    Raises:
        RejectedModel: The file does not load, is flat or too large; an InputError.
        InputError: The extra `[render]` is missing, an argument is out of range, or a photo is not
            readable.
    """
    if not 1 <= num_views <= MAX_VIEWS or size < 8 or samples < 1:
        raise InputError(
            f"{num_views} views of {size} pixels with {samples} samples: a scene takes 1 to"
            f" {MAX_VIEWS} views, 8 pixels and 1 sample at least."
        )
    rng = np.random.default_rng(seed)
    directions = camera_path(num_views, rng)
    light = random_light(directions, rng)
    middle = directions[num_views // 2]
    azimuth = np.arctan2(middle[0], middle[2])
    turn = azimuth - np.radians(front + rng.uniform(-FRONT, FRONT))
    model = _placed(load_model(model_path, up), turn, 1.0, np.zeros(2))
    centre = np.array([0, model.triangles[..., 1].max() / 2, 0])
    points = model.triangles.reshape(-1, 3) - centre
    fill = rng.uniform(*FILLS)
    distance = camera_distance(points, directions) * FILL / fill
    reach = distance * np.tan(np.radians(FIELD_OF_VIEW) / 2) * (FILL - fill)
    shift = rng.uniform(-reach, reach, 2)
    places = []
    for direction in directions:
        right, upwards = frame(direction)
        places.append(centre + distance * direction + shift[0] * right + shift[1] * upwards)
    eyes = np.stack(places)
    resolution = size * np.sqrt(samples)
    model = _fitted(model, resolution, distance)
    neighbours = _stand_beside(model, others, azimuth, up, rng)
    other = _joined([_fitted(one, resolution, distance) for _, one in neighbours])

    about: dict[str, Any] = {"others": [str(path) for path, _ in neighbours], "photos": []}

    if panoramas and rng.random() < PANORAMA_SHARE:
        path = panoramas[int(rng.integers(len(panoramas)))]
        about["panorama"] = Path(path).name
        sphere = turned(read_panorama(path), rng)
        light = light_of(sphere, rng)
        ground = Plane(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, -1.0]), [], 1.0)
        maps = light_maps(ground, light, Caster(model), Caster(other) if other else None)
        place = Place(sphere, rng.uniform(*CAMERA), shades(maps))
        about |= _in_words(directions, turn, distance, light)
        return Scene(model, other, directions, eyes, light, place, about)

    def photo() -> np.ndarray:
        path = photos[int(rng.integers(len(photos)))]
        about["photos"].append(Path(path).name)
        return read_image(path)[..., :3]

    solids = np.concatenate([model.triangles, *([other.triangles] if other else [])])
    away_turn = azimuth + np.pi + np.radians(rng.uniform(-WALL_TURN, WALL_TURN))
    away = np.array([np.sin(away_turn), 0, np.cos(away_turn)])
    needed = (solids @ away).max()
    backdrop, walls, end = None, [], np.inf
    if photos and rng.random() < 0.5:
        picture = photo()
        backdrop = panorama(picture, middle, resolution / np.radians(FIELD_OF_VIEW), rng)
        light = _tinted(light, picture)
        end = needed + rng.uniform(0.1, 1.5)
    else:
        walls.append((-away, needed + rng.uniform(0.1, 2.5)))
        if rng.random() < 0.5:
            side = np.array([away[2], 0, -away[0]])
            side *= np.sign((eyes @ side).mean())
            needed = max((solids @ -side).max(), (eyes @ -side).max() + 0.5)
            walls.append((side, needed + rng.uniform(0.2, 2.5)))
    textures = []
    for _ in range(1 + len(walls)):
        if photos and rng.random() < 0.5:
            textures.append((photo_texture(photo(), rng), rng.uniform(4, 10)))
        else:
            textures.append((procedural_texture(rng), rng.uniform(2, 5)))
    # Below the horizon there is the floor, lit, and part of it in the shadow of what stands there.
    bounce = 0.7 * (light.sun[1] * light.sun_colour + light.sky_colour)
    light = dataclasses.replace(light, ground_colour=textures[0][0].mean((0, 1)) * bounce)
    planes = place_planes(away, end, walls, textures)
    casters = Caster(model), Caster(other) if other else None
    room = Room(planes, [light_maps(plane, light, *casters) for plane in planes], backdrop)
    about |= _in_words(directions, turn, distance, light)
    return Scene(model, other, directions, eyes, light, room, about)


def _in_words(directions: np.ndarray, turn: float, distance: float, light: Light) -> dict:
    return {
        **path_in_words(directions),
        "model_turn": round(float(np.degrees(turn)) % 360, 3),
        "distance": round(float(distance), 4),
        "light": light_in_words(light),
    }


def scene_views(scene: Scene, size: int, samples: int) -> Iterator[View]:
    """Renders a scene's views one by one as they are asked for."""
    objects = [scene.model] if scene.others is None else [scene.model, scene.others]
    meshes = [make_scene(one.triangles) for one in objects]
    # Object by object as in `render_views`: what may let light through shades nothing.
    casting = [_casting(one) for one in objects]
    shadows = make_scene(np.concatenate(casting))
    shadows_without = make_scene(casting[1]) if scene.others else None
    spread = np.radians(FIELD_OF_VIEW) / (size * np.sqrt(samples))
    to_uint8 = lambda x: (x * 255).round().astype(np.uint8)
    picture = lambda x: to_uint8(develop(x / samples)).reshape(size, size, 3)
    for eye, direction in zip(scene.eyes, scene.directions, strict=True):
        target, background = np.zeros((2, size * size, 3), np.float32)
        coverage = np.zeros(size * size, np.float32)
        for sample in range(samples):
            rays = pixel_rays(direction, size, sample)
            lights = scene.light.directions(sample, samples)
            without, with_object = scene.room.colours_along(eye, rays, spread)
            threshold = (sample + 0.5) / samples
            depth = np.full(len(rays), np.inf)
            if scene.others:
                pixel, surface = trace(scene.others, meshes[1], eye, rays, threshold)
                depth[pixel] = np.linalg.norm(surface.position - eye, axis=1)
                without[pixel] = shade(shadows_without, surface, *lights)
                with_object[pixel] = shade(shadows, surface, *lights)
            pixel, surface = trace(scene.model, meshes[0], eye, rays, threshold)
            seen = np.linalg.norm(surface.position - eye, axis=1) < depth[pixel]
            visible = Surface(*(x[seen] for x in surface))
            with_object[pixel[seen]] = shade(shadows, visible, *lights)
            coverage[pixel[seen]] += 1
            target += with_object
            background += without
        mask = to_uint8(coverage / samples).reshape(size, size)
        yield View(picture(target), picture(background), mask)


def render_scenes(
    models_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    num_scenes: int,
    photos_dir: str | os.PathLike | None = None,
    panoramas_dir: str | os.PathLike | None = None,
    num_others: int = 2,
    num_views: int = 8,
    size: int = 256,
    workers: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    up: str = "y",
    samples: int = 4,
) -> Iterator[Result]:
    """Renders scenes of every model under a folder.

    OUT/<object_id>/<scene>/ holds NNN_target.webp, NNN_background.webp, NNN_mask.png a view, and
    scene.json (settings, seed, model, angles in degrees, light, other models, photos). Scenes that
    were not made are listed with the reason in OUT/rejects.jsonl. Ids, and going on after a stop,
    are as in `render.render_folder`, scene by scene.

    Args:
        models_dir: Searched to any depth for OBJ, GLB, glTF and PLY.
        out_dir: Made when missing.
        num_scenes: Of each model.
        photos_dir: Pictures for textures and backdrops; None: textures are procedural.
        panoramas_dir: Places, as in `random_scene`, in Radiance's format (.hdr); None: none.
        num_others: Other models of `models_dir` that stand in a scene, at most.
        num_views: As in `random_scene`.
        size: As in `random_scene`.
        workers: Processes; None for one a core.
        limit: Take only the first so many models in alphabetical order.
        seed: Decides everything, together with the object's id, the scene's number and what models
            and photos there are to choose from.
        up: As in `random_scene`.
        samples: As in `random_scene`.

    Yields:
        A `Result` a scene, those that are there already first.

    Raises:
        InputError: No models or photos, a photo that cannot be read, two models with one id, an
            argument is out of range, or scenes in `out_dir` that were rendered with other settings.
    """
    if num_scenes < 1 or not 1 <= num_views <= MAX_VIEWS:
        raise InputError(
            f"{num_scenes} scenes of {num_views} views: need 1 scene, and 1 to {MAX_VIEWS} views."
        )
    import_renderer()
    models_dir, out_dir = Path(models_dir), Path(out_dir)
    models = find_models(models_dir)
    photos = _find_photos(Path(photos_dir)) if photos_dir is not None else []
    panoramas = find_panoramas(panoramas_dir) if panoramas_dir is not None else []
    choice = [name for name, _ in models] if num_others else []
    settings = {
        "num_views": num_views,
        "size": size,
        "seed": seed,
        "samples": samples,
        "up": up,
        "num_others": num_others,
        # What there was to choose from, in short.
        "choice": zlib.crc32("/".join(choice + [p.name for p in (*photos, *panoramas)]).encode()),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    for folder in (out_dir, *(out_dir / object_id for object_id, _ in models)):
        remove_unfinished(folder)
    jobs = []
    for object_id, path in models[:limit]:
        others = [other for _, other in models if other != path] if num_others else []
        for number in range(num_scenes):
            folder = out_dir / object_id / f"{number:03d}"
            if not (folder / "scene.json").exists():
                jobs.append((path, number, models_dir, folder, others, photos, panoramas, settings))
                continue
            earlier = json.loads((folder / "scene.json").read_text())["settings"]
            if earlier != settings:
                raise InputError(
                    f"{folder} was rendered with {earlier}, not {settings}; choose another folder."
                )
            source = str(path.relative_to(models_dir))
            yield Result(f"{object_id}/{number:03d}", source, "complete")
    yield from run_jobs(_render_scene, jobs, out_dir / "rejects.jsonl", workers)


def _render_scene(
    path: Path,
    number: int,
    models_dir: Path,
    folder: Path,
    others: list[Path],
    photos: list[Path],
    panoramas: list[Path],
    settings: dict,
) -> Result:
    """One scene to one folder, built beside its place and moved there when whole."""
    object_id = folder.parent.name
    scene_id, source = f"{object_id}/{folder.name}", str(path.relative_to(models_dir))
    seed = zlib.crc32(f"{settings['seed']}/{scene_id}".encode())
    front = zlib.crc32(f"{settings['seed']}/{object_id}".encode()) % 360
    rng = np.random.default_rng([seed, 1])
    size, samples = settings["size"], settings["samples"]
    count = min(int(rng.integers(settings["num_others"] + 1)), len(others))
    try:
        with atomic_folder(folder) as building:
            scene = random_scene(
                path,
                settings["num_views"],
                size,
                seed,
                front=front,
                others=[others[i] for i in rng.choice(len(others), count, replace=False)],
                photos=photos,
                panoramas=panoramas,
                up=settings["up"],
                samples=samples,
            )
            for index, view in enumerate(scene_views(scene, size, samples)):
                if (view.mask >= MASK_THRESHOLD).mean() < MIN_COVERAGE:
                    detail = "less than 1 % of a view shows the object, or it is see-through"
                    raise RejectedModel(path, "hidden", detail)
                for name, picture in (("target", view.target), ("background", view.background)):
                    file = building / f"{index:03d}_{name}.webp"
                    Image.fromarray(picture).save(file, quality=QUALITY, method=4)
                Image.fromarray(view.mask).save(building / f"{index:03d}_mask.png")
            chosen = [Path(p).relative_to(models_dir).as_posix() for p in scene.about["others"]]
            about = {"source": source, "settings": settings, **scene.about, "others": chosen}
            (building / "scene.json").write_text(json.dumps(about) + "\n")
    except RejectedModel as error:
        return Result(scene_id, source, "rejected", error.reason, error.detail)
    return Result(scene_id, source, "rendered")


def _find_photos(photos_dir: Path) -> list[Path]:
    photos = sorted(p for p in photos_dir.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise InputError(f"There is no photo ({', '.join(PHOTO_SUFFIXES)}) under {photos_dir}.")
    for photo in photos:  # now, not hours later in the first scene that draws it
        try:
            read_image(photo, least=1)
        except InputError as error:
            raise InputError(f"{error} Take it out of {photos_dir}.") from error
    return photos


def _placed(model: Model, turn: float, scale: float, place: np.ndarray) -> Model:
    """The model turned about y, scaled, and put on the floor at (x, z)."""
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)  # of rows: z towards x
    triangles = scale * model.triangles @ rotation
    lift = np.array([place[0], -triangles[..., 1].min(), place[1]])
    return dataclasses.replace(
        model,
        triangles=(triangles + lift).astype(np.float32),
        normals=(model.normals @ rotation).astype(np.float32),
    )


def _fitted(model: Model, resolution: float, distance: float) -> Model:
    return dataclasses.replace(model, textures=fit_textures(model, resolution, distance))


def _stand_beside(
    model: Model,
    paths: Sequence[str | os.PathLike],
    azimuth: float,
    up: str,
    rng: np.random.Generator,
) -> list[tuple[str | os.PathLike, Model]]:
    """Models beside and behind the object as seen from `azimuth`, those that load and find room."""
    taken = [(np.zeros(2), _radius(model))]
    neighbours = []
    for path in paths:
        try:
            loaded = load_model(path, up)
        except RejectedModel:
            continue  # listed with its reason where it is the object
        other = _placed(loaded, rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2), np.zeros(2))
        radius = _radius(other)
        angle = azimuth + np.radians(rng.uniform(75, 285))
        reach = taken[0][1] + radius + rng.uniform(0.05, 1)
        place = reach * np.array([np.sin(angle), np.cos(angle)])
        if all(np.linalg.norm(place - center) > radius + size for center, size in taken):
            taken.append((place, radius))
            lift = np.array([place[0], 0, place[1]], np.float32)
            neighbours.append((path, dataclasses.replace(other, triangles=other.triangles + lift)))
    return neighbours


def _radius(model: Model) -> float:
    """Of the circle about the upward axis that holds the model."""
    return float(np.linalg.norm(model.triangles[..., [0, 2]], axis=-1).max())


def _joined(models: list[Model]) -> Model | None:
    """All of them as one."""
    if not models:
        return None
    fields = {
        name: np.concatenate([getattr(model, name) for model in models])
        for name in ("triangles", "normals", "uv", "colour", "opacity")
    }
    counts = np.cumsum([0, *(len(model.textures) for model in models)])
    texture = [
        np.where(model.texture >= 0, model.texture + before, -1)
        for model, before in zip(models, counts[:-1], strict=True)
    ]
    textures = [texture for model in models for texture in model.textures]
    return Model(**fields, texture=np.concatenate(texture), textures=textures)


def _casting(model: Model) -> np.ndarray:
    """The triangles that shade objects: the opaque ones, or all where none is."""
    solid = blocks_light(model)
    return model.triangles[solid] if solid.any() else model.triangles


def _tinted(light: Light, photo: np.ndarray) -> Light:
    """The light in half of the photo's tint and brightness."""
    mean = (photo.reshape(-1, 3)[::97] / 255.0).mean(0) ** GAMMA
    tint = np.sqrt(mean / mean.mean())
    level = np.clip(np.sqrt(mean.mean() / 0.2), 0.5, 1.2)
    return dataclasses.replace(
        light, sun_colour=level * light.sun_colour, sky_colour=level * tint * light.sky_colour
    )
