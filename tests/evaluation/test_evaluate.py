"""Evaluation of results with known scores, its cache, its report, and the command."""

import csv
import dataclasses
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imprint_jax import images
from imprint_jax.cli import app
from imprint_jax.composing import manifest
from imprint_jax.composing.settings import Settings
from imprint_jax.config import Config, load
from imprint_jax.data.records import RecordSource
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.evaluation import (
    encoders,
    evaluate,
    identity,
    perceptual,
    pixels,
    report,
    test_sets,
)
from imprint_jax.evaluation.test_sets import untracked
from imprint_jax.weights import release
from tests.commands import run
from tests.data.preparation.test_sources import disc, white
from tests.data.test_segment import U2NET
from tests.evaluation.test_perceptual import head_widths, torch_backbone
from tests.pictures import write_png
from tests.tiny import write_records

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A test set of two pictures each, and the results of three methods.

    `truth` gives the target, `other` targets with the object's colours turned around, `shifted`
    the target moved by three pixels.
    """
    folder = tmp_path_factory.mktemp("evaluate")
    records = [RecordSource(r, "train") for r in write_records(folder / "records")]
    recipe = Config.of(load("mini_stage2"))
    test_sets.pasted(recipe.data, *records, folder / "set", size=96, num=2, limit=6)
    for entry in manifest.read(folder / "set" / "manifest.jsonl"):
        target = images.read_image(entry.target)
        hole = entry.request().parts[0].hole
        turned = target.copy()
        turned[hole] = turned[hole][:, ::-1]
        pictures = {"truth": target, "other": turned, "shifted": np.roll(target, 3, axis=1)}
        for method, picture in pictures.items():
            (folder / method).mkdir(exist_ok=True)
            for name in entry.names():
                write_png(folder / method / name, picture)
    return folder


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    """LPIPS with a random AlexNet."""
    from safetensors.numpy import save_file

    backbone = torch_backbone("alex", 0).state_dict()
    state = {f"features.{k}": x.numpy() for k, x in backbone.items()}
    for k, width in enumerate(head_widths("alex")):
        state[f"lin{k}.model.1.weight"] = np.ones((1, width, 1, 1), np.float32)
    file = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(state, file)
    return file


METHODS = ("truth", "other", "shifted")


def summarized(found) -> dict:
    about = {"path": "manifest.jsonl", "sha256": None, "content_sha256": "0" * 64}
    about |= {"entries": 6, "objects": 3}
    return report.summarize(found, command="imprint evaluate", manifest=about)


@pytest.fixture(scope="module")
def found(folder, lpips_file, tiny_release):
    measures = evaluate.load_measures(
        dino=f"{tiny_release}#dinov2", lpips=lpips_file, backbone=tiny_release
    )
    entries = manifest.read(folder / "set" / "manifest.jsonl")
    results = {method: folder / method for method in METHODS}
    return evaluate.evaluate(entries, results, measures, folder / "cache", track=untracked)


def mean(found, method: str, measure: str) -> float:
    values = [
        row[measure]
        for shot, row in zip(found.shots, found.rows, strict=True)
        if shot.method == method and not math.isnan(row[measure])
    ]
    return float(np.mean(values))


def test_the_truth_scores_best(found):
    assert mean(found, "truth", "psnr") == perceptual.BEST_PSNR
    assert mean(found, "truth", "ssim") == pytest.approx(1)
    assert mean(found, "truth", "lpips") == 0
    assert mean(found, "truth", "drift") < 0.01
    for method in ("other", "shifted"):
        assert mean(found, method, "psnr") < 40
        assert mean(found, method, "lpips") > 0
        assert found.sets[method]["fid_imprint"] > found.sets["truth"]["fid_imprint"]
    # Each truth is there twice: equal but for the n - 1 of the covariance.
    assert found.sets["truth"]["fid_imprint"] < 0.1 * found.sets["other"]["fid_imprint"]
    assert mean(found, "shifted", "kept") < 0.9
    assert mean(found, "shifted", "changed") < mean(found, "truth", "changed")


def test_turned_colours_are_another_object(found):
    assert mean(found, "truth", "mini_encoder") > mean(found, "other", "mini_encoder")


@pytest.mark.parametrize("named, expected", [(False, [0, 1, 0, 1]), (True, [1, 1, 0, 1])])
def test_other_views_of_the_object_count_as_found(tmp_path, named, expected):
    colours = {"cup1": (250, 10, 10), "cup2": (200, 60, 10), "can": (10, 250, 10)}
    for name, colour in colours.items():
        write_png(tmp_path / f"{name}.png", np.full((20, 20, 3), colour, np.uint8))
    write_png(tmp_path / "mask.png", np.ones((20, 20), bool))
    (tmp_path / "made").mkdir()
    lines = []
    shown_and_made = (("cup1", "cup2"), ("can", "can"), ("can", "cup2"), ("cup2", "cup2"))
    for number, (shown, made) in enumerate(shown_and_made):
        line = {"id": str(number), "background": "can.png", "box": [2, 2, 18, 18]}
        line |= {"object": f"{shown}.png", "object_mask": "mask.png"}
        lines.append(json.dumps(line | ({"object_id": shown[:3]} if named else {})))
        shutil.copy(tmp_path / f"{made}.png", tmp_path / "made" / f"{number}.png")
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    mean_colour = lambda items: (item[0].mean(axis=(0, 1)) - 128 for item in items)
    judge = encoders.Encoder("imprint", "mean colour", 8, "0" * 16, mean_colour)
    entries = manifest.read(tmp_path / "manifest.jsonl")
    measures = [identity.Identity("colour", judge, "cut", "mean colour")]
    results = {"made": tmp_path / "made"}
    found = evaluate.evaluate(entries, results, measures, tmp_path / "cache", track=untracked)
    assert [row["colour_top1"] for row in found.rows] == expected


def test_equal_pictures_have_no_diversity(found):
    for measure in ("diversity", "diversity_lpips"):
        assert mean(found, "truth", measure) == pytest.approx(0, abs=1e-6)


def test_every_measure_says_what_it_depends_on(found):
    summary = summarized(found)
    named = {"psnr", "lpips", "dino", "dino_top1", "dino_truth", "dino_region", "dino_whole"}
    named |= {"imagenet", "mini_encoder", "fid_imprint", "kid_imprint"}
    assert named <= set(summary["measures"])
    assert len(summary["measures"]["dino"]["settings"]["weights"]) == 16
    assert summary["measures"]["dino"]["settings"]["crop"] == "box"
    assert summary["measures"]["mini_encoder"]["settings"]["crop"] == "cut"
    assert all(re.fullmatch("[0-9a-f]{12}", m["hash"]) for m in summary["measures"].values())
    assert {"clip", "dreamsim", "keypoints", "adherence", "fid", "kid"} == set(found.not_computed)
    stand_ins = {name for name, m in summary["measures"].items() if "stand_in_for" in m}
    assert stand_ins == {"changed", "imagenet", "mini_encoder", "diversity"}
    assert summary["measures"]["mini_encoder_top1"]["about"].endswith("(a guess: 0.33)")
    assert summary["methods"]["other"]["psnr"]["pictures"] == 12
    assert summary["methods"]["other"]["psnr"]["between_seeds"] == 0


def test_what_was_measured_is_not_measured_again(
    found, folder, lpips_file, tiny_release, monkeypatch
):
    measures = evaluate.load_measures(lpips=lpips_file)
    entries = manifest.read(folder / "set" / "manifest.jsonl")
    monkeypatch.setattr(pixels, "pixel_scores", lambda *_: pytest.fail("measured again"))
    results = {"again": folder / "truth"}
    again = evaluate.evaluate(entries, results, measures, folder / "cache", track=untracked)
    expected = [r for s, r in zip(found.shots, found.rows, strict=True) if s.method == "truth"]
    for row, before in zip(again.rows, expected, strict=True):
        np.testing.assert_equal(row, {key: before[key] for key in row})


def test_a_changed_picture_is_measured_again(folder, tmp_path):
    entries = manifest.read(folder / "set" / "manifest.jsonl")[:1]
    for name in entries[0].names():
        write_png(tmp_path / name, images.read_image(folder / "truth" / name))
    measures = evaluate.load_measures(encoder=None)
    run = lambda: evaluate.evaluate(
        entries, {"m": tmp_path}, measures, folder / "cache", track=untracked
    ).rows[0]["psnr"]
    assert run() == perceptual.BEST_PSNR
    write_png(tmp_path / name.replace("_1", "_0"), np.zeros((96, 96, 3), np.uint8))
    assert run() < 20


def test_results_of_another_size_are_scaled(folder, tmp_path):
    entries = manifest.read(folder / "set" / "manifest.jsonl")[:1]
    for name in entries[0].names():
        picture = Image.open(folder / "truth" / name).resize((192, 192), Image.Resampling.LANCZOS)
        picture.save(tmp_path / name)
    measures = evaluate.load_measures(encoder=None)
    options = dict(track=untracked)
    found = evaluate.evaluate(entries, {"m": tmp_path}, measures, tmp_path / "cache", **options)
    assert found.rows[0]["psnr"] > 25


def test_pictures_that_are_missing(folder, tmp_path):
    entries = manifest.read(folder / "set" / "manifest.jsonl")
    with pytest.raises(InputError, match="lacks 12 pictures"):
        evaluate.find_shots(entries, {"truth": folder / "truth", "none": tmp_path})


def test_weights_of_another_kind_are_refused(tiny_release):
    with pytest.raises(InputError, match=r"--clip .* holds imprint, not clip"):
        evaluate.load_measures(clip=tiny_release)


def test_models_and_baselines_make_what_is_missing_or_has_changed(folder, tiny_release, tmp_path):
    shutil.copytree(folder / "set", tmp_path / "set")
    entries = manifest.read(tmp_path / "set" / "manifest.jsonl")[:2]
    results = {name: tmp_path / name for name in ("tiny", "paste")}

    def make() -> dict:
        settings = Settings(num_steps=2)
        evaluate.compose_results(tiny_release, entries, results["tiny"], settings, untracked)
        evaluate.baseline_results("paste", entries, results["paste"], untracked)
        shots = evaluate.find_shots(entries, results)
        return {s.path: (s.path.read_bytes(), s.path.stat().st_mtime_ns) for s in shots}

    first, again = make(), make()
    assert len(first) == 8
    composed = [path for path in first if path.parent == results["tiny"]]
    assert all(first[path] == again[path] for path in composed)
    assert all(first[path][0] == again[path][0] for path in first)
    write_png(entries[0].background, 255 - images.read_image(entries[0].background))
    other = make()
    changed = {path for path in first if other[path][0] != first[path][0]}
    assert changed == {f / name for f in results.values() for name in entries[0].names()}
    assert {path for path in composed if other[path][1] != first[path][1]} <= changed
    with pytest.raises(InputError, match="no baseline 'glue'"):
        evaluate.baseline_results("glue", entries, tmp_path / "glue", untracked)


def test_a_model_that_knows_boxes_gets_boxes(folder, tiny_release, tmp_path, monkeypatch):
    shutil.copytree(tiny_release, tmp_path / "model")
    file = tmp_path / "model/config.json"
    config = json.loads(file.read_text())
    config["sampling"]["mask_level"] = 3
    file.write_text(json.dumps(config))
    entries, shapes = manifest.read(folder / "set" / "manifest.jsonl"), []

    def compose_entries(compositor, todo, out, settings, how, **shape):
        shapes.append((shape, how["settings"].get("mask_level")))
        return iter(())

    monkeypatch.setattr(evaluate.job, "compose_entries", compose_entries)
    monkeypatch.setattr(evaluate.Compositor, "from_pretrained", lambda folder: None)
    for model in (tmp_path / "model", tiny_release):
        out = tmp_path / f"results_{model.name}"
        evaluate.compose_results(model, entries, out, Settings(num_steps=2), untracked)
    assert shapes == [({"mask_level": 3}, 3), ({}, None)]


def test_the_truth_is_the_targets(folder, tmp_path):
    entries = manifest.read(folder / "set" / "manifest.jsonl")
    evaluate.baseline_results("truth", entries, tmp_path / "out", untracked)
    for name in (name for entry in entries for name in entry.names()):
        ours, target = (images.read_image(f / name) for f in (tmp_path / "out", folder / "truth"))
        np.testing.assert_array_equal(ours, target)
    entries[1] = dataclasses.replace(entries[1], target=None)
    with pytest.raises(InputError, match=f"{entries[1].id} has none"):
        evaluate.baseline_results("truth", entries, tmp_path / "none", untracked)
    assert not (tmp_path / "none").exists()


def test_the_page_shows_the_worst_first(found, tmp_path):
    page = report.write(found, summarized(found), tmp_path, worst="psnr", limit=4)
    text = page.read_text()
    shown = re.findall(r'src="(pictures/[^"]+)"', text)
    assert len(shown) == 4 * (2 + len(METHODS) + 1)
    assert all((tmp_path / name).is_file() for name in shown)
    order = report.sorted_shots(found, "psnr")
    values = [found.rows[group[0]]["psnr"] for group in order]
    assert values == sorted(values) and len(order) == 12
    lines = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(lines) == 36 and float(lines[0]["psnr"]) == 100
    with pytest.raises(InputError, match="no measure to sort by"):
        report.write(found, summarized(found), tmp_path, worst="copy", limit=4)


def test_the_command(folder, tmp_path, monkeypatch):
    arguments = ["evaluate", "--manifest", str(folder / "set" / "manifest.jsonl")]
    arguments += ["--out", str(tmp_path), "--results", f"best={folder / 'truth'}"]
    arguments += ["--baseline", "poisson", "--results", str(folder / "other"), "--worst", "psnr"]
    monkeypatch.setattr("sys.argv", ["imprint", *arguments])  # as a shell would
    done = runner.invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"psnr ↑ +│ +100 ± 0", done.stdout)
    assert re.search(r"seam_error ↓ +│ +0 ± 0", done.stdout)
    assert re.search(r"not computed: .*lpips, .*\(summary.json says why\)", done.stderr)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["methods"]) == ["best", "other", "poisson"]
    assert summary["command"] == shlex.join(["imprint", *arguments])
    file = folder / "set" / "manifest.jsonl"
    assert summary["manifest"] == manifest.describe(file, manifest.read(file))
    assert (summary["manifest"]["entries"], summary["manifest"]["objects"]) == (6, 3)
    assert summary["made"]["other"] == {"folder": str(folder / "other")}
    assert (tmp_path / "index.html").is_file()


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(folder, tiny_release, tmp_path, monkeypatch):
    manifest_file = folder / "set" / "manifest.jsonl"
    written = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        arguments = ["--manifest", manifest_file, "--model", f"tiny={tiny_release}", "--steps", 2]
        arguments += ["--baseline", "poisson", "--compare", "tiny", "poisson"]
        code, said = run("evaluate", *arguments, "--out", "report")
        assert code == 0, said
        files = [path for path in Path("report").rglob("*") if path.is_file()]
        written.append({path: path.read_bytes() for path in files if "cache" not in path.parts})
    assert len(written[0]) > 20 and Path("report/results/tiny") in {p.parent for p in written[0]}
    assert written[0] == written[1]


def test_methods_of_earlier_calls_stay_and_are_compared(folder, tmp_path):
    arguments = ["evaluate", "--manifest", folder / "set" / "manifest.jsonl", "--out", tmp_path]
    assert run(*arguments, "--results", folder / "truth")[0] == 0
    shutil.copytree(folder / "other", tmp_path / "gone")
    assert run(*arguments, "--results", f"gone={tmp_path / 'gone'}")[0] == 0
    (tmp_path / "gone" / next((tmp_path / "gone").iterdir()).name).unlink()
    code, said = run(*arguments, "--results", folder / "shifted", "--compare", "truth", "shifted")
    assert code == 0, said
    assert "kept from earlier calls: truth" in said
    assert "left out gone of an earlier call" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["methods"]) == ["truth", "shifted"]
    compared = summary["compared"]["truth minus shifted"]
    # The truth is better, but three objects may agree by chance.
    assert compared["psnr"]["verdict"] == "too few objects (3): this test cannot tell"
    assert compared["psnr"]["interval"][0] > 0 and compared["psnr"]["objects"] == 3
    assert run(*arguments, "--compare", "truth", "none") == (
        2,
        "--compare: there is no method 'none'.",
    )
    # Nothing new: the same report, and no method is lost.
    assert run(*arguments)[0] == 0
    assert list(json.loads((tmp_path / "summary.json").read_text())["methods"]) == [
        "truth",
        "shifted",
    ]


def test_methods_of_another_manifest_do_not_stay(folder, tmp_path):
    """Another one says the same in every line; a photo that it names is another."""
    arguments = ["evaluate", "--out", tmp_path / "report", "--manifest"]
    truth = ["--results", folder / "truth"]
    assert run(*arguments, folder / "set" / "manifest.jsonl", *truth)[0] == 0
    shutil.copytree(folder / "set", tmp_path / "set")
    entry = manifest.read(tmp_path / "set" / "manifest.jsonl")[0]
    write_png(entry.background, 255 - images.read_image(entry.background))
    code, said = run(*arguments, tmp_path / "set" / "manifest.jsonl", "--baseline", "color")
    assert code == 0 and "holds a report of other compositions, which is replaced" in said
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert list(summary["methods"]) == ["color"]


def test_a_method_whose_pictures_are_gone_cannot_be_compared(folder, tmp_path):
    arguments = ["evaluate", "--manifest", folder / "set" / "manifest.jsonl"]
    arguments += ["--out", tmp_path / "report"]
    shutil.copytree(folder / "truth", tmp_path / "gone")
    assert run(*arguments, "--results", tmp_path / "gone")[0] == 0
    shutil.rmtree(tmp_path / "gone")
    code, said = run(*arguments, "--results", folder / "other", "--compare", "gone", "other")
    assert code == 2 and "--compare: there is no method 'gone'." in said
    code, said = run(*arguments)
    assert code == 2 and "Give --results, --model or --baseline" in said


@pytest.fixture
def composed(folder, tmp_path):
    """A function that makes results of `truth`, which say that they were composed in some way."""

    def make(name: str, **settings) -> Path:
        line = {"id": "one", "pictures": [], "entry": {}, "model_sha256": "", "dtype": "float32"}
        line |= {"settings": {"num_steps": 2, "mask_level": None} | settings}
        line |= {"mask_sigmas": [1.0, 2.0]}
        shutil.copytree(folder / "truth", tmp_path / name)
        (tmp_path / name / "results.jsonl").write_text(json.dumps(line) + "\n")
        return tmp_path / name

    return make


@pytest.mark.parametrize("how", [{}, {"mask_level": 0}, {"invert_mask": True}])
def test_results_are_measured_in_the_holes_they_were_composed_into(folder, composed, how):
    entry = dataclasses.replace(manifest.read(folder / "set" / "manifest.jsonl")[0], mask_level=3)
    (shot, _) = evaluate.find_shots([entry], {"composed": composed("composed", **how)})
    request, expected = shot.entry.request(), entry.request(mask_sigmas=(1.0, 2.0), **how)
    np.testing.assert_array_equal(request.parts[0].hole, expected.parts[0].hole)
    other = entry.request(mask_sigmas=(1.0, 2.0)).parts[0].hole
    assert np.array_equal(request.parts[0].hole, other) == (not how)


def test_the_truth_is_seen_in_the_hole_of_each_method(folder, composed):
    """Both methods made the truth, in holes of different shapes."""
    entries = manifest.read(folder / "set" / "manifest.jsonl")[:2]
    results = {"drawn": folder / "truth", "boxes": composed("boxes", mask_level=3)}
    measures = evaluate.load_measures()
    found = evaluate.evaluate(entries, results, measures, folder / "cache", track=untracked)
    for row in found.rows:
        assert row["mini_encoder_truth"] == pytest.approx(100, abs=1e-3)


def test_objects_without_masks_are_found(tmp_path):
    """Results that were composed with --segment are measured with it."""
    (tmp_path / "u2net.onnx").write_bytes(U2NET)
    image = np.full((60, 80, 3), 100, np.uint8)
    image[disc()] = 200
    write_png(tmp_path / "bare.png", image)
    write_png(tmp_path / "cut.png", np.dstack([image, white(disc())]))
    names = ("bare", "cut", "bare")
    place = {"background": "bare.png", "box": [5, 5, 40, 40]}
    lines = [{"id": f"{n}", "object": f"{name}.png"} | place for n, name in enumerate(names)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    entries = manifest.read(tmp_path / "pairs.jsonl")
    segmenter = Segmenter(tmp_path / "u2net.onnx")
    bare, cut, again = evaluate.with_cut_outs(entries, segmenter, tmp_path / "objects")
    assert cut.objects == entries[1].objects and bare.objects == again.objects
    assert list(bare.objects[0].views) == list((tmp_path / "objects").iterdir())
    coverage = bare.request().parts[0].views[0][1]
    np.testing.assert_array_equal(coverage, segmenter(image))


def test_the_wrong_object_is_another_entrys(folder, tiny_release, tmp_path):
    lines = (folder / "set" / "manifest.jsonl").read_text().splitlines()
    manifest_of_two = folder / "set" / "two.jsonl"
    manifest_of_two.write_text("\n".join([lines[0], lines[-1]]))
    model = f"mine={tiny_release}"
    arguments = ["evaluate", "--manifest", manifest_of_two, "--model", model, "--steps", "2"]
    code, said = run(*arguments, "--wrong-object", "--encoder", tiny_release, "--out", tmp_path)
    assert code == 0, said
    first, last = manifest.read(manifest_of_two)
    (placed,), (own,) = manifest.with_other_objects([first, last])[0].objects, first.objects
    assert placed.views == last.objects[0].views != own.views
    assert (placed.mask, placed.box) == (own.mask, own.box)
    name = first.names()[0]
    right, wrong = (
        images.read_image(tmp_path / "results" / f"mine{which}" / name) for which in ("", "_wrong")
    )
    hole = first.request().parts[0].hole
    assert np.any(right[hole] != wrong[hole])
    methods = json.loads((tmp_path / "summary.json").read_text())["methods"]
    assert list(methods) == ["mine", "mine_wrong"]
    made = json.loads((tmp_path / "summary.json").read_text())["made"]["mine_wrong"]
    assert made["model_sha256"] == release.model_hash(tiny_release)
    assert (made["settings"]["num_steps"], made["settings"]["sampler"]) == (2, "ddim")


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "Give --results, --model or --baseline"),
        (["--results", "a/x", "--results", "b/x"], "Two methods are called 'x'"),
        (["--results", "a/b=c"], "'a/b' cannot be a method's name"),
        (["--model", "."], "'' cannot be a method's name"),
        (["--model", "mini", "--results", "nowhere"], "nowhere lacks 12 pictures"),
        (["--baseline", "paste", "--worst", "lpips"], "--worst is 'lpips'; with these weights"),
        (["--baseline", "paste", "--reference", "nowhere"], "--reference nowhere is no folder"),
        (["--results", "a", "--wrong-object"], "--wrong-object needs --model"),
        (
            ["--baseline", "paste", "--lpips", "nowhere.safetensors"],
            "nowhere.safetensors is missing",
        ),
    ],
)
def test_mistakes_are_found_before_any_work(folder, tmp_path, more, message):
    arguments = ["evaluate", "--manifest", str(folder / "set" / "manifest.jsonl")]
    with pytest.raises(InputError, match=re.escape(message)):
        runner.invoke(
            app, [*arguments, "--out", str(tmp_path / "o"), *more], catch_exceptions=False
        )
    assert not (tmp_path / "o").exists()


def test_methods_may_be_called_as_the_pages_own_pictures(folder, tmp_path):
    entries = manifest.read(folder / "set" / "manifest.jsonl")[:1]
    results = {"target": folder / "other", "object": folder / "shifted"}
    measures = evaluate.load_measures(encoder=None)
    options = dict(track=untracked)
    made = evaluate.evaluate(entries, results, measures, folder / "cache", **options)
    report.write(made, summarized(made), tmp_path, worst=None, limit=1)
    text = (tmp_path / "index.html").read_text()
    shown = re.findall(r'src="(pictures/[^"]+)"', text)
    assert len(shown) == len({(tmp_path / name).read_bytes() for name in shown}) == 5


def test_a_users_folder_of_pictures_is_not_replaced(found, folder, tmp_path):
    mine = tmp_path / "pictures" / "mine.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    arguments = ["evaluate", "--manifest", folder / "set" / "manifest.jsonl", "--out", tmp_path]
    code, said = run(*arguments, "--results", folder / "truth")
    assert code == 2 and "pictures is in the way" in said
    with pytest.raises(InputError, match="is in the way"):
        report.write(found, summarized(found), tmp_path, worst=None, limit=1)
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"] and mine.read_bytes() == b"mine"
    shutil.rmtree(mine.parent)
    for name in ("index.html", "summary.json", "metrics.csv"):
        (tmp_path / name).write_text("mine")
        code, said = run(*arguments, "--results", folder / "truth")
        assert code == 2 and f"{name} is in the way" in said
        (tmp_path / name).unlink()
    out = tmp_path / "out"
    for _ in range(2):  # a report's own are replaced
        report.write(found, summarized(found), out, worst=None, limit=1)
    assert (out / "pictures" / report.MARK).is_file()


def test_the_spread_between_seeds_is_of_entries_that_have_them_all(found):
    shot = lambda entry, k: dataclasses.replace(
        found.shots[0], entry=dataclasses.replace(found.shots[0].entry, id=entry), number=k
    )
    values = [(shot("a", 0), 10.0), *((shot("b", k), 90.0 + k) for k in range(3))]
    summary = report._summary(values, values)
    assert summary["seeds"] == [90, 91, 92] and summary["between_seeds"] == 1
    less = [values[0], (shot("b", 1), 3.0)]
    assert "between_seeds" not in report._summary(less, less)


def test_the_error_is_over_objects_and_the_difference_is_paired(found):
    def shot(method: str, entry: str, object_id: str):
        one = dataclasses.replace(found.shots[0].entry.objects[0], object_id=object_id)
        entry = dataclasses.replace(found.shots[0].entry, id=entry, objects=(one,))
        return dataclasses.replace(found.shots[0], method=method, entry=entry)

    places = (("1", "cup"), ("2", "cup"), ("3", "can"))
    first = [(shot("a", *place), x) for place, x in zip(places, (1.0, 3.0, 10.0), strict=True)]
    second = [(shot("b", *place), x) for place, x in zip(places, (2.0, 4.0, 13.0), strict=True)]
    summary = report._summary(second, first)
    # Objects' means are 3 and 13, their differences 1 and 3: deviations 7.07 and 1.41, over root 2.
    assert summary["standard_error"] == pytest.approx(5)
    difference = summary["difference"]
    assert difference["mean"] == pytest.approx(5 / 3)
    assert difference["standard_error"] == pytest.approx(1)
    assert difference["interval"] == [1, 3]  # both draws of one object are likely
    assert "difference" not in report._summary(first, first)
    assert "standard_error" not in report._summary(first[:2], first)


def test_few_pictures_have_no_distribution(folder, tiny_release, tmp_path):
    entries = manifest.read(folder / "set" / "manifest.jsonl")[:1]
    one = [dataclasses.replace(entries[0], num=1)]
    write_png(tmp_path / one[0].names()[0], images.read_image(one[0].target))
    measures = evaluate.load_measures(
        encoder=None, backbone=tiny_release, reference=folder / "truth"
    )
    found = evaluate.evaluate(one, {"m": tmp_path}, measures, tmp_path / "cache", track=untracked)
    assert found.not_computed["fid_imprint"] == "needs two pictures of every method"


def test_local_folders_do_not_take_a_shipped_models_name(tmp_path, monkeypatch, caplog):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    shipped = release.model_folder("mini")
    assert shipped.parent == release.SHIPPED and "./mini is the one here" in caplog.text
    for one in ("./mini", tmp_path / "mini"):
        with pytest.raises(InputError, match="There is no model"):
            release.model_folder(one)
    assert encoders._split("mini#dinov2") == (shipped, True)
    assert encoders._split("./mini") == (Path("mini"), False)
