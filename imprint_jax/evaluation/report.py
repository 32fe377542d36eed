"""What an evaluation found, for people: a table, metrics.csv, summary.json and index.html."""

import csv
import html
import io
import json
import math
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

import imprint_jax
from imprint_jax import geometry, images
from imprint_jax.composing import job
from imprint_jax.composing.manifest import which_objects
from imprint_jax.errors import InputError
from imprint_jax.evaluation.batched import settings_hash
from imprint_jax.evaluation.evaluate import Evaluation
from imprint_jax.evaluation.measures import Shot
from imprint_jax.evaluation.statistics import Estimate, estimate, verdict
from imprint_jax.runtime.files import atomic_file, atomic_folder

THUMBNAIL = 320  # pixels, the longer side
# Behind the name of a measure: which way is better.
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
# In OUT/pictures, by which a report's own folder is known from the user's.
MARK = ".report"

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; background: #fff; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { text-align: left; padding: .15em 1em .15em 0; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: 0 .6em 1.2em 0; vertical-align: top }
figure img { display: block; height: 190px; background: #888 }
figcaption { max-width: 20em; color: #555; font-size: 12px; overflow-wrap: anywhere }
section { border-top: 1px solid #ddd; padding-top: .6em }
"""


def check_folder(out: Path) -> None:
    """Call it before any long work.

    Raises:
        InputError: What a report replaces there was not written by one.
    """
    if (out / "pictures" / MARK).is_file():
        return
    for name in ("pictures", "index.html", "metrics.csv", "summary.json"):
        if (out / name).exists():
            raise InputError(
                f"{out / name} is in the way: the report writes there, and it is no report's."
                " Give another --out, or move it."
            )


def summarize(evaluation: Evaluation, *, command: str, manifest: dict) -> dict:
    """What was measured, how it was made, and what came out; for JSON.

    A measure's `mean` is over pictures; `standard_error` and the 95 % `interval` are over objects
    (statistics.py), absent for one object. The k-th pictures of all
    entries are what seed k made; `between_seeds` is the standard deviation (of a sample, n - 1) of
    their means over the entries that have a value for every seed, absent where there is one seed
    or no such entry. `difference` is to the first method on the same compositions.

    Args:
        evaluation: What was measured.
        command: What the user called.
        manifest: From `manifest.describe`.
    """
    first = _values(evaluation, next(iter(evaluation.sets)))
    methods = {}
    for method in evaluation.sets:
        values = _values(evaluation, method)
        methods[method] = {name: _summary(values[name], first.get(name, [])) for name in values}
        methods[method] |= {k: {"mean": x} for k, x in evaluation.sets[method].items()}
    folders = {shot.method: shot.path.parent for shot in evaluation.shots}
    return {
        "command": command,
        "manifest": manifest,
        "made": {m: {"folder": str(f)} | job.recorded(f) for m, f in folders.items()},
        "methods": methods,
        "measures": {
            name: {
                "about": measure.about,
                "better": measure.better,
                "settings": measure.settings,
                "hash": settings_hash({"name": name} | measure.settings),
            }
            | ({"stand_in_for": measure.stand_in} if measure.stand_in else {})
            for name, measure in evaluation.columns.items()
        },
        "not_computed": evaluation.not_computed,
        "imprint_jax": imprint_jax.__version__,
    }


def _values(evaluation: Evaluation, method: str) -> dict[str, list[tuple[Shot, float]]]:
    """The pictures of a method that have a value, by measure."""
    rows = [
        (shot, row)
        for shot, row in zip(evaluation.shots, evaluation.rows, strict=True)
        if shot.method == method
    ]
    return {
        name: [(s, row[name]) for s, row in rows if not math.isnan(row.get(name, math.nan))]
        for name in evaluation.columns
        if name not in evaluation.sets[method]
    }


def _summary(values: list[tuple[Shot, float]], first: list[tuple[Shot, float]]) -> dict:
    if not values:
        return {"mean": None, "pictures": 0}
    numbers = np.array([x for _, x in values])
    summary: dict[str, Any] = {"mean": float(numbers.mean()), "pictures": len(numbers)}
    if len(numbers) > 1:
        summary["deviation"] = float(numbers.std(ddof=1))
    summary |= _interval(_estimate(values))
    entries: dict[str, dict[int, float]] = {}
    for shot, x in values:
        entries.setdefault(shot.entry.id, {})[shot.number] = x
    seeds = sorted({shot.number for shot, _ in values})
    whole = [[of[seed] for seed in seeds] for of in entries.values() if len(of) == len(seeds)]
    if len(seeds) > 1 and whole:
        means = np.mean(whole, axis=0).tolist()
        summary |= {"seeds": means, "between_seeds": float(np.std(means, ddof=1))}
    if first and values[0][0].method != first[0][0].method and (pairs := _paired(values, first)):
        difference = _estimate(pairs)
        summary["difference"] = {"mean": difference.mean} | _interval(difference)
    return summary


def _paired(
    values: list[tuple[Shot, float]], other: list[tuple[Shot, float]]
) -> list[tuple[Shot, float]]:
    """The differences to another method's values on the same compositions."""
    before = {(shot.entry.id, shot.number): x for shot, x in other}
    place = lambda shot: (shot.entry.id, shot.number)
    return [(shot, x - before[place(shot)]) for shot, x in values if place(shot) in before]


def _estimate(values: list[tuple[Shot, float]]) -> Estimate:
    return estimate([x for _, x in values], [which_objects(shot.entry) for shot, _ in values])


def _interval(estimate: Estimate) -> dict:
    if estimate.low is None:
        return {}
    return {"standard_error": estimate.standard_error, "interval": [estimate.low, estimate.high]}


def compare(evaluation: Evaluation, first: str, second: str) -> dict[str, dict]:
    """Two methods' paired differences, `first` minus `second`.

    Args:
        evaluation: What was measured.
        first: A method.
        second: Another one.

    Returns:
        By column, for JSON: mean, interval over objects, pictures, objects, and `verdict` in words.
    """
    first_values, second_values = (_values(evaluation, method) for method in (first, second))
    result = {}
    for name, column in evaluation.columns.items():
        pairs = _paired(first_values.get(name, []), second_values.get(name, []))
        if pairs:
            difference = _estimate(pairs)
            result[name] = {
                "mean": difference.mean,
                "interval": [difference.low, difference.high],
                "pictures": difference.pictures,
                "objects": difference.objects,
                "verdict": verdict(difference, column.better, first, second),
            }
    return result


def comparison_table(compared: dict[str, dict], first: str, second: str) -> Table:
    """What `compare` found, for the terminal."""
    result = Table(title=f"{first} minus {second}, on the same compositions")
    for column in ("measure", "difference", "95 % interval over objects", "so"):
        result.add_column(column, justify="left" if column in ("measure", "so") else "right")
    for name, comparison in compared.items():
        low, high = comparison["interval"]
        interval = "-" if low is None else f"{low:.3g} to {high:.3g}"
        result.add_row(name, f"{comparison['mean']:.3g}", interval, comparison["verdict"])
    return result


def earlier_results(out: Path, manifest: dict) -> dict[str, Path]:
    """The methods of the report that is in a folder, if it is one of the same compositions.

    Args:
        out: The report's folder.
        manifest: From `manifest.describe`.

    Returns:
        {method: folder of its pictures}; empty if there is no such report.
    """
    file = out / "summary.json"
    if not file.is_file():
        return {}
    before = json.loads(file.read_text())
    old = "content_sha256" not in before["manifest"]  # of a time before
    same = ["sha256", "entries", "objects"] if old else ["content_sha256"]
    if any(before["manifest"].get(key) != manifest[key] for key in same):
        return {}
    return {method: Path(origin["folder"]) for method, origin in before["made"].items()}


def table(summary: dict) -> Table:
    """Means for the terminal: a row a measure, a column a method."""
    methods = summary["methods"]
    result = Table(title="means over pictures, ± standard errors over objects")
    result.add_column("measure")
    for method in methods:
        result.add_column(method, justify="right")
    for name, measure in summary["measures"].items():
        head = name + ARROWS[measure["better"]]
        result.add_row(head, *(_cell(methods[m].get(name)) for m in methods))
    return result


def cell(mean: float | None, error: float | None) -> str:
    """A mean and its error as a table shows them."""
    if mean is None:
        return "-"
    return f"{mean:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _cell(summary: dict | None) -> str:
    return cell(summary["mean"], summary.get("standard_error")) if summary else cell(None, None)


def write(
    evaluation: Evaluation, summary: dict, out: Path, *, worst: str | None, limit: int
) -> Path:
    """Writes metrics.csv, summary.json and index.html with its pictures.

    Args:
        evaluation: What was measured.
        summary: From `summarize`.
        out: The folder; made. What an earlier report wrote there is replaced.
        worst: The measure by which the page is sorted, worst first, by the first method's value;
            None keeps the manifest's order.
        limit: How many entries' pictures the page shows, at most.

    Returns:
        The page.

    Raises:
        InputError: As `check_folder`; or `worst` is no measure that has a better and a worse.
    """
    check_folder(out)
    order = sorted_shots(evaluation, worst)
    out.mkdir(parents=True, exist_ok=True)
    # First, as its mark tells from then on that the rest is a report's, even if it ends here.
    with atomic_folder(out / "pictures", replace=True) as building:
        (building / MARK).touch()
        sections = [_section(evaluation, group, building) for group in order[:limit]]
    with atomic_file(out / "metrics.csv") as file:
        file.write_text(_csv(evaluation), encoding="utf-8")
    with atomic_file(out / "summary.json") as file:
        file.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    sorting = f", worst {worst} first" if worst else ""
    head = f"<h1>Evaluation</h1>{_html_made(summary)}{_html_table(summary)}"
    head += _html_settings(summary)
    head += f"<h2>Pictures{sorting}</h2><p>{len(order)} compositions"
    head += f", {min(limit, len(order))} shown. Left of the results: the object, and the"
    head += " background with its hole in grey; right of them the truth, where there is one.</p>"
    with atomic_file(out / "index.html") as file:
        file.write_text(page("Evaluation", head + "\n".join(sections)), encoding="utf-8")
    return out / "index.html"


def sorted_shots(evaluation: Evaluation, worst: str | None) -> list[list[int]]:
    """The places in `evaluation.shots` of each composition, one a method, in the page's order.

    Raises:
        InputError: As `write`.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, shot in enumerate(evaluation.shots):
        groups.setdefault((shot.entry.id, shot.number), []).append(i)
    order = list(groups.values())
    if worst is None:
        return order
    if worst not in evaluation.columns or not evaluation.columns[worst].better:
        sortable = [name for name, m in evaluation.columns.items() if m.better]
        raise InputError(f"--worst {worst!r} is no measure to sort by; {', '.join(sortable)} are.")
    sign = -1 if evaluation.columns[worst].better == "lower" else 1
    value = lambda group: evaluation.rows[group[0]].get(worst, math.nan)
    return sorted(order, key=lambda group: (math.isnan(value(group)), sign * value(group)))


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page; `style` is CSS beside what all pages have."""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n{body}\n</html>\n"
    )


def thumbnail(picture: np.ndarray, path: Path, side: int = THUMBNAIL) -> str:
    """Writes a JPEG of (h w 3) uint8, `side` pixels at most; returns the file's name."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    path.write_bytes(buffer.getvalue())
    return path.name


def object_picture(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An object (h w 3) with its mask, bool or coverage: the box around it, on grey."""
    x0, y0, x1, y1 = geometry.bounding_box(mask if mask.dtype == bool else mask >= geometry.FAINT)
    return geometry.on_grey(image, mask)[y0:y1, x0:x1]


def _section(evaluation: Evaluation, group: list[int], folder: Path) -> str:
    """A composition: object, background with hole, every method's result, the truth."""
    first = evaluation.shots[group[0]]
    request = first.entry.request()
    stem = f"{first.entry.id}_{first.number}"
    shown = object_picture(*request.parts[0].views[0])
    marked = request.photo
    for part in request.parts:
        marked = geometry.fill_hole(marked, part.hole[..., None], "grey", 128)
    figures = [
        _figure(thumbnail(shown, folder / f"{stem}.object.jpg"), "object"),
        _figure(thumbnail(marked, folder / f"{stem}.hole.jpg"), "hole"),
    ]
    for i in group:
        shot, row = evaluation.shots[i], evaluation.rows[i]
        picture = images.read_image(shot.path)[..., :3]
        name = thumbnail(picture, folder / f"{stem}.method.{shot.method}.jpg")
        scores = [f"{k} {x:.3g}" for k, x in row.items() if not math.isnan(x)]
        figures.append(_figure(name, f"{shot.method}: {', '.join(scores)}"))
    if first.entry.target:
        target = images.read_image(first.entry.target)[..., :3]
        figures.append(_figure(thumbnail(target, folder / f"{stem}.target.jpg"), "truth"))
    heading = html.escape(f"{first.entry.id}, picture {first.number}")
    return f"<section><h3>{heading}</h3>{''.join(figures)}</section>"


def _figure(name: str, caption: str) -> str:
    source = f"pictures/{urllib.parse.quote(name)}"
    image = f'<img src="{source}" alt="" loading="lazy">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _html_made(summary: dict) -> str:
    """What was measured, and how each method's pictures were made."""
    manifest = summary["manifest"]
    lines = [
        f"<li>{html.escape(method)}: <code>{html.escape(json.dumps(origin))}</code>"
        for method, origin in summary["made"].items()
    ]
    digest = f", SHA-256 <code>{manifest['sha256'][:12]}</code>" if manifest["sha256"] else ""
    return (
        f"<p><code>{html.escape(summary['command'])}</code></p>"
        f"<p>{html.escape(manifest['path'])}{digest}: {manifest['entries']} entries of"
        f" {manifest['objects']} objects.</p>"
        f"<details><summary>How the pictures were made</summary><ul>{''.join(lines)}</ul></details>"
    )


def _html_table(summary: dict) -> str:
    methods = summary["methods"]
    head = "".join(f'<th class="n">{html.escape(m)}' for m in methods)
    rows = [f"<tr><th>measure<th>better{head}<th>what<th>settings"]
    for name, measure in summary["measures"].items():
        cells = "".join(f'<td class="n">{_cell(methods[m].get(name))}' for m in methods)
        about = html.escape(measure["about"])
        if "stand_in_for" in measure:
            about += f" <em>(stands in for {html.escape(measure['stand_in_for'])})</em>"
        rows.append(
            f"<tr><td>{html.escape(name)}<td>{measure['better']}{cells}<td>{about}"
            f"<td><code>{measure['hash']}</code>"
        )
    return (
        f"<table>{''.join(rows)}</table><p>Means over pictures, ± standard errors over objects.</p>"
    )


def _html_settings(summary: dict) -> str:
    lines = [
        f"<li><code>{m['hash']}</code> " + html.escape(f"{name}: {json.dumps(m['settings'])}")
        for name, m in summary["measures"].items()
    ]
    absent = [
        f"<li>{html.escape(name)}: {html.escape(reason)}"
        for name, reason in summary["not_computed"].items()
    ]
    return (
        f"<details><summary>Settings</summary><ul>{''.join(lines)}</ul></details>"
        f"<details><summary>Not computed</summary><ul>{''.join(absent)}</ul></details>"
    )


def _csv(evaluation: Evaluation) -> str:
    """One line a picture."""
    names = [name for name in evaluation.columns if any(name in row for row in evaluation.rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "id", "picture", "file", *names])
    for shot, row in zip(evaluation.shots, evaluation.rows, strict=True):
        writer.writerow(_csv_line(shot, (row.get(name, math.nan) for name in names)))
    return buffer.getvalue()


def _csv_line(shot: Shot, values: Iterable[float]) -> list:
    numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in values]
    return [shot.method, shot.entry.id, shot.number, shot.path.name, *numbers]
