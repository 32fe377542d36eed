"""Readers of data sets as their authors distribute them, one section a set.

A reader is two functions. One lists the groups of a folder (objects, videos, photos), opening no
picture; the other lists the pictures of a group in order of time, each with a function that reads
the masks of its objects. What cannot be used is a `Reject` in place of a group, a picture or a
mask. `prepare.py` does the rest.

Layouts were taken from the sets' own kits, and where these say nothing, from loaders of others;
each section names its source.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import features

from imprint_jax.data.preparation.filters import Filters, Reject
from imprint_jax.data.preparation.masks import (
    Masks,
    box_file,
    coco_masks,
    is_palette,
    label_masks,
    one_mask,
    own_alpha,
    scaled_mask,
)
from imprint_jax.errors import InputError

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
if features.check("avif"):  # Pillow is built with it, or not
    PICTURES.add(".avif")
# Pictures of other formats, which are listed as left out.
FOREIGN = {".avif", ".heic", ".heif", ".jp2", ".jxl", ".dng", ".cr2", ".nef"} - PICTURES
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"}


@dataclass(frozen=True)
class Group:
    """An object, a video or a photo: what one process reads, never divided.

    Attributes:
        name: The record's `group`.
        folder: Where its pictures are, or the picture.
        about: What the listing found out, as the set's reader needs it; can be sent elsewhere.
    """

    name: str
    folder: Path
    about: Any = None


@dataclass(frozen=True)
class Picture:
    """One picture of a group, to become one record an object."""

    path: Path
    frame: int
    masks: Masks = field(repr=False)
    background: Path | None = None  # a picture of the same scene without the object


class Reader(NamedTuple):
    """How a set is read."""

    groups: Callable[[Path], Iterator[Group | Reject]]
    pictures: Callable[[Group], Iterator[Picture | Reject]]
    filters: Filters = Filters()
    group_size: int = 30  # pictures a group, roughly
    one_object: bool = False  # all of a group is one object, whatever its instances are
    backgrounds: bool = False  # pictures without a mask are kept, to serve as backgrounds
    labels: bool = False  # instances have numbers of the set's own, in masks that are part of it
    pairs: bool = False  # a group is one pair: it stays in one split, whatever is split by


# ---------------------------------------------------------------------------- folders and files


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: 2.jpg before 10.jpg."""

    def key(name: str) -> tuple:
        parts = re.split(r"([0-9]+)", name)  # text and numbers in turn
        return [int(p) if k % 2 else p for k, p in enumerate(parts)], name

    return sorted(names, key=key)


def _folders(parent: Path) -> Iterator[Path | Reject]:
    """The folders in a folder, in order; archives, broken links and pictures are rejects."""
    for name in in_order(p.name for p in parent.iterdir() if not p.name.startswith(".")):
        path = parent / name
        if path.is_dir():
            yield path
        elif path.suffix.lower() in PICTURES | FOREIGN:
            yield Reject("loose picture", "Pictures are looked for in the folders beside it.", path)
        elif path.suffix.lower() in ARCHIVES:
            yield Reject("archive", "Unpack it first.", path)
        elif path.is_symlink() and not path.exists():
            yield Reject("broken link", "It leads nowhere, or to itself.", path)


def _groups_of_folders(src: Path) -> Iterator[Group | Reject]:
    for folder in _folders(src):
        yield folder if isinstance(folder, Reject) else Group(folder.name, folder)


def _pictures(folder: Path, suffixes: Iterable[str] = PICTURES) -> list[tuple[int, Path]]:
    """Frame numbers and paths of the pictures in a folder, in order; see `_numbered`."""
    return _numbered(
        p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")
    )


