"""A configuration of the real model small enough to compile in seconds, and data for it."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from imprint_jax import config
from imprint_jax.config import Config
from imprint_jax.data.preparation.prepare import prepare


def tiny_config(stage: int) -> Config:
    """The configuration of `tiny_recipe`."""
    return Config.of(tiny_recipe(stage))


def tiny_recipe(stage: int) -> ConfigDict:
    """Stage 1 or 2 of the mini recipes, shrunk; unlocked."""
    c = config.load(f"mini_stage{stage}").unlock()
    c.image_size, c.object_size = 32, 28
    c.batch_size, c.total_steps, c.log_every, c.save_every = 8, 4, 1, 2
    c.model.vae.update(patch=4, luma=6, chroma=1)
    c.model.dinov2.update(image_size=28, width=16, depth=2, num_heads=2, mlp_width=32)
    c.model.adapter.update(width_in=16, width=16, depth=1, num_heads=2, mlp_width=32)
    c.model.unet.update(
        in_channels=8,
        out_channels=8,
        block_widths=(16, 32),
        attention_levels=(False, True),
        context_width=16,
        num_heads=2,
        norm_groups=8,
    )
    c.validation.every = c.preview.every = 0
    c.init_from.update(dinov2="random", adapter="random", unet="random", vae="")
    return c


def random_batch(c: Config, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise in the right shapes; in stage 2 with a square hole."""
    rng = np.random.default_rng(seed)
    b, h, s = c.batch_size, c.image_size, c.object_size
    mask = np.ones((b, h, h, 1), np.uint8)
    if c.stage == 2:
        mask[:] = 0
        mask[:, 8:20, 12:28] = 1
    return {
        "object": rng.integers(0, 256, (b, s, s, 3), dtype=np.uint8),
        "target": rng.integers(0, 256, (b, h, h, 3), dtype=np.uint8),
        "mask": mask,
        "index": np.arange(b, dtype=np.int32),
    }


def write_objects(folder: Path, *, objects: int = 3, views: int = 10, size: int = 40) -> None:
    """Folders of RGBA views: a coloured disc on its way across the frame, one colour an object."""
    rows, columns = np.mgrid[:size, :size]
    for number in range(objects):
        (folder / f"object{number}").mkdir(parents=True)
        colour = np.random.default_rng(number).integers(60, 256, 3)
        for view in range(views):
            disc = (rows - 20) ** 2 + (columns - 15 - view) ** 2 < 12**2
            rgba = np.dstack([disc[..., None] * colour, disc * 255]).astype(np.uint8)
            Image.fromarray(rgba).save(folder / f"object{number}" / f"{view:03d}.png")


def write_photos(folder: Path, *, photos: int = 2, size: int = 64) -> None:
    """Smooth random photographs."""
    folder.mkdir(parents=True)
    for number in range(photos):
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(
            folder / f"photo{number}.png"
        )


def write_records(folder: Path) -> tuple[str, str]:
    """Prepared records of both; returns the folders of objects and photos."""
    write_objects(folder / "objects")
    write_photos(folder / "photos")
    prepare("objaverse", folder / "objects", folder / "object_records")
    prepare("photos", folder / "photos", folder / "photo_records")
    return str(folder / "object_records"), str(folder / "photo_records")


SCALE_RECIPE = """
import sys
sys.path.insert(0, {root!r})
from tests.tiny import tiny_recipe


def get_config():
    c = tiny_recipe({stage})
    c.data.sources = ({source!r},)
    if {stage} == 2:
        c.init_from.update(dinov2="stage 1", adapter="stage 1", unet="stage 1")
    return c
"""


def write_scale(folder: Path) -> Path:
    """Recipes stage1.py and stage2.py, tiny, over records with a test split; returns their folder.

    Two objects and a photo to train on, two and one to test.
    """
    write_objects(folder / "objects", objects=4)
    write_photos(folder / "photos")
    splits = folder / "splits.json"
    splits.write_text(
        '{"objaverse": {"train": ["object0", "object1"], "test": ["object2", "object3"]},'
        ' "photos": {"train": ["photo0"], "test": ["photo1"]}}'
    )
    prepare("objaverse", folder / "objects", folder / "object_records", splits)
    prepare("photos", folder / "photos", folder / "photo_records", splits)
    views = dict(kind="views", records=str(folder / "object_records"), weight=1.0)
    pasted = views | dict(kind="pasted", backgrounds=str(folder / "photo_records"))
    root = str(Path(__file__).parent.parent)
    (folder / "scale").mkdir()
    for stage, source in ((1, views), (2, pasted)):
        recipe = SCALE_RECIPE.format(root=root, stage=stage, source=source)
        (folder / "scale" / f"stage{stage}.py").write_text(recipe)
    return folder / "scale"
