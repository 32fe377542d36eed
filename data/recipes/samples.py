"""Makes data/samples: views of twenty objects and fourteen photographs.

    python data/recipes/samples.py MODELS DST --photos FOLDER [FOLDER ...]

MODELS is the folder `models` that sweethome3d.sh makes. The photographs are those of the Debian
packages lomiri-wallpapers-16.04 and lomiri-wallpapers-20.04 (folder usr/share/backgrounds in
both) and of scikit-image 0.26 (folder skimage/data); data/CREDITS.md has authors and licences.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from imprint_jax.render import render_folder

NUM_VIEWS = 36
SIZE = 192  # pixels, the side of a view
PHOTO_SIDE = 768  # pixels, the longer side of a photo; smaller ones stay as they are
JPEG_QUALITY = 85

# Where a name comes from, by split. The objects and photos under "train" and "validation" are in
# the train split of the shipped model's data, those under "test" it has never seen.
OBJECTS = {
    "train": {
        "basketball": "BlendSwap-CC-0/blendswap-cc-0/basketball/basketball.obj",
        "biplane": "BlendSwap-CC-0/blendswap-cc-0/cartoon_biplane/cartoon_biplane.obj",
        "birthday_cake": "Scopia/scopia/birthday_cake/birthday_cake.obj",
        "bonsai": "Scopia/scopia/bonsai-tree/bonsai-tree.obj",
        "cupcake": "BlendSwap-CC-0/blendswap-cc-0/cupcake/cupcake.obj",
        "fire_hydrant": "KatorLegaz/katorlegaz/fire-hydrant/fire-hydrant.obj",
        "hamburger": "BlendSwap-CC-BY/blendswap-cc-by/hamburger/hamburger.obj",
        "man": "Reallusion/reallusion/male01/male01.obj",
        "rattan_armchair": "Scopia/scopia/rattanArmchair/rattanArmchair.obj",
        "siamese_cat": "BlendSwap-CC-BY/blendswap-cc-by/siameseCat/siameseCat.obj",
        "sneakers": "Scopia/scopia/sneakers/sneakers.obj",
        "teapot": "Scopia/scopia/teapot/teapot.obj",
        "tricycle": "Scopia/scopia/tricycle/tricycle.obj",
    },
    "validation": {
        "cactus": "BlendSwap-CC-0/blendswap-cc-0/cactus/cactus.obj",
        "toy_train": "BlendSwap-CC-BY/blendswap-cc-by/toyTrain/toyTrain.obj",
    },
    "test": {
        "bulldog": "BlendSwap-CC-BY/blendswap-cc-by/bulldog/bulldog.obj",
        "cap": "Scopia/scopia/casquette/casquette.obj",
        "chicken": "BlendSwap-CC-0/blendswap-cc-0/chicken/chicken.obj",
        "doll": "Scopia/scopia/doll/doll.obj",
        "ficus": "Scopia/scopia/ficus/ficus.obj",
    },
}
PHOTOS = {
    "train": {
        "bird_ornament": "free_by_Peter_Nerlich.jpg",
        "bridge": "Bridge_by_Sander_Klootwijk.jpg",
        "dandelions": "seeding_by_Clements_Engelhardt.jpg",
        "dogs": "friends_by_Aitzol_Berasategi.jpg",
        "drum": "Wine_by_Jakkub_Mede.jpg",
        "meadow": "aitzgorri_by_Aitzol_Berasategi.jpg",
        "nuthatch": "Kleiber_by_Lukas_Baubkus.jpg",
        "paint_brushes": "Picture_1A_by_freespace.jpg",
        "stream": "life_by_Aitzol_Berasategi.jpg",
        "sunset": "sunset_by_Aitzol_Berasategi.jpg",
    },
    "test": {
        "cat": "chelsea.png",
        "coffee": "coffee.png",
        "fig_bowl": "Picture_0B_by_freespace.jpg",
        "mountains": "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    },
}


def make_objects(models: Path, dst: Path) -> None:
    """Renders the chosen models to DST/<name>/NNN.webp, with views.json beside them."""
    with tempfile.TemporaryDirectory() as folder:
        for chosen in OBJECTS.values():
            for name, source in chosen.items():
                # With its MTL and textures; a model named like its folder gets the folder's id.
                copy = Path(shutil.copytree((models / source).parent, Path(folder, name)))
                (copy / Path(source).name).rename(copy / f"{name}.obj")
        for result in render_folder(folder, dst, num_views=NUM_VIEWS, size=SIZE):
            print(f"{result.object_id}: {result.status} {result.detail}")
    (dst / "rejects.jsonl").unlink()  # none of them is


def make_photos(folders: list[Path], dst: Path) -> None:
    """Writes the chosen photographs to DST/<name>.jpg."""
    dst.mkdir(parents=True, exist_ok=True)
    files = {path.name: path for folder in folders for path in folder.iterdir()}
    for chosen in PHOTOS.values():
        for name, source in chosen.items():
            photo = Image.open(files[source]).convert("RGB")
            photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
            photo.save(dst / f"{name}.jpg", quality=JPEG_QUALITY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, help="the unpacked OBJ models")
    parser.add_argument("dst", type=Path, help="the folder to make")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    make_photos(arguments.photos, arguments.dst / "photos")
    make_objects(arguments.models, arguments.dst / "objects")
    splits = {
        reader: {split: sorted(chosen) for split, chosen in table.items()}
        for reader, table in (("objaverse", OBJECTS), ("photos", PHOTOS))
    }
    (arguments.dst / "splits.json").write_text(json.dumps(splits, indent=2) + "\n")


if __name__ == "__main__":
    main()
