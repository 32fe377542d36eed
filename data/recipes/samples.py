"""Makes data/samples (views of 22 objects, 14 photographs) and data/CREDITS.md.

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
from collections import Counter
from pathlib import Path

from PIL import Image

from imprint_jax.rendering.views import find_models, render_folder

NUM_VIEWS = 36
SIZE = 192  # pixels, the side of a view
PHOTO_SIDE = 768  # pixels, the longer side of a photo; smaller ones stay as they are
JPEG_QUALITY = 85

LICENCES = {  # of each library, from its LICENSE.TXT
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Reallusion": "CC BY 3.0 US",
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
PAIRS = """\

## Pairs

`samples/pairs` shows the cap of the table above, rendered (`data/recipes/pairs.py`) in panoramas of
Poly Haven (polyhaven.com, CC0 1.0) out of the npm package `@pmndrs/assets` 1.7.0: park, workshop,
bridge, city, esplanade, forest, lab, night, studio, sunrise, warehouse and lobby.
"""
TRAINED_HEAD = """\

## What `mini` was trained and tested on

The models named in `data/recipes/mini_splits.json`, of the same package, rendered. Scopia's are by
Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l.; a number counts a creator's
models.

| library | licence | models | creators |
|---|---|---|---|
"""
TRAINED_PHOTOS = """\

And the photographs that `data/recipes/photos.py` names: `cat`, `coffee`, `creek`, `dandelions`,
`fig`, `meadow`, `mountains`, `room` and `sunset` of the table above; of lomiri-wallpapers also
"Picture 1A" by Trevor "Freespace", "Friends" by Aitzol Berasategi and "Umang" by Abhishek Mudgal,
all CC BY 4.0.

## Licences

CC0 1.0: creativecommons.org/publicdomain/zero/1.0. CC BY: creativecommons.org/licenses/by/4.0,
/by/3.0 and /by/3.0/us. CC BY-SA: creativecommons.org/licenses/by-sa/4.0 and /by-sa/3.0.
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


def catalog(models: Path, library: str) -> dict[str, tuple[str, str]]:
    """Title and creator of a library's models, by the path of the model's file in the library."""
    text = (models / library / "PluginFurnitureCatalog.properties").read_text("latin-1")
    field = lambda key: dict(re.findall(rf"^{key}#(\d+)=(.*?)\s*$", text, re.M))
    titles, creators = field("name"), field("creator")
    return {path: (titles[n], creators[n]) for n, path in field("model").items()}


def credits(models: Path) -> str:
    """The text of CREDITS.md; models' titles and creators from the libraries' catalogs."""
    catalogs = {library: catalog(models, library) for library in LICENCES}
    lines = []
    for name, (library, model) in sorted(_all(OBJECTS).items()):
        title, creator = catalogs[library][f"/{library.lower()}/{model}/{model}.obj"]
        licence = LICENCES[library]
        lines.append(f"| `{name}` | {title} | {creator} | {licence} | {library}, `{model}` |\n")
    photos = [
        f"| `{name}` | {title} | {creator} | {licence} | {package}, `{file}` |\n"
        for name, (title, creator, licence, package, file) in sorted(_all(PHOTOS).items())
    ]
    head = "".join([HEAD, *lines, PHOTOS_HEAD, *photos, PAIRS, TRAINED_HEAD])
    return head + _trained_on(models, catalogs) + TRAINED_PHOTOS


def _trained_on(models: Path, catalogs: dict[str, dict]) -> str:
    """A row a library: its chosen models' creators, those of most models first."""
    splits = json.loads((Path(__file__).parent / "mini_splits.json").read_text())
    chosen = set().union(*splits.values())
    by_library = {library: Counter() for library in LICENCES}
    for object_id, path in find_models(models):
        if object_id in chosen:
            library, *inside = path.relative_to(models).parts
            _, creator = catalogs[library]["/" + "/".join(inside)]
            by_library[library][creator] += 1
    rows = []
    for library, creators in by_library.items():
        names = ", ".join(f"{name} {n}" if n > 1 else name for name, n in creators.most_common())
        rows.append(f"| {library} | {LICENCES[library]} | {creators.total()} | {names} |\n")
    return "".join(rows)


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
