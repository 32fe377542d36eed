"""The paper's ablations: what each changes, and a suite of them at a tiny scale."""

import contextlib
import dataclasses
import json
import logging

import jax
import pytest
from flax import traverse_util
from rich.console import Console

from imprint_jax import config
from imprint_jax.composing import manifest
from imprint_jax.composing.settings import Settings
from imprint_jax.config import config_file
from imprint_jax.data import batch as batches
from imprint_jax.data import pipeline
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from imprint_jax.evaluation import ablations, evaluate
from imprint_jax.models import imprint, init
from imprint_jax.training import initialize, sharding
from imprint_jax.training.state import Trainer
from imprint_jax.weights import release
from tests.commands import run as imprint_command
from tests.tiny import write_scale

ALL = [name for name in ablations.SUITES["paper"] if name != "full"]


def differences(name: str, scale: str, stage: int) -> dict:
    ours = config.load_recipe(f"ablations/{name}", scale, stage)
    plain = config.stage_recipe(scale, stage)
    a, b = (traverse_util.flatten_dict(c.to_dict(), sep=".") for c in (ours, plain))
    return {key: a.get(key) for key in a | b if a.get(key) != b.get(key)}


def test_every_ablation_is_in_the_suite():
    folder = config_file("ablations/no_swap").parent
    assert sorted(path.stem for path in folder.glob("*.py")) == sorted(ALL)


@pytest.mark.parametrize("scale", ["mini", "paper"])
@pytest.mark.parametrize("name", ALL)
def test_an_ablation_changes_something_and_leaves_a_whole_configuration(name, scale):
    changed = {}
    for stage in (1, 2):
        c = config.load_recipe(f"ablations/{name}", scale, stage)
        if c is None:
            assert (name, stage) == ("single_stage", 1)
            continue
        c = config.Config.of(c)
        if scale == "mini":
            imprint.split(c.model)
        changed |= differences(name, scale, stage)
    assert changed


@pytest.mark.parametrize(
    "name, stage, expected",
    [
        ("no_hole_fill", 2, {"diffusion.hole_fill": "none"}),
        ("background_noised", 2, {"diffusion.background_mode": "noised"}),
        ("window_3", 1, {"data.window": 3}),
        ("no_multiview", 1, {"data.window": 0}),
        ("no_multiview", 2, {}),
        ("dinov2_in_stage2", 1, {}),
    ],
)
def test_what_changes_is_what_the_name_says(name, stage, expected):
    assert differences(name, "paper", stage) == expected


def test_an_ablation_can_be_named_with_its_scale_and_stage():
    c = config.load("ablations/no_swap:mini,1", ["--config.seed=7"])
    assert (c.stage, c.image_size, c.seed) == (1, 96, 7)
    assert config.load("ablations/no_swap").stage == 2
    with pytest.raises(InputError, match="trains nothing with mini,1"):
        config.load("ablations/single_stage:mini,1")
    with pytest.raises(InputError, match="does not take"):
        config.load("mini_stage1:mini")
    with pytest.raises(InputError, match=r"no config file nowhere/stage2\.py"):
        config.load("ablations/no_swap:nowhere")


def test_rates():
    frozen = config.load_recipe("ablations/frozen_dinov2", "paper", 1)
    assert config.rate(frozen.groups, "dinov2") is None
    trained = config.load_recipe("ablations/dinov2_in_stage2", "paper", 2)
    assert config.rate(trained.groups, "dinov2") == 4e-6
    constant = config.load_recipe("ablations/no_swap", "paper", 2)
    rates = [config.rate(constant.groups, name) for name in ("adapter", "unet")]
    assert rates == [4e-5, 4e-6]


def test_single_stage_has_the_steps_of_both():
    (full, single) = ablations.variants("full,single_stage", "mini", steps=100)
    assert full.stage1.total_steps == full.stage2.total_steps == 100
    assert single.stage1 is None and single.stage2.total_steps == 200
    assert single.inherits == () and full.inherits == ("dinov2", "adapter", "unet")
    assert {*vars(single.stage2.init_from).values()} == {"", config.RANDOM}


