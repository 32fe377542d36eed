"""The command as users meet it: what it writes, and what it says of bad input."""

import errno
import json
import logging
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import imprint_jax
from imprint_jax import cli
from imprint_jax.cli.data import _beam_options
from imprint_jax.cli.terminal import Lines, console
from imprint_jax.data.preparation.show import recipe_for
from imprint_jax.images import read_image
from imprint_jax.weights import release
from tests.commands import run
from tests.rendering.test_views import write_cube
from tests.tiny import write_objects, write_photos, write_records

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_release):
    """A model and pictures to compose."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "model").symlink_to(tiny_release)
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
    save("zeros_and_ones.png", hole / 255)
    # A few bytes that claim to be 60000 x 60000 pixels.
    size = struct.pack(">II", 60_000, 60_000)
    bomb = bytearray((folder / "photo.png").read_bytes())
    bomb[16:24] = size
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (folder / "bomb.png").write_bytes(bomb)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tiff")
    return folder


def compose_arguments(files: Path, out: Path, /, **changes) -> list[str]:
    options = dict(
        object=files / "object.png",
        background=files / "photo.png",
        mask=files / "mask.png",
        out=out,
        model=files / "model",
    )
    options |= changes
    arguments = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif value is not None:
            arguments += [x for one in np.atleast_1d(value) for x in (flag, one)]
    return arguments


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
    with Image.open(tmp_path / "many_1.png") as image:
        how = json.loads(image.text["imprint_jax"])
    assert how["seed"] == 0 and how["sample"] == 1
    assert how["settings"]["num_steps"] == 4 and how["settings"]["sampler"] == "ddim"
    assert how["model_sha256"] == release.model_hash(files / "model")
    assert how["versions"]["jax"] == jax.__version__


def test_compose_takes_all_its_options(files, tmp_path):
    changes = dict(
        mask_level="1", scribble=True, match_colors=True, sampler="dpm++2m", dtype="bfloat16"
    )
    base = compose_arguments(files, tmp_path / "base.png")
    changed = compose_arguments(files, tmp_path / "changed.png", **changes)
    views = compose_arguments(files, tmp_path / "views.png", object=[files / "object.png"] * 2)
    for arguments in (base, changed, views):
        code, output = run("compose", *arguments)
        assert code == 0, output
    base, changed, views = (
        read_image(tmp_path / f"{name}.png").astype(int) for name in ("base", "changed", "views")
    )
    assert np.abs(changed - base).max() > 1
    assert np.abs(views - base).max() <= 1


def test_an_inverted_mask_is_flipped(files, tmp_path):
    mask = 255 - np.asarray(Image.open(files / "mask.png"))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for name, changes in (("a", {}), ("b", dict(mask=tmp_path / "mask.png", invert_mask=True))):
        assert (
            run("compose", *compose_arguments(files, tmp_path / f"{name}.png", **changes))[0] == 0
        )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png"))


BAD = [
    (dict(object="gone.png"), "cannot read gone.png"),
    (dict(background="gone.png"), "cannot read gone.png"),
    (dict(mask="gone.png"), "cannot read gone.png"),
    (dict(object_mask="gone.png"), "cannot read gone.png"),
    (dict(object=None), "give --object and --background"),
    (dict(background=None), "give --object and --background"),
    (dict(object="{}/text.png"), "not a picture"),
    (dict(mask="{}/text.png"), "not a picture"),
    (dict(background="{}/broken.png"), "cannot be read"),
    (dict(object="{}/broken.png"), "cannot be read"),
    (dict(background="{}/bomb.png"), "decompression bomb"),
    (dict(object="{}/bomb.png"), "decompression bomb"),
    (dict(mask="{}/bomb.png"), "decompression bomb"),
    (dict(background="{}/float.tiff"), "floating-point pixels"),
    (dict(object="{}"), "cannot read"),
    (dict(object="{}/rgb.png"), "give an object mask"),
    (dict(object="{}/clear.png"), "object's mask is empty"),
    (dict(object_mask="{}/mask.png"), "resize the mask"),
    (dict(mask="{}/small_mask.png"), "resize the mask"),
    (dict(mask="{}/empty.png"), "mask is empty"),
    (dict(mask="{}/zeros_and_ones.png"), "paint it white"),
    (dict(mask=None), "either --mask FILE or --box"),
    (dict(box="1,2,3,4"), "either --mask FILE or --box"),
    (dict(mask=None, box="1,2,3"), "four whole numbers"),
    (dict(mask=None, box="1,2,3,4,5"), "four whole numbers"),
    (dict(mask=None, box="a,b,c,d"), "four whole numbers"),
    (dict(mask=None, box="10,10,10,20"), "must satisfy"),
    (dict(mask=None, box="10,10,200,20"), "must satisfy"),
    (dict(mask=None, box="-5,10,20,20"), "must satisfy"),
    (dict(mask_level="4"), "mask level must be a whole number 0 to 3"),
    (dict(mask_level="-1"), "mask level must be a whole number 0 to 3"),
    (dict(model="none_such"), "no model 'none_such'"),
    (dict(steps="0"), "1 to 1000"),
    (dict(steps="-3"), "1 to 1000"),
    (dict(steps="1001"), "1 to 1000"),
    (dict(num="0"), "number of pictures must be"),
    (dict(seed="-1"), "seed must be"),
    (dict(seed="4294967296"), "seed must be"),
    (dict(guidance="nan"), "guidance scale must be 0 to 100"),
    (dict(sampler="euler"), "must be ddim or dpm++2m"),
    (dict(eta="1.5"), "eta must be 0 to 1"),
    (dict(sampler="dpm++2m", eta="0.5"), "wants the sampler ddim"),
    (dict(dtype="float16"), "--dtype must be float32 or bfloat16"),
    (dict(batch_size="0"), "--batch-size must be 1 or more"),
    (dict(out="result.jpg"), "must end in .png"),
    (dict(out="no/such/folder/result.png"), "does not exist"),
    (dict(manifest="gone.jsonl"), "cannot be used with --manifest"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_compose_says_what_is_wrong_and_writes_nothing(
    files, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    forbidden = lambda *_: pytest.fail("a model was loaded before the input was checked")
    monkeypatch.setattr(release, "load", forbidden)
    changes = {key: value and value.format(files) for key, value in changes.items()}
    code, output = run("compose", *compose_arguments(files, tmp_path / "out.png", **changes))
    assert code == 2
    assert message.lower() in output.lower()
    assert not list(tmp_path.iterdir())


def test_main_turns_input_errors_into_one_sentence_and_exit_code_2(files, monkeypatch, capsys):
    arguments = compose_arguments(files, Path("x.png"), object="gone.png")
    monkeypatch.setattr("sys.argv", ["imprint", "compose", *map(str, arguments)])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which `main` replaces
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
    assert recipe_for(objects) == "stage1"  # views are made as stage 1 makes them
    assert recipe_for(objects, backgrounds=photos) == recipe_for(photos) == "stage2"

    (shard,) = Path(objects).glob("*array_record-00000-of-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    code, output = run("data", "check", objects, "--workers", 1)
    assert code == 1 and f"damaged: {shard.name} has changed" in output
    code, output = run("data", "check", tmp_path, "--workers", 1)
    assert code == 2 and "no prepared data set" in output


@pytest.fixture
def manifest(files, tmp_path):
    """Four entries, of which the third's background is broken."""
    absolute = lambda name: str(files / name)
    base = {"object": absolute("object.png"), "background": absolute("photo.png")}
    lines = [
        base | {"id": "first", "mask": absolute("mask.png"), "num": 2, "seed": 5},
        base | {"id": "second", "box": [10, 10, 40, 50], "mask_level": 3},
        base | {"id": "third", "mask": absolute("mask.png"), "background": absolute("broken.png")},
        base | {"id": "fourth", "mask": absolute("mask.png")},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_manifest_is_done_as_far_as_it_can_be(files, manifest, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ["compose", "--manifest", manifest, "--out", out, "--model", files / "model"]
    code, output = run(*arguments)
    assert code == 1 and "3 done, 1 failed" in output and "third" in output
    pictures = {"first_0.png", "first_1.png", "second.png", "fourth.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"results.jsonl", "failures.jsonl"}
    (failure,) = read_lines(out / "failures.jsonl")
    assert failure["id"] == "third" and "broken.png" in failure["error"]
    results = read_lines(out / "results.jsonl")
    assert [line["id"] for line in results] == ["first", "second", "fourth"]
    assert results[0]["pictures"] == ["first_0.png", "first_1.png"]
    assert results[0]["settings"]["num_steps"] == 4 and len(results[0]["model_sha256"]) == 64

    single = compose_arguments(files, tmp_path / "single.png", num=2, seed=5)
    assert run("compose", *single)[0] == 0
    for k in (0, 1):
        ours, theirs = read_image(out / f"first_{k}.png"), read_image(tmp_path / f"single_{k}.png")
        assert np.abs(ours.astype(int) - theirs).max() <= 1

    # Mended, it goes on where it was; what is done stays as it is.
    manifest.write_text(manifest.read_text().replace("broken.png", "photo.png"))
    before = {name: (out / name).stat().st_mtime_ns for name in pictures}
    code, output = run(*arguments)
    assert code == 0 and "3 of 4 were done before" in output
    assert {name: (out / name).stat().st_mtime_ns for name in pictures} == before
    assert (out / "third.png").exists() and not (out / "failures.jsonl").exists()
    assert len(read_lines(out / "results.jsonl")) == 4

    # Another number of processes finds it done, too.
    code, output = run(*arguments, "--shard", "2/3")
    assert code == 0 and "1 of 1 were done before" in output
    assert "is for --manifest" in run("compose", *single, "--shard", "1/2")[1]

    # Nothing left to do: not even a model is loaded.
    forbidden = lambda *_: pytest.fail("a model was loaded for nothing")
    monkeypatch.setattr(release, "load", forbidden)
    assert run(*arguments)[0] == 0
    # Pictures of another kind do not get mixed in.
    code, output = run(*arguments, "--steps", "3")
    assert code == 2 and "made with different settings" in output


def test_what_a_stopped_or_changed_job_left_is_done_again(files, manifest, tmp_path):
    out = tmp_path / "out"
    arguments = ["compose", "--manifest", manifest, "--out", out, "--model", files / "model"]
    run(*arguments)
    expected = {path.name: path.read_bytes() for path in out.glob("*.png")}
    results = out / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:2]) + lines[2][:40])  # stopped while it wrote the last line
    (out / "first_1.png").unlink()
    manifest.write_text(manifest.read_text().replace("[10, 10, 40, 50]", "[20, 10, 40, 50]"))
    code, output = run(*arguments)
    assert code == 1 and "were done before" not in output
    assert [line["id"] for line in read_lines(results)] == ["first", "second", "fourth"]
    again = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert again.keys() == expected.keys()
    assert [name for name in again if again[name] != expected[name]] == ["second.png"]


