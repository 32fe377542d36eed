"""Reading a compiled program: XLA's text says which kernels run, how often, and what travels.

The text is that of `compiled.as_text()`, of XLA's compilers for CPU, GPU and TPU.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# Collectives, by the bytes a device sends for each byte of the result in a ring of n (the usual
# algorithms; "all-gather" gives n parts of which one was there, "reduce-scatter" one of n).
SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


@dataclass(frozen=True)
class Collective:
    """One kind of traffic in one group of devices, summed over a run of the program.

    Attributes:
        kind: A key of `SENT`.
        axes: Mesh axes over which a group's devices lie.
        group: Devices in a group.
        count: Times it runs.
        bytes: Of its results on one device, summed.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    count: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that one device sends, in a ring."""
        return SENT[self.kind](self.group) * self.bytes


@dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: Of its result.
        type: "f32[8,4]{1,0}", or a tuple of such.
        opcode: "fusion", "all-gather-start"...
        operands: Names of its operands.
        line: The whole line.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    def calls(self, attribute: str) -> str:
        """The computation that an attribute as `calls` or `body` names."""
        return self.field(rf"\b{attribute}=%([\w.\-]+)")

    def field(self, pattern: str) -> str:
        """The group of a pattern that is in the line.

        Raises:
            ValueError: It is not.
        """
        if match := re.search(pattern, self.line):
            return match[1]
        raise ValueError(f"an instruction of an unknown form: {self.line.strip()[:200]}")

    @property
    def is_root(self) -> bool:
        """Whether its result is the computation's."""
        return self.line.lstrip().startswith("ROOT ")


_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


class Program:
    """A program's instructions, and how often each of them runs.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: The text has no entry.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                lines = self.computations[head[2]] = []
                self.entry = head[2] if head[1] else self.entry
            elif (match := _INSTRUCTION.match(line)) and self.computations:
                name, kind, opcode, rest = match.groups()
                operands = re.findall(r"%([\w.\-]+)", rest[: _closing(rest)])
                lines.append(Instruction(name, kind, opcode, tuple(operands), line))
        if not self.entry:
            raise ValueError("the program's text has no entry")

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, times it runs); what a fusion consists of is left out.

        Raises:
            ValueError: A loop's length is not known.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for x in self.computations[name]:
            yield name, x, times
            if x.opcode == "while":
                times_inside = times * self._trip_count(x)
                yield from self._walk(x.calls("condition"), times_inside)
                yield from self._walk(x.calls("body"), times_inside)
            elif x.opcode == "call":
                yield from self._walk(x.calls("to_apply"), times)
            elif x.opcode == "async-start":
                yield from self._walk(x.calls("calls"), times)

    def _trip_count(self, loop: Instruction) -> int:
        """How often a loop runs: as XLA noted, or as jax's scans are written, 0, 1... below n."""
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line):
            return int(noted[1])
        condition = {x.name: x for x in self.computations[loop.calls("condition")]}
        root = next(x for x in condition.values() if x.is_root)
        if root.opcode == "compare" and "direction=LT" in root.line and "cond/lt" in root.line:
            counter, end = (condition[name] for name in root.operands)
            value = re.search(r"constant\((\d+)\)", end.line)
            if counter.opcode == "get-tuple-element" and value:
                return int(value[1])
        raise ValueError(f"a loop of unknown length: {loop.line.strip()[:200]}")


def _closing(text: str) -> int:
    """Where the bracket closes that was opened just before the text."""
    depth = 1
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return position
    return len(text)


# ---------------------------------------------------------------------------- kernels


def library_calls(program: Program) -> dict[str, int]:
    """How often each function of a library (cuDNN, cuBLAS...) or custom kernel is called."""
    counts: collections.Counter[str] = collections.Counter()
    for _, x, times in program.executed():
        if target := re.search(r'custom_call_target="([^"]+)"', x.line):
            counts[target[1]] += times
    return dict(sorted(counts.items()))


# ---------------------------------------------------------------------------- collectives

_COLLECTIVE = re.compile(
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    r"|collective-broadcast|ragged-all-to-all)(?P<start>-start)?"
)


