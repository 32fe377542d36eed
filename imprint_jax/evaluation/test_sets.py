"""Test sets: what to compose, written as manifests that `compose` and `evaluate` read.

`dreambooth`  objects x backgrounds, from a list of pairs (paper, Sec. 4.2: 25 objects of the
              DreamBooth set, 59 backgrounds, 113 pairs; the authors' list is not published, ours
              of the same numbers is in dreambooth/, see docs/benchmark.md)
`perturbed`   photos with a masked object, which is perturbed, P(T(.)), and to be put back; the
              photo is the truth (Sec. 4.2's Pixabay set of 1,000)
`pasted`      the same without photographed objects: a view of an object, perturbed, and another
              view of it pasted into a photo as the truth (ours, for small sets)
`video`       the object of one frame of a video into another frame, which is the truth (ours): real
              photographs of another moment, with their light, from videos kept for tests
`rendered`    a view of an object by itself, and a rendered scene with and without it, seen from
              another side (ours); of all these the only one whose truth has the scene's light

Each writes a folder with manifest.jsonl and the pictures it names, whole or not at all. The same
records and seed give the same folder.
"""

import contextlib
import csv
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from imprint_jax import geometry, images
from imprint_jax.config.fields import DataConfig
from imprint_jax.data import transforms
from imprint_jax.data.pairs import WindowPartners, make_pairs
from imprint_jax.data.records import Record, RecordSource
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.runtime.files import atomic_folder

# Our list of pairs and its masks.
DREAMBOOTH = Path(__file__).parent / "dreambooth"
# Columns of a list of pairs.
COLUMNS = ("object", "background", "x0", "y0", "x1", "y1")
WHOLE_NUMBER = re.compile(r"\s*-?\d+\s*", re.ASCII)


def untracked(items: Iterable, about: str, total: int) -> Iterable:
    """The items, without a progress bar."""
    return items


@contextlib.contextmanager
def _test_set(folder: Path) -> Iterator["_TestSet"]:
    """A test set in the making; appears under its name when it is whole."""
    with atomic_folder(folder) as building:
        test_set = _TestSet(building)
        yield test_set
        text = "".join(json.dumps(line) + "\n" for line in test_set.lines)
        (building / "manifest.jsonl").write_text(text)


class _TestSet:
    def __init__(self, folder: Path):
        self.folder = folder
        self.lines: list[dict] = []

    def write(self, entry_id: str, pictures: dict[str, np.ndarray], **fields: object) -> None:
        """Adds an entry; `pictures` are written as ID.FIELD.png and named by their fields."""
        names = {name: f"{entry_id}.{name}.png" for name in pictures}
        for name, picture in pictures.items():
            (self.folder / names[name]).write_bytes(images.encode_png(picture))
        self.lines.append({"id": entry_id} | names | fields)


def perturbed(
    data: DataConfig,
    records: RecordSource,
    out: Path,
    *,
    num: int = 1,
    limit: int | None = None,
    mask_level: int = 0,
    seed: int = 0,
    track: Callable = untracked,
) -> int:
    """The self-perturbed test: every photo's object, perturbed, is to be put back where it was.

    The background is the photo with the hole in mid-grey, so that no method sees the truth.

    Args:
        data: How much P and T do.
        records: Photos with masks.
        out: Folder to make.
        num: Pictures to make of each.
        limit: Only so many, evenly spread.
        mask_level: Precision of the hole, 0 to 3.
        seed: Decides the perturbations.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Returns:
        How many entries were written.

    Raises:
        InputError: `out` is not empty, or no record has a mask.
    """
    numbers = make_pairs("photo", records.index, 0).records
    with _test_set(out) as folder:
        for number in _spread(numbers, limit, track):
            record, rng = records[number], np.random.default_rng([seed, number])
            image, coverage = transforms.decode_view(record)
            hole = _level(coverage >= geometry.FAINT, mask_level, data)
            pictures = {
                "object": _perturbed_object(data, image, coverage, rng),
                "background": geometry.fill_hole(image, hole[..., None], "grey", 128),
                "mask": hole,
                "target": image,
            }
            folder.write(_name(record, number), pictures, num=num)
    return len(folder.lines)


