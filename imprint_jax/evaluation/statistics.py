"""How far a mean may be off, and whether two methods differ: intervals over objects.

Pictures of one object are not independent of each other, so that objects, each with all its
pictures, are what is drawn anew (the cluster bootstrap). An interval holds the middle of the means
of such draws: 95 % of many objects', more of few, whose draws spread too little. Methods are
compared by their differences on the same compositions, whose interval is narrower than that of
either mean.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats takes half a second to import

CONFIDENCE = 0.95
# Of fewer objects nothing is said: all of them agree by chance in one case of eight and more. Ours.
FEWEST = 5
# Draws of objects; the ends of an interval then move by about 1 % of its width between seeds. Ours.
DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures.

    Attributes:
        mean: It.
        pictures: How many there are.
        objects: And of how many objects.
        low, high: Its interval; None where there is one object only.
        standard_error: Of the mean over objects' means; None likewise.
    """

    mean: float
    pictures: int
    objects: int
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None


def estimate(values: Sequence[float], objects: Sequence[Hashable]) -> Estimate:
    """The mean of values, and its interval over objects.

    Args:
        values: Finite, one a picture, at least one.
        objects: What each picture shows.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, which in zip(values, objects, strict=True):
        groups.setdefault(which, []).append(value)
    mean, count = float(np.mean(values)), len(groups)
    if count < 2:
        return Estimate(mean, len(values), count)
    totals = np.array([sum(group) for group in groups.values()])
    sizes = np.array([len(group) for group in groups.values()])
    # The same draws for every call of this size: equal inputs give equal bytes.
    drawn = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    means = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    outside = _outside(count)
    low, high = np.quantile(means, [outside, 1 - outside]).tolist()
    error = float(np.std(totals / sizes, ddof=1) / math.sqrt(count))
    return Estimate(mean, len(values), count, low, high, error)


def _outside(count: int) -> float:
    """What is left out on each side of the bootstrap of `count` objects.

    The expanded percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap"
    (2015), section 5.3: as wide as Student's t would have it.
    """
    wide = special.stdtrit(count - 1, (1 + CONFIDENCE) / 2) * math.sqrt(count / (count - 1))
    return float(special.ndtr(-wide))


def verdict(difference: Estimate, better: str, first: str, second: str) -> str:
    """What a paired difference, of `first` minus `second`, says in words.

    Args:
        difference: From `estimate`.
        better: "higher", "lower" or "", as `measures.Column` has it.
        first: A method's name.
        second: The other's.
    """
    low, high = difference.low, difference.high
    if difference.objects < FEWEST or low is None or high is None:
        return f"too few objects ({difference.objects}): this test cannot tell"
    if low == high == 0:
        return "equal"
    if low <= 0 <= high:
        return "no difference that this test can tell"
    larger, smaller = (first, second) if difference.mean > 0 else (second, first)
    if not better:
        return f"{larger} is higher"
    return f"{larger if better == 'higher' else smaller} is better"
