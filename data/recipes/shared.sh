# What the recipes of mini share; sourced by them, in WORK, with `here` the folder of the recipes.

check_until() { # UNTIL: "data", or nothing for the whole recipe
    if [ -n "$1" ] && [ "$1" != data ]; then
        echo "$(basename "$0"): '$1' is no part of the recipe; say data, or nothing for all of it" >&2
        exit 2
    fi
}

choose_models() { # chosen and splits.json from models
    [ ! -f splits.json ] || return 0
    python "$here/select_models.py" models chosen --splits splits.json.part
    cmp splits.json.part "$here/mini_splits.json" # other models, other objects held out
    mv splits.json.part splits.json
}

make_photos() { # [OPTIONS of photos.py]: photos, from a package of wallpapers
    [ ! -d photos ] || return 0
    (
        cd package
        apt-get download lomiri-wallpapers-16.04
        echo "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab" \
            lomiri-wallpapers-16.04_20.04.0-2_all.deb | sha256sum --check
        dpkg -x lomiri-wallpapers-16.04_20.04.0-2_all.deb .
    )
    rm -rf photos.part
    python "$here/photos.py" package/usr/share/backgrounds photos.part "$@"
    mv photos.part photos
}

prepare() { # READER SRC NAME SPLITS; what a stopped run has begun, it continues
    [ -f "data/records/$3/SHA256SUMS" ] || imprint data prepare "$1" "$2" "data/records/$3" --splits "$4"
}

prepare_scenes() { # scenes of all splits, as one data set
    mkdir -p data/scenes
    for split in train validation test; do ln -sfn "$PWD/scenes/$split"/*/ data/scenes/; done
    prepare scenes data/scenes scenes splits.json
}
