"""A blind comparison of methods by people: a page that asks, and what counts the answers.

OUT/page/index.html, OUT/page/pictures/   for the people who answer; says nothing of which is whose
OUT/key.json                              keep it: which side of each question is whose

The page works as a file or from any static server. A person's answers are a file that the page
offers at its end, to be sent back.
"""

import html
import itertools
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from imprint_jax.composing.manifest import Entry
from imprint_jax.data.segment import Segmenter
from imprint_jax.errors import InputError
from imprint_jax.evaluation.evaluate import find_shots
from imprint_jax.evaluation.measures import Shot, read_result
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


# Fewer people than this are not drawn anew for intervals: compositions are. Ours.
ENOUGH_PEOPLE = 5
# Draws for the intervals of scores. Ours.
DRAWS = 500
# So many wins and losses against a method of mean strength are added to each method's, so that one
# that always wins has a finite score. Ours.
PRIOR = 0.5


@dataclass(frozen=True)
class Answer:
    """One decision: which of two methods, as places in `Tally.methods`; None is "same"."""

    person: str
    question: str
    entry: str
    methods: tuple[int, int]
    chosen: int | None


@dataclass(frozen=True)
class Tally:
    """All answers to a study.

    Attributes:
        methods: Names.
        people: How many answered.
        answers: What they said.
    """

    methods: list[str]
    people: int
    answers: list[Answer]


@dataclass(frozen=True)
class Count:
    """Answers to one question about two methods.

    Attributes:
        question: Which.
        methods: The two.
        first: How often the first was chosen.
        second: The second.
        same: Neither.
        p: Two-sided sign test of `first` against `second`: how likely so uneven a count is if both
            were equal; it takes answers as independent, which those of one person are not quite.
    """

    question: str
    methods: tuple[str, str]
    first: int
    second: int
    same: int
    p: float


@dataclass(frozen=True)
class Score:
    """A method's strength by one question, with its 95 % interval.

    Strengths are natural log-odds with a mean of 0: a method that is 1 higher than another is
    chosen over it in 73 % of the decisions (Bradley and Terry 1952).
    """

    question: str
    method: str
    strength: float
    low: float
    high: float


def make(
    entries: list[Entry],
    folders: list[Path],
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    segmenter: Segmenter | None = None,
) -> Path:
    """Writes the page and its key.

    Each entry is shown by two of the methods; all pairs of methods come about equally often.

    Args:
        entries: The manifest's; the first picture of each is shown.
        folders: Each method's results, two or more.
        out: Folder to make.
        limit: Only so many entries, drawn at random.
        seed: Decides the order, the pairs and the sides.
        segmenter: Finds the objects in pictures with neither mask nor transparency.

    Returns:
        The page.

    Raises:
        InputError: `out` is not empty, or pictures are missing.
    """
    check_unused(out)
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("Give two or more folders of results, each once.")
    shots = find_shots(entries, {str(number): folder for number, folder in enumerate(folders)})
    first = {(shot.method, shot.entry.id): shot for shot in shots if shot.number == 0}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(entries))[:limit]
    pairs = rng.permutation(list(itertools.combinations(range(len(folders)), 2)))
    with atomic_folder(out) as building:
        pictures = building / "page" / "pictures"
        pictures.mkdir(parents=True)
        sections, key = [], {}
        for number, place in enumerate(order):
            entry = entries[place].id
            sides = rng.permutation(pairs[number % len(pairs)]).tolist()
            key[str(number)] = {"id": entry, "sides": sides}
            shown = [first[str(side), entry] for side in sides]
            sections.append(_section(number, shown, pictures, segmenter))
        identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(key)).hex[:12]
        count = len(sections) * len(QUESTIONS)
        script = SCRIPT % json.dumps({"id": identity, "count": count})
        body = "<h1>Which is better?</h1>" + "\n".join(sections)
        body += f'<p><button id="save">Save my answers</button></p><script>{script}</script>'
        (building / "page" / "index.html").write_text(
            page("Comparison", body, STYLE), encoding="utf-8"
        )
        names = [folder.name for folder in folders]
        if len(set(names)) < len(names):
            names = [str(folder) for folder in folders]
        content = {"study": identity, "methods": names, "pairs": key}
        (building / "key.json").write_text(json.dumps(content, indent=1) + "\n")
    return out / "page" / "index.html"


def _section(number: int, shots: list[Shot], pictures: Path, segmenter: Segmenter | None) -> str:
    """A pair and its questions; pictures are encoded anew, so that no metadata tells whose."""
    request = shots[0].entry.request(segmenter=segmenter)
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
    questions = "".join(_question(number, *question) for question in QUESTIONS.items())
    return f"<section>{figures}{questions}</section>"


