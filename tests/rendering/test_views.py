import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from imprint_jax.errors import InputError
from imprint_jax.rendering import views
from imprint_jax.rendering.raytracer import RejectedModel


def write_cube(path, color=(200, 40, 40), sides=(1, 1, 1)):
    """A cube whose texture is one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = trimesh.creation.box(sides)
    uv = np.tile([[0.2, 0.2]], (len(mesh.vertices), 1))
    image = Image.new("RGB", (8, 8), color)
    material = trimesh.visual.material.SimpleMaterial(image=image)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh.export(path)
    return path


@pytest.mark.parametrize("num_views", [2, 30, 36, 72, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbouring_views_are_at_most_6_degrees_apart(num_views, seed):
    path = views.camera_path(num_views, np.random.default_rng(seed))
    assert path.shape == (num_views, 3)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1)
    steps = np.degrees(np.arccos(np.clip((path[1:] * path[:-1]).sum(1), -1, 1)))
    assert steps.max() <= 6.0 and steps.min() > 0.5
    elevations = np.degrees(np.arcsin(path[:, 1]))
    assert elevations.min() >= 5 and elevations.max() <= 45


def test_a_cube_shows_its_texture(tmp_path):
    cube = write_cube(tmp_path / "cube.obj")
    pictures = np.stack(list(views.render_views(cube, 6, 64, seed=1)))
    assert pictures.shape == (6, 64, 64, 4) and pictures.dtype == np.uint8
    assert np.all(pictures[..., :3][pictures[..., 3] == 0] == 0)
    solid = pictures[pictures[..., 3] == 255][:, :3].astype(float)
    assert np.all(solid[:, 0] > 1.5 * solid[:, 1])  # red, lit or in shade
    np.testing.assert_allclose(solid[:, 1], solid[:, 2], atol=25)


def test_a_ball_is_a_disc_that_fills_90_percent_of_the_frame(tmp_path):
    trimesh.creation.icosphere(subdivisions=4).export(tmp_path / "ball.ply")
    for view in views.render_views(tmp_path / "ball.ply", 3, 96, seed=0):
        area = (view[..., 3] / 255.0).sum()
        # The bounding box's corners, not the ball, are kept within 90 %.
        assert 0.4 < 2 * np.sqrt(area / np.pi) / 96 <= 0.9
        rows, columns = np.nonzero(view[..., 3] >= 128)
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert abs(width - height) <= 1
        assert area == pytest.approx(np.pi / 4 * width * height, rel=0.03)
        assert abs(rows.mean() - 47.5) < 1 and abs(columns.mean() - 47.5) < 1


def test_the_seed_decides_everything(tmp_path):
    cube = write_cube(tmp_path / "cube.obj")
    first, again, other = (list(views.render_views(cube, 2, 32, seed=s)) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.stack(first) != np.stack(other))


def test_folders_are_whole_and_resumed(tmp_path):
    models, out = tmp_path / "models", tmp_path / "out"
    write_cube(models / "red" / "red.obj")
    write_cube(models / "toys" / "blue one.obj", color=(20, 20, 220))
    write_cube(models / "panel.obj", sides=(1, 1, 0.01))
    (models / "broken.glb").write_bytes(b"glTF nothing")
    settings = dict(num_views=3, size=32, workers=1)
    assert views.count_models(models) == 4
    results = {r.object_id: r for r in views.render_folder(models, out, **settings)}
    statuses = {name: result.status for name, result in results.items()}
    assert statuses == {
        "red": "rendered",
        "toys-blue_one": "rendered",
        "panel": "rejected",
        "broken": "rejected",
    }
    reasons = {json.loads(x)["reason"] for x in (out / "rejects.jsonl").read_text().splitlines()}
    assert reasons == {"flat", "broken"}
    assert {p.name for p in (out / "red").iterdir()} == {
        "000.webp",
        "001.webp",
        "002.webp",
        "views.json",
    }
    assert {p.name for p in out.iterdir()} == {"red", "toys-blue_one", "rejects.jsonl"}

    # A run that was stopped while building leaves a part behind, which counts for nothing.
    before = (out / "red" / "000.webp").read_bytes()
    (out / "red" / "views.json").rename(tmp_path / "views.json")
    (out / "red").rename(out / ".0123.tmp")
    again = {r.object_id: r.status for r in views.render_folder(models, out, **settings)}
    assert again["red"] == "rendered" and again["toys-blue_one"] == "complete"
    assert (out / "red" / "000.webp").read_bytes() == before
    assert not (out / ".0123.tmp").exists()

    with pytest.raises(InputError, match="choose another folder"):
        list(views.render_folder(models, out, **settings | {"size": 48}))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(model_path="gone.obj"), InputError, "no model at"),
        (dict(up="x"), InputError, "must be y or z"),
        (dict(num_views=0), InputError, "need 1, 8 and 1"),
        (dict(model_path="empty.ply"), RejectedModel, "broken"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, change, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.ply").write_text("ply\n")
    write_cube(tmp_path / "cube.obj")
    arguments = dict(model_path="cube.obj", num_views=2, size=32, seed=0) | change
    with pytest.raises(error, match=message):
        list(views.render_views(**arguments))


PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 1
0 1 0
3 0 1 {}
"""


def test_one_odd_model_does_not_end_the_others(tmp_path):
    models, out = tmp_path / "models", tmp_path / "out"
    write_cube(models / "good.obj")
    (models / "a.ply").write_text(PLY.format(99))
    write_cube(models / "b" / "b.obj")
    (material,) = (models / "b").glob("*.mtl")
    material.write_text(material.read_text() + "\nd notanumber\n")
    results = views.render_folder(models, out, num_views=1, size=16, workers=1)
    found = {r.object_id: (r.status, r.reason) for r in results}
    broken = ("rejected", "broken")
    assert found == {"a": broken, "b": broken, "good": ("rendered", "")}
    assert {p.name for p in out.iterdir()} == {"good", "rejects.jsonl"}


def test_names_of_other_scripts_stay(tmp_path):
    for name in ("кружка 1.obj", "茶壺.obj", "mug (2).obj"):
        (tmp_path / name).write_text("")
    names = {name for name, _ in views.find_models(tmp_path)}
    assert names == {"кружка_1", "茶壺", "mug_2"}
    (tmp_path / "(!).obj").write_text("")
    with pytest.raises(InputError, match="no letter or digit"):
        views.find_models(tmp_path)


def test_a_folder_without_models_is_named(tmp_path):
    with pytest.raises(InputError, match="no model"):
        list(views.render_folder(tmp_path, tmp_path / "out"))
