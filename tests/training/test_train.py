"""Training end to end through the command."""

import io
import json
import logging
import re
import resource
import shutil
import signal
import socket
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import traverse_util
from rich.console import Console

from imprint_jax import config, images
from imprint_jax.cli import terminal
from imprint_jax.data.batch import HEADING
from imprint_jax.data.preparation import prepare
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.training import checkpoint, optimizer, run_directory
from imprint_jax.training.metrics import Meter
from imprint_jax.weights import release
from tests.commands import ROOT, run, run_alone, start
from tests.tiny import tiny_config, write_objects, write_records

RECIPE = """
import sys
sys.path.insert(0, {root!r})
from tests.tiny import tiny_recipe
def get_config():
    c = tiny_recipe({stage})
    c.total_steps = 6
    c.data.sources = ({source!r},)
    for component in {components!r}:
        c.init_from[component] = {run!r}
    return c
"""


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A folder with recipes of both stages over the same records, stage 2 after stage 1's run."""
    folder = tmp_path_factory.mktemp("runs")
    objects, photos = write_records(folder)
    views = dict(kind="views", records=objects, weight=1.0)
    pasted = dict(kind="pasted", records=objects, backgrounds=photos, weight=1.0)
    stage1 = str(folder / "stage1")
    for stage, source, components in ((1, views, ()), (2, pasted, ("dinov2", "adapter", "unet"))):
        recipe = RECIPE.format(
            root=str(ROOT), stage=stage, source=source, components=components, run=stage1
        )
        (folder / f"tiny{stage}.py").write_text(recipe)
    return folder


@pytest.fixture(scope="module")
def runs(recipes):
    """The recipes, and stage 1's run, finished."""
    args = ("train", "--config", recipes / "tiny1.py", "--workdir", recipes / "stage1")
    done = run_alone(*args)
    assert done.returncode == 0, done.stderr
    return recipes, done


def parameters(workdir, **kwargs):
    params = checkpoint.load_params(workdir, **kwargs)[1]
    return traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")


def test_a_run_shows_its_groups_and_leaves_its_files(runs):
    folder, done = runs
    assert "Stage 1: what trains" in done.stderr and "unet/up_blocks" in done.stderr
    parts = "checks", "weights", "placing them", "data", "tracing", "compiling", "first batch"
    assert re.search("started in .*: " + " s, ".join(f"{part} .*" for part in parts), done.stderr)
    workdir = folder / "stage1"
    assert (workdir / "first_batch.png").stat().st_size > 1000
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) for line in lines)
    saved = sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    assert saved == ["2", "4", "6"]
    items = {p.name for p in (workdir / "checkpoints" / "6").iterdir() if p.is_dir()}
    assert items == {"dinov2", "adapter", "unet", "ema", "opt", "data", "meta"}


def test_resume_in_a_new_process_is_bit_for_bit_no_interruption(runs):
    folder, _ = runs
    workdir = folder / "interrupted"
    begin = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    # Killed while at work, at the first sign of a checkpoint.
    process = start(*begin, "--config.save_every=1")
    while process.poll() is None and not (workdir / "checkpoints" / "2").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 6 not in [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]")]
    # The run's own configuration goes on; what it saves may change.
    resumed = run_alone("train", "--workdir", workdir, "--resume", "--config.save_every=2")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step" in resumed.stderr
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for ema in (True, False):
        whole, pieces = parameters(folder / "stage1", ema=ema), parameters(workdir, ema=ema)
        assert whole.keys() == pieces.keys()
        for path in whole:
            np.testing.assert_array_equal(whole[path], pieces[path], err_msg=path)