def test_a_plain_folder_is_a_manifest_too(files, tmp_path):
    for name, source in (
        ("background", "photo.png"),
        ("foreground", "object.png"),
        ("mask", "mask.png"),
    ):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        (tmp_path / "pairs" / name / "a b.png").write_bytes((files / source).read_bytes())
    arguments = ["--manifest", tmp_path / "pairs", "--out", tmp_path / "out"]
    assert run("compose", *arguments, "--model", files / "model")[0] == 0
    assert run("compose", *compose_arguments(files, tmp_path / "single.png"))[0] == 0
    ours, theirs = read_image(tmp_path / "out" / "a b.png"), read_image(tmp_path / "single.png")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("option", [("--seed", 0), ("--num", 2), ("--box", "1,2,3,4")])
def test_a_manifest_speaks_for_itself(files, manifest, tmp_path, option):
    arguments = ["--manifest", manifest, "--out", tmp_path / "out", "--model", files / "model"]
    code, output = run("compose", *arguments, *option)
    assert code == 2 and f"{option[0]} cannot be used with --manifest" in output


def test_unknown_recipe(tmp_path):
    code, output = run("train", "--config", "no_such", "--workdir", tmp_path / "run")
    assert code == 2 and "mini_stage1" in output


def test_render_of_scenes(tmp_path):
    write_cube(tmp_path / "models" / "cube.obj")
    command = ["data", "render", str(tmp_path / "models"), str(tmp_path / "scenes")]
    command += ["--views", "2", "--size", "16", "--workers", "1"]
    code, output = run(*command, "--photos", tmp_path)
    assert code == 2 and "--scenes" in output
    assert run(*command, "--scenes", 2)[0] == 0
    folders = sorted(path.name for path in (tmp_path / "scenes" / "cube").iterdir())
    assert folders == ["000", "001"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--worker", "2"], "no option --worker"),
        (["--runner", "spark"], "local, beam or beam:NAME"),
        (["--runner", "local:x"], "local, beam or beam:NAME"),
    ],
)
def test_prepare_passes_only_beams_options_on(tmp_path, options, message):
    code, output = run("data", "prepare", "photos", tmp_path, tmp_path / "out", *options)
    assert code == 2 and message in output


