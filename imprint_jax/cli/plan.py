"""`imprint plan`: what a training or the sampler will need of a chip, before it is run."""

from pathlib import Path
from typing import Annotated

import platformdirs
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from imprint_jax.cli.terminal import App, console, stdout
from imprint_jax.runtime.accelerators import ACCELERATORS, UTILISATION

app = App()

# Pictures that are sampled together.
SAMPLING_BATCHES = (1, 4, 16)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe's name, or a .py file.")],
    devices: Annotated[int, typer.Option(help="GPUs, or TPU chips.")] = 1,
    mesh: Annotated[
        str | None, typer.Option(help="data=2,fsdp=4 (default: the recipe's fsdp).")
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option(help="Samples a step over all devices; steps for as many samples in all."),
    ] = None,
    accelerator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>", help="Compile for this chip; again: more (default: all, --estimate)."
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Compile for CPU, whatever the accelerator.")
    ] = False,
    sampling: Annotated[
        bool, typer.Option("--sampling", help="Plan the sampler at batch 1, 4 and 16.")
    ] = False,
    plans: Annotated[
        Path | None, typer.Option(help="Folder in which plans are kept (default: the user's cache)")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak FLOP/s that is reached.", min=0.01, max=1)
    ] = UTILISATION,
) -> None:
    """Say what a training, or the sampler, will need: memory, kernels, FLOPs, traffic, time.

    Compiles the program for the chip that --accelerator names, with the extra plan-gpu or plan-tpu;
    with --estimate, or without --accelerator, for CPU. It takes minutes at full size; runs nothing.
    `--config.a.b=value` works as in `imprint train`.
    """
    from imprint_jax import config as configs
    from imprint_jax.planning import kept_plans, report
    from imprint_jax.planning.compile_process import plan as compile_plan
    from imprint_jax.planning.plan import check_accelerator, sampling_request, training_request

    overrides = list(context.args)
    if global_batch is not None:
        recipe = configs.load(config, overrides)
        steps = round(recipe.total_steps * recipe.batch_size / max(global_batch, 1))
        overrides.append(f"--config.batch_size={global_batch}")
        overrides.append(f"--config.total_steps={max(steps, 1)}")
    for name in accelerator or ():
        check_accelerator(name)
    chips = [None] if estimate or not accelerator else accelerator
    if sampling:
        requests = [
            sampling_request(config, overrides, batch, chip)
            for chip in chips
            for batch in SAMPLING_BATCHES
        ]
    else:
        requests = [training_request(config, overrides, devices, mesh, chip) for chip in chips]

    cache = platformdirs.user_cache_path("imprint_jax") / "plans"
    folders = [plans or cache, kept_plans.published_folder()]
    for request in requests:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting", total=None)
            say = lambda text, task=task, progress=progress: progress.update(task, description=text)
            planned = compile_plan(request, folders, say)
        rows = [request.accelerator] if request.accelerator else accelerator or list(ACCELERATORS)
        for table in report.tables(planned, rows, utilisation):
            stdout.print(table)
        for line in report.remarks(planned):
            stdout.print(line, soft_wrap=True, highlight=False)