def collectives(program: Program, mesh: dict[str, int]) -> tuple[Collective, ...]:
    """A program's collectives, those in loops as often as they run.

    Args:
        program: What was compiled.
        mesh: The sizes of its axes, in the order in which devices are numbered.

    Raises:
        ValueError: A loop's length is not known, or the program has something that is not
            understood: a count that may be wrong is worse than none.
    """
    total: dict[tuple, list[int]] = {}
    seen, channels = set(), set()

    def add(x: Instruction, times: int, kind: str, result: str) -> None:
        axes, group = _group(x.line, kind, mesh)
        entry = total.setdefault((kind, axes, group), [0, 0])
        entry[0] += times
        entry[1] += times * type_bytes(result)

    for _, x, times in program.executed():
        if match := _COLLECTIVE.fullmatch(x.opcode):
            seen.add(x.line)
            kind = match["kind"]
            if kind not in SENT:
                raise ValueError(f"a collective of an unknown form: {x.line.strip()[:200]}")
            # An operation that only starts has its operands beside its results; but all-reduce.
            both = match["start"] and kind != "all-reduce"
            add(x, times, kind, tuple_parts(x.type)[1] if both else x.type)
        elif x.opcode == "fusion":
            # XLA:TPU puts collectives into fusions, and one that is worked through beside other
            # work into several, all of one channel.
            for inner in program.computations[x.calls("calls")]:
                if match := _COLLECTIVE.fullmatch(inner.opcode):
                    seen.add(inner.line)
                    channel = inner.field(r"channel_id=(\d+)")
                    if channel in channels:
                        continue
                    channels.add(channel)
                    scattered = x.calls("calls").startswith("all-reduce-scatter")
                    kind, result = match["kind"], inner.type
                    if scattered:
                        kind, result = "reduce-scatter", x.type
                    add(inner, times, kind, result)

    everywhere = {
        x.line for y in program.computations.values() for x in y if _COLLECTIVE.fullmatch(x.opcode)
    }
    if unseen := everywhere - seen:
        example = next(iter(unseen)).strip()[:200]
        raise ValueError(f"{len(unseen)} collectives that nothing was seen to run, as {example}")
    return tuple(
        Collective(kind, axes, group, count, size)
        for (kind, axes, group), (count, size) in sorted(total.items())
    )


# Bytes of an element by XLA's name of its type.
ITEM_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "token": 0},
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


def type_bytes(kind: str, skip: Callable[[str], bool] = lambda layout: False) -> int:
    """Bytes of a type as XLA writes it, "f32[8,4]{1,0}", or of a tuple of such.

    Args:
        kind: The type.
        skip: Of an array's layout: whether to leave the array out.
    """
    return sum(
        ITEM_BYTES[name] * math.prod(int(side) for side in shape.split(",") if side)
        for name, shape, layout in _ARRAY.findall(kind)
        if not skip(layout)
    )


def tuple_parts(kind: str) -> list[str]:
    """The members of a tuple's type."""
    parts, depth, start = [], 0, 1
    for position, letter in enumerate(kind):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(kind[start:position].strip())
            start = position + 1
    return parts


