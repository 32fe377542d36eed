"""Makes data/samples and data/CREDITS.md: views of 22 objects and 14 photographs.

    python data/recipes/samples.py MODELS DATA --photos FOLDER [FOLDER ...]

MODELS is the folder `models` that sweethome3d.sh makes, DATA the folder to write `samples` and
CREDITS.md to. The photographs are those of the Debian packages lomiri-wallpapers-16.04 and
lomiri-wallpapers-20.04 (folder usr/share/backgrounds in both) and of scikit-image 0.26 (folder
skimage/data).
"""

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from imprint_jax.render import render_folder

NUM_VIEWS = 36
SIZE = 192  # pixels, the side of a view
PHOTO_SIDE = 768  # pixels, the longer side of a photo; smaller ones stay as they are
JPEG_QUALITY = 85

LICENCES = {  # of each library, from its LICENSE.TXT
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "Scopia": "CC BY 3.0",
}

# Library and model of an object, by split. Those under "train" and "validation" are in the train
# split of the shipped model's data, those under "test" in its test split.
OBJECTS = {
    "train": {
        "basketball": ("BlendSwap-CC-0", "basketball"),
        "biplane": ("BlendSwap-CC-0", "cartoon_biplane"),
        "cactus": ("BlendSwap-CC-0", "cactus"),
        "cupcake": ("BlendSwap-CC-0", "cupcake"),
        "deck_chair": ("BlendSwap-CC-0", "deckChair"),
        "extinguisher": ("BlendSwap-CC-0", "fireExtinguisher"),
        "fan": ("BlendSwap-CC-0", "tableFan"),
        "forklift": ("BlendSwap-CC-0", "forkLift"),
        "gift": ("BlendSwap-CC-BY", "gift"),
        "hamburger": ("BlendSwap-CC-BY", "hamburger"),
        "potted_plant": ("BlendSwap-CC-0", "littlePlant"),
        "snowman": ("BlendSwap-CC-BY", "bonecoDeNeve"),
        "teddy_bear": ("BlendSwap-CC-0", "teddyBear"),
        "wooden_toy": ("BlendSwap-CC-0", "woodToy"),
    },
    "validation": {
        "barrel": ("BlendSwap-CC-0", "barrel"),
        "kettle": ("BlendSwap-CC-BY", "boiler"),
    },
    "test": {
        "bulldog": ("BlendSwap-CC-BY", "bulldog"),
        "cap": ("Scopia", "casquette"),
        "cardboard_box": ("Scopia", "open-cardboard-box"),
        "chicken": ("BlendSwap-CC-0", "chicken"),
        "doll": ("Scopia", "doll"),
        "puzzle_cube": ("BlendSwap-CC-BY", "rubix2"),
    },
}
PHOTOS = {
    "train": {
        "clock": (
            "Greentock",
            "Peter Nerlich",
            "CC BY-SA 4.0",
            "lomiri-wallpapers",
            "greentock_by_Peter_Nerlich.jpg",
        ),
        "creek": (
            "Life",
            "Aitzol Berasategi",
            "CC BY 4.0",
            "lomiri-wallpapers",
            "life_by_Aitzol_Berasategi.jpg",
        ),
        "dandelions": (
            "Seeding",
            "Clemens Engelhardt",
            "CC0 1.0",
            "lomiri-wallpapers",
            "seeding_by_Clements_Engelhardt.jpg",
        ),
        "lamp": (
            "Free",
            "Peter Nerlich",
            "CC BY-SA 4.0",
            "lomiri-wallpapers",
            "free_by_Peter_Nerlich.jpg",
        ),
        "leaves": (
            "Dragonfly",
            "Bolly",
            "CC BY-SA 4.0",
            "lomiri-wallpapers",
            "Dragonfly_by_Bolly.jpg",
        ),
        "meadow": (
            "Aitzgorri",
            "Aitzol Berasategi",
            "CC BY 4.0",
            "lomiri-wallpapers",
            "aitzgorri_by_Aitzol_Berasategi.jpg",
        ),
        "room": ("Wine", "Jakub Mede", "CC BY 4.0", "lomiri-wallpapers", "Wine_by_Jakkub_Mede.jpg"),
        "sky": (
            "Bridge",
            "Sander Klootwijk",
            "CC BY-SA 4.0",
            "lomiri-wallpapers",
            "Bridge_by_Sander_Klootwijk.jpg",
        ),
        "sunset": (
            "Sunset",
            "Aitzol Berasategi",
            "CC BY 4.0",
            "lomiri-wallpapers",
            "sunset_by_Aitzol_Berasategi.jpg",
        ),
        "trunk": (
            "Kleiber",
            "Lukas Baubkus",
            "CC BY-SA 3.0",
            "lomiri-wallpapers",
            "Kleiber_by_Lukas_Baubkus.jpg",
        ),
    },
    "validation": {
        "fig": (
            "Picture 0B",
            'Trevor "Freespace"',
            "CC BY 4.0",
            "lomiri-wallpapers",
            "Picture_0B_by_freespace.jpg",
        ),
    },
    "test": {
        "cat": ("Chelsea", "Stefan van der Walt", "CC0 1.0", "scikit-image", "chelsea.png"),
        "coffee": ("Coffee", "Rachel Michetti", "CC0 1.0", "scikit-image", "coffee.png"),
        "mountains": (
            "Picos de Europa",
            "Aitzol Berasategi",
            "CC BY 4.0",
            "lomiri-wallpapers",
            "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        ),
    },
}
HEAD = """\
# Credits

Made by `data/recipes/samples.py`. Changes: the objects are renderings of the models; the
photographs are reduced to 768 pixels.

## Objects

Models of the Debian package `sweethome3d-furniture` 1.8-1.

| here | title | creator | licence | library, model |
|---|---|---|---|---|
"""
PHOTOS_HEAD = """\

## Photographs

| here | title | creator | licence | package, file |
|---|---|---|---|---|
"""


def make_objects(models: Path, dst: Path) -> None:
    """Renders the chosen models to DST/<name>/NNN.webp, with views.json beside them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (library, model) in _all(OBJECTS).items():
            # With its MTL and textures; a model named like its folder gets the folder's id.
            source = models / library / library.lower() / model
            copy = Path(shutil.copytree(source, Path(folder, name)))
            (copy / f"{model}.obj").rename(copy / f"{name}.obj")
        for result in render_folder(folder, dst, num_views=NUM_VIEWS, size=SIZE):
            print(f"{result.object_id}: {result.status} {result.detail}")


def make_photos(folders: list[Path], dst: Path) -> None:
    """Writes the chosen photographs to DST/<name>.jpg."""
    dst.mkdir(parents=True, exist_ok=True)
    files = {path.name: path for folder in folders for path in folder.iterdir()}
    for name, (*_, file) in _all(PHOTOS).items():
        photo = Image.open(files[file]).convert("RGB")
        photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
        photo.save(dst / f"{name}.jpg", quality=JPEG_QUALITY)


def credits(models: Path) -> str:
    """The text of CREDITS.md; models' titles and creators from the libraries' catalogs."""
    lines = []
    for name, (library, model) in sorted(_all(OBJECTS).items()):
        catalog = (models / library / "PluginFurnitureCatalog.properties").read_text("latin-1")
        path = re.escape(f"/{library.lower()}/{model}/{model}.obj")
        number = re.search(rf"^model#(\d+)={path}\s*$", catalog, re.M)[1]
        title, creator = (
            re.search(rf"^{key}#{number}=(.*?)\s*$", catalog, re.M)[1]
            for key in ("name", "creator")
        )
        licence = LICENCES[library]
        lines.append(f"| `{name}` | {title} | {creator} | {licence} | {library}, `{model}` |\n")
    photos = [
        f"| `{name}` | {title} | {creator} | {licence} | {package}, `{file}` |\n"
        for name, (title, creator, licence, package, file) in sorted(_all(PHOTOS).items())
    ]
    return "".join([HEAD, *lines, PHOTOS_HEAD, *photos])


def _all(table: dict[str, dict]) -> dict:
    return {name: entry for chosen in table.values() for name, entry in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, help="the unpacked OBJ models")
    parser.add_argument("data", type=Path, help="the folder to write to")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    samples = arguments.data / "samples"
    make_photos(arguments.photos, samples / "photos")
    make_objects(arguments.models, samples / "objects")
    splits = {
        reader: {split: sorted(chosen) for split, chosen in table.items()}
        for reader, table in (("objaverse", OBJECTS), ("photos", PHOTOS))
    }
    (samples / "splits.json").write_text(json.dumps(splits, indent=1) + "\n")
    (arguments.data / "CREDITS.md").write_text(credits(arguments.models))


if __name__ == "__main__":
    main()