def _numbered(pictures: Iterable[Path]) -> list[tuple[int, Path]]:
    """Frame numbers and paths, in order of the names.

    A frame's number is that in its name where every name is a number, else its position.
    """
    by_name = {path.as_posix(): path for path in pictures}
    paths = [by_name[name] for name in in_order(by_name)]
    if all(re.fullmatch(r"[0-9]{1,18}", path.stem) for path in paths):
        return [(int(path.stem), path) for path in paths]
    return [*enumerate(paths)]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The pictures in a folder, in order, by their names without suffix; {} if there is none."""
    paths = defaultdict(list)
    for _, path in _pictures(folder) if folder.is_dir() else ():
        paths[path.stem].append(path)
    return paths


def _foreign(folder: Path, suffixes: set[str] = PICTURES) -> Iterator[Reject]:
    """Rejects of the pictures in a folder of other formats than these."""
    for _, path in _pictures(folder, (PICTURES | FOREIGN) - suffixes) if folder.is_dir() else ():
        formats = ", ".join(sorted(suffixes))
        yield Reject("unknown format", f"Pictures are read here from {formats}.", path)


def _of_one_name(paths: list[Path], same: list[Path]) -> Iterator[Reject]:
    """Rejects of pictures since several files were found where one is to have their name."""
    names = ", ".join(path.name for path in same)
    for path in paths:
        yield Reject("two of one name", f"Which of {names} is meant cannot be told.", path)


def _group_pictures(
    folder: Path,
    masks_of: Callable[[Path], Masks],
    suffixes: set[str] = PICTURES,
    mask_suffix: str | None = None,
) -> Iterator[Picture | Reject]:
    """The pictures of a folder, or a reject if there are none.

    Args:
        folder: Where they are.
        masks_of: The masks of each.
        suffixes: Those of pictures.
        mask_suffix: That of masks beside them.
    """
    pictures = _pictures(folder, suffixes)
    yield from (r for r in _foreign(folder, suffixes) if r.path.suffix != mask_suffix)
    if not pictures:
        yield Reject("empty folder", "It holds no picture.", folder)
    for frame, path in pictures:
        yield Picture(path, frame, masks_of(path))


def _read_any_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error


def _read_json(path: Path) -> dict:
    content = _read_any_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return content


def _need(src: Path, *names: str) -> None:
    missing = [name for name in names if not (src / name).exists()]
    if missing:
        raise InputError(
            f"{src} lacks {', '.join(missing)}; give the folder that holds {', '.join(names)}."
        )


# ---------------------------------------------------------------------------- objaverse


# G-buffer Objaverse's folder of an object's views.
GOBJAVERSE = "campos_512_v4"
# What renderers write beside a view: the name says so, a word of its own.
MAPS = {
    *("normal", "normals", "depth", "depths", "nd", "albedo", "mask", "masks", "alpha", "mr"),
    *("position", "positions", "ccm", "roughness", "metallic", "uv", "hdr"),
}


def objaverse_groups(src: Path) -> Iterator[Group | Reject]:
    """RGBA views, as `imprint data render` and the scripts for Objaverse write them.

    SRC/<object>/NNN.webp or .png; neighbours in order are neighbouring views. The object is what is
    opaque. Maps of normals, depth, albedo and the like beside the views are left out, by their
    names. Also SRC/<object>/rgba/NNN.png, and SRC/<part>/<object>/campos_512_v4/NNNNN/NNNNN.png,
    or without <part>. Source: rendering/views.py; allenai/objaverse-rendering,
    scripts/blender_script.py (<output_dir>/<object>/%03d.png); README.md of 3DTopia/OpenLRM
    (rgba/); dataset/gobjaverse of modelscope/richdreamer (campos_512_v4/); xxlong0/Wonder3D
    (normals_NNN_VIEW.png beside rgb_NNN_VIEW.png).
    """
    for folder in _folders(src):
        if isinstance(folder, Reject):
            yield folder
        elif parts := in_order(part.parent.name for part in folder.glob(f"*/{GOBJAVERSE}")):
            for name in parts:
                yield Group(f"{folder.name}/{name}", folder / name)
        else:
            yield Group(folder.name, folder)


def objaverse_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The views of an object."""
    folder, suffixes = group.folder, {".webp", ".png"}
    if (folder / GOBJAVERSE).is_dir():
        files = [f for f in (folder / GOBJAVERSE).glob("*/*") if f.suffix.lower() in suffixes]
    else:
        folder = folder / "rgba" if (folder / "rgba").is_dir() else folder
        yield from _foreign(folder, suffixes)
        files = [path for _, path in _pictures(folder, suffixes)]
    views = []
    for path in files:
        if maps := MAPS.intersection(re.findall("[a-z]+", path.stem.lower())):
            yield Reject("no view", f"By its name it is a map ({', '.join(maps)}).", path)
        else:
            views.append(path)
    if not views:
        yield Reject("empty folder", "It holds no picture.", folder)
    for frame, path in _numbered(views):
        yield Picture(path, frame, own_alpha)


