import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.rendering import rooms, scenes
from imprint_jax.rendering.raytracer import load_model
from imprint_jax.rendering.rooms import MAP_REACH, MAP_SIDE, Caster, light_maps, place_planes
from tests.rendering.test_views import write_cube
from tests.tiny import write_photos


@pytest.fixture
def cube(tmp_path):
    return write_cube(tmp_path / "models" / "cube.obj")


def views(path, num_views=2, size=64, seed=1, samples=4, **options):
    scene = scenes.random_scene(path, num_views, size, seed, samples=samples, **options)
    return scene, list(scenes.scene_views(scene, size, samples))


@pytest.mark.parametrize("seed", range(4))
def test_target_is_object_and_shadow_over_background(cube, seed):
    _, (view, _) = views(cube, seed=seed)
    target, background = view.target.astype(int), view.background.astype(int)
    assert target.shape == (64, 64, 3) and view.mask.shape == (64, 64)
    inside, outside = view.mask == 255, view.mask == 0
    assert inside.mean() > 0.02 and outside.mean() > 0.3
    # The cube is red; nothing outside of it is brighter than without it.
    red = target[inside]
    assert (red[:, 0] > 1.3 * red[:, 1]).mean() > 0.9
    assert (target - background)[outside].max() <= 0
    assert (background - target)[outside].max() > 8  # its shadow
    # Antialiased, and only along the outline.
    assert 0 < (~inside & ~outside).mean() < 0.1


def test_other_objects_stay_and_hide(tmp_path, cube):
    blue = write_cube(tmp_path / "models" / "blue.obj", color=(20, 20, 230))
    for seed in range(20):
        scene, (view,) = views(cube, num_views=1, seed=seed, others=[blue] * 3)
        if len(scene.about["others"]) == 3:
            break
    background = view.background.astype(int)
    is_blue = background[..., 2] > 2 * background[..., :2].max(-1)
    assert is_blue.mean() > 0.01
    change = (view.target.astype(int) - background)[is_blue & (view.mask == 0)]
    assert change.max() <= 0 and (change > -25).all(-1).mean() > 0.5  # but for a shadow
    # They stand apart.
    placed = scene.others.triangles.reshape(3, -1, 3)
    circles = [(one[:, [0, 2]].min(0) + one[:, [0, 2]].max(0)) / 2 for one in placed]
    assert (
        min(np.linalg.norm(a - b) for a in circles for b in [*circles, [0, 0]] if a is not b) > 0.7
    )


def test_a_shadow_falls_away_from_the_sun_and_is_soft(cube):
    scene, _ = views(cube)
    floor = scene.room.planes[0]
    without, with_cube = light_maps(floor, scene.light, Caster(scene.model), None)
    assert np.ptp(without, (0, 1)).max() < 1e-5
    lost = (without - with_cube)[..., 1]
    ticks = (np.arange(MAP_SIDE) + 0.5) / MAP_SIDE * 2 * MAP_REACH - MAP_REACH
    middle = np.array([(lost.sum(0) * ticks).sum(), -(lost.sum(1) * ticks).sum()]) / lost.sum()
    place = middle[0] * floor.right + middle[1] * floor.up
    away = -scene.light.sun * [1, 0, 1]
    assert place @ away / np.linalg.norm(away) > 0.1
    # The sun's disc is seen in part from many points.
    assert len(np.unique(lost.round(3))) > 30
    assert lost.max() <= without[0, 0, 1] + 1e-6


def test_leaves_painted_on_cards_throw_the_shadow_of_leaves(tmp_path):
    card = trimesh.creation.box((1, 1, 0.2))
    card.visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((len(card.vertices), 2)),
        material=trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.new("RGBA", (4, 4), (0, 255, 0, 0)), alphaMode="MASK"
        ),
    )
    card.export(tmp_path / "clear.glb")
    caster = Caster(load_model(tmp_path / "clear.glb", "y"))
    start = np.array([[0, -2, 0]], np.float32)
    assert not caster.blocks(start, np.array([0.0, 1, 0])).any()
    assert not caster.solid
    caster = Caster(load_model(write_cube(tmp_path / "cube.obj"), "y"))
    assert caster.blocks(start, np.array([0.0, 1, 0])).all()
    assert not caster.blocks(start, np.array([1.0, 0, 0])).any()


