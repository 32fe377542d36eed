"""`imprint train`, `export`: a training, and what comes of it."""

from pathlib import Path
from typing import Annotated

import typer

from imprint_jax.cli.terminal import console, note, stdout, use_compilation_cache

app = typer.Typer()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe's name, or a .py file.")],
    workdir: Annotated[Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show configuration, groups and shardings.")
    ] = False,
    multi_process: Annotated[
        bool,
        typer.Option("--distributed", help="One of several processes (SLURM, Open MPI, TPU pod)."),
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, where nothing tells.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="With --coordinator.")] = None,
    process_id: Annotated[int | None, typer.Option(help="With --coordinator, from 0.")] = None,
) -> None:
    """Train one stage: `--config mini_stage1 --workdir runs/stage1 [--config.a.b=value ...]`.

    Ends with exit code 0 when all steps are done, and 143 after SIGTERM, with the state saved.
    """
    from absl import flags

    from imprint_jax import config as configs
    from imprint_jax.runtime import distributed

    settings = configs.load(config, context.args)
    flags.FLAGS(["imprint"])  # Grain's worker processes want absl's flags parsed
    use_compilation_cache()
    if multi_process or coordinator or num_processes or process_id is not None:
        distributed.initialize(coordinator, num_processes, process_id)
    from imprint_jax.training.train import train as run

    code = run(
        settings,
        workdir,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        console=stdout if dry_run else console,
    )
    raise typer.Exit(code)


@app.command()
def export(
    workdir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write: config.json, *.safetensors.")],
    ema: Annotated[bool, typer.Option(help="The averaged weights, or the last step's.")] = True,
) -> None:
    """Write a run's newest weights as a released folder, in half precision."""
    from imprint_jax.training import checkpoint, initialize
    from imprint_jax.weights import release

    licences = initialize.load_licences(str(workdir))
    release.save(dst, *checkpoint.load_params(workdir, ema=ema), licences)
    note(f"wrote {dst}")
