"""The blind study: nothing tells the methods apart, and answers are counted right."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from imprint_jax.composing import manifest
from imprint_jax.errors import InputError
from imprint_jax.evaluation import user_study
from tests.pictures import write_png
from tests.tiny import write_photos


@pytest.fixture
def setting(tmp_path):
    """Eight entries, and two methods' results: one all dark, one all light."""
    write_photos(tmp_path / "photos", photos=1)
    disc = np.zeros((20, 20, 4), np.uint8)
    disc[5:15, 5:15] = (200, 50, 50, 255)
    Image.fromarray(disc).save(tmp_path / "object.png")
    lines = []
    for method, grey in (("dark_method", 20), ("light_method", 230)):
        (tmp_path / method).mkdir()
        for k in range(8):
            picture = np.full((64, 64, 3), grey, np.uint8)
            write_png(tmp_path / method / f"e{k}.png", picture, {"imprint_jax": method})
    for k in range(8):
        entry = dict(id=f"e{k}", object="object.png", background="photos/photo0.png")
        lines.append(json.dumps(entry | {"box": [10, 10, 40, 40]}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    entries = manifest.read(tmp_path / "manifest.jsonl")
    methods = [tmp_path / "dark_method", tmp_path / "light_method"]
    page = user_study.make(entries, methods, tmp_path / "study", seed=1)
    return tmp_path, entries, page


def brightness(page, number: str, side: str) -> float:
    return np.asarray(Image.open(page.parent / "pictures" / f"{number}_{side}.jpg")).mean()


def test_the_page_does_not_tell_the_methods(setting):
    _, _, page = setting
    for path in page.parent.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"dark_method" not in content and b"light_method" not in content, path
    sides = [brightness(page, str(k), "a") < 128 for k in range(8)]
    assert 0 < sum(sides) < 8


def test_the_page_asks_both_questions_of_each_pair(setting):
    _, _, page = setting
    names = set(re.findall(r'name="([^"]+)"', page.read_text()))
    assert names == {f"{k}.{question}" for k in range(8) for question in user_study.QUESTIONS}


def test_folders_of_one_name_are_told_apart_by_their_paths(setting, tmp_path):
    folder, entries, _ = setting
    methods = []
    for number in (1, 2):
        methods.append(tmp_path / f"run{number}" / "results")
        shutil.copytree(folder / "dark_method", methods[-1])
    user_study.make(entries, methods, tmp_path / "another")
    assert user_study.read(tmp_path / "another", []).methods == [str(path) for path in methods]


def test_answers_are_counted_for_the_right_method(setting):
    folder, _, page = setting
    key = json.loads((folder / "study" / "key.json").read_text())
    answers = {}
    for k in range(8):  # always the darker picture is more like it; realism: the first shown
        darker = "first" if brightness(page, str(k), "a") < 128 else "second"
        answers[f"{k}.identity"] = darker
        answers[f"{k}.realism"] = "same"
    files = [folder / f"answers_{number}.json" for number in range(4)]
    half = dict(list(answers.items())[:8])
    other = {"first": "second", "second": "first", "same": "first"}
    before = {name: other[answer] for name, answer in answers.items()}  # changed their mind
    each = (half, answers, answers, before)
    for file, person, saved, given in zip(files, "abaa", (3, 1, 2, 1), each, strict=True):
        given = {"person": person, "saved": saved, "answers": given}
        file.write_text(json.dumps(given | {"study": key["study"]}))
    tally = user_study.read(folder / "study", files)
    assert tally.people == 2
    identity, realism = user_study.count(tally)
    assert identity.methods == ("dark_method", "light_method")
    assert (identity.first, identity.second, identity.same) == (16, 0, 0)
    assert identity.p == pytest.approx(2 * 0.5**16)
    assert (realism.same, realism.p) == (16, 1.0)
    dark, light, *equal = user_study.scores(tally)
    assert dark.strength == pytest.approx(-light.strength) and dark.low > 1
    assert [score.strength for score in equal] == pytest.approx([0, 0])


def test_three_methods_are_shown_in_all_pairs_and_ranked(setting):
    folder, entries, _ = setting
    shutil.copytree(folder / "dark_method", folder / "third_method")
    folders = [folder / f"{name}_method" for name in ("dark", "light", "third")]
    user_study.make(entries, folders, folder / "three")
    key = json.loads((folder / "three" / "key.json").read_text())
    shown = [tuple(sorted(pair["sides"])) for pair in key["pairs"].values()]
    assert sorted(shown.count(pair) for pair in ((0, 1), (0, 2), (1, 2))) == [2, 3, 3]
    answers = {
        f"{k}.realism": "second" if pair["sides"][0] < pair["sides"][1] else "first"
        for k, pair in key["pairs"].items()
    }  # always the later of the three
    file = folder / "answers.json"
    file.write_text(json.dumps({"study": key["study"], "person": "a", "answers": answers}))
    tally = user_study.read(folder / "three", [file])
    scores = user_study.scores(tally)
    assert [score.method for score in scores] == ["dark_method", "light_method", "third_method"]
    strengths = [score.strength for score in scores]
    assert strengths == sorted(strengths) and sum(strengths) == pytest.approx(0)
    assert scores[0].high < scores[2].low


def test_strengths_are_the_log_odds_of_the_decisions(monkeypatch):
    # 30 of 40 decisions: odds of 3.
    first, second = user_study.bradley_terry(np.array([[0, 30], [10, 0]]))
    assert first - second == pytest.approx(np.log(3), abs=0.05)  # the prior pulls a little
    monkeypatch.setattr(user_study, "PRIOR", 1e-9)
    first, second = user_study.bradley_terry(np.array([[0, 30], [10, 0]]))
    assert first - second == pytest.approx(np.log(3), abs=1e-6)
    truth = np.array([1.0, 0.0, -1.0])
    chance = 1 / (1 + np.exp(truth - truth[:, None]))
    found = user_study.bradley_terry(1000 * chance * (1 - np.eye(3)))
    np.testing.assert_allclose(found, truth, atol=1e-5)


def test_other_answers_are_refused(setting):
    folder, *_ = setting
    file = folder / "answers.json"
    key = json.loads((folder / "study" / "key.json").read_text())
    mine = {"study": key["study"], "person": "a"}
    for other in (mine | {"study": "other", "answers": {}}, mine, [mine]):
        file.write_text(json.dumps(other))
        with pytest.raises(InputError, match="no answers to the study"):
            user_study.read(folder / "study", [file])
    file.write_text(json.dumps(mine | {"answers": {"99.identity": "first"}}))
    with pytest.raises(InputError, match="is no answer to this study"):
        user_study.read(folder / "study", [file])
    file.write_text("{")
    with pytest.raises(InputError, match="Cannot read"):
        user_study.read(folder / "study", [file])


def test_studies_that_cannot_be_made(setting):
    folder, entries, _ = setting
    dark, light = folder / "dark_method", folder / "light_method"
    with pytest.raises(InputError, match="two or more folders"):
        user_study.make(entries, [dark, dark], folder / "other")
    (light / "e3.png").unlink()
    with pytest.raises(InputError, match=r"lacks 1 pictures of the manifest, the first is e3\.png"):
        user_study.make(entries, [dark, light], folder / "other")
    with pytest.raises(InputError, match="exists already"):
        user_study.make(entries, [dark, light], folder / "study")
    assert not (folder / "other").exists()
