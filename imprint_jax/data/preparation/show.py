"""`show`: a page of pictures, the records of a data set and what training makes of them."""

import html
import io
import json
import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imprint_jax.config import Config
from imprint_jax.data.pipeline import make_transform
from imprint_jax.data.records import RecordSource
from imprint_jax.data.transforms import Scene, decode_view, make_sample
from imprint_jax.errors import InputError
from imprint_jax.geometry import fill_hole, mask_level
from imprint_jax.images import MASK_THRESHOLD
from imprint_jax.runtime.files import atomic_folder, check_unused

THUMBNAIL = 256  # pixels, the longer side
EXAMPLES = 5  # rejects shown a reason

# The kind of source (see pairs.py) that a set is meant for; object-centric ones are for stage 1.
KINDS = {
    "mvimgnet": "views",
    "objaverse": "views",
    "youtubevos": "video",
    "davis": "video",
    "vipseg": "video",
    "ppr10k": "video",
    "photos": "photo",
    "folder": "pair",
    "scenes": "scenes",
}

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; background: #fff; color: #222 }
figure { display: inline-block; margin: 0 1em 1.5em 0; vertical-align: top }
figure img { display: inline-block; height: 160px; background: #888; margin-right: 3px }
figcaption { max-width: 60em; color: #555; font-size: 12px; overflow-wrap: anywhere }
td, th { text-align: left; padding: .1em 1.5em .1em 0; vertical-align: top }
"""


def show(
    config: Config,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    num: int = 24,
    split: str = "train",
    kind: str | None = None,
    backgrounds: str | os.PathLike | None = None,
) -> Path:
    """Writes OUT/index.html and OUT/images: `num` records, and `num` training samples.

    Args:
        config: Its `stage` and `data.sources` are not read.
        folder: A prepared data set.
        out: Folder to make.
        num: How many of each, evenly spread; fewer if there are no more.
        split: "train", "validation" or "test".
        kind: How samples are made, see pairs.py. None: what the set is meant for; "pasted" where
            `backgrounds` are given.
        backgrounds: A prepared data set of photos, for "pasted".

    Returns:
        The page.

    Raises:
        InputError: `out` is not empty, the data set is not usable, or of unknown kind.
    """
    folder, out = Path(folder), Path(out)
    check_unused(out)
    records = RecordSource(folder, split)
    kind = kind or _meant_for(records, backgrounds)
    if kind is None:
        raise InputError(f"{folder} is of a set of one's own; say how samples are made, --kind.")
    if (kind == "pasted") != bool(backgrounds):
        raise InputError('The kind "pasted" and only that needs --backgrounds, a set of photos.')
    with atomic_folder(out) as building:
        (building / "images").mkdir()
        page = [f"<h1>{html.escape(folder.name)}, {html.escape(split)}</h1>"]
        page += _summary(records)
        page += ["<h2>Records</h2>", "<p>The object in colour, what is not object faded.</p>"]
        page += [_record(records, i, building) for i in _spread(len(records), num)]
        page += _samples(config, kind, folder, split, backgrounds, records, num, building)
        page += _rejects(folder)
        text = "\n".join(page)
        (building / "index.html").write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f"<title>{html.escape(folder.name)}</title>\n<style>{STYLE}</style>\n{text}\n</html>\n",
            encoding="utf-8",
        )
    return out / "index.html"


def recipe_for(
    folder: str | os.PathLike,
    *,
    split: str = "train",
    kind: str | None = None,
    backgrounds: str | os.PathLike | None = None,
) -> str:
    """The paper's recipe for samples of this kind, "stage1" or "stage2"; as `show` takes them.

    Raises:
        InputError: The data set is not usable.
    """
    kind = kind or _meant_for(RecordSource(folder, split), backgrounds)
    return f"stage{_stage(kind)}"


def _meant_for(records: RecordSource, backgrounds: str | os.PathLike | None) -> str | None:
    return "pasted" if backgrounds else KINDS.get(records[0]["dataset"])


def _stage(kind: str | None) -> int:
    return 1 if kind == "views" else 2


def _spread(count: int, num: int) -> list[int]:
    """At most `num` of `count` numbers, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(num, count))})