def test_at_full_size_the_unet_starts_from_stable_diffusion():
    (variant,) = ablations.variants("no_swap", "paper", overrides=["--config.init_from.unet=SD14"])
    assert variant.inherits == ("dinov2", "adapter")
    assert variant.stage1.init_from.unet == variant.stage2.init_from.unet == "SD14"


def test_a_scale_says_whether_the_unet_starts_from_stage_1(tmp_path):
    for stage in (1, 2):
        recipe = f"c = config.load('mini_stage{stage}').unlock()"
        recipe += "; c.init_from.unet = 'SD14'" * (stage == 2)
        text = f"from imprint_jax import config\ndef get_config():\n    {recipe}\n    return c\n"
        (tmp_path / f"stage{stage}.py").write_text(text)
    (variant,) = ablations.variants("full", str(tmp_path))
    assert variant.inherits == ("dinov2", "adapter")


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="Unknown config 'ablations/nope'"):
        ablations.variants("nope", "mini")
    with pytest.raises(InputError, match="Unknown config field"):
        ablations.variants("full", "mini", overrides=["--config.nope=1"])


def test_weights_of_one_encoder_are_not_given_to_another():
    start = ["--config.init_from.dinov2=DINO"]
    assert len(ablations.variants("core", "paper", overrides=start)) == 4
    with pytest.raises(InputError, match=r"both encoders: dinov2 \(.*clip \(clip_encoder\)"):
        ablations.variants("paper", "paper", overrides=start)
    (alone,) = ablations.variants(
        "clip_encoder", "paper", overrides=["--config.init_from.dinov2=CLIP"]
    )
    assert alone.stage1.init_from.dinov2 == "CLIP"
    # Mini's second stages name a run that the suite's own takes the place of.
    assert len(ablations.variants("paper", "mini")) == 1 + len(ALL)
    with pytest.raises(InputError, match=r"both encoders: dinov2 \(.*clip \(clip_encoder\)"):
        ablations.variants("single_stage,clip_encoder", "mini", overrides=start)


@pytest.mark.slow
def test_every_ablation_can_train(tmp_path, monkeypatch):
    """All that `train` does up to the first step, which is traced; compiling takes ten seconds."""

    def traced(c, workdir, *, resume, console):
        if workdir.exists():
            return 0  # shared
        trainer = Trainer(c, sharding.make_mesh(c.fsdp))
        sharding.check_batch_size(c.batch_size, c.accumulation, trainer.mesh.size)
        loaded = {
            name: initialize.load_component(source, name, trainer.abstract_params[name])
            for name, source in vars(c.init_from).items()
            if source not in ("", config.RANDOM)
        }
        pipeline.check_sources(c)
        with contextlib.closing(iter(pipeline.make_dataset(c))) as host_batches:
            host_batch = next(host_batches)
        batches.check_batch(host_batch, c)
        step = trainer.train_step()
        assert jax.eval_shape(step, trainer.abstract_state, host_batch)[1]["loss"].shape == ()
        release.save(workdir, c.released(), init.draw_all(c.model, 0))
        runs[workdir.name.rpartition("-")[0]] = set(loaded)
        return 0

    runs = {}
    monkeypatch.setattr(ablations, "train", traced)
    small = {"unet.block_widths": (16,), "unet.attention_levels": (True,), "dinov2.depth": 1}
    overrides = [f"--config.model.{field}={value}" for field, value in small.items()]
    for variant in ablations.variants("paper", str(write_scale(tmp_path)), overrides=overrides):
        ablations._trained(variant, tmp_path / "runs", None, ablations.Progress(9))
    second = {name: loaded for name, loaded in runs.items() if name.endswith("stage2")}
    assert len(second) == 1 + len(ALL)
    assert second.pop("single_stage-stage2") == set()
    assert all(loaded == {"dinov2", "adapter", "unet"} for loaded in second.values())


