"""Splits rendered objects into train, validation and test, near-duplicates always together.

    python data/recipes/splits.py MODELS OBJECTS OUT

Two objects count as near-duplicates if they are of one library and their files' names differ in
digits and separators only ("chair", "chair-2"), or if their OBJ files have the same number of
vertices (one model in other colours). Large families go to train, so that neither of the small
splits is filled by one. The same objects give the same file.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path

MAX_FAMILY = 3  # objects: larger families of near-duplicates are train
SIZES = {"test": 48, "validation": 24}  # objects; train is the rest
SEED = 0


def families(models: Path, objects: Path) -> list[list[str]]:
    """Groups of near-duplicates.

    Args:
        models: The folder that was rendered, of OBJ files.
        objects: The folder of views that `imprint data render` made of it.

    Returns:
        Sorted lists of object ids, in order of their first.
    """
    ids = sorted(path.parent.name for path in objects.glob("*/views.json"))
    family = {object_id: {object_id} for object_id in ids}
    first = {}
    for object_id in ids:
        source = Path(json.loads((objects / object_id / "views.json").read_text())["source"])
        name = re.sub(r"[\d_\-]+", " ", source.stem.lower()).strip()
        with open(models / source, "rb") as lines:
            vertices = sum(line.startswith(b"v ") for line in lines)
        for key in ((source.parts[0], name), vertices):
            other = first.setdefault(key, object_id)
            if family[other] is not family[object_id]:
                family[other] |= family[object_id]
                for member in family[object_id]:
                    family[member] = family[other]
    # Every member points to one and the same set, which its first member stands for.
    groups = defaultdict(list)
    for object_id in ids:
        groups[min(family[object_id])].append(object_id)
    return list(groups.values())


def split(groups: list[list[str]]) -> dict[str, list[str]]:
    """Fills test, then validation, then train with whole families, in random order.

    Args:
        groups: As `families` returns them.

    Returns:
        {"train", "validation", "test"}: sorted object ids.
    """
    groups = sorted(groups)
    random.Random(SEED).shuffle(groups)
    splits = {"train": [], "validation": [], "test": []}
    for group in groups:
        roomy = (name for name, size in SIZES.items() if len(splits[name]) < size)
        name = next(roomy, "train") if len(group) <= MAX_FAMILY else "train"
        splits[name] += group
    return {name: sorted(ids) for name, ids in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, help="the unpacked OBJ models")
    parser.add_argument("objects", type=Path, help="their views, from `imprint data render`")
    parser.add_argument("out", type=Path, help="the .json to write")
    arguments = parser.parse_args()
    splits = split(families(arguments.models, arguments.objects))
    arguments.out.write_text(json.dumps(splits, separators=(",", ":")) + "\n")
    print(", ".join(f"{name} {len(ids)}" for name, ids in splits.items()))


if __name__ == "__main__":
    main()