# ---------------------------------------------------------------------------- MVImgNet


def mvimgnet_groups(src: Path) -> Iterator[Group | Reject]:
    """MVImgNet 1 and 2: one video around one object, cut into frames.

    SRC/<class>/<object>/images/NNN.jpg (README.md of GAP-LAB-CUHK-SZ/MVImgNet and of
    luyues/MVImgNet2.0; "sparse/" beside it is not read), or the same below SRC/image or
    SRC/MVImgNet_origin; the folders mvi_NN of the download may stand before <class>. Masks are

    - SRC/<class>/<object>/masks/NNN.png (MVImgNet 2), or
    - <class>/<object>/NNN.jpg.png in SRC/mask or SRC/MVImgNet_mask (MVImgNet 1), placed as
      dataset/mvimagenet_sv.py of hwjiang1510/Real3D expects them; it scales them, so do we; or
    - SRC/<class>/<object>/images/NNN_bg_removed.png with alpha (MVImgNet 1, first release; read so
      by datasets/mvimagenet.py of ali-vilab/AnyDoor).
    """
    images = next((src / n for n in ("image", "MVImgNet_origin") if (src / n).is_dir()), src)
    masks = [src / n for n in ("mask", "MVImgNet_mask") if (src / n).is_dir()]
    shelves = {m: [m, *(f for f in m.glob("mvi_*") if f.is_dir())] for m in masks}
    for folder in _mvimgnet_classes(images):
        if isinstance(folder, Reject):
            yield folder
        elif folder not in masks:
            for inner in _folders(folder):
                if isinstance(inner, Reject):
                    yield inner
                    continue
                name = f"{folder.name}/{inner.name}"
                places = [shelf / name for m in masks for shelf in shelves[m]]
                yield Group(name, inner, about=[p for p in places if p.is_dir()])


def _mvimgnet_classes(images: Path) -> Iterator[Path | Reject]:
    for folder in _folders(images):
        if isinstance(folder, Path) and re.fullmatch("mvi_[0-9]+", folder.name):
            yield from _folders(folder)
        else:
            yield folder


def mvimgnet_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The frames of an object's video."""
    folder = group.folder / "images"
    if not folder.is_dir():
        yield Reject("empty folder", "It holds no folder images.", group.folder)
        return

    def masks(path: Path) -> Masks:
        cut_out = folder / f"{path.stem}_bg_removed.png"
        places = [
            group.folder / "masks" / f"{path.stem}.png",
            group.folder / "masks" / f"{path.name}.png",
            *(place / f"{path.name}.png" for place in group.about),
        ]
        mask_path = next((p for p in (*places, cut_out) if p.is_file()), places[-1])
        return partial(scaled_mask, mask_path, cut_out=mask_path == cut_out)

    yield from _group_pictures(folder, masks, {".jpg", ".jpeg"}, mask_suffix=".png")


# ---------------------------------------------------------------------------- YouTube-VOS


def youtubevos_groups(src: Path) -> Iterator[Group | Reject]:
    """YouTube-VOS 2018 and 2019: videos with several objects.

    SRC/JPEGImages/<video>/NNNNN.jpg, SRC/Annotations/<video>/NNNNN.png (palette, the number is the
    object) and SRC/meta.json ({"videos": {<video>: {"objects": {<object>: {"category", "frames":
    [NNNNN]}}}}}); SRC is the folder "train". Ref-YouTube-VOS comes without meta.json: then all
    numbers of a frame's mask are objects. Source: the data sets' page
    (youtube-vos.org/dataset/vos) and ltr/dataset/youtubevos.py of visionml/pytracking.
    """
    _need(src, "JPEGImages", "Annotations")
    if not (src / "meta.json").exists():
        yield from _groups_of_folders(src / "JPEGImages")
        return
    videos = _read_json(src / "meta.json").get("videos")
    if not isinstance(videos, dict):
        raise InputError(f'{src / "meta.json"} has no object "videos".')
    for video in sorted(videos):
        folder = src / "JPEGImages" / video
        if not folder.is_dir():
            yield Reject("missing folder", "meta.json names it.", folder)
            continue
        frames = defaultdict(list)
        try:
            for number, one in videos[video]["objects"].items():
                # Not a set, whose order differs between processes: a stopped run would not go on.
                for name in dict.fromkeys(one["frames"]):
                    frames[name].append(int(number))
            about = {name: frames[name] for name in in_order(frames)}
        except (TypeError, KeyError, ValueError, AttributeError):
            yield Reject("bad description", "meta.json describes it in another form.", folder)
            continue
        if about:
            yield Group(video, folder, about)
        else:
            yield Reject("no object", "meta.json names none in it.", folder)
    for entry in _folders(src / "JPEGImages"):
        if isinstance(entry, Reject):
            yield entry
        elif entry.name not in videos:
            yield Reject("video not in meta.json", "Which objects it has is not known.", entry)


