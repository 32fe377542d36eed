"""The command as users meet it: what it writes, and what it says of bad input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imprint_jax import cli, pretrained
from imprint_jax.errors import InputError
from imprint_jax.images import read_image
from imprint_jax.models import initial
from tests.tiny import tiny_config, write_objects, write_photos, write_records

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and pictures to compose."""
    folder = tmp_path_factory.mktemp("files")
    c = tiny_config(2)
    c.sampling.num_steps = 2
    params = initial.draw_all(c.model, 0)
    pretrained.save(folder / "model", c, params)
    save = lambda name, array: Image.fromarray(array.astype(np.uint8)).save(folder / name)
    save("photo.png", RNG.integers(0, 256, (60, 80, 3)))
    save("object.png", np.dstack([RNG.integers(0, 256, (20, 30, 3)), np.full((20, 30), 255)]))
    save("rgb.png", RNG.integers(0, 256, (20, 30, 3)))
    save("clear.png", np.zeros((20, 30, 4)))
    hole = np.zeros((60, 80))
    hole[20:40, 30:60] = 255
    save("mask.png", hole)
    save("empty.png", hole * 0)
    save("small_mask.png", hole[:30])
    (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:200])
    (folder / "text.png").write_text("no picture")
    return folder


def run(*args) -> tuple[int, str]:
    """Exit code and message of the command, as `imprint` gives them."""
    with cli.console.capture() as capture:
        try:
            result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
        except InputError as error:
            return 2, str(error)
    return result.exit_code, result.output + capture.get()


def compose_arguments(files: Path, out: Path, /, **changes) -> list[str]:
    options = dict(
        object=files / "object.png",
        background=files / "photo.png",
        mask=files / "mask.png",
        out=out,
        model=files / "model",
    )
    options |= changes
    return [x for k, v in options.items() if v is not None for x in (f"--{k.replace('_', '-')}", v)]


