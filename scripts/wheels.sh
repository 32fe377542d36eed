#!/usr/bin/env bash
# What a GPU machine without network lacks that has jax and torch: fetched as wheels, 20 MB or so.
#
#   scripts/wheels.sh DIR [--python 3.12]
#
# There: python -m pip install --no-index --no-deps DIR/*.whl, then PYTHONPATH=. for this checkout.
# It may have more than it needs, but for jax, torch and what they bring along (NumPy, CUDA) it
# should have SciPy, OpenCV, Pillow, rich, safetensors, transformers, protobuf, msgpack,
# tensorstore, pyarrow, psutil, regex, requests, tqdm, wrapt, zipp and PyYAML.
set -euo pipefail

project=$(realpath "$(dirname "$0")/..")/pyproject.toml
folder=${1:?usage: wheels.sh DIR [--python 3.12]}
version=3.12
if [ $# -gt 1 ]; then
    [ "$2" = --python ] && version=${3:?--python wants a version, such as 3.12}
fi

# Ours, with the bounds of pyproject.toml; then what they need.
names="array-record flax grain ml-collections optax orbax-checkpoint platformdirs tensorboardX
    tensorflow-datasets diffusers
    absl-py dm-tree docstring-parser etils googleapis-common-protos immutabledict importlib-metadata
    importlib-resources portpicker simple-parsing six tensorflow-metadata termcolor toml
    typer"
requirements=$(python3 - "$project" $names <<'PYTHON'
import pathlib, re, sys, tomllib

project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"]
wanted = project["dependencies"] + project["optional-dependencies"]["test"]
bounds = {re.match(r"[\w-]+", line)[0].lower(): line for line in wanted}
print(*(bounds.get(name.lower(), name) for name in sys.argv[2:]))
PYTHON
)

platforms=()
for glibc in 2_17 2_24 2_27 2_28 2_34; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
download() {
    python3 -m pip download --quiet --only-binary=:all: --python-version "$version" \
        --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$folder" "$@"
}
download --no-deps $requirements
download pydantic # with what it needs: typer has come to need it
# It comes as source only.
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" promise
du -sh "$folder"
