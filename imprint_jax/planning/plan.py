"""What a training will need, before it is run: memory, FLOPs, traffic between devices, days.

The whole step is compiled for fake CPU devices in a process of its own; nothing is allocated or
run. What each number is worth stands in docs/planning.md.
"""

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from imprint_jax import config as configs
from imprint_jax.errors import InputError
from imprint_jax.planning.accelerators import ACCELERATORS, UTILISATION, Accelerator

# Meshes up to this are compiled as they are. Larger ones are planned from one of `SMALL` devices,
# or twice as many: compile time grows with devices, a device's program hardly changes. Ours.
COMPILED_AT_MOST = 16
SMALL = 8

# The share of memory that a step may fill. Ours.
USABLE_MEMORY = 0.9

SECONDS_A_DAY = 86_400

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
    """One kind of traffic in one group of devices, summed over a step.

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
class Plan:
    """What one step needs, on each of `devices` devices unless said otherwise; all in bytes.

    Attributes:
        devices: How many.
        mesh: {"data": ..., "fsdp": ...}.
        compiled: The mesh that was compiled; another than `mesh` means extrapolation.
        batch_size: Samples a step, over all devices.
        accumulation: Parts a batch is worked through in.
        total_steps: Of the configuration.
        trained, frozen, average, moments, inputs: What lies in memory throughout: float32 masters,
            parameters that never change, the EMA, the optimizer's state, one batch.
        gradients: Of the trained parameters; part of `temporary`.
        temporary: Activations, gradients and all else that lives during a step: the compiler's
            figure for CPU.
        flops: Of a step over all devices, recomputation counted.
        model_flops: The same without recomputation.
        collectives: A step's.
        compile_seconds: That compiling took.
    """

    devices: int
    mesh: dict[str, int]
    compiled: dict[str, int]
    batch_size: int
    accumulation: int
    total_steps: int
    trained: int
    frozen: int
    average: int
    moments: int
    inputs: int
    gradients: int
    temporary: int
    flops: int
    model_flops: int
    collectives: tuple[Collective, ...]
    compile_seconds: float

    @property
    def resident(self) -> int:
        """Bytes that stay from step to step."""
        return self.trained + self.frozen + self.average + self.moments + self.inputs

    @property
    def memory(self) -> int:
        """Bytes at the step's fullest."""
        return self.resident + self.temporary

    @property
    def extrapolated(self) -> bool:
        """Whether another mesh was compiled than the one asked for."""
        return self.mesh != self.compiled


@dataclass(frozen=True)
class Estimate:
    """A plan on one kind of accelerator: seconds of a step by what takes them, and if it fits."""

    fits: bool
    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """Seconds: products and memory traffic overlap, the network does not."""
        return max(self.compute, self.memory) + self.network


def estimate(plan: Plan, accelerator: Accelerator, utilisation: float = UTILISATION) -> Estimate:
    """The roofline's time of a step.

    compute is a device's share of the FLOPs at `utilisation` of the peak. memory is the least
    traffic there is: the state read and written, the parameters read twice more for each further
    part of a batch, temporary memory written and read in each part. network is what each
    collective sends, at the bandwidth of the slowest link its group has: between machines, that of
    the adapters of all of a group's devices in one, each of which carries a ring (NCCL).
    """
    parameters = plan.trained + plan.frozen
    traffic = (
        2 * plan.resident
        + 2 * (plan.accumulation - 1) * parameters
        + 2 * plan.accumulation * plan.temporary
    )
    network = sum(c.sent / _bandwidth(c, plan, accelerator) for c in plan.collectives)
    return Estimate(
        fits=plan.memory <= USABLE_MEMORY * accelerator.memory,
        compute=plan.flops / plan.devices / (utilisation * accelerator.flops),
        memory=traffic / accelerator.bandwidth,
        network=network,
    )