def test_beams_runner_and_options():
    assert _beam_options("local", []) is None
    assert _beam_options("beam", ["--x=1"]) == ["--runner=DirectRunner", "--x=1"]
    assert _beam_options("beam:FlinkRunner", []) == ["--runner=FlinkRunner"]


def test_the_version():
    assert run("--version") == (0, f"imprint_jax {imprint_jax.__version__}\n")


def test_help_has_no_type_for_what_is_given_or_not():
    for command in ((), ("train",), ("export",), ("data", "prepare")):
        code, said = run(*command, "--help")
        assert code == 0 and "--help" in said and "bool" not in said and "list[" not in said


@pytest.mark.parametrize("verbose", [False, True])
def test_log_lines_are_plain_and_whole(verbose):
    lines = Lines(verbose)
    path = "/".join(["folder"] * 60)
    with console.capture() as shown:
        for name, level, text in (
            ("imprint_jax.training", logging.INFO, f"resumed from {path}"),
            ("imprint_jax", logging.WARNING, "a [bracket]"),
            ("imprint_jax", logging.WARNING, "a [bracket]"),  # once is enough
            ("orbax", logging.WARNING, "of a library"),
            ("jax", logging.ERROR, "an error"),
            ("absl", logging.ERROR, "raised, too"),
        ):
            record = logging.LogRecord(name, level, "file.py", 1, text, None, None)
            if lines.filter(record):
                lines.emit(record)
    expected = [f"resumed from {path}", "warning: a [bracket]", "error: an error"]
    if verbose:
        expected.insert(2, "warning: of a library")
        expected.append("error: raised, too")
    assert shown.get().splitlines() == expected