def _group(line: str, kind: str, mesh: dict[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes a collective's groups lie along, and devices in a group."""
    shape = tuple(mesh.values())
    groups = _pairs(line) if kind == "collective-permute" else _replica_groups(line, shape)
    apart = {
        axis
        for group in groups
        for first, second in itertools.pairwise(group)
        for axis, a, b in zip(
            mesh, np.unravel_index(first, shape), np.unravel_index(second, shape), strict=True
        )
        if a != b
    }
    return tuple(axis for axis in mesh if axis in apart), len(groups[0])


def _pairs(line: str) -> list[list[int]]:
    match = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if match is None:
        raise ValueError(f"a permutation of an unknown form: {line.strip()[:200]}")
    return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{?(\d+,\d+)", match[1])]


# An order of devices: 0, 1, 2... in a box, its axes perhaps transposed.
_ORDER = r"\[(?P<box>[\d,]+)\](?:T\((?P<turn>[\d,]+)\))?"
_BY_ORDER = re.compile(rf"replica_groups=\[(?P<groups>\d+),(?P<size>\d+)\]<={_ORDER}")
_BY_AXES = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    rf"(?:, device_ids=\({_ORDER}\))? \{{(?P<chosen>[^}}]*)\}}"
)


def _replica_groups(line: str, shape: tuple[int, ...]) -> list[list[int]]:
    """The groups, written out, as a cut of all devices in order, or by a mesh's axes."""
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", match[1])]
    if match := _BY_ORDER.search(line):
        return _order(match).reshape(int(match["groups"]), int(match["size"])).tolist()
    if match := _BY_AXES.search(line):
        sizes = dict(axis.strip().split("=") for axis in match["axes"].split(","))
        names, sides = list(sizes), [int(size) for size in sizes.values()]
        chosen = [name.strip() for name in match["chosen"].split(",")]
        if set(chosen) <= set(names):  # a part of an axis is written otherwise
            along = [names.index(name) for name in chosen]
            rest = [i for i in range(len(sides)) if i not in along]
            order = _order(match) if match["box"] else np.arange(math.prod(sides))
            order = order.reshape(sides).transpose(*rest, *along)
            return order.reshape(-1, math.prod(sides[i] for i in along)).tolist()
    if "replica_groups={}" in line:  # all devices
        return [list(range(math.prod(shape)))]
    raise ValueError(f"groups of an unknown form: {line.strip()[:300]}")


def _order(match: re.Match) -> np.ndarray:
    sides = [int(n) for n in match["box"].split(",")]
    turn = [int(n) for n in match["turn"].split(",")] if match["turn"] else range(len(sides))
    return np.arange(math.prod(sides)).reshape(sides).transpose(*turn).reshape(-1)


# ---------------------------------------------------------------------------- memory traffic

# What moves no bytes by itself.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
    *("conditional", "after-all", "partition-id", "replica-id", "async-start"),
}


def memory_traffic(program: Program, platform: str) -> int:
    """Bytes that all kernels of a run read from and write to a device's memory.

    Each kernel reads its operands and writes its results, once; of an array of which it takes or
    updates a slice, as loops do of what is stacked, the slice. Nothing is taken to stay in caches,
    but for TPUs' vector memory, which the program's text tells apart.

    Args:
        program: What was compiled.
        platform: "gpu" or "tpu".

    Raises:
        ValueError: A loop's length is not known.
    """
    skip = (lambda layout: bool(re.search(r"S\([1-9]", layout))) if platform == "tpu" else _nothing
    size = lambda kind: type_bytes(kind, skip)
    types = {
        name: {x.name: x.type for x in instructions}
        for name, instructions in program.computations.items()
    }
    total = 0
    for computation, x, times in program.executed():
        if x.opcode in _FREE or x.opcode.endswith("-done"):
            continue
        operands = [types[computation].get(name, "") for name in x.operands]
        match x.opcode:
            case "fusion":
                moved = _fusion_traffic(program.computations[x.calls("calls")], x, operands, size)
            case "dynamic-slice" | "slice" | "gather":
                moved = 2 * size(x.type)
            case "dynamic-update-slice":
                moved = 2 * size(operands[1])
            case "custom-call":
                moved = _without_workspace(x.type, size) + sum(size(kind) for kind in operands)
            case opcode if opcode.endswith("-start"):
                moved = size(x.type)  # of operands and results together
            case _:
                moved = size(x.type) + sum(size(kind) for kind in operands)
        total += times * moved
    return total


def _without_workspace(kind: str, size: Callable[[str], int]) -> int:
    """Bytes of a library function's results; what it works in comes last, as bytes."""
    parts = tuple_parts(kind) if kind.startswith("(") else [kind]
    if len(parts) > 1 and re.match(r"[su]8\[\d*\]", parts[-1]):
        parts.pop()
    return sum(size(part) for part in parts)


def _nothing(layout: str) -> bool:
    return False


def _fusion_traffic(
    body: list[Instruction], fusion: Instruction, operands: list[str], size: Callable[[str], int]
) -> int:
    """Bytes that a fusion reads and writes."""
    by_name = {x.name: x for x in body}
    users = collections.defaultdict(list)
    for x in body:
        for name in x.operands:
            users[name].append(x)

    def read(name: str) -> int | None:
        """Bytes read of a value if only slices of it are; None: all of it."""
        total = 0
        for user in users[name]:
            if user.opcode == "bitcast":
                part = read(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                part = size(user.type)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                part = 0  # what is not updated stays in place
            else:
                part = None
            if part is None:
                return None
            total += part
        return total

    total = 0
    parameters = [x for x in body if x.opcode == "parameter"]
    for x in parameters:
        kind = operands[int(x.field(r"parameter\((\d+)\)"))]
        sliced = read(x.name)
        total += size(kind) if sliced is None else min(sliced, size(kind))

    root = next(x for x in body if x.is_root)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    kinds = tuple_parts(fusion.type) if root.opcode == "tuple" else [fusion.type]
    for name, kind in zip(results, kinds, strict=True):
        x = by_name[name]
        while x.opcode == "bitcast":
            x = by_name[x.operands[0]]
        updated = x.opcode == "dynamic-update-slice"
        total += size(by_name[x.operands[1]].type) if updated else size(kind)
    return total