def youtubevos_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The frames of a video that have objects."""
    folder = group.folder.parent.parent / "Annotations" / group.name
    if group.about is None:
        objects_of = lambda present: present[present > 0].tolist()
        masks_of = lambda path: partial(
            label_masks, folder / f"{path.stem}.png", objects_of=objects_of
        )
        yield from _group_pictures(group.folder, masks_of)
        return
    for position, name in enumerate(group.about):
        frame = int(name) if re.fullmatch(r"[0-9]{1,18}", name) else position
        masks = partial(_listed_masks, folder / f"{name}.png", objects=group.about[name])
        yield Picture(group.folder / f"{name}.jpg", frame, masks)


def _listed_masks(path: Path, image: np.ndarray, *, objects: list[int]) -> Iterator:
    objects_of = lambda present: {*objects, *present[present > 0].tolist()}
    for label, mask in label_masks(path, image, objects_of=objects_of):
        if label in objects or isinstance(mask, Reject):
            yield label, mask
        else:
            yield label, Reject("object not in meta.json", f"{path} has pixels of object {label}.")


# ---------------------------------------------------------------------------- DAVIS


def davis_groups(src: Path) -> Iterator[Group | Reject]:
    """DAVIS 2016 and 2017: videos with one object, or several.

    SRC/JPEGImages/480p/<video>/NNNNN.jpg and SRC/Annotations/480p/<video>/NNNNN.png; another
    resolution's folder ("1080p", "Full-Resolution") where there is no "480p". Source: the readme
    of fperazzi/davis and davis2017/davis.py of davisvideochallenge/davis2017-evaluation, whose
    void label is 255.
    """
    _need(src, "JPEGImages", "Annotations")
    sizes = in_order(p.name for p in (src / "JPEGImages").iterdir() if p.is_dir())
    if not sizes:
        raise InputError(f"{src / 'JPEGImages'} holds no folder 480p.")
    size = "480p" if "480p" in sizes else sizes[0]
    _need(src, f"Annotations/{size}")
    for folder in _folders(src / "JPEGImages" / size):
        if isinstance(folder, Reject):
            yield folder
        else:
            yield Group(folder.name, folder, src / "Annotations" / size / folder.name)


def davis_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The frames of a video."""
    masks = lambda path: partial(_davis_masks, group.about / f"{path.stem}.png")
    return _group_pictures(group.folder, masks)


def _davis_masks(path: Path, image: np.ndarray) -> Iterator:
    """A palette's numbers are objects (2017); other masks are of one object, white (2016)."""
    if is_palette(path):
        objects_of = lambda present: present[(present > 0) & (present < 255)].tolist()
        return label_masks(path, image, objects_of=objects_of)
    return scaled_mask(path, image)


# ---------------------------------------------------------------------------- VIPSeg


