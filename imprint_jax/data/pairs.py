"""Which two records make a pair: all the rules (paper, Sec. 3.1 and 3.3).

kind of source    data sets              object from         target
views, pasted     mvimgnet, objaverse    a view              another, `window` frames away at most;
                                                             itself with a `window` of 0
video             youtubevos, vipseg,    a frame             any other frame of the object
                  davis
video             ppr10k                 a photo             any other photo of the group
pair              folder                 the foreground      the target
scenes            scenes                 a view              any other of the object, of any scene
photo             photos                 a photo             itself
"""

import numpy as np

from imprint_jax.errors import InputError


def make_pairs(kind: str, index: dict[str, np.ndarray], window: int) -> "WindowPartners | Itself":
    """The pairs of a source: `len(pairs)`, and `pairs.draw(k, rng)` -> two record numbers.

    Args:
        kind: "views", "pasted", "video", "pair", "scenes" or "photo".
        index: As in `WindowPartners`.
        window: Likewise.

    Raises:
        InputError: There is no pair.
    """
    match kind:
        case "views" | "pasted":
            return WindowPartners(index, window) if window else Itself(index)
        case "video":
            return WindowPartners(index, None)
        case "pair":
            return WindowPartners(index, None, first=0)
        case "scenes":
            # All views of an object, of whichever scene, as the frames of one video.
            numbers = np.arange(len(index["frame"]))
            merged = {**index, "instance": np.zeros_like(numbers), "frame": numbers}
            return WindowPartners(merged, None)
        case "photo":
            return Itself(index)
    raise ValueError(f"no pair rule for {kind!r}")


class Itself:
    """Every record with a mask, paired with itself.

    Args:
        index: As in `WindowPartners`.

    Attributes:
        records: (p) int64, their numbers.

    Raises:
        InputError: No record has a mask.
    """

    def __init__(self, index: dict[str, np.ndarray]):
        self.records = np.flatnonzero(index["has_mask"])
        if not self.records.size:
            raise InputError("No picture has an object marked.")

    def __len__(self) -> int:
        return len(self.records)

    def draw(self, k: int, rng: np.random.Generator) -> tuple[int, int]:
        """The record's number, twice."""
        return int(self.records[k]), int(self.records[k])


class WindowPartners:
    """Pairs of views of one object with `0 < |frame difference| <= window` (paper, Sec. 3.1).

    Args:
        index: Arrays `group`, `instance`, `frame`, `has_mask`, one row a record; records without a
            mask are in no pair.
        window: The paper's n, 7; None: any distance.
        first: Pairs start from frames of this number only; None: from any.

    Attributes:
        records: (p) int64, the records that have a partner, ascending. Pair k starts from
            `records[k]`; `len` is p.

    Raises:
        InputError: There is no pair.
    """

    def __init__(
        self, index: dict[str, np.ndarray], window: int | None, *, first: int | None = None
    ):
        with_mask = np.flatnonzero(index["has_mask"])
        group, instance, frame = (index[k][with_mask] for k in ("group", "instance", "frame"))
        order = np.lexsort((frame, instance, group))
        group, instance, frame = group[order], instance[order], frame[order]
        new_object = (np.diff(group, prepend=-1) != 0) | (np.diff(instance, prepend=-1) != 0)
        # All frames on one axis, objects further apart than the window: one search finds the
        # window's ends for millions of records. Longer gaps are shortened to that, which keeps
        # places small whatever the frames' numbers are; without a window, frames are just counted.
        may_start = np.full(frame.shape, True) if first is None else frame == first
        apart = "" if window is None else f" at most {window} frames apart"
        longest = 1 if window is None else window + 1
        window = len(frame) if window is None else window
        step = np.minimum(np.diff(frame, prepend=frame[:1]), longest)
        step[new_object] = window + 1
        place = np.cumsum(step)
        begin = np.searchsorted(place, place - window, side="left")
        end = np.searchsorted(place, place + window, side="right")
        # The view itself, and any other with its frame number.
        self_first = np.searchsorted(place, place, side="left")
        self_last = np.searchsorted(place, place, side="right")
        count = (end - begin) - (self_last - self_first)

        # Positions below are in sorted order; `_sorted` leads back to record numbers.
        self._sorted = with_mask[order]
        starts = np.flatnonzero((count > 0) & may_start)
        if not starts.size:
            raise InputError(f"No object has two views{apart}.")
        starts = starts[np.argsort(self._sorted[starts])]
        self.records = self._sorted[starts]
        self._first, self._count = begin[starts], count[starts]
        self._self_first, self._self_last = self_first[starts], self_last[starts]

    def __len__(self) -> int:
        return len(self.records)

    def partners(self, k: int) -> np.ndarray:
        """All records that may be the other view of pair `k`."""
        return np.array([self._partner(k, n) for n in range(self._count[k])])

    def draw(self, k: int, rng: np.random.Generator) -> tuple[int, int]:
        """Record numbers of pair `k`: its first view, and one of its partners at random."""
        return int(self.records[k]), self._partner(k, int(rng.integers(self._count[k])))

    def _partner(self, k: int, n: int) -> int:
        position = self._first[k] + n
        if position >= self._self_first[k]:
            position += self._self_last[k] - self._self_first[k]
        return int(self._sorted[position])
