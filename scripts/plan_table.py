"""Prints the plans in docs/plans as Markdown tables, for docs/planning.md.

python scripts/plan_table.py
"""

import json
import shlex

from imprint_jax.planning.kept_plans import published_folder
from imprint_jax.planning.plan import Plan
from imprint_jax.planning.roofline import roofline
from imprint_jax.runtime.accelerators import ACCELERATORS


def command(plan: Plan) -> str:
    """What printed the plan."""
    request = plan.request
    words = ["imprint plan --config", request.recipe]
    if request.sampling_batch is None:
        mesh = ",".join(f"{axis}={size}" for axis, size in request.mesh.items())
        words += [f"--devices {plan.devices}", f"--mesh {mesh}"]
    else:
        words += ["--sampling"]
    if request.accelerator:
        words += [f"--accelerator {request.accelerator}"]
    return " ".join([*words, *map(shlex.quote, request.overrides)])


def training_row(plan: Plan) -> list[str]:
    """Cells of a training step's plan."""
    request, gib = plan.request, lambda size: f"{size / 2**30:.1f}"
    sent = sum(c.sent for c in plan.collectives)
    mesh = " x ".join(str(size) for size in request.mesh.values())
    flash = sum(x.count for x in plan.attentions if not x.why_not_flash)
    chip, times = request.accelerator or "XLA:CPU", None
    if request.accelerator:
        times = roofline(plan, ACCELERATORS[request.accelerator])
    step = [f"{times.step:.2f}", "yes" if times.fits else "**no**"] if times else ["", ""]
    batch = f"{plan.batch_size} / {plan.accumulation}"
    cells = [request.recipe, f"{plan.devices} {chip}", mesh, batch, gib(plan.resident)]
    if plan.out_of_memory:
        return [*cells, "", f"**no**: {plan.out_of_memory}", "", "", "", "", ""]
    return [
        *cells,
        gib(plan.temporary),
        gib(plan.peak),
        gib(sent),
        f"{flash} of {sum(x.count for x in plan.attentions)}",
        *step,
        f"{plan.compile_seconds:,.0f}",
    ]


def sampling_row(plan: Plan) -> list[str]:
    """Cells of the sampler's plan."""
    gib = lambda size: f"{size / 2**30:.1f}"
    times = roofline(plan, ACCELERATORS[plan.request.accelerator])
    rate = f"{plan.batch_size / times.step:.1f}"
    cells = [plan.request.accelerator, f"{plan.batch_size}", gib(plan.resident), gib(plan.peak)]
    return [*cells, rate, "yes" if times.fits else "**no**", f"{plan.compile_seconds:,.0f}"]


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def main() -> None:
    """Prints a table of training steps, one of samplers, and the commands."""
    plans = [Plan.from_json(json.loads(p.read_text())) for p in published_folder().glob("*.json")]
    order = list(ACCELERATORS)
    rank = lambda p: order.index(p.request.accelerator) if p.request.accelerator else len(order)
    plans.sort(key=lambda p: (p.request.recipe, rank(p), p.batch_size, p.accumulation))
    training = [p for p in plans if p.request.sampling_batch is None]
    columns = ["recipe", "devices", "data x fsdp", "batch / parts", "resident GiB", "temporary GiB"]
    columns += ["peak GiB", "GiB sent", "flash", "step s", "fits", "compiled in s"]
    print_table(columns, [training_row(p) for p in training])
    sampling = [p for p in plans if p.request.sampling_batch is not None]
    columns = ["chip", "batch", "resident GiB", "peak GiB", "pictures/s at most", "fits"]
    print_table([*columns, "compiled in s"], [sampling_row(p) for p in sampling])
    for line in dict.fromkeys(command(p) for p in plans):
        print(line)


if __name__ == "__main__":
    main()
