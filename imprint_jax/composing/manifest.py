"""Lists of composites to make: JSON lines, or a folder in the plain layout.

A line of a manifest, with paths relative to its file:

    {"id": "cup_desk", "object": "cup.png", "background": "desk.jpg", "mask": "hole.png"}

`id`          names the pictures, ID.png, or ID_0.png, ID_1.png ... where `num` is more than 1;
              200 bytes of UTF-8 at most
`object`      a picture of the object, or a list of several views of it
`object_mask` where the object is in its picture, or a list; not needed with transparency
`background`  the photo
`mask`        the hole, white; or
`box`         [X0, Y0, X1, Y1], half-open, in pixels of the photo after its EXIF rotation
`mask_level`  0 to 3 (0)
`seed`        0 to 2**32 - 1 (0)
`num`         pictures to make (1)
`target`      the true composite, if there is one; for evaluation
`object_id`   which object it is: pictures of one object have the same; for evaluation
`objects`     in the place of object, object_mask, object_id, mask and box: a list of several
              objects with these fields each, in the order they go into the photo

The plain layout is that of other compositing codes: files of the same name in DIR/background,
DIR/foreground, DIR/foreground_mask (unless the foreground has transparency) and DIR/mask or
DIR/bbox, whose text files hold X0 Y0 X1 Y1; DIR/target, if there are true composites.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imprint_jax import geometry, images
from imprint_jax.composing.request import Picture, Placement, Request, check_numbers
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.weights.tensors import file_hash

# What file systems take in a name, and what neither hides it nor leaves the folder.
FILE_NAME = re.compile(r'[^./\\:*?"<>|\x00-\x1f][^/\\:*?"<>|\x00-\x1f]*')
# Bytes of UTF-8 in an id: a name may have 255 (NAME_MAX), with a number and an ending. Ours.
LONGEST_ID = 200
_OBJECT_FIELDS = {"object", "object_mask", "object_id", "mask", "box"}
_FIELDS = {"id", "background", "mask_level", "seed", "num", "target", "objects"} | _OBJECT_FIELDS


@dataclass(frozen=True)
class ObjectEntry:
    """One object of an entry: views, their masks (or ()), the hole (mask or box), which object.

    Raises:
        InputError: There are not as many masks as views.
    """

    views: tuple[Path, ...]
    view_masks: tuple[Path, ...]
    mask: Path | None
    box: geometry.Box | None
    object_id: str | None = None

    def __post_init__(self) -> None:
        if self.view_masks and len(self.view_masks) != len(self.views):
            raise InputError(
                f"There are {len(self.views)} pictures of the object but {len(self.view_masks)}"
                " masks of it: give one mask a picture."
            )


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; the fields are explained above.

    Attributes:
        line: As it was read.
        read_as: Fields of `Request` in the place of its defaults and of the line's own.
    """

    id: str
    background: Path
    objects: tuple[ObjectEntry, ...]
    mask_level: int = 0
    seed: int = 0
    num: int = 1
    target: Path | None = None
    line: dict = field(default_factory=dict, compare=False, repr=False)
    read_as: dict = field(default_factory=dict, compare=False, repr=False)

    def names(self) -> list[str]:
        """The file names of its pictures."""
        if self.num == 1:
            return [f"{self.id}.png"]
        return [f"{self.id}_{k}.png" for k in range(self.num)]

    def files(self) -> list[Path]:
        """All pictures that it names, the target too."""
        files = [self.background, *([self.target] if self.target else [])]
        for one in self.objects:
            files += [*one.views, *one.view_masks, *([one.mask] if one.mask else [])]
        return files

    def shape(self) -> dict[str, Any]:
        """The fields of `Request` that decide its holes."""
        return {"mask_level": self.mask_level} | self.read_as

    def request(self, *, segmenter: Segmenter | None = None, **options: Any) -> Request:
        """Reads the entry's pictures.

        Args:
            segmenter: Finds the objects in pictures with neither mask nor transparency.
            **options: Fields of `Request` in the place of the entry's own; None leaves its own.

        Raises:
            InputError: A file cannot be read, or does not fit the others.
        """
        objects = [_placement(one, segmenter) for one in self.objects]
        fields: dict[str, Any] = {"seed": self.seed, "num": self.num, "name": self.id}
        fields |= self.shape()
        fields |= {name: value for name, value in options.items() if value is not None}
        return Request(self.background, objects, **fields)

    def digests(self, hash_of: Callable[[Path], str] = file_hash) -> list[str]:
        """What is in the files that it names; "" for one that is missing."""
        return [hash_of(path)[:16] if path.is_file() else "" for path in self.files()]


