"""The panoramas of the npm package @pmndrs/assets as Radiance pictures, for `imprint data render`.

    npm pack @pmndrs/assets@1.7.0
    pip install OpenEXR==3.5.3
    python data/recipes/panoramas.py pmndrs-assets-1.7.0.tgz OUT

18 of Poly Haven's, 512x256 pixels, CC0. OUT/train has most of them, OUT/validation and OUT/test one
place in the open and one in a building each.
"""

import argparse
import base64
import re
import tarfile
import tempfile
from pathlib import Path

import cv2
import numpy as np
import OpenEXR

HELD_OUT = {"park": "test", "workshop": "test", "venice": "validation", "lobby": "validation"}


def read(script: bytes) -> np.ndarray:
    """A panorama out of a script of the package: (h w 3) float32."""
    data = base64.b64decode(re.search(rb"base64,([^'\"]+)", script)[1])
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(data)
        file.flush()
        return OpenEXR.File(file.name).channels()["RGB"].pixels.astype(np.float32)


def main() -> None:
    """Reads the command line, writes the panoramas."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", type=Path, help="pmndrs-assets-1.7.0.tgz")
    parser.add_argument("out", type=Path, help="folder to make")
    arguments = parser.parse_args()
    with tarfile.open(arguments.package) as archive:
        for member in archive.getmembers():
            if not member.name.endswith(".exr.js"):
                continue
            name = Path(member.name).name.removesuffix(".exr.js")
            # Where it was compressed, small values next to the sun came out negative.
            panorama = np.maximum(read(archive.extractfile(member).read()), 0)
            folder = arguments.out / HELD_OUT.get(name, "train")
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{name}.hdr"), np.ascontiguousarray(panorama[..., ::-1]))


if __name__ == "__main__":
    main()