def test_floor_and_walls_face_the_room():
    away = np.array([0.6, 0, 0.8])
    flat = (np.ones((512, 512, 3)), 2.0)
    floor, wall = place_planes(away, np.inf, [(-away, 3.0)], [flat, flat])
    np.testing.assert_allclose(floor.normal, [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(wall.normal, -away, atol=1e-12)
    np.testing.assert_allclose(wall.origin @ away, 3.0)


@pytest.mark.parametrize("with_photos", [False, True])
def test_the_seed_decides_everything(tmp_path, cube, with_photos):
    photos = []
    if with_photos:
        write_photos(tmp_path / "photos")
        photos = sorted((tmp_path / "photos").iterdir())
    pictures = []
    for seed in (3, 3, 4):
        _, found = views(cube, size=32, seed=seed, photos=photos)
        pictures.append(np.stack([view.target for view in found]))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


def test_scenes_of_an_object_look_at_one_side(cube, monkeypatch):
    monkeypatch.setattr(rooms, "LIGHT_SAMPLES", 1)
    angles = []
    for seed in range(12):
        about = scenes.random_scene(cube, 3, 16, seed, front=100.0).about
        angles.append((about["azimuth"][1] - about["model_turn"] - 100 + 180) % 360 - 180)
    assert max(angles) <= 45.01 and min(angles) >= -45.01 and np.ptp(angles) > 30


def test_folders_are_whole_and_resumed(tmp_path, cube):
    models, out = cube.parent, tmp_path / "out"
    write_cube(models / "toys" / "blue one.obj", color=(20, 20, 220))
    write_cube(models / "panel.obj", sides=(1, 1, 0.01))
    write_photos(tmp_path / "photos")
    settings = dict(num_scenes=2, num_views=2, size=32, workers=2)
    settings["photos_dir"] = tmp_path / "photos"
    statuses = {r.object_id: r.status for r in scenes.render_scenes(models, out, **settings)}
    expected = dict.fromkeys(["cube/000", "cube/001", "toys-blue_one/000"], "rendered")
    expected |= {"toys-blue_one/001": "rendered"}
    expected |= dict.fromkeys(["panel/000", "panel/001"], "rejected")
    assert statuses == expected
    lines = [json.loads(x) for x in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(line["model"], line["reason"]) for line in lines] == [("panel.obj", "flat")] * 2
    assert {p.name for p in out.iterdir()} == {"cube", "toys-blue_one", "rejects.jsonl"}
    names = {f"00{i}_{what}" for i in (0, 1) for what in ("target.webp", "background.webp")}
    names |= {"000_mask.png", "001_mask.png", "scene.json"}
    assert {p.name for p in (out / "cube" / "001").iterdir()} == names
    about = json.loads((out / "cube" / "001" / "scene.json").read_text())
    assert about["source"] == "cube.obj" and len(about["elevation"]) == 2
    assert set(about["others"]) <= {"toys/blue one.obj", "panel.obj"}

    # A run that was stopped while building leaves a part behind, which counts for nothing.
    before = {p.name: p.read_bytes() for p in (out / "cube" / "000").iterdir()}
    (out / "cube" / "000" / "scene.json").rename(tmp_path / "scene.json")
    (out / "cube" / "000").rename(out / ".0123.tmp")
    again = {r.object_id: r.status for r in scenes.render_scenes(models, out, **settings)}
    assert again["cube/000"] == "rendered" and again["cube/001"] == "complete"
    assert {p.name: p.read_bytes() for p in (out / "cube" / "000").iterdir()} == before
    assert not (out / ".0123.tmp").exists()

    with pytest.raises(InputError, match="choose another folder"):
        list(scenes.render_scenes(models, out, **settings | {"size": 48}))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_scenes=0), "need 1 scene"),
        (dict(num_views=13), "1 to 12 views"),
        (dict(photos_dir="."), "no photo"),
        (dict(photos_dir="../photos"), "cut.jpg cannot be read.*Take it out of ../photos"),
        (dict(models_dir="nothing"), "no model"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, cube, change, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    write_photos(tmp_path / "photos")
    whole = (tmp_path / "photos" / "photo0.png").read_bytes()
    (tmp_path / "photos" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = dict(models_dir=cube.parent, out_dir="out", num_scenes=1) | change
    with pytest.raises(InputError, match=message):
        list(scenes.render_scenes(**arguments))
    assert not (tmp_path / "empty" / "out").exists()
