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
. "$here/shared.sh"
check_until "$until"
"$here/sweethome3d.sh" "$work" # WORK/models, WORK/objects
cd "$work"

choose_models
make_photos

render="imprint data render --size 160 --seed 9"
$render chosen/train scenes/train --photos photos/train --scenes 2 --views 5
$render chosen/validation scenes/validation --photos photos/validation --scenes 2 --views 4
$render chosen/test scenes/test --photos photos/test --scenes 2 --views 5

prepare objaverse objects objects splits.json
prepare_scenes
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
