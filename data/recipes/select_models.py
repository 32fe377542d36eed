"""Chooses and splits the models that the shipped model learns from.

    python data/recipes/select_models.py MODELS OUT [--splits data/recipes/mini_splits.json]

Left out are parts of buildings: doors, windows, stairs, switches and sockets on a wall, pools, and
whole rooms. Models stand in one split together if their names begin with the same word
("armchair2", "armchairWithCushion") or their OBJ files have the same number of vertices (one model
in other colours). Families of more than `MAX_FAMILY` are train. The same models give the same file.

OUT/{train,validation,test} become folders of hard links to the models, to be rendered each on its
own: the other objects of a scene are then of the scene's own split.
"""

import argparse
import json
import os
import random
import re
from collections import defaultdict
from pathlib import Path

from samples import OBJECTS

from imprint_jax.rendering.views import find_models

# Words in the names of what is no object to put into a photo.
LEFT_OUT = frozenset(
    """antenna barnum bell blind blinds ceiling chimney column conditioning curtain dimmer
    door elevator emergency escalator fluorescent frame hanger hedge intercom jacuzzi kalender
    living passage pergola plug pool porch railing rj room screen shower shutter smoke socket spiral
    staircase stairs surveillance swimming switch thermometer towel track units urinal wall
    whiteboard window windows""".split()
)
MAX_FAMILY = 2  # models: larger families of look-alikes are train
SIZES = {"test": 52, "validation": 20}  # models; train is the rest
SEED = 0


def words(name: str) -> list[str]:
    """A file name's words in lower case: "wallLight_2" -> ["wall", "light"]."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[\d_\-. ]+", " ", name)
    return spaced.lower().split()


def usable(path: Path) -> bool:
    """Whether no word of the name says that it is a part of a building."""
    return not LEFT_OUT.intersection(words(path.stem))


def families(models: Path) -> list[list[str]]:
    """Groups of look-alikes among the usable models, by id; sorted, in order of their first."""
    files = {object_id: path for object_id, path in find_models(models) if usable(path)}
    family = {object_id: {object_id} for object_id in files}
    first = {}
    for object_id, path in files.items():
        with open(path, "rb") as lines:
            vertices = sum(line.startswith(b"v ") for line in lines)
        for key in (re.sub(r"\d+", "", words(path.stem)[0]), vertices):
            other = first.setdefault(key, object_id)
            if family[other] is not family[object_id]:
                family[other] |= family[object_id]
                for member in family[object_id]:
                    family[member] = family[other]
    groups = defaultdict(list)
    for object_id in sorted(files):
        groups[min(family[object_id])].append(object_id)
    return list(groups.values())


def split(groups: list[list[str]], held_out: set[str], shown: set[str]) -> dict[str, list[str]]:
    """Fills test, then validation, then train with whole families, in random order.

    Args:
        groups: As `families` returns them.
        held_out: Ids whose families are test: the held-out sample objects.
        shown: Ids whose families are train: the other sample objects.

    Returns:
        {"train", "validation", "test"}: sorted ids.
    """
    groups = sorted(groups)
    random.Random(SEED).shuffle(groups)
    splits = {"train": [], "validation": [], "test": []}
    fixed = {"test": held_out, "train": shown}
    rest = []
    for group in groups:
        name = next((name for name, ids in fixed.items() if ids.intersection(group)), None)
        splits[name].extend(group) if name else rest.append(group)
    for group in rest:
        roomy = (name for name, size in SIZES.items() if len(splits[name]) < size)
        name = next(roomy, "train") if len(group) <= MAX_FAMILY else "train"
        splits[name] += group
    return {name: sorted(ids) for name, ids in splits.items()}


def link(models: Path, ids: list[str], folder: Path) -> None:
    """Hard links to everything in the folders of these models, at the same paths below `folder`."""
    files = dict(find_models(models))
    for directory in sorted({files[object_id].parent for object_id in ids}):
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            copy = folder / path.relative_to(models)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            os.link(path, copy)


def sample_ids(models: Path, *names: str) -> set[str]:
    """Ids of the shipped sample objects of these splits (samples.py)."""
    wanted = {pair for name in names for pair in OBJECTS[name].values()}
    return {
        object_id
        for object_id, path in find_models(models)
        if (path.relative_to(models).parts[0], path.stem) in wanted
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, help="the unpacked OBJ models")
    parser.add_argument("out", type=Path, help="folder to make train/, validation/ and test/ in")
    parser.add_argument("--splits", type=Path, help="also write the ids to this .json")
    arguments = parser.parse_args()
    splits = split(
        families(arguments.models),
        sample_ids(arguments.models, "test"),
        sample_ids(arguments.models, "train", "validation"),
    )
    for name, ids in splits.items():
        link(arguments.models, ids, arguments.out / name)
    if arguments.splits:
        arguments.splits.write_text(json.dumps(splits, separators=(",", ":")) + "\n")
    print(", ".join(f"{name} {len(ids)}" for name, ids in splits.items()))


if __name__ == "__main__":
    main()