def _bandwidth(collective: Collective, plan: Plan, accelerator: Accelerator) -> float:
    """Bytes a second that a device sends in its group; devices are numbered along "fsdp" first."""
    node, fsdp = accelerator.node, plan.mesh["fsdp"]
    if (plan.devices if "data" in collective.axes else fsdp) <= node:
        return accelerator.link
    in_node = node if "fsdp" in collective.axes else max(node // fsdp, 1)
    return min(accelerator.link, accelerator.network * in_node)


# ---------------------------------------------------------------------------- what users say


def read_mesh(text: str | None, devices: int, fsdp: int) -> dict[str, int]:
    """The mesh of "data=1,fsdp=8"; an axis left out is what remains.

    Args:
        text: None: `fsdp` as the configuration has it.
        devices: How many there are.
        fsdp: The configuration's.

    Raises:
        InputError: Unknown axes, no numbers, or a product other than `devices`.
    """
    if devices < 1:
        raise InputError(f"--devices must be 1 or more, not {devices}.")
    if fsdp < 1:
        raise InputError(f"config.fsdp = {fsdp} must be 1 or more.")
    mesh = {} if text else {"fsdp": fsdp}
    for part in text.split(",") if text else ():
        axis, _, size = part.partition("=")
        if axis not in ("data", "fsdp"):
            raise InputError(f"--mesh has axes data and fsdp, as in data=2,fsdp=4; not {axis!r}.")
        if not size.isdecimal() or int(size) < 1:
            raise InputError(f"--mesh wants {axis}=NUMBER, not {part!r}.")
        mesh[axis] = int(size)
    for axis, other in (("data", "fsdp"), ("fsdp", "data")):
        if axis not in mesh:
            mesh[axis] = max(devices // mesh[other], 1)
    if mesh["data"] * mesh["fsdp"] != devices:
        raise InputError(
            f"A mesh of data={mesh['data']} times fsdp={mesh['fsdp']} is not {devices} devices."
        )
    return {"data": mesh["data"], "fsdp": mesh["fsdp"]}


def small_mesh(mesh: dict[str, int]) -> dict[str, int]:
    """The mesh that is compiled in place of a large one: every axis it has, still there."""
    if math.prod(mesh.values()) <= COMPILED_AT_MOST:
        return dict(mesh)
    fsdp = math.gcd(mesh["fsdp"], SMALL)
    if fsdp == 1 < mesh["fsdp"]:
        fsdp = 2
    data = max(SMALL // fsdp, 2) if mesh["data"] > 1 else 1
    return {"data": data, "fsdp": fsdp}


def plan(name: str, overrides: Sequence[str], devices: int, mesh: str | None = None) -> Plan:
    """Plans a recipe's step; compiles in a process of its own, for minutes at full size.

    Args:
        name: As `config.load` takes it.
        overrides: Likewise, "--config.a.b=value".
        devices: How many.
        mesh: "data=1,fsdp=8"; None: as the configuration says.

    Raises:
        InputError: The mesh, the batch or the configuration does not fit; found before compiling.
        RuntimeError: Compiling failed.
    """
    from imprint_jax.training.checks import check_config

    config = configs.load(name, overrides)
    shape = read_mesh(mesh, devices, config.fsdp)
    check_config(config, devices)
    small = small_mesh(shape)
    request = {"name": name, "overrides": list(overrides), "mesh": shape, "compiled": small}
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program's text lacks what we read
        # Only buffers and collectives are wanted: no machine code worth running. Without the third
        # flag XLA:CPU merges recomputation with what it is to replace.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={math.prod(small.values())}"
        " --xla_backend_optimization_level=0 --xla_disable_hlo_passes=cse_barrier_expander",
    }
    process = subprocess.run(
        [sys.executable, "-m", "imprint_jax.planning.plan", json.dumps(request)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"Compiling ended with {process.returncode}:\n{process.stderr[-4000:]}")
    found = json.loads(process.stdout.splitlines()[-1])
    if "refused" in found:
        raise InputError(found["refused"])
    collectives = tuple(
        Collective(**c | {"axes": tuple(c["axes"])}) for c in found.pop("collectives")
    )
    return Plan(**found, collectives=collectives)


# ---------------------------------------------------------------------------- the program's text

# Bytes of an element by XLA's name of its type.
ITEM_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    r"^\s+(?:ROOT )?%\S+ = (?P<type>.*?) "
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    r"|collective-broadcast|ragged-all-to-all)(?P<async>-start|-done)?\("
)


def collectives(text: str, mesh: dict[str, int]) -> tuple[Collective, ...]:
    """A step's collectives in a compiled program, those in loops as often as they run.

    Args:
        text: `compiled.as_text()` of a program for CPU.
        mesh: The sizes of its axes, in the order in which devices are numbered.

    Raises:
        ValueError: A loop's length is not known, or the program has something that is not
            understood: a count that may be wrong is worse than none.
    """
    bodies, entry = _computations(text)
    total: dict[tuple, list[int]] = {}
    seen = set()

    def walk(name: str, times: int) -> None:
        for line in bodies[name]:
            if found := _COLLECTIVE.match(line):
                seen.add(line)
                kind = found["kind"]
                if kind not in SENT or found["async"]:
                    raise ValueError(f"a collective of an unknown form: {line.strip()[:200]}")
                axes, group = _group(line, kind, mesh)
                entry = total.setdefault((kind, axes, group), [0, 0])
                entry[0] += times
                entry[1] += times * _bytes(found["type"])
            elif " while(" in line:
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
                if count is None:
                    raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
                for part in ("condition", "body"):
                    walk(re.search(rf"{part}=%([\w.\-]+)", line)[1], times * int(count[1]))
            elif " call(" in line:
                walk(re.search(r"to_apply=%([\w.\-]+)", line)[1], times)

    walk(entry, 1)
    everywhere = {line for body in bodies.values() for line in body if _COLLECTIVE.match(line)}
    if unseen := everywhere - seen:
        example = next(iter(unseen)).strip()[:200]
        raise ValueError(f"{len(unseen)} collectives that nothing was seen to run, as {example}")
    return tuple(
        Collective(kind, axes, group, count, size)
        for (kind, axes, group), (count, size) in sorted(total.items())
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the program's own."""
    bodies, entry, lines = {}, None, []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    if entry is None:
        raise ValueError("the program's text has no entry")
    return bodies, entry


def _bytes(kind: str) -> int:
    """Bytes of a type as XLA writes it, "f32[8,4]{1,0}", or of a tuple of such."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", kind)
    return sum(
        ITEM_BYTES[name] * math.prod(int(side) for side in shape.split(",") if side)
        for name, shape in parts
    )


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
    found = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if found is None:
        raise ValueError(f"a permutation of an unknown form: {line.strip()[:200]}")
    return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{?(\d+,\d+)", found[1])]


# An order of devices: 0, 1, 2... in a box, its axes perhaps transposed.
_ORDER = r"\[(?P<box>[\d,]+)\](?:T\((?P<turn>[\d,]+)\))?"
_BY_ORDER = re.compile(rf"replica_groups=\[(?P<groups>\d+),(?P<size>\d+)\]<={_ORDER}")
_BY_AXES = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    rf"(?:, device_ids=\({_ORDER}\))? \{{(?P<chosen>[^}}]*)\}}"
)


def _replica_groups(line: str, shape: tuple[int, ...]) -> list[list[int]]:
    """The groups, written out, as a cut of all devices in order, or by a mesh's axes."""
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := _BY_ORDER.search(line):
        return _order(found).reshape(int(found["groups"]), int(found["size"])).tolist()
    if found := _BY_AXES.search(line):
        sizes = dict(axis.strip().split("=") for axis in found["axes"].split(","))
        names, sides = list(sizes), [int(size) for size in sizes.values()]
        chosen = [name.strip() for name in found["chosen"].split(",")]
        if set(chosen) <= set(names):  # a part of an axis is written otherwise
            along = [names.index(name) for name in chosen]
            rest = [i for i in range(len(sides)) if i not in along]
            order = _order(found) if found["box"] else np.arange(math.prod(sides))
            order = order.reshape(sides).transpose(*rest, *along)
            return order.reshape(-1, math.prod(sides[i] for i in along)).tolist()
    if "replica_groups={}" in line:  # all devices
        return [list(range(math.prod(shape)))]
    raise ValueError(f"groups of an unknown form: {line.strip()[:300]}")


def _order(found: re.Match) -> np.ndarray:
    sides = [int(n) for n in found["box"].split(",")]
    turn = [int(n) for n in found["turn"].split(",")] if found["turn"] else range(len(sides))
    return np.arange(math.prod(sides)).reshape(sides).transpose(*turn).reshape(-1)


# ---------------------------------------------------------------------------- compiling


def measure(config, mesh: dict[str, int], compiled: dict[str, int]) -> Plan:
    """Compiles the step on this process's devices and reads the plan off it.

    Args:
        config: A whole configuration.
        mesh: What is asked for.
        compiled: What is compiled; as many devices as this process has.
    """
    import time

    import jax

    from imprint_jax.data import batch as batches
    from imprint_jax.training import flops, sharding
    from imprint_jax.training.state import Trainer

    devices = math.prod(mesh.values())
    small = config.copy_and_resolve_references().unlock()
    small.fsdp = compiled["fsdp"]
    # As many samples a device as on the mesh asked for.
    small.batch_size = config.batch_size * math.prod(compiled.values()) // devices
    # The kernels of GPUs do not compile for CPU.
    small.attention = "auto" if config.attention == "cudnn" else config.attention
    where = sharding.make_mesh(small.fsdp)
    trainer = Trainer(small, where)
    step = trainer.train_step()
    batch = batches.batch_spec(small, small.batch_size)
    spread = sharding.batch_sharding(where)
    place = lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies)
    state = jax.tree.map(place, trainer.abstract_state, trainer.state_sharding)
    inputs = {key: place(x, spread) for key, x in batch.items()}

    start = time.perf_counter()
    program = step.lower(state, inputs).compile()
    seconds = time.perf_counter() - start

    held = state_bytes(trainer.abstract_state, mesh)
    # Groups grow with the axes they lie along.
    size = lambda shape, axes: math.prod(shape[axis] for axis in axes)
    grown = lambda c: c.group * size(mesh, c.axes) // size(compiled, c.axes)
    return Plan(
        devices=devices,
        mesh=mesh,
        compiled=compiled,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        total_steps=config.total_steps,
        trained=held["trained"],
        frozen=held["frozen"],
        average=held["ema"],
        moments=held["opt_state"],
        inputs=sum(x.size * x.dtype.itemsize for x in batch.values()) // where.size,
        gradients=held["trained"],
        temporary=program.memory_analysis().temp_size_in_bytes,
        flops=flops.count(step, state, inputs) * devices // where.size,
        model_flops=trainer.model_flops() * devices // where.size,
        collectives=tuple(
            dataclasses.replace(c, group=grown(c)) for c in collectives(program.as_text(), compiled)
        ),
        compile_seconds=seconds,
    )


def state_bytes(abstract_state, mesh: dict[str, int]) -> dict[str, int]:
    """Bytes on one device of each part of a training state: exact, for any mesh.

    Args:
        abstract_state: A `state.TrainState` of shapes.
        mesh: Sizes of "data" and "fsdp"; the devices need not be there.
    """
    import jax

    from imprint_jax.training import sharding

    lies = sharding.state_sharding(
        jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh)), abstract_state
    )
    size = lambda x, spec: math.prod(spec.shard_shape(x.shape)) * x.dtype.itemsize
    total = lambda part: sum(jax.tree.leaves(jax.tree.map(size, *part)))
    parts = ("trained", "frozen", "ema", "opt_state")
    return {name: total((getattr(abstract_state, name), getattr(lies, name))) for name in parts}


