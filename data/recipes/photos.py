"""Photographs for the scenes and pastes that the shipped model learns from, by split.

    python data/recipes/photos.py WALLPAPERS OUT [--grocery FOLDER]

WALLPAPERS is the folder usr/share/backgrounds of Debian's package lomiri-wallpapers-16.04, of which
the photographs under CC0 and CC BY are taken (debian/copyright); test has two of scikit-image too,
CC0, out of the installed package. Longer sides become 1280 pixels. FOLDER is GroceryStoreDataset's,
whose natural photographs are taken in its own splits (train, val, test).

OUT/all holds the photographs, OUT/splits.json their names by split, and OUT/{train,validation,test}
link to them.
"""

import argparse
import json
from pathlib import Path

import skimage
from PIL import Image

SIDE = 1280  # pixels, the longer side at most
QUALITY = 92  # of JPEG

WALLPAPERS = {
    "train": (
        "Picture_1A_by_freespace",
        "Wine_by_Jakkub_Mede",
        "aitzgorri_by_Aitzol_Berasategi",
        "friends_by_Aitzol_Berasategi",
        "life_by_Aitzol_Berasategi",
        "seeding_by_Clements_Engelhardt",
        "sunset_by_Aitzol_Berasategi",
        "umang_by_Abhishek_Mudgal",
    ),
    "validation": ("Picture_0B_by_freespace",),
    "test": ("picosdeeuropa_by_Aitzol_Berasategi",),
}
OF_SKIMAGE = {"test": ("chelsea.png", "coffee.png")}
OF_GROCERY = {"train": "train", "validation": "val", "test": "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wallpapers", type=Path, help="folder of the package's photographs")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--grocery", type=Path, help="folder of GroceryStoreDataset")
    arguments = parser.parse_args()
    data = Path(skimage.__file__).parent / "data"
    (arguments.out / "all").mkdir(parents=True)
    splits = {}
    for split, names in WALLPAPERS.items():
        paths = [arguments.wallpapers / f"{name}.jpg" for name in names]
        paths += [data / name for name in OF_SKIMAGE.get(split, ())]
        files = {path.stem: path for path in paths}
        if arguments.grocery:
            folder = arguments.grocery / OF_GROCERY[split]
            for path in sorted(folder.rglob("*.jpg")):  # train/Fruit/Apple/Pink-Lady/...
                # The same names are in several splits.
                files["-".join((split, *path.relative_to(folder).with_suffix("").parts))] = path
        splits[split] = list(files)
        (arguments.out / split).mkdir()
        for stem, path in files.items():
            photo = Image.open(path).convert("RGB")
            photo.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            name = f"{stem}.jpg"
            photo.save(arguments.out / "all" / name, quality=QUALITY)
            (arguments.out / split / name).symlink_to(Path("..") / "all" / name)
    (arguments.out / "splits.json").write_text(json.dumps(splits) + "\n")


if __name__ == "__main__":
    main()
