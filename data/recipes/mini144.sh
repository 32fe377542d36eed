#!/usr/bin/env bash
# The shipped model `mini` at 144 px, from what mini.sh made: data, both stages, the released folder.
#
#   data/recipes/mini144.sh WORK REAL START [data]
#
# REAL holds two sets of real pictures, which have to be fetched by hand:
#   REAL/davis2016_val  DAVIS 2016's 20 validation videos (BSD, fperazzi/davis): JPEGImages/480p and
#                       Annotations/480p, here from github.com/MathLee/EOR-VOS at 1bde4d5, 640x360
#   REAL/grocery_store  github.com/marcusklasson/GroceryStoreDataset at fc80ba9 (MIT): dataset/train,
#                       val and test; here every fourth of the natural photos
# START is the released folder that mini.sh made. Makes WORK/{models,chosen,objects,scenes,panoramas,
# photos,data,runs,mini}. The data take three quarters of an hour on two cores; the trainings, in
# bfloat16 with ten processes that make batches, took seven minutes on an H200 with 16 cores. With
# `data`, all but the trainings and what comes of them. Needs apt-get, npm, unzip, and in Python the
# extra [render], scikit-image and OpenEXR. A stopped run is started again with the same command.
set -euo pipefail

here=$(realpath "$(dirname "$0")")
usage="usage: mini144.sh WORK REAL START [data]"
work=$(realpath -m "${1:?$usage}")
real=$(realpath "${2:?$usage}")
start=$(realpath "${3:?$usage}")
until=${4:-}
. "$here/shared.sh"
check_until "$until"
"$here/sweethome3d.sh" "$work" models # WORK/models
cd "$work"

choose_models
if [ ! -d panoramas ]; then
    (cd package && npm pack @pmndrs/assets@1.7.0)
    rm -rf panoramas.part
    python "$here/panoramas.py" package/pmndrs-assets-1.7.0.tgz panoramas.part
    mv panoramas.part panoramas
fi
make_photos --grocery "$real/grocery_store"

# An object by itself, from 12 sides; in scenes, seven of ten in a panorama's place.
for split in train validation test; do
    scenes=2
    if [ $split = train ]; then scenes=4; fi
    imprint data render chosen/$split objects --views 12 --size 160
    imprint data render chosen/$split scenes/$split --scenes $scenes --views 4 --size 176 --seed 9 \
        --panoramas panoramas/$split --photos photos/$split
done
prepare objaverse objects objects splits.json
prepare_scenes
prepare photos photos/all backgrounds photos/splits.json
prepare davis "$real/davis2016_val" davis "$here/davis_splits.json"
if [ "$until" = data ]; then exit; fi

from="--config.init_from.dinov2=$start --config.init_from.adapter=$start --config.init_from.unet=$start"
gpu="--config.dtype=bfloat16 --config.data.num_workers=10"
imprint train --config mini144_stage1 --workdir runs/mini144_stage1 --resume $gpu $from
imprint train --config mini144_stage2 --workdir runs/mini144_stage2 --resume $gpu
[ -d mini ] || imprint export runs/mini144_stage2 mini