def test_variants_share_the_trainings_they_have_in_common(tmp_path, monkeypatch, caplog):
    trained = []

    def fake(c, workdir, *, resume, console):
        assert resume
        trained.append(workdir.name.rpartition("-")[0])
        (workdir / "checkpoints" / str(c.total_steps)).mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(c.to_dict()))
        return 0

    monkeypatch.setattr(ablations, "train", fake)
    suite = ablations.variants("full,no_swap,window_1,single_stage", "mini", repeats=2)
    caplog.set_level(logging.INFO, "imprint_jax.evaluation.ablations")
    progress = ablations.Progress(len(ablations.missing(suite, tmp_path)))
    assert progress.total == 12
    runs = [ablations._trained(variant, tmp_path, None, progress) for variant in suite]
    assert len(set(runs)) == 8 and ablations.missing(suite, tmp_path) == []
    assert "training 1 of 12, stage 1" in caplog.text  # how long, nobody knows
    assert "training 12 of 12, about 1 minute, stage 2" in caplog.text
    expected = [f"{v.label}-stage2" for v in suite]
    expected += [f"{name}-stage1" for name in ("full", "full_1", "window_1", "window_1_1")]
    assert sorted(trained) == sorted(expected)
    starts = [json.loads((run / "config.json").read_text())["init_from"]["unet"] for run in runs]
    assert starts[0] == starts[2] != starts[1] == starts[3]  # full and no_swap, by seed
    assert starts[-1] == config.RANDOM  # single_stage
    assert [ablations._trained(variant, tmp_path, None, progress) for variant in suite] == runs
    assert len(trained) == len(expected)


def test_a_training_that_was_told_to_stop_ends_the_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "train", lambda *_, **__: 143)
    (variant,) = ablations.variants("full", "mini")
    with pytest.raises(SystemExit, match="143"):
        ablations._trained(variant, tmp_path, None, ablations.Progress(1))


def test_a_set_is_drawn_anew_for_other_data_or_options(tmp_path):
    stage2 = ablations.recipe("full", str(write_scale(tmp_path)), 2)
    draw = lambda c, **changes: manifest.read(
        ablations.held_out_set(c, tmp_path / "out", **dict(seeds=2, limit=4, size=64) | changes)
    )
    first = draw(stage2)
    assert draw(stage2) == first and {entry.num for entry in first} == {2}
    assert len(draw(stage2, limit=2)) == 2 and draw(stage2, seeds=3)[0].num == 3
    other = dataclasses.replace(stage2, data=dataclasses.replace(stage2.data, share=(0.5, 0.6)))
    assert draw(other)[0].background != first[0].background
    assert draw(stage2) == first
    (tmp_path / "object_records" / "SHA256SUMS").write_text("other records in the same place")
    assert draw(stage2)[0].background.parent != first[0].background.parent


def test_mistakes_are_found_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "train", lambda *_, **__: pytest.fail("trained"))
    scale = str(write_scale(tmp_path))
    plain = ablations.recipe("full", scale, 2)
    test_set = ablations.held_out_set(plain, tmp_path / "out", seeds=1, limit=2, size=64)

    def run(num_steps=None, overrides=()):
        ablations.ablate(
            ablations.variants("full,no_swap", scale, overrides=overrides),
            tmp_path / "out",
            test_set=test_set,
            records=None,
            measures=None,
            settings=Settings(num_steps=num_steps),
            command="imprint ablate",
            console=None,
            track=None,
        )

    with pytest.raises(InputError, match=r"full: .*batch_size = 3 does not divide"):
        run(overrides=["--config.batch_size=3"])
    with pytest.raises(InputError, match=r"full: .*steps"):
        run(num_steps=0)
    results = tmp_path / "out" / "results" / "no_swap"
    results.mkdir(parents=True)
    settings = dataclasses.asdict(Settings(num_steps=7).filled(plain))
    line = {"id": "one", "pictures": [], "entry": {}, "model_sha256": "", "dtype": "float32"}
    (results / "results.jsonl").write_text(json.dumps(line | {"settings": settings}) + "\n")
    with pytest.raises(InputError, match=r"no_swap was sampled with .*\(num_steps = 7\)"):
        run(num_steps=8)
    lines = test_set.read_text().splitlines()
    (test_set.parent / json.loads(lines[1])["object"]).unlink()
    with pytest.raises(InputError, match="does not exist"):
        run()


