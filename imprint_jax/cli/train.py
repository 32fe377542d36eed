"""`imprint train`, `export`: a training, and what comes of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprint_jax.cli.terminal import App, console, note, stdout, use_compilation_cache
from imprint_jax.errors import InputError

if TYPE_CHECKING:
    from imprint_jax.config import Config

app = App()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    workdir: Annotated[Path, typer.Option(help="Folder of the run.")],
    config: Annotated[
        str | None,
        typer.Option(help="A recipe's name, or a .py file; --resume needs none."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check recipe, data and weights.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --dry-run: the configuration, every parameter.")
    ] = False,
    profile: Annotated[
        int,
        typer.Option(help="Record so many steps for a profiler, in WORKDIR/profile.", min=0),
    ] = 0,
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

    Ends with exit code 0 when all steps are done; with 143 after SIGTERM and 130 after Ctrl-C, the
    state saved. `--resume` takes the run's own configuration; overrides of what shows and keeps a
    run may change.
    """
    from absl import flags

    from imprint_jax.runtime import distributed

    settings = _settings(config, workdir, resume, context.args)
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
        profile=profile,
        verbose=verbose,
        console=stdout if dry_run else console,
    )
    raise typer.Exit(code)


def _settings(recipe: str | None, workdir: Path, resume: bool, overrides: list[str]) -> "Config":
    from imprint_jax import config as configs
    from imprint_jax.training import run_directory

    if resume and run_directory.holds_run(workdir):
        return run_directory.config_to_resume(workdir, recipe, overrides)
    if recipe is None:
        raise InputError(f"{workdir} holds no run to resume: name a recipe, --config NAME.")
    return configs.Config.of(configs.load(recipe, overrides))


@app.command()
def export(
    workdir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    dst: Annotated[Path, typer.Argument(help="Folder to make: config.json, *.safetensors.")],
    ema: Annotated[bool, typer.Option(help="The averaged weights, or the last step's.")] = True,
) -> None:
    """Write a run's newest weights as a released folder, in half precision."""
    from imprint_jax.runtime.files import atomic_folder, check_unused
    from imprint_jax.training import checkpoint, initialize
    from imprint_jax.weights import release

    check_unused(dst)
    licences = initialize.load_licences(str(workdir))
    config, params = checkpoint.load_params(workdir, ema=ema)
    with atomic_folder(dst) as folder:
        release.save(folder, config.released(), params, licences)
    note(f"wrote {dst}; compose with it: imprint compose --model {dst} ...")