def test_stage_2_starts_from_stage_1_and_trains_what_it_should(runs):
    folder, _ = runs
    workdir = folder / "stage2"
    args = ("train", "--config", folder / "tiny2.py", "--workdir", workdir, "--profile", 2)
    done = run_alone(*args)
    assert done.returncode == 0, done.stderr
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    assert all(
        scope in trace.read_bytes() for scope in (b"encode_object", b"denoise", b"optimizer")
    )
    before, after = parameters(folder / "stage1"), parameters(workdir, ema=False)
    same = {path for path in before if np.array_equal(before[path], after[path])}
    unused = {path for path in before if path.startswith(("dinov2/", "vae/"))}
    assert same == unused
    # Far from stage 1 by a few small steps only: it did start there.
    path = "unet/conv_in/kernel"
    assert np.abs(after[path] - before[path]).max() < 6 * 4e-4

    exported = folder / "released"
    assert run_alone("export", workdir, exported).returncode == 0
    released_config, params = release.load(exported)
    assert released_config == checkpoint.load_config(workdir).released()
    released = traverse_util.flatten_dict(params, sep="/")
    for path, value in parameters(workdir).items():
        np.testing.assert_allclose(released[path], value, rtol=1e-3, atol=1e-6, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run(runs, number, code):
    folder, _ = runs
    workdir = folder / number.name
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    long = (*args, "--config.total_steps=100000", "--config.save_every=50000")
    process = start(*long)
    while not (workdir / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    # While it is at work, no other may be.
    refused, said = run(*long, "--overwrite")
    assert refused == 2 and said == f"Another training is at work in {workdir}."
    process.send_signal(number)
    assert process.wait() == code
    assert not (workdir / "lock").exists()
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")]
    done = len((workdir / "metrics.jsonl").read_text().splitlines())
    assert steps == [done]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(runs):
    folder, _ = runs
    workdir = folder / "nonfinite"
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    rates = "--config.groups=(('all','',1e30),)"
    broken = (*args, rates, "--config.log_every=4", "--config.save_every=3")
    done = run_alone(*broken, "--config.optim.warmup_steps=1", "--config.optim.clip_norm=1e30")
    assert done.returncode == 1
    assert "FloatingPointError: The loss of step" in done.stderr
    found = json.loads((workdir / "nonfinite.json").read_text())
    first = 8 * (found["step"] - 1)
    assert found["first_and_last_sample"] == [first, first + 7]
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")]
    assert all(step < found["step"] for step in saved)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    c = tiny_config(1)
    with (
        Meter(tmp_path, c, Console(), 6, None) as meter,
        pytest.raises(FloatingPointError, match="The grad_norm of step 7 is inf"),
    ):
        meter.update({"loss": np.float32(1), "grad_norm": np.float32(np.inf)}, 0.0)
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert found == {"step": 7, "grad_norm": "inf", "first_and_last_sample": [48, 55]}


def test_a_log_without_a_bar_shows_at_once_that_it_trains(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    c = replace(tiny_config(1), log_every=5, total_steps=20)
    finite = {"loss": np.float32(1), "grad_norm": np.float32(1)}
    with Meter(tmp_path, c, Console(file=io.StringIO()), 6, None) as meter:
        for _ in range(6):
            meter.update(finite, 0.0)
    said = [line.split("  ")[0] for line in caplog.messages]
    assert said == ["training; a line every 5 steps", "step 10 of 20"]


def test_a_dry_run_shows_and_writes_nothing(runs, monkeypatch):
    folder, _ = runs
    monkeypatch.setattr(terminal.stdout, "width", 200)
    args = ("train", "--config", folder / "tiny2.py", "--workdir", folder / "dry", "--dry-run")
    code, said = run(*args, "--config.fsdp=2")
    assert code == 0
    assert len(said.splitlines()) < 40 and "batch_size" not in said
    assert "steps    6 of 8 samples: 48 in all; saved every 2" in said
    assert f"data     {folder / 'object_records'}: 30 pairs of kind pasted" in said
    assert f"weights  unet: {folder / 'stage1'}" in said and "weights  vae: its" in said
    code, said = run(*args, "--verbose", "--config.fsdp=2")
    assert "Where parameters lie on {'data': 4, 'fsdp': 2}" in said
    assert '"batch_size": 8' in said
    row = next(x for x in said.splitlines() if "unet/conv_in/kernel" in x)
    assert "(3, 3, 8, 16)" in row and "float32" in row and "unet" in row
    for wrong, message in (
        ("--config.data.sources=()", "is empty"),
        (f"--config.init_from.dinov2={ROOT / 'imprint_jax/released/mini'}", "does not fit"),
    ):
        code, said = run(*args, wrong)
        assert code == 2 and message in said
    assert not (folder / "dry").exists()


@pytest.mark.slow
def test_validation_and_previews(runs):
    folder, _ = runs
    held_out = folder / "held_out"
    splits = folder / "splits.json"
    names = [p.name for p in (folder / "objects").iterdir()]
    splits.write_text(json.dumps({"train": names[1:], "validation": names[:1]}))
    prepare.prepare("objaverse", folder / "objects", held_out, splits)
    workdir = folder / "watched"
    source = {"kind": "views", "records": str(held_out), "weight": 1.0}
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    watching = ("--config.validation.every=2", "--config.preview.every=3")
    steps = ("--config.sampling.num_steps=2", f"--config.data.sources=({source},)")
    # As the recipes at full size do, all at once.
    steps += ("--config.remat.dinov2=True", "--config.remat.unet=True")
    done = run_alone(*args, *watching, *steps)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {x["step"]: x["validation_loss"] for x in lines if "validation_loss" in x}
    assert list(losses) == [2, 4, 6] and len(set(losses.values())) == 3
    previews = sorted(p.name for p in (workdir / "previews").iterdir())
    assert previews == ["00000003.png", "00000006.png"]
    picture = images.read_image(workdir / "previews/00000003.png")
    assert picture.shape[:2] == (HEADING + 4 * 32, 5 * 32)
    assert list((workdir / "tensorboard").iterdir())
    line = next(x for x in lines if "grad_norm" in x)
    wanted = {"grad_norm/unet", "lr/unet", "samples_per_second", "data_wait_share", "memory_gib"}
    assert wanted <= line.keys()
    # Without a validation split there is nothing to validate on.
    code, said = run(*args[:3], "--workdir", folder / "no", "--config.validation.every=2")
    assert code == 2 and "validation" in said and not (folder / "no").exists()


def start_processes(count: int, port: int, *args):
    where = ("--coordinator", f"localhost:{port}", "--num-processes", count)
    return [start(*args, *where, "--process-id", i, devices=1) for i in range(count)]


@pytest.mark.slow
def test_processes_stop_together_and_one_goes_on_alone(runs, unused_port):
    folder, _ = runs
    workdir = folder / "together"
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    args += ("--config.total_steps=100000", "--config.save_every=50000")
    read = lambda run: [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    steps = lambda: len(read(workdir)) if (workdir / "metrics.jsonl").exists() else 0

    processes = start_processes(2, unused_port, *args)
    while steps() < 6:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [143, 143]
    saved = steps()
    assert [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")] == [saved]

    alone = start(*args, "--resume")
    while steps() == saved:
        assert alone.poll() is None
        time.sleep(0.1)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait() == 143
    together = read(workdir)
    assert [x["step"] for x in together] == list(range(1, len(together) + 1))
    expected = [x["loss"] for x in read(folder / "stage1")]
    np.testing.assert_allclose([x["loss"] for x in together[:6]], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_elsewhere(runs, unused_port):
    """Stopped on 2 devices, resumed by 4 processes with the parameters cut: the same losses."""
    folder, _ = runs
    workdir = folder / "moved"
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    process = start(*args)
    while process.poll() is None and not (workdir / "checkpoints" / "2").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (workdir / "checkpoints" / "6").exists()
    processes = start_processes(4, unused_port, *args, "--resume", "--config.fsdp=2")
    assert [process.wait() for process in processes] == [0] * 4
    read = lambda run: {
        x["step"]: x["loss"]
        for x in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    }
    alone, moved = read(folder / "stage1"), read(workdir)
    assert moved.keys() == alone.keys()
    for step, loss in alone.items():
        assert moved[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_older_checkpoints(runs):
    folder, _ = runs
    workdir = folder / "full"
    shutil.copytree(folder / "stage1", workdir)
    for step in ("4", "6"):
        shutil.rmtree(workdir / "checkpoints" / step)
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    # No file may grow beyond this many bytes: writing fails as on a full disk.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    done = run_alone(*args, "--resume", preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.endswith(f"Error: {workdir / 'checkpoints'}: File too large.\n")
    assert "Traceback" not in done.stderr
    assert (workdir / "checkpoints/2").is_dir() and not (workdir / "checkpoints/4").exists()
    assert run_alone(*args, "--resume").returncode == 0


def test_a_used_workdir_is_not_touched(runs):
    folder, _ = runs
    workdir = folder / "stage1"
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir)
    for more, message in (
        ((), "already holds a run: --resume continues it"),
        (("--resume", "--config.seed=7"), "another configuration, which differs in seed"),
        (("--resume", "--overwrite"), "exclude each other"),
    ):
        code, said = run(*args, *more)
        assert code == 2 and message in said
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


@pytest.mark.slow
def test_records_count_by_what_is_in_them_not_by_where_they_are(runs, tmp_path):
    folder, _ = runs
    workdir = tmp_path / "run"
    shutil.copytree(folder / "stage1", workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.copytree(folder / "object_records", tmp_path / "moved")
    write_objects(tmp_path / "objects", objects=2)
    prepare.prepare("objaverse", tmp_path / "objects", tmp_path / "others")
    source = lambda path: (
        "--config.data.sources=("
        + str({"kind": "views", "records": str(path), "weight": 1.0})
        + ",)"
    )
    resume = ("train", "--workdir", workdir, "--resume")
    code, said = run(*resume, source(tmp_path / "others"))
    assert code == 2 and "others holds other records than those" in said
    code, said = run(*resume, source(tmp_path / "gone"))
    assert code == 2 and "There is no folder" in said and "--config.data.sources" in said
    done = run_alone(*resume, source(tmp_path / "moved"))
    assert done.returncode == 0, done.stderr
    whole, moved = parameters(folder / "stage1"), parameters(workdir)
    assert all(np.array_equal(whole[path], moved[path]) for path in whole)


def test_what_is_no_run_is_neither_deleted_nor_written_over(runs, tiny_release, tmp_path):
    folder, _ = runs
    shutil.copytree(tiny_release, tmp_path / "model")
    shutil.copytree(folder / "stage1", tmp_path / "rest")
    (tmp_path / "rest" / "config.json").unlink()
    before = contents(tmp_path)
    for name, more, message in (
        ("model", (), "holds config.json, but not the config.json of a run"),
        ("model", ("--overwrite",), "holds files but no run"),
        ("model", ("--resume",), "holds config.json, but not"),
        ("rest", (), "holds checkpoints, but not the config.json of a run"),
        ("rest", ("--overwrite",), "holds files but no run"),
    ):
        code, said = run(
            "train", "--config", folder / "tiny1.py", "--workdir", tmp_path / name, *more
        )
        assert code == 2 and message in said
    code, said = run("export", folder / "stage1", tmp_path / "model")
    assert code == 2 and "exists already" in said
    assert contents(tmp_path) == before


def test_a_run_is_not_deleted_for_one_whose_records_are_gone(runs, tmp_path):
    folder, _ = runs
    shutil.copytree(folder / "stage1", tmp_path / "run")
    before = contents(tmp_path)
    c = tiny_config(1)
    gone = replace(c.data.sources[0], records=str(tmp_path / "gone"))
    with_source = lambda source: replace(c, data=replace(c.data, sources=(source,)))
    with pytest.raises(InputError, match="gone"):
        run_directory.begin(tmp_path / "run", with_source(gone), {}, overwrite=True)
    assert contents(tmp_path) == before
    # What is not read need not be there.
    idle = with_source(replace(gone, weight=0.0))
    run_directory.begin(tmp_path / "run", idle, {}, overwrite=True)
    assert json.loads((tmp_path / "run" / "records.json").read_text()) == [{}]


def test_overwriting_that_is_stopped_leaves_a_run(runs, tmp_path, monkeypatch):
    folder, _ = runs
    shutil.copytree(folder / "stage1", tmp_path / "run")

    def stopped(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_directory.shutil, "rmtree", stopped)
    config = run_directory.load_config(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_directory.begin(tmp_path / "run", config, {}, overwrite=True)
    assert run_directory.holds_run(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "[]", '{"stage": '])
def test_a_run_with_an_unreadable_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    code, said = run("train", "--workdir", tmp_path, "--resume")
    assert code == 2 and "config.json cannot be read" in said


def test_a_run_is_not_resumed_with_a_recipe_of_the_other_stage(runs):
    folder, _ = runs
    args = ("train", "--config", folder / "tiny2.py", "--workdir", folder / "stage1", "--resume")
    code, said = run(*args)
    assert code == 2 and "holds a run of stage 1" in said
    code, said = run("train", "--workdir", folder / "nothing", "--resume")
    assert code == 2 and "holds no run to resume: name a recipe" in said


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_not_deleted_for_one_that_cannot_start(runs, tmp_path):
    folder, _ = runs
    workdir, silent = tmp_path / "run", tmp_path / "silent"
    shutil.copytree(folder / "stage1", workdir)
    shutil.copytree(folder / "stage1", silent)
    (silent / "licences.json").unlink()
    (tmp_path / "link").symlink_to(workdir)
    before = contents(workdir)
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir, "--overwrite")
    for source, message in (
        (workdir, "which --overwrite deletes"),
        (tmp_path / "link", "which --overwrite deletes"),
        (workdir / "released", "which --overwrite deletes"),
        (silent, "licences.json is missing: copy it"),
    ):
        code, said = run(*args, f"--config.init_from.unet={source}")
        assert code == 2 and message in said
        assert contents(workdir) == before


@pytest.mark.slow
def test_a_run_goes_on_without_what_it_started_from(runs, tmp_path):
    folder, _ = runs
    workdir = tmp_path / "run"
    shutil.copytree(folder / "stage1", workdir)
    settings = json.loads((workdir / "config.json").read_text())
    settings["init_from"]["unet"] = "gone"
    (workdir / "config.json").write_text(json.dumps(settings))
    (workdir / "licences.json").write_text('{"unet": "MIT"}')
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir, "--resume")
    code, _ = run(*args, "--config.init_from.unet=gone")
    assert code == 0
    assert json.loads((workdir / "licences.json").read_text()) == {"unet": "MIT"}


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.optim.nope=1", "Unknown config field"),
        ("--config.batch_size=many", "is of type int"),
        ("--config.save_every=0", "config.save_every = 0 must be 1 or more"),
        ("--config.keep=0", "config.keep = 0 must be 1 or more"),
        ("--config.keep_every=-3", "config.keep_every = -3 must be 0 or more"),
        ("--config.validation.every=-1", "config.validation.every = -1 must be 0 or more"),
        ("--config.validation.batches=0", "config.validation.batches = 0 must be 1 or more"),
        ("--config.preview.samples=0", "config.preview.samples = 0 must be 1 or more"),
        ("--config.drop_probability=3", "config.drop_probability = 3.0 must be from 0 to 1"),
        ("--config.dtype=float17", "must be float32 or bfloat16"),
        ("--config.data.sources=({'kind': 'views', 'records': 'x'},)", "lacks 'weight'"),
        ("--config.batch_size=7", "does not divide over 8 devices"),
        ("--config.stage=3", "the stages are 1 and 2"),
        ("--config.image_size=36", "is no multiple of 8"),
        ("--config.object_size=30", "is no multiple of 14"),
        ("--config.fsdp=3", "does not divide the 8 devices"),
        ("--config.data.sources=()", "is empty"),
        ("--config.groups=(('a', 'adapter/', 1e-3),)", "match no pattern"),
        ("--config.init_from.unet=nowhere", "no model 'nowhere'"),
        ("--config.init_from.unet=", "Nothing says what unet should start from: add --config."),
        ("--config.data.num_workers=-1", "config.data.num_workers = -1 must be 0 or more"),
        ("seed=3", "overrides look like"),
    ],
)
def test_bad_configurations_stop_before_anything_is_written(recipes, tmp_path, override, message):
    workdir = tmp_path / "run"
    args = ("train", "--config", recipes / "tiny1.py", "--workdir", workdir, override)
    code, said = run(*args)
    assert code == 2 and message in said
    assert not workdir.exists()


@pytest.mark.parametrize(
    "start, line, message",
    [
        ("config.default()", "c.optim.warmup = 5", "warmup"),
        ("config.load('finetune')", "c.optim.warmup = 5", "warmup"),
        ("config.stage_recipe('mini', 2)", "c.optim.warmup = 5", "warmup"),
        (
            "config.default().unlock()",
            "c.optim.warmup = 5",
            "unknown fields ['optim.warmup']",
        ),
        ("config.default()", "c.remat = dict(unet=True)", "missing fields ['remat.dinov2']"),
        ("config.default()", "c.total_steps = '3000'", "'total_steps'"),
    ],
)
def test_a_recipe_with_other_fields_or_types_is_refused(tmp_path, start, line, message):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        f"from imprint_jax import config\ndef get_config():\n    c = {start}\n    {line}\n"
        "    return c\n"
    )
    code, said = run("train", "--config", recipe, "--workdir", tmp_path / "run")
    assert code == 2 and "mine.py" in said and message in said


def test_a_recipe_may_choose_networks_with_fields_of_their_own(tmp_path):
    for name in ("mini_stage2", "ablations/clip_encoder:mini,1", "ablations/single_stage:paper"):
        assert config.load(name).is_locked


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(runs, tmp_path):
    folder, _ = runs
    workdir = tmp_path / "run"
    shutil.copytree(folder / "stage1", workdir)
    shutil.move(workdir / "checkpoints", workdir / "damaged")
    args = ("train", "--config", folder / "tiny1.py", "--workdir", workdir, "--resume")
    code, said = run(*args)
    assert code == 2 and "nothing is left to go on from" in said


@pytest.mark.parametrize("stage", [1, 2])
def test_moments_belong_to_trained_parameters_only(stage):
    c = tiny_config(stage)
    _, abstract = imprint.split(c.model)
    labels = optimizer.label_params(abstract, c.groups)
    trained, frozen = optimizer.partition(abstract, labels)
    rates = optimizer.schedules(c.groups, c.total_steps, c.optim.warmup_steps)
    state = jax.eval_shape(optimizer.make_optimizer(c.optim, rates, labels).init, trained)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if x.ndim)
    assert size(state) == 2 * size(trained)
    assert size(frozen) > 0