def pasted(
    data: DataConfig,
    records: RecordSource,
    backgrounds: RecordSource,
    out: Path,
    *,
    size: int = 512,
    num: int = 1,
    limit: int | None = None,
    mask_level: int = 0,
    seed: int = 0,
    track: Callable = untracked,
) -> int:
    """Views of objects in photos: another view, perturbed, is to become the one that was pasted.

    The background is the photo before the paste, the truth the photo after it.

    Args:
        data: As `perturbed`; also which views are pairs, and how they are pasted.
        records: Views of objects.
        backgrounds: Photos.
        out, num, limit, mask_level, seed, track: As `perturbed`.
        size: Side of the photos' squares, in pixels.

    Returns:
        How many entries were written.

    Raises:
        InputError: `out` is not empty, no object has two views, or `data` says no share.
    """
    if not data.share:
        raise InputError(
            "data.share is empty, so that nothing says how large pasted objects are: take a recipe"
            " that has it, such as stage2 or mini_stage2."
        )
    pairs = make_pairs("pasted", records.index, data.window)
    with _test_set(out) as folder:
        for k in _spread(np.arange(len(pairs)), limit, track):
            rng = np.random.default_rng([seed, k])
            first, second = pairs.draw(k, rng)
            photo = backgrounds[int(rng.integers(len(backgrounds)))]
            square = transforms.random_square(photo, size, rng)
            share = math.exp(rng.uniform(*np.log(data.share)))
            view = transforms.decode_view(records[second])
            match = data.brightness_match
            target, hole = transforms.paste(square, view, share, match, rng)
            image, coverage = transforms.decode_view(records[first])
            pictures = {
                "object": _perturbed_object(data, image, coverage, rng),
                "background": square,
                "mask": _level(hole, mask_level, data),
                "target": target,
            }
            group = records[first]["group"]
            folder.write(_name(records[first], first), pictures, object_id=group, num=num)
    return len(folder.lines)


def video(
    data: DataConfig,
    records: RecordSource,
    out: Path,
    *,
    apart: int = 1,
    num: int = 1,
    limit: int | None = None,
    mask_level: int = 0,
    seed: int = 0,
    track: Callable = untracked,
) -> int:
    """Objects of video frames, to be put into other frames of the same video.

    The background is the other frame with the hole in mid-grey, so that no method sees the truth,
    which is the frame itself; the object is as it was seen, not perturbed.

    Args:
        data: How mask levels are made.
        records: Frames with masks, of videos that no model was trained on.
        out: Folder to make.
        apart: Frames between the two, at least; it ends the entries' ids.
        num, limit, mask_level, seed, track: As `perturbed`.

    Returns:
        How many entries were written.

    Raises:
        InputError: `out` is not empty, or no object is seen in two frames so far apart.
    """
    pairs = make_pairs("video", records.index, data.window)
    assert isinstance(pairs, WindowPartners)
    frames = records.index["frame"]
    chosen = []
    for k, target in enumerate(pairs.records):
        partners = pairs.partners(k)
        partners = partners[np.abs(frames[partners] - frames[target]) >= apart]
        if partners.size:
            chosen.append((int(target), partners))
    if not chosen:
        raise InputError(f"No object is seen in two frames that are {apart} or more apart.")
    with _test_set(out) as folder:
        for k in _spread(np.arange(len(chosen)), limit, track):
            target, partners = chosen[k]
            source = int(np.random.default_rng([seed, target]).choice(partners))
            image, coverage = transforms.decode_view(records[target])
            hole = _level(coverage >= geometry.FAINT, mask_level, data)
            pictures = {
                "object": _cut_out(*transforms.decode_view(records[source])),
                "background": geometry.fill_hole(image, hole[..., None], "grey", 128),
                "mask": hole,
                "target": image,
            }
            record = records[target]
            object_id = f"{record['group']}_{record['instance']}"
            name = f"{_name(record, target)}_{abs(int(frames[source] - frames[target]))}frames"
            folder.write(name, pictures, object_id=object_id, num=num)
    return len(folder.lines)


