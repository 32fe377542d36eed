"""A blind comparison of two methods by people: a page that asks, and what counts the answers.

OUT/page/index.html, OUT/page/pictures/   for the people who answer; says nothing of which is whose
OUT/key.json                              keep it: which side of each question is whose

The page works without a server. A person's answers are a file that the page offers at its end.
"""

import html
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from imprint_jax.composing.manifest import Entry
from imprint_jax.errors import InputError
from imprint_jax.evaluation.evaluate import find_shots
from imprint_jax.evaluation.measures import read_result
from imprint_jax.evaluation.report import object_picture, page, thumbnail
from imprint_jax.runtime.files import atomic_folder, check_unused

# What is asked of each pair, after the paper's two sides of quality (Sec. 4.2). Ours.
QUESTIONS = {
    "identity": "In which picture is the object more like the one on the left?",
    "realism": "Which picture looks more like a real photo?",
}
ANSWERS = ("first", "second", "same")
SIDE = 640  # pixels, the longer side of the pictures shown
STYLE = f"figure img {{ height: auto; max-width: min(31vw, {SIDE}px) }}"

SCRIPT = """
const study = %s;
const person = Math.random().toString(36).slice(2);
const answers = {};
const button = document.querySelector('#save');
document.querySelectorAll('input[type=radio]').forEach(input => input.onchange = () => {
  answers[input.name] = input.value;
  button.textContent = `Save my answers (${Object.keys(answers).length} of ${study.count})`;
});
button.onclick = () => {
  const text = JSON.stringify({study: study.id, person, saved: Date.now(), answers}, null, 1);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = `answers_${person.slice(0, 6)}.json`;
  link.click();
};
"""


@dataclass(frozen=True)
class Count:
    """Answers to one question.

    Attributes:
        first: How often the first method was chosen.
        second: The second.
        same: Neither.
        p: Two-sided sign test of `first` against `second`: how likely so uneven a count is if both
            were equal; it takes answers as independent, which those of one person are not quite.
    """

    first: int
    second: int
    same: int
    p: float


def make(
    entries: list[Entry],
    first: Path,
    second: Path,
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Path:
    """Writes the page and its key.

    Args:
        entries: The manifest's; the first picture of each is shown.
        first: Folder of a method's results.
        second: Of the other's.
        out: Folder to make.
        limit: Only so many entries, drawn at random.
        seed: Decides the order and the sides.

    Returns:
        The page.

    Raises:
        InputError: `out` is not empty, or pictures are missing.
    """
    check_unused(out)
    if first.resolve() == second.resolve():
        raise InputError("Give two folders of results; these are one.")
    shots = find_shots(entries, {"first": first, "second": second})
    shots = [shot for shot in shots if shot.number == 0]
    pairs = list(zip(shots[: len(entries)], shots[len(entries) :], strict=True))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pairs))[:limit]
    with atomic_folder(out) as building:
        pictures = building / "page" / "pictures"
        pictures.mkdir(parents=True)
        sections, key = [], {}
        for number, place in enumerate(order):
            swapped = bool(rng.integers(2))
            key[str(number)] = {"id": pairs[place][0].entry.id, "swapped": swapped}
            shown = pairs[place][::-1] if swapped else pairs[place]
            sections.append(_section(number, shown, pictures))
        identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(key)).hex[:12]
        count = len(sections) * len(QUESTIONS)
        script = SCRIPT % json.dumps({"id": identity, "count": count})
        body = "<h1>Which is better?</h1>" + "\n".join(sections)
        body += f'<p><button id="save">Save my answers</button></p><script>{script}</script>'
        (building / "page" / "index.html").write_text(
            page("Comparison", body, STYLE), encoding="utf-8"
        )
        names = {"first": first.name, "second": second.name}
        if first.name == second.name:
            names = {"first": str(first), "second": str(second)}
        content = {"study": identity, "methods": names, "pairs": key}
        (building / "key.json").write_text(json.dumps(content, indent=1) + "\n")
    return out / "page" / "index.html"


def _section(number: int, shots: tuple, pictures: Path) -> str:
    """A pair and its questions; pictures are encoded anew, so that no metadata tells whose."""
    request = shots[0].entry.request()
    shown = object_picture(*request.parts[0].views[0])
    names = [thumbnail(shown, pictures / f"{number}_object.jpg", SIDE // 2)]
    for side, shot in zip("ab", shots, strict=True):
        picture = read_result(shot.path, request)
        names.append(thumbnail(picture, pictures / f"{number}_{side}.jpg", SIDE))
    captions = ("the object", "first", "second")
    figures = "".join(
        f'<figure><img src="pictures/{name}" alt=""><figcaption>{caption}</figcaption></figure>'
        for name, caption in zip(names, captions, strict=True)
    )
    asked = "".join(_question(number, *question) for question in QUESTIONS.items())
    return f"<section>{figures}{asked}</section>"


def _question(number: int, name: str, text: str) -> str:
    choices = "".join(
        f'<label><input type="radio" name="{number}.{name}" value="{answer}"> {answer}</label> '
        for answer in ANSWERS
    )
    return f"<p>{html.escape(text)} {choices}</p>"


def count(folder: Path, answers: Iterable[Path]) -> tuple[dict[str, str], int, dict[str, Count]]:
    """Counts the answers of any number of people.

    Who saved several times is counted once, by the file with the most answers, the newest of them.

    Args:
        folder: What `make` wrote.
        answers: Files that the page saved.

    Returns:
        The two methods' names, {"first", "second"}; how many people; and the counts by question.

    Raises:
        InputError: A file is damaged or of another study.
    """
    key = _json(folder / "key.json")
    by_person: dict[str, dict] = {}
    size = lambda given: (len(given["answers"]), given.get("saved", 0))
    for path in answers:
        given = _read_answers(path, folder, key)
        one = by_person.setdefault(given["person"], given)
        by_person[given["person"]] = max(given, one, key=size)
    tally = {question: dict.fromkeys(ANSWERS, 0) for question in QUESTIONS}
    for given in by_person.values():
        for name, answer in given["answers"].items():
            number, _, question = name.partition(".")
            if key["pairs"][number]["swapped"] and answer != "same":
                answer = "second" if answer == "first" else "first"
            tally[question][answer] += 1
    counts = {}
    for question, number in tally.items():
        decided = number["first"] + number["second"]
        p = float(stats.binomtest(number["first"], decided).pvalue) if decided else 1.0
        counts[question] = Count(**number, p=p)
    return key["methods"], len(by_person), counts


def _read_answers(path: Path, folder: Path, key: dict) -> dict:
    """What the page saved: "person", when ("saved", milliseconds), and "answers" by question.

    Raises:
        InputError: As `count`.
    """
    given = _json(path)
    kinds = {"study": str, "person": str, "answers": dict}
    if (
        not isinstance(given, dict)
        or not all(isinstance(given.get(name), kind) for name, kind in kinds.items())
        or not isinstance(given.get("saved", 0), int)  # pages of before do not say
        or given["study"] != key["study"]
    ):
        raise InputError(f"{path} holds no answers to the study in {folder}.")
    for name, answer in given["answers"].items():
        number, _, question = name.partition(".")
        if number not in key["pairs"] or question not in QUESTIONS or answer not in ANSWERS:
            raise InputError(f"{path}: {name!r}: {answer!r} is no answer to this study.")
    return given


def _json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
