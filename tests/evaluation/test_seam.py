import numpy as np
import pytest
from PIL import Image

from imprint_jax import geometry
from imprint_jax.errors import InputError
from imprint_jax.evaluation.seam import seam_strength

RNG = np.random.default_rng(0)
SMALL = Image.fromarray(RNG.integers(40, 216, (6, 8, 3), dtype=np.uint8))
PHOTO = np.asarray(SMALL.resize((160, 120), Image.Resampling.BICUBIC))
HOLE = geometry.box_mask((50, 40, 110, 80), 120, 160)


def pasted(shift: int, feather: int) -> np.ndarray:
    """The photo with its own pixels, too bright by `shift`, pasted into the hole."""
    crop = geometry.context_crop(HOLE, 1.75)
    generated = np.clip(geometry.extract(PHOTO, crop, crop.side).astype(int) + shift, 0, 255)
    return geometry.paste_back(PHOTO, generated.astype(np.uint8), HOLE, crop, feather)


def test_no_seam_is_about_one():
    assert seam_strength(PHOTO, HOLE) < 1.3
    assert seam_strength(np.full((40, 40, 3), 99, np.uint8), HOLE[40:80, 40:80]) == 1


@pytest.mark.parametrize("shift", [6, 12, 24])
def test_feather_takes_most_of_a_seam_away(shift):
    hard, narrow, wide = (seam_strength(pasted(shift, feather), HOLE) for feather in (0, 3, 10))
    print(f"shift {shift}: hard {hard:.2f}, 3 px {narrow:.2f}, 10 px {wide:.2f}")
    assert hard > narrow > wide
    assert hard - 1 > 2.5 * (wide - 1)


def test_a_stronger_seam_is_larger():
    strengths = [seam_strength(pasted(shift, 0), HOLE) for shift in (0, 5, 10, 20)]
    assert strengths == sorted(strengths) and strengths[-1] > 2 * strengths[0]


@pytest.mark.parametrize("mask", [np.zeros((9, 9), bool), np.ones((9, 9), bool)])
def test_a_mask_without_border_is_refused(mask):
    with pytest.raises(InputError, match="needs a hole"):
        seam_strength(np.zeros((9, 9, 3), np.uint8), mask)