def _summary(records: RecordSource) -> list[str]:
    with_mask = int(records.index["has_mask"].sum())
    return [
        f"<p>{len(records)} records in {len(records.index['group_names'])} groups, {with_mask} with"
        f" an object, {len(records) - with_mask} backgrounds.</p>"
    ]


def _record(records: RecordSource, number: int, building: Path) -> str:
    record = records[number]
    image, mask = decode_view(record)
    height, width = mask.shape
    inside = (mask >= MASK_THRESHOLD)[..., None]
    faded = image // 4 + 160 if inside.any() else image
    picture = _write(building, f"record_{number}", np.where(inside, image, faded).astype(np.uint8))
    about = (
        f"record {number}: {record['group']}, instance {record['instance']}, frame"
        f" {record['frame']}; {width}x{height}, object {inside.mean():.1%}"
    )
    return _figure([picture], about)


def _samples(
    config: Config,
    kind: str,
    folder: Path,
    split: str,
    backgrounds: str | os.PathLike | None,
    records: RecordSource,
    num: int,
    building: Path,
) -> list[str]:
    source: Any = dict(
        kind=kind, records=str(folder), weight=1.0, backgrounds=str(backgrounds or "")
    )
    try:
        data = replace(config.data, split=split, sources=(source,))
        settings = replace(config, stage=_stage(kind), data=data)
        transform = make_transform(settings, *settings.data.sources)
    except InputError as error:
        return ["<h2>Training samples</h2>", f"<p>None: {html.escape(str(error))}</p>"]
    figures = []
    for number in _spread(len(transform), num):
        scene = transform.scene(number, np.random.default_rng([settings.seed, number]))
        figures.append(_sample(number, scene, records, settings, building))
    columns = "object, target"
    if settings.stage == 2:
        columns += ", target with the hole of level 1, mask levels 0 to 3 (white is the hole)"
    heading = f"Training samples, stage {settings.stage}, kind {kind}"
    return [f"<h2>{html.escape(heading)}</h2>", f"<p>From left: {columns}.</p>", *figures]


def _sample(
    number: int, scene: Scene, records: RecordSource, settings: Config, building: Path
) -> str:
    parts = {"object": scene.object, "target": scene.target}
    if settings.stage == 2:
        levels = [mask_level(scene.hole, k, settings.data.mask_sigmas) for k in range(4)]
        parts["target"] = make_sample(scene, levels[1])["target"]
        parts["hole"] = fill_hole(parts["target"], levels[1][..., None], "grey", 128)
        parts |= {f"mask{k}": level.astype(np.uint8) * 255 for k, level in enumerate(levels)}
    pictures = [_write(building, f"sample_{number}_{key}", part) for key, part in parts.items()]
    names = [
        f"record {i} ({name}, instance {records.index['instance'][i]},"
        f" frame {records.index['frame'][i]})"
        for i in scene.records
        for name in [records.index["group_names"][records.index["group"][i]]]
    ]
    return _figure(pictures, f"pair {number}: object from {names[0]}, target from {names[1]}")


def _figure(pictures: list[str], caption: str) -> str:
    images = "".join(f'<img src="images/{name}" alt="" loading="lazy">' for name in pictures)
    return f"<figure>{images}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _write(building: Path, name: str, array: np.ndarray) -> str:
    """A thumbnail: masks as PNG, the rest as JPEG. Returns the file's name."""
    picture = Image.fromarray(array)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    name = f"{name}.png" if array.ndim == 2 else f"{name}.jpg"
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if array.ndim == 2 else "JPEG", quality=88)
    (building / "images" / name).write_bytes(buffer.getvalue())
    return name


def _rejects(folder: Path) -> list[str]:
    """What was left out, by reason, with some examples."""
    path = folder / "rejects.jsonl"
    if not path.exists():
        return []
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    with open(path) as lines:
        for line in map(json.loads, lines):
            counts[line["reason"]] += 1
            if counts[line["reason"]] <= EXAMPLES:
                text = f"{line['path']}: {line['detail']}".encode("utf-8", "replace").decode()
                examples[line["reason"]].append(html.escape(text))
    rows = [
        f"<tr><td>{count}<td>{html.escape(reason)}<td>{'<br>'.join(examples[reason])}"
        for reason, count in counts.most_common()
    ]
    return ["<h2>Left out</h2>", "<table>", *rows, "</table>"] if rows else []
