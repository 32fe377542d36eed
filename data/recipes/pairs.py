"""Makes `data/samples/pairs`: pairs of one object to try fine-tuning on, in the layout `folder`.

    python data/recipes/pairs.py MODELS PANORAMAS OUT [--object cap] [--num 12]

Each pair is a view of a held-out sample object by itself, a panorama's place with the object, and
the same place without it. MODELS are the unpacked libraries (sweethome3d.sh), PANORAMAS the folder
of panoramas.py. Panoramas are CC0; data/CREDITS.md credits the object.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from samples import OBJECTS

from imprint_jax.rendering import scenes
from imprint_jax.rendering.panoramas import find_panoramas
from imprint_jax.rendering.views import find_models, render_views

SIDE, SAMPLES, QUALITY = 192, 6, 88  # pixels; rays a pixel; of JPEG and WebP


def main() -> None:
    """Reads the command line, writes the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--object", default="cap", choices=sorted(OBJECTS["test"]))
    parser.add_argument("--num", type=int, default=12)
    arguments = parser.parse_args()
    library, model = OBJECTS["test"][arguments.object]
    (path,) = (path for _, path in find_models(arguments.models / library) if path.stem == model)
    scenes.PANORAMA_SHARE = 1.0
    panoramas = find_panoramas(arguments.panoramas)
    views = list(render_views(path, 4 * arguments.num, SIDE, 0, samples=SAMPLES))[::4]
    for part in ("foreground", "foreground_mask", "target", "mask", "background"):
        (arguments.out / part).mkdir(parents=True, exist_ok=True)
    for number, view in enumerate(views):
        place = panoramas[number * len(panoramas) // arguments.num]
        scene = scenes.random_scene(path, 1, SIDE, number, panoramas=[place], samples=SAMPLES)
        (seen,) = scenes.scene_views(scene, SIDE, SAMPLES)
        name = f"{arguments.object}_{number:02d}"
        pictures = {
            "foreground": (np.where(view[..., 3:] > 0, view[..., :3], 0), "jpg"),
            "foreground_mask": (view[..., 3], "png"),
            "target": (seen.target, "jpg"),
            "mask": (seen.mask, "png"),
            "background": (seen.background, "jpg"),
        }
        for part, (picture, suffix) in pictures.items():
            image = Image.fromarray(picture.astype(np.uint8))
            image.save(arguments.out / part / f"{name}.{suffix}", quality=QUALITY)


if __name__ == "__main__":
    main()