def vipseg_groups(src: Path) -> Iterator[Group | Reject]:
    """VIPSeg, as downloaded or as its script change2_720p.py makes it.

    SRC/imgs (or SRC/images)/<video>/NNNNNNNN.jpg and SRC/panomasks/<video>/NNNNNNNN.png, whose
    pixels are numbers: 0 is void, to 124 a kind of stuff, above category x 100 + object; 200 is
    void too, an error of the set (NO_OBJ_BUG in the loader of lxtGH/OMG-Seg). Objects ("things")
    become records, stuff does not. Without panomasks: SRC/panomasksRGB, with the descriptions of
    create_panoptic_video_labels.py, SRC/panoptic_gt_VIPSeg.json, or those of splitjson.py,
    panoptic_gt_VIPSeg_{train,val,test}.json.
    Source: README.md and these scripts in VIPSeg-Dataset/VIPSeg-Dataset.
    """
    images = "images" if (src / "images").is_dir() else "imgs"
    plain = (src / "panomasks").is_dir()
    described = sorted(src.glob("panoptic_gt_VIPSeg*.json"))
    if plain or not described:
        _need(src, images, *([] if plain else ["panomasksRGB", "panoptic_gt_VIPSeg.json"]))
    else:
        _need(src, images, "panomasksRGB")
    things: dict[str, dict[str, set[int]]] = {}
    for path in [] if plain else described:
        things |= _vipseg_things(path)
    for folder in _folders(src / images):
        if isinstance(folder, Reject):
            yield folder
        elif plain:
            yield Group(folder.name, folder, (src / "panomasks" / folder.name, None))
        else:
            about = (src / "panomasksRGB" / folder.name, things.get(folder.name, {}))
            yield Group(folder.name, folder, about)


