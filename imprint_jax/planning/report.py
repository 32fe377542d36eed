"""A plan as tables and sentences."""

from rich.table import Table

from imprint_jax.planning.plan import Plan
from imprint_jax.planning.roofline import USABLE_MEMORY, roofline
from imprint_jax.runtime.accelerators import ACCELERATORS

SECONDS_A_DAY = 86_400


def tables(plan: Plan, accelerators: list[str], utilisation: float) -> list[Table]:
    """A plan to print: memory, kernels, traffic between devices, and each accelerator's time.

    Args:
        plan: The plan.
        accelerators: Names in `ACCELERATORS`.
        utilisation: As `roofline` takes it.
    """
    shown = [_memory(plan), _attentions(plan)]
    if plan.library_calls:
        shown.append(_library_calls(plan))
    if plan.collectives:
        shown.append(_collectives(plan))
    return [*shown, _times(plan, accelerators, utilisation)]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title)
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _memory(plan: Plan) -> Table:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.request.mesh.items())
    table = _table(f"A device's memory, {mesh}", ["what"], ["GiB"])
    sampler = plan.request.sampling_batch is not None
    for what, size in (
        ("trained parameters, float32", plan.trained),
        ("parameters" if sampler else "frozen parameters", plan.frozen),
        ("average (EMA)", plan.average),
        ("moments", plan.moments),
        ("batch", plan.inputs),
        ("all that is resident", plan.resident),
    ):
        if size or not sampler:
            table.add_row(what, _gib(size))
    if not plan.out_of_memory:
        table.add_row("temporary" + " (estimate)" * plan.is_estimate, _gib(plan.temporary))
        table.add_row("peak" + " (estimate)" * plan.is_estimate, _gib(plan.peak))
    return table


def _attentions(plan: Plan) -> Table:
    flash = sum(x.count for x in plan.attentions if not x.why_not_flash)
    of_all = sum(x.count for x in plan.attentions)
    title = f"Attentions of a forward pass: {flash} of {of_all} are flash"
    table = _table(title, ["kernel", "why not flash"], ["times", "tokens", "keys", "heads", "of"])
    for x in plan.attentions:
        sizes = (x.count, x.queries, x.keys, x.heads, x.width)
        table.add_row(x.kernel, x.why_not_flash, *(f"{size:,}" for size in sizes))
    return table


def _library_calls(plan: Plan) -> Table:
    table = _table("Calls of libraries", ["function"], ["times"])
    for function, count in plan.library_calls.items():
        table.add_row(function, f"{count:,}")
    return table


def _collectives(plan: Plan) -> Table:
    columns = ["devices", "times", "GiB of results", "GiB sent"]
    table = _table("Collectives, a device", ["kind", "over"], columns)
    for c in plan.collectives:
        cells = (c.kind, "+".join(c.axes) or "-", str(c.group), f"{c.count:,}")
        table.add_row(*cells, _gib(c.bytes), _gib(c.sent))
    return table


def _times(plan: Plan, accelerators: list[str], utilisation: float) -> Table:
    sampler = plan.request.sampling_batch is not None
    of_what = (
        f"{plan.batch_size} picture(s)" if sampler else f"{plan.total_steps:,} steps"
    ) + f" at {utilisation:.0%} of the peak FLOP/s"
    once = "s" if sampler else "step s"
    table = _table(
        of_what,
        ["accelerator", "fits"],
        ["GB", "compute s", "memory s", "network s", once, *([] if sampler else ["days"])],
    )
    for name in accelerators:
        times = roofline(plan, ACCELERATORS[name], utilisation)
        days = f"{plan.total_steps * times.step / SECONDS_A_DAY:.1f}"
        seconds = (f"{x:.3g}" for x in (times.compute, times.memory, times.network, times.step))
        memory = f"{ACCELERATORS[name].memory / 1e9:.0f}"
        fits = "yes" if times.fits else "no"
        table.add_row(name, fits, memory, *seconds, *([] if sampler else [days]))
    return table


def remarks(plan: Plan) -> list[str]:
    """What must stand beside the tables."""
    tera = lambda count: f"{count / 1e12:,.1f}"
    lines = [
        f"{tera(plan.flops)} TFLOP ({tera(plan.model_flops)} without recomputation),"
        f" {plan.flops / plan.batch_size / 1e12:.2f} a sample; batch {plan.batch_size} in"
        f" {plan.accumulation} part(s) on {plan.devices} device(s).",
        "Time: the larger of compute and memory traffic, plus the network, none of it hidden.",
        f"Fits: the peak is at most {USABLE_MEMORY:.0%} of the device's memory.",
        f"Compiled by {plan.compiler} in {plan.compile_seconds:.0f} s; nothing was run.",
    ]
    if plan.is_estimate:
        lines.insert(
            0,
            "ESTIMATE by XLA's program for CPU, which holds bfloat16 as float32: temporary memory"
            " and traffic are mostly too high. --accelerator NAME compiles for the chip.",
        )
    if plan.out_of_memory:
        lines.insert(0, f"DOES NOT FIT, says the compiler: {plan.out_of_memory}")
    if plan.extrapolated:
        mesh = ", ".join(f"{axis}={size}" for axis, size in plan.request.compiled.items())
        lines.insert(
            0,
            f"EXTRAPOLATED: compiled for {mesh}, with as many samples a device. The state's bytes"
            " are exact; temporary memory and the collectives' results are taken over.",
        )
    return lines
