#!/usr/bin/env bash
# The shipped model `mini`, from nothing: data, both stages, the released folder.
#
#   data/recipes/mini.sh WORK [data]
#
# Makes WORK/{models,objects,scenes,photos,data,runs,mini}: hours on two cores; with `data`, all but
# the trainings and what comes of them. Needs what sweethome3d.sh needs, and scikit-image. A stopped
# run is started again with the same command.
set -euo pipefail

here=$(realpath "$(dirname "$0")")
work=$(realpath -m "${1:?usage: mini.sh WORK [data]}")
until=${2:-}
if [ -n "$until" ] && [ "$until" != data ]; then
    echo "mini.sh: '$until' is no part of the recipe; say data, or nothing for all of it" >&2
    exit 2
fi
"$here/sweethome3d.sh" "$work" # WORK/models, WORK/objects
cd "$work"

if [ ! -f splits.json ]; then
    python "$here/select_models.py" models chosen --splits splits.json.part
    cmp splits.json.part "$here/mini_splits.json" # other models, other objects held out
    mv splits.json.part splits.json
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
    python "$here/photos.py" package/usr/share/backgrounds photos.part
    mv photos.part photos
fi

render="imprint data render --size 160 --seed 9"
$render chosen/train scenes/train --photos photos/train --scenes 2 --views 5
$render chosen/validation scenes/validation --photos photos/validation --scenes 2 --views 4
$render chosen/test scenes/test --photos photos/test --scenes 2 --views 5

mkdir -p data/scenes
for split in train validation test; do ln -sfn "$work/scenes/$split"/*/ data/scenes/; done
prepare() { # READER SRC NAME SPLITS; what a stopped run has begun, it continues
    [ -f "data/records/$3/SHA256SUMS" ] || imprint data prepare "$1" "$2" "data/records/$3" --splits "$4"
}
prepare objaverse objects objects splits.json
prepare scenes data/scenes scenes splits.json
prepare photos photos/all photos photos/splits.json
if [ "$until" = data ]; then exit; fi

sources="(
    {'kind': 'scenes', 'records': 'data/records/scenes', 'weight': 2.0},
    {'kind': 'pasted', 'records': 'data/records/objects', 'backgrounds': 'data/records/photos',
     'weight': 1.0})"
imprint train --config mini_stage1 --workdir runs/mini_stage1 --resume --config.total_steps=6000
imprint train --config mini_stage2 --workdir runs/mini_stage2 --resume --config.total_steps=5000 \
    --config.data.sources="$sources"
# The same for as long again, from where that ended, other draws; both rates fall at the end.
imprint train --config mini_stage2 --workdir runs/mini_stage2b --resume --config.total_steps=5000 \
    --config.data.sources="$sources" --config.seed=1 --config.init_from.dinov2=runs/mini_stage2 \
    --config.init_from.adapter=runs/mini_stage2 --config.init_from.unet=runs/mini_stage2 \
    --config.groups="(
        ('dinov2', 'dinov2/', None),
        ('adapter', 'adapter/', (2e-4, 2e-4, 5e-5)),
        ('unet', 'unet/', (4e-4, 4e-4, 1e-4)),
        ('vae', 'vae/', None))"
[ -d mini ] || imprint export runs/mini_stage2b mini