def test_compose_writes_pictures(files, tmp_path):
    code, output = run("compose", *compose_arguments(files, tmp_path / "out.png"))
    assert code == 0, output
    picture = read_image(tmp_path / "out.png")
    photo = read_image(files / "photo.png")
    assert picture.shape == photo.shape
    np.testing.assert_array_equal(picture[:15], photo[:15])
    assert (picture != photo)[20:40, 30:60].mean() > 0.5

    box = compose_arguments(files, tmp_path / "box.png", mask=None, box="30,20,60,40")
    assert run("compose", *box)[0] == 0
    np.testing.assert_array_equal(read_image(tmp_path / "box.png"), picture)

    several = compose_arguments(files, tmp_path / "many.png", num=2)
    assert run("compose", *several)[0] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"out.png", "box.png", "many_0.png", "many_1.png"}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(object="gone.png"), "cannot read gone.png"),
        (dict(background="gone.png"), "cannot read gone.png"),
        (dict(mask="gone.png"), "cannot read gone.png"),
        (dict(object="{}/text.png"), "not a picture"),
        (dict(background="{}/broken.png"), "cannot be read"),
        (dict(object="{}"), "cannot read"),
        (dict(object="{}/rgb.png"), "give an object mask"),
        (dict(object="{}/clear.png"), "object's mask is empty"),
        (dict(object_mask="{}/mask.png"), "resize the mask"),
        (dict(mask="{}/small_mask.png"), "resize the mask"),
        (dict(mask="{}/empty.png"), "mask is empty"),
        (dict(mask=None), "either --mask FILE or --box"),
        (dict(box="1,2,3,4"), "either --mask FILE or --box"),
        (dict(mask=None, box="1,2,3"), "four whole numbers"),
        (dict(mask=None, box="a,b,c,d"), "four whole numbers"),
        (dict(mask=None, box="10,10,10,20"), "must satisfy"),
        (dict(mask=None, box="10,10,200,20"), "must satisfy"),
        (dict(mask=None, box="-5,10,20,20"), "must satisfy"),
        (dict(model="none_such"), "no model 'none_such'"),
        (dict(steps="0"), "1 or more"),
        (dict(steps="-3"), "1 or more"),
        (dict(num="0"), "1 or more"),
        (dict(out="result.jpg"), "must end in .png"),
        (dict(out="no/such/folder/result.png"), "does not exist"),
    ],
)
def test_compose_says_what_is_wrong_and_writes_nothing(
    files, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    forbidden = lambda *_: pytest.fail("a model was loaded before the input was checked")
    monkeypatch.setattr(pretrained, "load", forbidden)
    changes = {key: value and value.format(files) for key, value in changes.items()}
    code, output = run("compose", *compose_arguments(files, tmp_path / "out.png", **changes))
    assert code == 2
    assert message.lower() in output.lower()
    assert not list(tmp_path.iterdir())


def test_main_turns_input_errors_into_one_sentence_and_exit_code_2(files, monkeypatch, capsys):
    arguments = compose_arguments(files, Path("x.png"), object="gone.png")
    monkeypatch.setattr("sys.argv", ["imprint", "compose", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.strip().startswith("Error:") and "gone.png" in message
    assert "Traceback" not in message


def test_other_kinds_of_pictures_are_handled(files, tmp_path):
    photo = Image.open(files / "photo.png")
    variants = {
        "grey.png": photo.convert("L"),
        "palette.png": photo.convert("P"),
        "cmyk.jpg": photo.convert("CMYK"),
        "deep.png": Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257),
    }
    for name, variant in variants.items():
        variant.save(tmp_path / name)
        out = tmp_path / f"{name}.out.png"
        arguments = compose_arguments(files, out, background=tmp_path / name)
        assert run("compose", *arguments)[0] == 0
        assert read_image(out).shape == (60, 80, 3)

    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: upright it is as high as it was wide
    photo.save(tmp_path / "turned.jpg", exif=exif)
    out = tmp_path / "turned.png"
    arguments = compose_arguments(
        files, out, background=tmp_path / "turned.jpg", mask=None, box="5,40,50,75"
    )
    assert run("compose", *arguments)[0] == 0
    assert read_image(out).shape == (80, 60, 3)


def test_data_prepare_counts_what_it_took_and_left_out(tmp_path):
    write_objects(tmp_path / "objects", objects=2, views=4)
    write_photos(tmp_path / "photos")
    (tmp_path / "objects" / "object0" / "003.png").write_text("broken")
    one = ("--workers", 1)
    make = ("data", "prepare", "objaverse", tmp_path / "objects", tmp_path / "records")
    code, output = run(*make, *one, "--max-reject", "10%")
    assert code == 2 and "12.5 % were left out, more than --max-reject 10: 1 unreadable" in output
    code, output = run(*make, *one)
    assert code == 0 and "train 7" in output and "unreadable 1" in output
    assert run("data", "prepare", "photos", tmp_path / "photos", tmp_path / "p", *one)[0] == 0
    code, output = run("data", "prepare", "nothing", tmp_path / "photos", tmp_path / "q")
    assert code == 2 and "no reader" in output
    code, output = run("data", "prepare", "photos", tmp_path / "photos", tmp_path / "p")
    assert code == 2 and "exists already" in output


def test_data_prepare_options(tmp_path):
    write_objects(tmp_path / "objects", objects=30, views=2, size=64)
    make = ("data", "prepare", "objaverse", tmp_path / "objects", tmp_path / "r", "--workers", 1)
    for wrong, message in [
        (("--fractions", "1,2"), "--fractions wants 3 number(s), not '1,2'"),
        (("--max-reject", "few"), "--max-reject wants 1 number(s)"),
        (("--split-by", "object", "--fractions", "1,1,1"), "add up to 1"),
        (("--filter", "size=3"), "no filter 'size'"),
        (("--segment", tmp_path / "gone.onnx"), "no file"),
    ]:
        code, output = run(*make, *wrong)
        assert code == 2 and message in output
    assert [p.name for p in tmp_path.iterdir()] == ["objects"]
    options = ("--split-by", "object", "--fractions", "0.5,0.25,0.25", "--limit", 20)
    code, output = run(*make, *options, "--max-side", 64, "--filter", "min_area=0.001")
    assert code == 0 and "test" in output and "train" in output and "validation" in output


def test_data_check_and_show(tmp_path):
    objects, photos = write_records(tmp_path)
    code, output = run("data", "check", objects, "--workers", 1)
    assert code == 0 and "train: 30 records (3 objects, 3 groups, 0 backgrounds)" in output
    assert "least, quartiles, most): 40, 40, 40, 40, 40" in output
    assert "nothing is damaged" in output
    code, output = run(
        "data", "show", objects, "--out", tmp_path / "page", "--backgrounds", photos, "--num", 2
    )
    assert code == 0 and (tmp_path / "page" / "index.html").exists()

    (shard,) = Path(objects).glob("*array_record-00000-of-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    code, output = run("data", "check", objects, "--workers", 1)
    assert code == 1 and f"damaged: {shard.name} has changed" in output
    code, output = run("data", "check", tmp_path, "--workers", 1)
    assert code == 2 and "no prepared data set" in output


def test_unknown_recipe(tmp_path):
    code, output = run("train", "--config", "no_such", "--workdir", tmp_path / "run")
    assert code == 2 and "mini_stage1" in output