def _placement(one: ObjectEntry, segmenter: Segmenter | None) -> Placement:
    views: list[Picture] = list(one.views)
    if segmenter and not one.view_masks:
        views = [segmenter.cut_out(images.read_image(path), str(path)) for path in one.views]
    return Placement(views, one.mask, list(one.view_masks) or None, one.box)


def read(path: Path) -> list[Entry]:
    """The entries of a manifest, or of a folder in the plain layout; no picture is read.

    Raises:
        InputError: A line is wrong (its number is named), or two entries would write one file.
    """
    entries = _read_folder(path) if path.is_dir() else _read_lines(path)
    if not entries:
        raise InputError(f"{path} lists nothing to compose.")
    written: dict[str, Entry] = {}
    for entry in entries:
        for name in entry.names():
            # Case does not tell files apart everywhere.
            other = written.setdefault(name.lower(), entry)
            if other is not entry:
                raise InputError(f"{path}: {other.id!r} and {entry.id!r} would both write {name}.")
    return entries


def check_files(entries: Sequence[Entry]) -> None:
    """Call it before any long work.

    Raises:
        InputError: A file that an entry names does not exist.
    """
    for entry in entries:
        for path in entry.files():
            if not path.is_file():
                raise InputError(f"{entry.id} names {path}, which does not exist.")


def describe(path: Path, entries: Sequence[Entry]) -> dict:
    """What a report says of a manifest.

    Args:
        path: The file, or the folder in the plain layout.
        entries: What `read` returned.

    Returns:
        The path, the file's SHA-256 (None of a folder), a SHA-256 of what the entries say and of
        the pictures they name, and how many entries and objects; for JSON.
    """
    hash_of = functools.cache(file_hash)  # entries share photos
    content = [[entry.line, entry.digests(hash_of)] for entry in entries]
    return {
        "path": str(path),
        "sha256": None if path.is_dir() else file_hash(path),
        "content_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "entries": len(entries),
        "objects": len({which_objects(entry) for entry in entries}),
    }


def which_objects(entry: Entry) -> tuple:
    """What tells an entry's objects from others': their ids, or the pictures of them."""
    return tuple(_which(one) for one in entry.objects)


