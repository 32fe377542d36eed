"""Reader of rendered scenes, `imprint data render MODELS SRC --scenes N`; see sources.py.

SRC/<object>/<scene>/NNN_target.webp, NNN_background.webp and NNN_mask.png a view. The group is the
object, so that splits are by object; the instance is the scene's number, the frame the view's.
Source: imprint_jax/scenes.py.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from imprint_jax.inputs.filters import Filters, Reject
from imprint_jax.inputs.masks import one_mask
from imprint_jax.inputs.sources import Group, Picture, Reader, in_order


def scenes_groups(src: Path) -> Iterator[Group | Reject]:
    """The objects."""
    for name in in_order(p.name for p in src.iterdir() if not p.name.startswith(".")):
        if (src / name).is_dir():
            yield Group(name, src / name)


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


# Renders are sharp, and whole but for what stands before them.
READER = Reader(
    scenes_groups,
    scenes_pictures,
    Filters(max_area=0.9, min_component=0.0, min_sharpness=0.0),
    group_size=16,
)