def _fault(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _vipseg_things(path: Path) -> dict[str, dict[str, set[int]]]:
    """The labels that are objects, by video and picture."""
    content = _read_json(path)
    try:
        kinds = {c["id"] for c in content["categories"] if c["isthing"]}
        return {
            video["video_id"]: {
                Path(a["file_name"]).stem: {
                    s["id"] for s in a["segments_info"] if s["category_id"] in kinds
                }
                for a in video["annotations"]
            }
            for video in content["annotations"]
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not in the panoptic format: {_fault(error)}.") from error


def vipseg_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The frames of a video."""
    folder, things = group.about

    def masks(path: Path) -> Masks:
        if things is None:
            objects_of = lambda present: present[(present > 124) & (present != 200)].tolist()
        else:
            objects_of = lambda present: things.get(path.stem, ())
        return partial(label_masks, folder / f"{path.stem}.png", objects_of=objects_of)

    return _group_pictures(group.folder, masks)


# ---------------------------------------------------------------------------- PPR10K


def ppr10k_groups(src: Path) -> Iterator[Group | Reject]:
    """PPR10K: groups of portraits of the same people, with a mask of them.

    SRC/{train,val}/target_a/<group>_<photo>.tif and SRC/{train,val}/masks/<group>_<photo>.png, or
    without train and val; "source" where there is no "target_a", "masks_full" or "masks_360p"
    where there is no "masks". Photos may be in SRC/train_val_images_tif_360p, as downloaded, with
    SRC/masks_360p beside it. Source: code_3DLUT/datasets.py, utils/split_train_val.py and
    README.md of csjliang/PPR10K. Raw photos are exported first (its docs/dataset_usage.md).
    """
    count = 0
    small = src / "train_val_images_tif_360p"
    for part in (src, src / "train", src / "val", small, small / "train", small / "val"):
        images = next((part / n for n in ("target_a", "source") if (part / n).is_dir()), None)
        if images is None:
            continue
        names = ("masks", "masks_full", "masks_360p")
        places = [part / n for n in names]
        if small in (part, part.parent):  # masks of the photos' size first
            places += [src / n for n in reversed(names)]
        masks = next((place for place in places if place.is_dir()), None)
        if masks is None:
            raise InputError(f"{part} holds photos but no masks, masks_full or masks_360p.")
        count += 1
        yield from _foreign(images)
        groups = defaultdict(list)
        for _, path in _pictures(images):
            match = re.fullmatch(r"([0-9]+)_([0-9]+)", path.stem)
            if match:
                groups[match[1]].append((int(match[2]), path))
            else:
                yield Reject("unknown name", "It is not called <group>_<photo>.", path)
        for name in in_order(groups):
            yield Group(name, masks, about=groups[name])
    if not count:
        raise InputError(
            f"{src} has no folder target_a or source, also not in train or val; "
            "see docs/data_sets.md."
        )


def ppr10k_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The photos of a group."""
    for frame, path in group.about:
        yield Picture(path, frame, partial(one_mask, group.folder / f"{path.stem}.png"))


# ---------------------------------------------------------------------------- photos


def photos_groups(src: Path) -> Iterator[Group | Reject]:
    """Photographs, with or without objects marked.

    - SRC/NAME.jpg, and for those with objects SRC/masks/NAME.png (one object, white) or
      SRC/masks/NAME/*.png (one file an object). Ours.
    - COCO: SRC/annotations/instances_SET.json and SRC/SET/FILE, as it is distributed
      (cocodataset.org/#format-data), or SRC/ANY.json and SRC/FILE. Crowds are left out.
    """
    described = [(p, src / p.stem.removeprefix("instances_")) for p in _jsons(src / "annotations")]
    described += [(p, src) for p in _jsons(src)]
    if described:
        for path, folder in described:
            yield from _coco_groups(path, folder)
        return
    photos, marks = _by_name(src), defaultdict(list)
    for path in sorted((src / "masks").glob("[!.]*")):
        if path.is_dir():
            marks[path.name].append(path)
        elif path.suffix.lower() in PICTURES | FOREIGN:  # else its photo would pass for unmarked
            marks[path.stem].append(path)
    for name, paths in photos.items():
        marked = marks.get(name, [])
        if max(len(paths), len(marked)) > 1:
            yield from _of_one_name(paths, max(paths, marked, key=len))
        else:
            about = marked[0] if marked else src / "masks" / f"{name}.png"
            yield Group(name, paths[0], about)
    for name in sorted(marks.keys() - photos.keys()):
        for path in marks[name]:
            yield Reject("no photo", "No photo has the name of this mask.", path)
    yield from _foreign(src)
    for entry in _folders(src):
        path = entry.path if isinstance(entry, Reject) else entry
        if path.suffix.lower() in PICTURES | FOREIGN or path.name == "masks":
            continue
        if isinstance(entry, Reject):
            yield entry
        else:
            yield Reject("folder among photos", "Photos are not looked for in it.", path)


def photos_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The photo."""
    if isinstance(group.about, tuple):
        objects, size = group.about
        yield Picture(group.folder, 0, partial(coco_masks, objects, size=size))
        return
    if not group.about.is_dir():
        yield Picture(group.folder, 0, partial(one_mask, group.about))
        return
    yield from _foreign(group.about)
    files = [path for _, path in _pictures(group.about)]
    if not files:
        yield Reject("empty folder", f"{group.about} holds no mask.", group.folder)
        return
    masks = lambda image: chain.from_iterable(
        one_mask(path, image, instance=number) for number, path in enumerate(files, start=1)
    )
    yield Picture(group.folder, 0, masks)


def _jsons(folder: Path) -> list[Path]:
    """COCO's descriptions in a folder; other JSON files, such as captions, are none."""
    if not folder.is_dir():
        return []
    if folder.name == "annotations":
        return sorted(folder.glob("instances_*.json"))
    return [path for path in sorted(folder.glob("*.json")) if _describes(_read_any_json(path))]


def _describes(content: object) -> bool:
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _coco_groups(path: Path, folder: Path) -> Iterator[Group | Reject]:
    if not folder.is_dir():  # archives of annotations describe more than one has fetched
        yield Reject("missing folder", f"{path.name} describes the pictures of {folder}.", path)
        return
    content = _read_json(path)
    try:
        objects = defaultdict(list)
        for item in content["annotations"]:
            one = (int(item["id"]), item["segmentation"], item.get("iscrowd", 0))
            objects[item["image_id"]].append(one)
        files, sizes = {}, {}
        for image in content["images"]:
            files[image["id"]] = Path(image["file_name"]).as_posix()
            size = image.get("height"), image.get("width")
            sizes[image["id"]] = None if None in size else size
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is not in COCO's format: {_fault(error)}.") from error
    for number in sorted(objects.keys() - files.keys(), key=str):
        yield Reject("missing picture", f"{path.name} lists no picture {number}.", path)
    for number, name in sorted(files.items(), key=lambda item: item[1]):
        group = (Path(folder.name) / name if folder != path.parent else Path(name)).with_suffix("")
        yield Group(group.as_posix(), folder / name, about=(objects[number], sizes[number]))


# ---------------------------------------------------------------------------- folder


def folder_groups(src: Path) -> Iterator[Group | Reject]:
    """Your own pairs: an object, and a photo of it in place.

    SRC/foreground/NAME.* and SRC/foreground_mask/NAME.png; SRC/target/NAME.*, the photo that holds
    the object, and where in SRC/mask/NAME.png (or mask_bbox) or SRC/bbox/NAME.txt ("x0 y0 x1 y1");
    SRC/background/NAME.*, the photo without it. Source: examples/ and scripts/inference.py of
    bcmi/ObjectStitch-Image-Composition; "target" is ours, and training needs it.
    """
    _need(src, "foreground", "foreground_mask", "background")
    parts = ("foreground", "foreground_mask", "mask", "mask_bbox", "background", "target")
    files = {part: _by_name(src / part) for part in parts}
    for name, paths in files["foreground"].items():
        named = {part: files[part].get(name, [src / part / f"{name}.png"]) for part in parts}
        most = max(named.values(), key=len)
        if len(most) > 1:
            yield from _of_one_name(paths, most)
        else:
            about = {part: path for part, (path,) in named.items()}
            yield Group(name, paths[0], about | {"bbox": src / "bbox" / f"{name}.txt"})
    for part in parts:
        yield from _foreign(src / part)
        for path in chain.from_iterable(files[part].values()):
            if path.stem not in files["foreground"]:
                yield Reject("no foreground", "No foreground has its name.", path)


def folder_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The object's picture, frame 0, and the photo that holds it, frame 1."""
    files = group.about
    yield Picture(group.folder, 0, partial(one_mask, files["foreground_mask"]))
    if not files["target"].exists():
        yield Reject("no target", "There is no photo that holds the object.", files["target"])
        return
    place = next((files[part] for part in ("mask", "mask_bbox") if files[part].exists()), None)
    masks = partial(box_file, files["bbox"]) if place is None else partial(one_mask, place)
    background = files["background"] if files["background"].exists() else None
    yield Picture(files["target"], 1, masks, background)


# ---------------------------------------------------------------------------- scenes


def scenes_groups(src: Path) -> Iterator[Group | Reject]:
    """Rendered scenes of objects, `imprint data render MODELS SRC --scenes N`.

    SRC/<object>/<scene>/NNN_target.webp, NNN_background.webp and NNN_mask.png a view. The group is
    the object, the instance the scene's number, the frame the view's. Source:
    imprint_jax/rendering/scenes.py.
    """
    return _groups_of_folders(src)


def scenes_pictures(group: Group) -> Iterator[Picture | Reject]:
    """The views of an object's scenes."""
    targets = in_order(p.relative_to(group.folder).as_posix() for p in _targets(group.folder))
    if not targets:
        yield Reject("empty folder", "It holds no scene.", group.folder)
    for name in targets:
        path = group.folder / name
        numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})_target\.[a-z]+", name)
        if not numbers:
            yield Reject("unknown name", "It is not called SCENE/NNN_target, in numbers.", path)
            continue
        scene, frame = (int(number) for number in numbers.groups())
        mask = path.with_name(path.name.partition("_")[0] + "_mask.png")
        background = path.with_name(path.name.replace("_target", "_background"))
        yield Picture(path, frame, partial(one_mask, mask, instance=scene), background)


