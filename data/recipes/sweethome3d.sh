#!/usr/bin/env bash
# The 3D models that the shipped model was trained with, rendered: about 25 minutes on two cores.
#
#   data/recipes/sweethome3d.sh WORK [models]
#
# Makes WORK/models (the unpacked libraries) and WORK/objects (30 views of 128 pixels an object); with
# `models`, the former only.
# Needs Debian or Ubuntu (apt-get, dpkg), unzip, and `imprint` with the extra [render].
# A stopped run is started again with the same command.
set -euo pipefail

work=$(realpath -m "${1:?usage: sweethome3d.sh WORK [models]}")
mkdir -p "$work/package"
cd "$work/package"

if [ ! -d "$work/models" ]; then
    apt-get download sweethome3d-furniture # CC0, CC BY 3.0 and CC BY 3.0 US
    echo "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668" \
        sweethome3d-furniture_1.8-1_all.deb | sha256sum --check
    dpkg -x sweethome3d-furniture_1.8-1_all.deb .
    mkdir -p "$work/models.part"
    for library in usr/share/sweethome3d/furniture/*.sh3f; do
        name=$(basename "$library" .sh3f)
        unzip -q -o "$library" -d "$work/models.part/$name"
    done
    mv "$work/models.part" "$work/models"
fi

if [ "${2:-}" = models ]; then exit; fi
imprint data render "$work/models" "$work/objects" --views 30 --size 128
