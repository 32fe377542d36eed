"""The `imprint` command: in this process, or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from imprint_jax import cli
from imprint_jax.cli.terminal import console, stdout
from imprint_jax.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def run(*args) -> tuple[int, str]:
    """Exit code and message of the command, as `imprint` gives them, on this process's devices."""
    with console.capture() as notes, stdout.capture() as results:
        try:
            result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
        except InputError as error:
            return 2, str(error)
    return result.exit_code, result.output + notes.get() + results.get()


def run_alone(
    *args, devices: int = 2, folder: Path = ROOT, **kwargs
) -> subprocess.CompletedProcess:
    """Runs the command in a new process in a folder, on this many fake devices."""
    return subprocess.run(
        _command(args),
        cwd=folder,
        env=_environment(devices),
        capture_output=True,
        text=True,
        **kwargs,
    )


def start(*args, devices: int = 2) -> subprocess.Popen:
    """Starts the command in a new process, on this many fake devices."""
    environment = _environment(devices)
    return subprocess.Popen(_command(args), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def _command(args) -> list[str]:
    return [sys.executable, "-m", "imprint_jax", *map(str, args)]


def _environment(devices: int) -> dict[str, str]:
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    # The checkout's package, wherever the command runs.
    return os.environ | {"XLA_FLAGS": flags, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