def rendered(
    data: DataConfig,
    views: Path,
    scenes: Path,
    out: Path,
    *,
    apart: tuple[float, float] = (0.0, 180.0),
    num: int = 1,
    limit: int | None = None,
    mask_level: int = 0,
    seed: int = 0,
    track: Callable = untracked,
) -> int:
    """Views of objects by themselves, to be put into rendered scenes that have them for truth.

    Each scene gives an entry: one of its views is the truth, the same without the object the
    background; the object is shown from a random one of the views that are `apart` from it.

    Args:
        data: How mask levels are made.
        views: What `imprint data render MODELS` wrote.
        scenes: What `imprint data render MODELS --scenes N` wrote of some of the same models.
        out: Folder to make.
        apart: Least and largest angle between the two directions of view, degrees; it ends the
            entries' ids. Scenes that no view is so far apart from are left out.
        num, limit, mask_level, seed, track: As `perturbed`.

    Returns:
        How many entries were written.

    Raises:
        InputError: `out` is not empty, or there is no scene, or no such view for any.
    """
    chosen = []
    for path in sorted(scenes.glob("*/*/scene.json")):
        object_id, number = path.parent.parent.name, path.parent.name
        about = views / object_id / "views.json"
        if not about.is_file():
            continue
        rng = np.random.default_rng([seed, zlib.crc32(f"{object_id}/{number}".encode())])
        scene = json.loads(path.read_text())
        frame = int(rng.integers(len(scene["azimuth"])))
        seen = _directions(json.loads(about.read_text()))
        wanted = _directions(scene)[frame]
        angles = np.degrees(np.arccos(np.clip(seen @ wanted, -1, 1)))
        choices = np.flatnonzero((angles >= apart[0]) & (angles <= apart[1]))
        if choices.size:
            view = int(rng.choice(choices))
            chosen.append((object_id, path.parent, frame, view, float(angles[view])))
    if not chosen:
        raise InputError(
            f"No scene in {scenes} has a view in {views} that is {apart[0]:g} to {apart[1]:g}"
            " degrees apart; both must be rendered of the same models."
        )
    with _test_set(out) as folder:
        for k in _spread(np.arange(len(chosen)), limit, track):
            object_id, scene, frame, view, angle = chosen[k]
            read = lambda name: images.read_image(next(scene.glob(name)))  # noqa: B023
            target = read(f"{frame:03d}_target.*")[..., :3]
            hole = images.read_mask(scene / f"{frame:03d}_mask.png", target.shape[:2])
            pictures = {
                "object": images.read_image(next((views / object_id).glob(f"{view:03d}.*"))),
                "background": read(f"{frame:03d}_background.*")[..., :3],
                "mask": _level(hole, mask_level, data),
                "target": target,
            }
            name = f"{object_id}_{scene.name}_{angle:.0f}deg"
            folder.write(name, pictures, object_id=object_id, num=num)
    return len(folder.lines)


def _directions(about: dict) -> np.ndarray:
    """Unit vectors (n 3) from a model to the cameras, in its own frame, from a renderer's JSON."""
    azimuth = np.radians(np.array(about["azimuth"]) - about.get("model_turn", 0.0))
    elevation = np.radians(about["elevation"])
    flat = np.cos(elevation)
    return np.stack([np.sin(azimuth) * flat, np.sin(elevation), np.cos(azimuth) * flat], axis=1)


def dreambooth(
    objects: Path,
    backgrounds: Path,
    out: Path,
    *,
    pairs: Path = DREAMBOOTH / "pairs.csv",
    masks: Path | None = DREAMBOOTH / "masks",
    segmenter: Segmenter | None = None,
    num: int = 1,
    track: Callable = untracked,
) -> int:
    """Objects in several backgrounds, from a list of pairs.

    The list is a CSV file with the columns `COLUMNS`: a picture of an object, relative to the
    folder of objects (as in google/dreambooth's `dataset/`: backpack/00.jpg), one of a background,
    relative to theirs, and the hole's box in pixels of the background, half-open.

    Args:
        objects: Folder of the objects' pictures.
        backgrounds: Folder of the backgrounds.
        out: Folder to make.
        pairs: The list.
        masks: Folder of the objects' masks, named as their pictures but .png, of their size or a
            smaller one of the same shape; not needed for pictures with transparency.
        segmenter: Finds the objects where there are no masks.
        num: Pictures to make of each pair.
        track: As `perturbed`.

    Returns:
        How many entries were written.

    Raises:
        InputError: The list is wrong (its line is named), a picture cannot be read, or an object
            has no mask.
    """
    rows = read_pairs(pairs)
    with _test_set(out) as folder:
        for number, row in enumerate(track(rows, "pairs", len(rows))):
            background = images.read_image(backgrounds / row["background"])[..., :3]
            cut = _cut(objects / row["object"], masks, Path(row["object"]), segmenter)
            x0, y0, x1, y1 = box = [int(row[name]) for name in COLUMNS[2:]]
            try:
                geometry.box_mask((x0, y0, x1, y1), *background.shape[:2])
            except InputError as error:
                raise InputError(f"{pairs}, line {number + 2}: {error}") from error
            stem = f"{number:03d}_{Path(row['object']).with_suffix('').as_posix()}"
            pictures = {"object": cut, "background": background}
            picture = Path(row["object"])
            object_id = picture.parent.as_posix() if picture.parent.name else picture.stem
            name = stem.replace("/", "_")
            folder.write(name, pictures, object_id=object_id, box=box, num=num)
    return len(folder.lines)


