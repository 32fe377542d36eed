"""The identity probe: what an encoder alone knows of which object it sees, without any compositing.

Every view of every object is embedded (`encoders.py`) as training shows it, cut out on
black, and asks for the other views of its object (`identity.retrieval`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imprint_jax import geometry
from imprint_jax.data import transforms
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from imprint_jax.evaluation import identity
from imprint_jax.evaluation.encoders import Encoder

# Views of an object fewer frames apart are left out of a query's gallery. Ours.
APART = 9


@dataclass(frozen=True)
class Result:
    """What the probe found.

    Attributes:
        top1: Share of the views whose nearest view is one of the same object.
        mean_precision: Mean average precision.
        chance: Top-1 of a guess.
        chance_precision: Its mean average precision.
        views: How many views there are.
        objects: And of how many objects.
    """

    top1: float
    mean_precision: float
    chance: float
    chance_precision: float
    views: int
    objects: int


def probe(
    encoder: Encoder,
    records: RecordSource,
    *,
    apart: int = APART,
    color: float = 0.0,
    track: Callable,
) -> Result:
    """Same-object retrieval across views.

    Args:
        encoder: What embeds.
        records: Views with masks.
        apart: Views of an object fewer frames apart are left out of a query's gallery.
        color: Strength of a random change of colour and light of each view, 0 to 1, so that
            colours alone do not give an object away.
        track: (iterable, description, total) -> the iterable, with a progress bar.

    Raises:
        InputError: As `identity.retrieval`; or no record has a mask.
    """
    index = records.index
    numbers = np.flatnonzero(index["has_mask"])
    if not numbers.size:
        raise InputError("The probe needs views of objects with masks; these records have none.")
    view = functools.partial(_view, records, encoder.size, color)
    items = (view(int(number)) for number in numbers)
    embeddings = np.stack(list(track(encoder.embed(items), encoder.about, len(numbers))))
    _, objects = np.unique(
        np.stack([index["group"], index["instance"]])[:, numbers], axis=1, return_inverse=True
    )
    frames = index["frame"][numbers]
    scores = identity.retrieval(embeddings, objects, frames, apart)
    return Result(*scores, views=len(numbers), objects=int(objects.max()) + 1)


def _view(records: RecordSource, size: int, color: float, number: int) -> tuple[np.ndarray]:
    image, coverage = transforms.decode_view(records[number])
    if color:
        rng = np.random.default_rng(number)
        image = transforms.recolor(image, transforms.random_colors(rng, color))
    return (geometry.object_crop(image, coverage, size),)