def _question(number: int, name: str, text: str) -> str:
    choices = "".join(
        f'<label><input type="radio" name="{number}.{name}" value="{answer}"> {answer}</label> '
        for answer in ANSWERS
    )
    return f"<p>{html.escape(text)} {choices}</p>"


def read(folder: Path, files: Iterable[Path]) -> Tally:
    """The answers of any number of people.

    Who saved several times is counted once, by the file with the most answers, the newest of them.

    Args:
        folder: What `make` wrote.
        files: What the page saved.

    Raises:
        InputError: A file is damaged or of another study.
    """
    key = _json(folder / "key.json")
    by_person: dict[str, dict] = {}
    size = lambda saved: (len(saved["answers"]), saved.get("saved", 0))
    for path in files:
        saved = _read_answers(path, folder, key)
        before = by_person.setdefault(saved["person"], saved)
        by_person[saved["person"]] = max(saved, before, key=size)
    answers = []
    for person, saved in sorted(by_person.items()):
        for name, answer in sorted(saved["answers"].items()):
            number, _, question = name.partition(".")
            shown = key["pairs"][number]
            chosen = None if answer == "same" else shown["sides"][ANSWERS.index(answer)]
            methods = tuple(sorted(shown["sides"]))
            answers.append(Answer(person, question, shown["id"], methods, chosen))
    return Tally(key["methods"], len(by_person), answers)


def count(tally: Tally) -> list[Count]:
    """The decisions between every two methods that were shown together, by question."""
    counts = []
    for question in QUESTIONS:
        answers = [answer for answer in tally.answers if answer.question == question]
        for pair in itertools.combinations(range(len(tally.methods)), 2):
            chosen = [answer.chosen for answer in answers if answer.methods == pair]
            first, second = (chosen.count(method) for method in pair)
            p = float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
            names = tally.methods[pair[0]], tally.methods[pair[1]]
            counts.append(Count(question, names, first, second, chosen.count(None), p))
    return counts


def scores(tally: Tally) -> list[Score]:
    """Each method's strength by each question that was answered; "same" is half a win for both.

    Intervals are of strengths after drawing people anew, or compositions where fewer than
    `ENOUGH_PEOPLE` answered.
    """
    result = []
    of_people = tally.people >= ENOUGH_PEOPLE
    for question in QUESTIONS:
        groups: dict[str, np.ndarray] = {}
        for answer in tally.answers:
            if answer.question == question:
                which = answer.person if of_people else answer.entry
                wins = groups.setdefault(which, np.zeros((len(tally.methods),) * 2))
                i, j = answer.methods
                wins[i, j] += 0.5 if answer.chosen is None else float(answer.chosen == i)
                wins[j, i] += 0.5 if answer.chosen is None else float(answer.chosen == j)
        if not groups:
            continue
        wins = np.stack(list(groups.values()))
        rng = np.random.default_rng(0)
        drawn = rng.integers(len(wins), size=(DRAWS, len(wins)))
        strengths = np.array([bradley_terry(wins[draw].sum(axis=0)) for draw in drawn])
        low, high = np.quantile(strengths, [0.025, 0.975], axis=0)
        for k, strength in enumerate(bradley_terry(wins.sum(axis=0))):
            ends = float(low[k]), float(high[k])
            result.append(Score(question, tally.methods[k], float(strength), *ends))
    return result


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """The most likely strengths of methods, by Hunter's iteration (2004), with `PRIOR`.

    Args:
        wins: (n n), how often the row's method was chosen over the column's.

    Returns:
        (n,) log-odds with a mean of 0.
    """
    decisions = wins + wins.T
    total = wins.sum(axis=1) + PRIOR
    strength = np.ones(len(wins))
    for _ in range(1000):
        shares = decisions / (strength[:, None] + strength)
        prior = 2 * PRIOR / (strength + 1)
        new = total / (shares.sum(axis=1) + prior)
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / strength)).max() < 1e-9:
            break
        strength = new
    return np.log(strength)


def _read_answers(path: Path, folder: Path, key: dict) -> dict:
    """What the page saved: "person", when ("saved", milliseconds), and "answers" by question.

    Raises:
        InputError: As `count`.
    """
    file = _json(path)
    kinds = {"study": str, "person": str, "answers": dict}
    if (
        not isinstance(file, dict)
        or not all(isinstance(file.get(name), kind) for name, kind in kinds.items())
        or not isinstance(file.get("saved", 0), int)  # pages of before do not say
        or file["study"] != key["study"]
    ):
        raise InputError(f"{path} holds no answers to the study in {folder}.")
    for name, answer in file["answers"].items():
        number, _, question = name.partition(".")
        if number not in key["pairs"] or question not in QUESTIONS or answer not in ANSWERS:
            raise InputError(f"{path}: {name!r}: {answer!r} is no answer to this study.")
    return file


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