def _targets(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*_target.*") if not path.parent.name.startswith(".")]


READERS: dict[str, Reader] = {
    "mvimgnet": Reader(mvimgnet_groups, mvimgnet_pictures),
    # Renders are sharp and whole, on ground that is not part of the picture.
    "objaverse": Reader(
        objaverse_groups,
        objaverse_pictures,
        Filters(min_area=0.0, max_area=1.0, min_component=0.0, min_sharpness=0.0),
    ),
    "youtubevos": Reader(youtubevos_groups, youtubevos_pictures, labels=True),
    "davis": Reader(davis_groups, davis_pictures, group_size=70, labels=True),
    "vipseg": Reader(vipseg_groups, vipseg_pictures, labels=True),
    # Pieces are several people, who stay together.
    "ppr10k": Reader(ppr10k_groups, ppr10k_pictures, Filters(min_component=0.0), group_size=7),
    "photos": Reader(photos_groups, photos_pictures, group_size=1, backgrounds=True),
    # Objects may fill their own pictures.
    "folder": Reader(
        folder_groups, folder_pictures, Filters(max_area=1.0), group_size=2, pairs=True
    ),
    # Renders are sharp, and whole but for what stands before them.
    "scenes": Reader(
        scenes_groups,
        scenes_pictures,
        Filters(max_area=0.9, min_component=0.0, min_sharpness=0.0),
        group_size=16,
        one_object=True,
    ),
}