def test_what_the_system_refuses_is_one_sentence(monkeypatch, tmp_path):
    path = tmp_path / "full"

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which `main` replaces
    with console.capture() as shown, pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert shown.get() == f"Error: {path}: No space left on device.\n"


def test_the_echoes_of_a_full_disk_are_silent_and_nothing_else_is(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(cli, "app", lambda: None)
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    cli.main()
    echo, other = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "what")
    )
    sys.unraisablehook(echo)
    sys.unraisablehook(other)
    assert shown == [other]


@pytest.mark.parametrize(
    "command",
    [
        "train --config mini_stage1 --workdir ADDRESS --config.data.sources=()",
        "train --config mini_stage1 --workdir run --config.data.sources="
        "({'kind':'views','records':'ADDRESS','weight':1.0},)",
        "data prepare photos ADDRESS records",
        "data prepare photos . ADDRESS",
        "data check ADDRESS",
    ],
)
@pytest.mark.parametrize("address", ["gs://bucket/folder", "s3://bucket/folder"])
def test_object_storage_is_refused_with_the_way_around(tmp_path, monkeypatch, command, address):
    monkeypatch.chdir(tmp_path)
    code, said = run(*command.replace("ADDRESS", address).split())
    assert code == 2
    assert said.startswith(f"{address}") and "mount it (gcsfuse, mount-s3, rclone)" in said
    assert not list(tmp_path.iterdir())
