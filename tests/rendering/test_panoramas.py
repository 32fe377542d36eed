import cv2
import numpy as np
import pytest

from imprint_jax.errors import InputError
from imprint_jax.rendering import panoramas, scenes
from tests.rendering.test_views import write_cube

SAMPLES = 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def irradiance(light, normal) -> np.ndarray:
    """What falls on a surface, over pi."""
    total = np.zeros(3)
    for sample in range(SAMPLES):
        for direction, brings in zip(*light.directions(sample, SAMPLES), strict=True):
            total += max(direction @ normal, 0) * brings / SAMPLES
    return total


def write(path, panorama):
    cv2.imwrite(str(path), np.ascontiguousarray(panorama[..., ::-1], np.float32))
    return path


def with_sun(azimuth: float, elevation: float) -> np.ndarray:
    """Blue sky over brown ground, with a sun of 4 degrees; degrees from the panorama's middle."""
    panorama = np.empty((64, 128, 3), np.float32)
    panorama[:32], panorama[32:] = (0.4, 0.6, 1.0), (0.3, 0.2, 0.1)
    row, column = round((90 - elevation) / 180 * 64), round((azimuth + 180) / 360 * 128)
    panorama[row - 1 : row + 1, column - 1 : column + 1] = 300.0
    return panorama


def test_what_is_looked_up_is_where_it_is():
    panorama = with_sun(azimuth=40, elevation=30)
    a, e = np.radians([40.0, 30.0])
    sun = np.array([np.cos(e) * np.sin(a), np.sin(e), -np.cos(e) * np.cos(a)])
    up, down = np.eye(3)[1], -np.eye(3)[1]
    seen = panoramas.look_up(panorama, np.stack([sun, up, down, -sun]))
    np.testing.assert_allclose(seen[0], 300, rtol=0.01)
    np.testing.assert_allclose(seen[1:], [(0.4, 0.6, 1.0), (0.3, 0.2, 0.1), (0.3, 0.2, 0.1)], 1e-5)


def test_the_light_is_all_of_the_panoramas(rng):
    panorama = with_sun(azimuth=-70, elevation=45)
    light = panoramas.light_of(panorama, rng)
    a, e = np.radians([-70.0, 45.0])
    np.testing.assert_allclose(
        light.sun, [np.cos(e) * np.sin(a), np.sin(e), -np.cos(e) * np.cos(a)], atol=0.03
    )
    directions, solid = panoramas._sphere(panorama.shape[:2])
    for normal in (np.eye(3)[1], -np.eye(3)[1], np.array([0.6, 0.8, 0]), light.sun):
        facing = np.maximum(directions @ normal, 0) * solid
        true = (panorama * facing[..., None]).sum((0, 1)) / np.pi
        # Few directions: a tenth; and the sky's blur reaches below the horizon.
        np.testing.assert_allclose(irradiance(light, normal), true, rtol=0.1, atol=0.03)


def test_a_panorama_without_a_sun_has_no_sun(rng):
    light = panoramas.light_of(np.full((32, 64, 3), 0.7, np.float32), rng)
    assert not light.sun_colour.any()
    np.testing.assert_allclose(irradiance(light, np.eye(3)[1]), 0.7, rtol=0.03)


def test_an_object_stands_in_the_place_and_shades_its_ground(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "PANORAMA_SHARE", 1.0)
    cube = write_cube(tmp_path / "cube.obj")
    place = write(tmp_path / "place.hdr", with_sun(azimuth=0, elevation=50))
    scene = scenes.random_scene(cube, 1, 64, 3, panoramas=[place])
    (view,) = scenes.scene_views(scene, 64, 4)
    target, background = view.target.astype(int), view.background.astype(int)
    outside = view.mask == 0
    assert scene.about["panorama"] == "place.hdr" and (view.mask == 255).mean() > 0.02
    assert (target - background)[outside].max() <= 0
    assert (background - target)[outside].max() > 8  # its shadow
    red, _, blue = background[outside].T
    assert (red > 1.5 * blue).mean() > 0.3  # the ground


def test_what_is_no_panorama_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no panorama \(\.hdr\)"):
        panoramas.find_panoramas(tmp_path)
    square = write(tmp_path / "square.hdr", np.ones((8, 8, 3)))
    with pytest.raises(InputError, match="8x8 pixels; a panorama of the whole sphere is twice"):
        panoramas.read_panorama(square)
    (tmp_path / "text.hdr").write_text("no")
    with pytest.raises(InputError, match="no panorama in Radiance's format"):
        panoramas.read_panorama(tmp_path / "text.hdr")