# ---------------------------------------------------------------------------- showing


def tables(plan: Plan, accelerators: Sequence[str], utilisation: float) -> list[Table]:
    """A plan to print: a device's memory, a step's traffic, and each accelerator's time.

    Args:
        plan: The plan.
        accelerators: Names in `ACCELERATORS`.
        utilisation: As `estimate` takes it.
    """
    gib = lambda n: f"{n / 2**30:.2f}"
    axes = lambda mesh: " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    memory = Table(title=f"A device's memory, {axes(plan.mesh)}")
    memory.add_column("what")
    memory.add_column("GiB", justify="right")
    for what, size in (
        ("trained parameters, float32", plan.trained),
        ("frozen parameters", plan.frozen),
        ("average (EMA)", plan.average),
        ("moments", plan.moments),
        ("batch", plan.inputs),
        ("activations, gradients, other temporary (estimate)", plan.temporary),
        (f"  of these gradients {gib(plan.gradients)} at least", None),
        ("all", plan.memory),
    ):
        memory.add_row(what, "" if size is None else gib(size))

    traffic = Table(title="Collectives, a step and device")
    for column in ("kind", "over", "devices", "times", "GiB of results", "GiB sent"):
        traffic.add_column(column, justify="left" if column in ("kind", "over") else "right")
    for c in plan.collectives:
        cells = (c.kind, "+".join(c.axes) or "-", str(c.group), f"{c.count:,}")
        traffic.add_row(*cells, gib(c.bytes), gib(c.sent))

    times = Table(title=f"{plan.total_steps:,} steps at {utilisation:.0%} of the peak FLOP/s")
    for column in ("accelerator", "GB", "fits", "compute s", "memory s", "network s", "step s"):
        times.add_column(column, justify="left" if column in ("accelerator", "fits") else "right")
    times.add_column("days", justify="right")
    for name in accelerators:
        found = estimate(plan, ACCELERATORS[name], utilisation)
        days = plan.total_steps * found.step / SECONDS_A_DAY
        seconds = (f"{x:.3g}" for x in (found.compute, found.memory, found.network, found.step))
        room = f"{ACCELERATORS[name].memory / 1e9:.0f}"
        times.add_row(name, room, "yes" if found.fits else "no", *seconds, f"{days:.1f}")
    return [memory, traffic, times]