def with_other_objects(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries, each with another's object: from half the list further on, the first.

    A control: what a measure says when the object is wrong and all else is right.

    Raises:
        InputError: All entries have one object.
    """
    changed = []
    for number, entry in enumerate(entries):
        start = number + (len(entries) + 1) // 2
        others = (entries[(start + k) % len(entries)] for k in range(len(entries)))
        own = set(which_objects(entry))
        other = next((e for e in others if _which(e.objects[0]) not in own), None)
        if other is None:
            raise InputError("Another entry's object needs a manifest with two objects or more.")
        wrong = other.objects[0]
        objects = tuple(
            replace(one, views=wrong.views, view_masks=wrong.view_masks) for one in entry.objects
        )
        changed.append(replace(entry, objects=objects, line=entry.line | {"object_of": other.id}))
    return changed


def _which(one: ObjectEntry) -> str | tuple[Path, ...]:
    return one.views if one.object_id is None else one.object_id


def _read_lines(path: Path) -> list[Entry]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the manifest {path}: {error}.") from error
    entries = []
    # Only "\n" ends a line: JSON's strings may hold what Unicode calls line breaks.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entries.append(_parse(json.loads(line), path.parent))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
            # ValueError: also for numbers of thousands of digits; RecursionError: [[[[[...
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}.") from error
    return entries


def _parse(line: Any, folder: Path) -> Entry:
    _check_fields(line, _FIELDS, required=("id", "background"))
    _check_id(line["id"])
    numbers = {key: line[key] for key in ("mask_level", "seed", "num") if key in line}
    check_numbers(**{"mask_level": 0, "seed": 0, "num": 1} | numbers)
    objects = line.get("objects")
    if objects is None:
        objects = [{key: line[key] for key in _OBJECT_FIELDS & set(line)}]
    elif _OBJECT_FIELDS & set(line):
        raise InputError("give either objects, or object with mask or box, not both.")
    if not isinstance(objects, list) or not objects:
        raise InputError("objects must be a list of one or more.")
    return Entry(
        line["id"],
        _path(line, "background", folder),
        tuple(_parse_object(one, folder) for one in objects),
        target=_path(line, "target", folder) if "target" in line else None,
        line=line,
        **numbers,
    )


def _check_id(value: object) -> None:
    if not isinstance(value, str) or not FILE_NAME.fullmatch(value) or value[-1] in " .":
        raise InputError(f"id {value!r} must be something a file can be called.")
    if len(_utf8(value, "id")) > LONGEST_ID:
        raise InputError(
            f"id {value[:20] + '...'!r} has {len(_utf8(value, 'id'))} bytes; a file's name leaves"
            f" room for {LONGEST_ID}."
        )


def _utf8(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
        raise InputError(f"{field} {text!r} has characters that no file can be called.") from error


def _parse_object(one: Any, folder: Path) -> ObjectEntry:
    _check_fields(one, _OBJECT_FIELDS, required=("object",))
    if ("mask" in one) == ("box" in one):
        raise InputError("say where the object goes: either mask or box.")
    return ObjectEntry(
        _paths(one, "object", folder),
        _paths(one, "object_mask", folder),
        _path(one, "mask", folder) if "mask" in one else None,
        _box(one["box"]) if "box" in one else None,
        _object_id(one.get("object_id")),
    )


def _check_fields(line: object, fields: set[str], required: Sequence[str]) -> None:
    if not isinstance(line, dict):
        raise InputError(f"must be a JSON object, not {line!r}.")
    for name in required:
        if name not in line:
            raise InputError(f"{name} is missing.")
    if unknown := sorted(set(line) - fields):
        raise InputError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(fields))}.")


def _path(line: dict, field: str, folder: Path) -> Path:
    if not isinstance(line[field], str) or not line[field] or "\0" in line[field]:
        raise InputError(f"{field} must be a path, not {line[field]!r}.")
    _utf8(line[field], field)
    return folder / line[field]


def _paths(line: dict, field: str, folder: Path) -> tuple[Path, ...]:
    """One path or a list of them; () where there is no such field."""
    value = line.get(field, [])
    values = value if isinstance(value, list) else [value]
    if field in line and not values:
        raise InputError(f"{field} is an empty list.")
    return tuple(_path({field: one}, field, folder) for one in values)


def _object_id(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"object_id must be text, not {value!r}.")
    return value


def _box(value: object) -> geometry.Box:
    if not isinstance(value, list) or [type(x) for x in value] != [int] * 4:
        raise InputError(f"box must be four whole numbers [X0, Y0, X1, Y1], not {value!r}.")
    return tuple(value)


def _read_folder(folder: Path) -> list[Entry]:
    """The plain layout: an entry for each file of DIR/background."""
    parts = {name: _by_stem(folder / name) for name in ("background", "foreground")}
    for name, files in parts.items():
        if not files:
            raise InputError(
                f"{folder} is not in the plain layout: it has no {name}/ with files in it."
            )
    optional = ("foreground_mask", "mask", "bbox", "target")
    view_masks, masks, boxes, targets = (_by_stem(folder / name) for name in optional)
    relative = lambda path: path.relative_to(folder).as_posix()
    entries = []
    for stem, background in parts["background"].items():
        if stem not in parts["foreground"]:
            raise InputError(f"{background} has no foreground of its name.")
        line = {
            "id": stem,
            "background": relative(background),
            "object": relative(parts["foreground"][stem]),
        }
        if stem in view_masks:
            line["object_mask"] = relative(view_masks[stem])
        if stem in targets:
            line["target"] = relative(targets[stem])
        if stem in masks:
            line["mask"] = relative(masks[stem])
        elif stem in boxes:
            line["box"] = _read_box(boxes[stem])
        else:
            raise InputError(f"{background} has neither a mask nor a bbox of its name.")
        entries.append(_parse(line, folder))
    return entries


def _by_stem(folder: Path) -> dict[str, Path]:
    """A folder's files by their names without ending, in order; empty if there is no folder."""
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            if path.stem in files:
                raise InputError(f"{path} and {files[path.stem]} have the same name.")
            files[path.stem] = path
    return files


def _read_box(path: Path) -> list[int]:
    try:
        box = [int(part) for part in re.split(r"[\s,]+", path.read_text(errors="replace").strip())]
    except ValueError:
        box = []
    if len(box) != 4:
        raise InputError(f"{path} must hold four whole numbers X0 Y0 X1 Y1.")
    return box