def read_pairs(path: Path) -> list[dict[str, str]]:
    """The rows of a list of pairs.

    Raises:
        InputError: It cannot be read, lacks columns, or a row is incomplete.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the pairs {path}: {error}.") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path} must begin with the line {','.join(COLUMNS)}.")
    for number, row in enumerate(rows, start=2):
        whole = all(WHOLE_NUMBER.fullmatch(row[name] or "") for name in COLUMNS[2:])
        if not whole or not row["object"] or not row["background"] or None in row:
            raise InputError(f"{path}, line {number}: wants two paths and four whole numbers.")
    if not rows:
        raise InputError(f"{path} lists no pairs.")
    return rows


def _cut(path: Path, masks: Path | None, relative: Path, segmenter: Segmenter | None) -> np.ndarray:
    """An object's picture with its mask as transparency, (h w 4) uint8."""
    picture = images.read_image(path)
    if images.has_cut_out(picture):
        return picture
    picture = picture[..., :3]
    if masks is not None:
        mask = _scaled_mask(masks / relative.with_suffix(".png"), *picture.shape[:2])
        return np.dstack([picture, mask])
    if segmenter is not None:
        return segmenter.cut_out(picture, str(path))
    raise InputError(f"{path} has no transparency: give --masks, or --segment to find the object.")


def _scaled_mask(path: Path, height: int, width: int) -> np.ndarray:
    """A mask at the size of its picture, which may be a larger copy: (height width) uint8."""
    mask = images.read_image(path)[..., 0]
    scale = height / mask.shape[0]
    if abs(width - scale * mask.shape[1]) > max(scale, 1):  # a pixel of the smaller one
        raise InputError(
            f"The mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels (width x height), which is"
            f" another shape than its picture's {width}x{height}."
        )
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
    return np.where(np.asarray(resized) >= images.MASK_THRESHOLD, 255, 0).astype(np.uint8)


def _perturbed_object(
    data: DataConfig, image: np.ndarray, coverage: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """P(T(.)) of an object at its own size, with its soft mask as transparency, (h w 4) uint8."""
    cut = _cut_out(image, coverage)
    image = transforms.recolor(cut[..., :3], transforms.random_colors(rng, data.color))
    matrix = transforms.random_affine(rng, **vars(data.affine))
    return np.dstack(transforms.warp(image, cut[..., 3], matrix))


def _cut_out(image: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """The box around an object with its soft mask as transparency, (h w 4) uint8."""
    x0, y0, x1, y1 = geometry.bounding_box(coverage >= geometry.FAINT)
    return np.dstack([image, coverage])[y0:y1, x0:x1]


def _level(hole: np.ndarray, level: int, data: DataConfig) -> np.ndarray:
    return geometry.mask_level(hole, level, data.mask_sigmas)


def _spread(numbers: np.ndarray, limit: int | None, track: Callable) -> Iterable[int]:
    """At most `limit` of the numbers, evenly spread, with a progress bar."""
    if limit is not None and limit < len(numbers):
        numbers = numbers[np.linspace(0, len(numbers) - 1, limit).round().astype(int)]
    return track([int(number) for number in numbers], "entries", len(numbers))


def _name(record: Record, number: int) -> str:
    """An id for a manifest: what the record shows, and its number."""
    group = "".join(c if c.isalnum() or c in "-_" else "_" for c in record["group"])
    return f"{group}_{record['instance']}_{number:05d}"
