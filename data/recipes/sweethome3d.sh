#!/usr/bin/env bash
# The 3D models that the shipped model was trained with, rendered: about 25 minutes on two cores.
#
#   data/recipes/sweethome3d.sh WORK
#
# Makes WORK/models (the unpacked libraries) and WORK/objects (30 views of 128 pixels an object).
# Needs Debian or Ubuntu (apt-get, dpkg), unzip, and `imprint` with the extra [render].
# A stopped run is started again with the same command.
set -euo pipefail

work=$(realpath -m "${1:?usage: sweethome3d.sh WORK}")
mkdir -p "$work/package"
cd "$work/package"

if [ ! -d "$work/models" ]; then
    apt-get download sweethome3d-furniture # 1.8-1 was used; CC0, CC BY 3.0 and CC BY 3.0 US
    dpkg -x sweethome3d-furniture_*.deb .
    mkdir -p "$work/models.part"
    for library in usr/share/sweethome3d/furniture/*.sh3f; do
        name=$(basename "$library" .sh3f)
        unzip -q -o "$library" -d "$work/models.part/$name"
    done
    mv "$work/models.part" "$work/models"
fi

imprint data render "$work/models" "$work/objects" --views 30 --size 128