def test_with_several_trainings_the_spread_is_theirs():
    values = {"mean": 2.0, "standard_error": 0.5}
    methods = {
        "full": {"psnr": values},
        "full_1": {"psnr": {"mean": 4.0}},
        "paste": {"psnr": values},
    }
    cells = lambda labels, repeated: ablations._cells(
        labels, ["psnr"], {"methods": methods}, repeated
    )
    assert cells(["full", "full_1"], True) == ["3 ± 1.4"]
    assert cells(["paste"], True) == ["2"] and cells(["paste"], False) == ["2 ± 0.5"]


def test_a_run_that_was_trained_anew_is_exported_anew(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(ablations.checkpoint, "load_params", lambda run: (config.Config(), None))
    monkeypatch.setattr(ablations.initialize, "load_licences", lambda run: {})

    def save(folder, *_):
        folder.mkdir(parents=True)
        saved.append(folder)

    monkeypatch.setattr(ablations.release, "save", save)
    notes = tmp_path / "run" / "checkpoints" / "10" / "_CHECKPOINT_METADATA"
    notes.parent.mkdir(parents=True)
    results = tmp_path / "results"
    for time, exports, kept in (("1", 1, False), ("1", 1, True), ("2", 2, False)):
        notes.write_text(time)
        results.mkdir(exist_ok=True)
        ablations._exported(tmp_path / "run", tmp_path / "model", results)
        assert len(saved) == exports and results.exists() == kept


def test_the_command_reads_the_test_split_of_the_scales_records(
    tiny_release, tmp_path, monkeypatch
):
    table = tmp_path / "table.md"
    table.write_text("the table")
    handed_over = {}
    monkeypatch.setattr(ablations, "ablate", lambda *_, **how: handed_over.update(how) or table)
    scale, out = write_scale(tmp_path), tmp_path / "out"
    arguments = ("--suite", "full", "--scale", scale, "--out", out, "--encoder", tiny_release)
    code, said = imprint_command("ablate", *arguments, "--seeds", 1, "--limit", 2)
    assert code == 0 and "the table" in said
    assert set(handed_over["records"].index["group_names"]) == {"object2", "object3"}


@pytest.mark.slow
def test_a_suite_trains_measures_and_tabulates_once(tiny_release, tmp_path, caplog):
    caplog.set_level(logging.INFO, "imprint_jax.evaluation.ablations")
    scale = str(write_scale(tmp_path))
    out = tmp_path / "out"
    names = "full"

    def run(names):
        stage1, stage2 = (ablations.recipe("full", scale, stage) for stage in (1, 2))
        test_set = ablations.held_out_set(stage2, out, seeds=2, limit=4, size=64)
        return ablations.ablate(
            ablations.variants(names, scale, steps=2),
            out,
            test_set=test_set,
            records=RecordSource(stage1.data.sources[0].records, "test"),
            measures=evaluate.load_measures(encoder=tiny_release),
            settings=Settings(num_steps=2),
            command="imprint ablate",
            console=Console(quiet=True),
            track=lambda items, about, total: items,
        )

    table = run(names).read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert "| 2 + 2 |" in rows["full"] and "| - |" in rows["paste"]
    assert "tiny_encoder ↑" in rows["variant"] and "probe_map ↑" in rows["variant"]
    assert (
        "4 entries of 2 objects. Means over pictures; ± is the standard error over objects" in table
    )
    assert "nan" not in table and "dreamsim (" in table
    runs = sorted(path.name.rpartition("-")[0] for path in (out / "runs").iterdir())
    assert runs == ["full-stage1", "full-stage2"]
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["methods"]["full"]["tiny_encoder"]["seeds"]) == 2
    assert (out / "index.html").is_file()

    caplog.clear()
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert run(names).read_text() == table
    assert "training stage" not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
