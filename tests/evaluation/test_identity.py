"""Crops for identity, cosines, and retrieval with known answers."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.evaluation import identity


@pytest.fixture
def scene():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    mask[10:20, 20:30] = False
    return picture, mask


@pytest.mark.parametrize("crop", ["box", "cut"])
def test_a_result_is_cropped_by_its_hole_alone(scene, crop):
    picture, mask = scene
    expected = identity.result_crop(picture, mask, crop, 32, 32)
    assert expected.shape == (32, 32, 3)
    other = picture.copy()
    outside = ~mask
    if crop == "box":
        outside[10:30, 20:50] = False
    other[outside] = 7
    np.testing.assert_array_equal(identity.result_crop(other, mask, crop, 32, 32), expected)


@pytest.mark.parametrize("crop", ["box", "cut"])
def test_what_surrounds_an_object_in_its_picture_does_not_show(scene, crop):
    picture, mask = scene
    other = picture.copy()
    other[~mask] = 7
    soft = mask.astype(np.uint8) * 255
    crops = [
        identity.reference_crop(x, m, crop, 32, 32) for x in (picture, other) for m in (mask, soft)
    ]
    for one in crops[1:]:
        np.testing.assert_array_equal(crops[0], one)


def test_the_box_around_a_reference_is_grey(scene):
    picture, mask = scene
    crop = identity.reference_crop(picture, mask, "box", 30, 30)
    assert (crop[2:8, 2:8] == identity.GREY).all()


def test_paint_by_examples_region_is_the_box_without_its_last_row_and_column(scene):
    picture, mask = scene
    box = torch.tensor(picture[10:29, 20:49].transpose(2, 0, 1)[None], dtype=torch.float32)
    resized = torch.nn.functional.interpolate(box, (32, 32), mode="bilinear", align_corners=False)
    expected = resized[0].numpy().transpose(1, 2, 0)
    crop = identity.result_crop(picture, mask, "region", 32, 32)
    np.testing.assert_allclose(crop, expected, atol=1e-4)  # of 255
    reference = identity.reference_crop(picture, mask, "region", 32, 32)
    whole = Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(reference, np.asarray(whole))


@pytest.mark.parametrize("short", [24, 28])
def test_dreambooths_whole_pictures_are_cut_to_their_centres(scene, short):
    picture, mask = scene  # 60 wide, 40 high
    crops = [
        function(picture, mask, "whole", 24, short)
        for function in (identity.result_crop, identity.reference_crop)
    ]
    resized = Image.fromarray(picture).resize((60 * short // 40, short), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 24) / 2), (short - 24) // 2
    for crop in crops:
        np.testing.assert_array_equal(crop, np.asarray(resized)[top : top + 24, left : left + 24])


def test_cosines():
    a = np.array([[1.0, 0.0], [1.0, 1.0]])
    expected = [[1.0, 0.0, -1.0], [np.sqrt(0.5), np.sqrt(0.5), -np.sqrt(0.5)]]
    b = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    np.testing.assert_allclose(identity.cosine(a[:, None], b[None]), expected)


def test_retrieval_finds_clusters_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    groups, frames = np.repeat(np.arange(5), 8), np.tile(np.arange(8), 5)
    centres = np.eye(5)[groups]
    perfect = identity.retrieval(centres, groups, frames, 1)
    assert perfect[:2] == (1.0, 1.0)
    assert perfect[2] == pytest.approx(7 / 39)
    noise = identity.retrieval(rng.standard_normal((40, 64)), groups, frames, 1)
    assert noise[0] < 0.5 and noise[1] == pytest.approx(noise[2], abs=0.15)


def test_mean_average_precision_by_hand():
    # The query 0 finds: other, own, other, own -> (1/2 + 2/4) / 2.
    angles = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    groups = np.array([0, 1, 0, 1, 0])
    top1, precision, chance, chance_precision = identity.retrieval(
        embeddings[:], groups, np.array([0, 0, 9, 1, 9]), 9
    )
    # Queries: 0 (wants 2 and 4), 2 and 4 (want 0; each other they are too near to).
    by_query = [(1 / 2 + 2 / 4) / 2, 1 / 3, 1 / 3]
    assert precision == pytest.approx(np.mean(by_query))
    assert top1 == 0.0
    assert chance == pytest.approx(np.mean([2 / 4, 1 / 3, 1 / 3]))
    of = identity.random_precision
    assert chance_precision == pytest.approx(np.mean([of(2, 4), of(1, 3), of(1, 3)]))


@pytest.mark.parametrize("right, count", [(1, 1), (1, 3), (2, 4), (4, 4)])
def test_the_precision_of_a_guess_is_the_mean_over_all_orders(right, count):
    precisions = []
    for places in itertools.combinations(range(1, count + 1), right):
        precisions.append(np.mean([(k + 1) / place for k, place in enumerate(places)]))
    assert identity.random_precision(right, count) == pytest.approx(np.mean(precisions))


def test_near_views_do_not_count():
    groups, frames = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 9])
    embeddings = np.eye(4)
    embeddings[1] = embeddings[0]  # would be found, but is next to it
    top1, *_ = identity.retrieval(embeddings, groups, frames, 5)
    assert top1 == 0.0


@pytest.mark.parametrize("groups, frames", [([0, 0, 0], [0, 9, 18]), ([0, 0, 1], [0, 1, 0])])
def test_a_probe_that_can_tell_nothing_is_refused(groups, frames):
    with pytest.raises(InputError, match="two objects"):
        identity.retrieval(np.eye(3), np.array(groups), np.array(frames), 5)