def remarks(plan: Plan) -> list[str]:
    """What must stand beside the tables."""
    lines = [
        f"{plan.flops / 1e12:,.1f} TFLOP a step ({plan.model_flops / 1e12:,.1f} without"
        f" recomputation), {plan.flops / plan.batch_size / 1e12:.2f} a sample; batch"
        f" {plan.batch_size} in {plan.accumulation} part(s) on {plan.devices} device(s).",
        "Step: the larger of compute and memory traffic, plus the network, none of it hidden.",
        f"Fits: all of the memory above is at most {USABLE_MEMORY:.0%} of the device's.",
        "Temporary memory and traffic are those of XLA's program for CPU, which holds bfloat16 as"
        " float32: estimates, mostly too high.",
        f"Compiled in {plan.compile_seconds:.0f} s; nothing was run.",
    ]
    if plan.extrapolated:
        mesh = ", ".join(f"{axis}={size}" for axis, size in plan.compiled.items())
        lines.insert(
            0,
            f"EXTRAPOLATED: compiled for {mesh}, with as many samples a device. The state's bytes"
            " are exact; temporary memory and the collectives' results are taken over.",
        )
    return lines


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    settings = configs.load(request["name"], request["overrides"])
    try:
        answer = dataclasses.asdict(measure(settings, request["mesh"], request["compiled"]))
    except InputError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer))
