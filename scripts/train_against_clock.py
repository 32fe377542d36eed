"""Trains recipes in a given time: `python scripts/train_against_clock.py RECIPE... --minutes 9`.

The number of steps decides how the learning rates go, so it is set before a run starts: a trial of
some seconds measures how long a start takes and how fast steps are, and the run gets as many steps
as fit into its share of the time that is left. It is a run of `imprint train` like any other, in
runs/RECIPE: when the time is over it is told to save and stop, and the same command goes on from
there, to the same number of steps. Validation and previews are off.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from imprint_jax import config as configs

# Of a run's share of the time: how long its trial may measure, and what is left free for surprises.
TRIAL, SPARE = 0.1, 0.05
# The learning rates' warm-up is this share of the steps at most; mini's recipes have more steps.
WARM_UP = 0.05
# No run is worth less.
LEAST_STEPS = 10
FOR_EVER = 10**9
STOPPED = 143  # how a run ends that was told to stop and has saved
LOG_EVERY = 5  # steps of a trial
SAVES = 10  # of a run, so that little is lost even if it is killed


@dataclass(frozen=True)
class Speed:
    """What a trial measured, in seconds: before the first step, of a step, of saving.

    A run compiles anew, since the number of its steps is part of its program.
    """

    start: float
    step: float
    save: float


def steps_in(seconds: float, speed: Speed) -> int:
    """Steps that a run can do in so many seconds, its start and end included."""
    return int(((1 - SPARE) * seconds - speed.start - speed.save) / speed.step)


def train(recipe: str, workdir: Path, overrides: list[str]) -> subprocess.Popen:
    """Starts `imprint train`, which goes on if there is something to go on from."""
    command = [sys.executable, "-m", "imprint_jax", "train", "--config", recipe]
    command += ["--workdir", str(workdir), "--resume", *overrides]
    command += ["--config.validation.every=0", "--config.preview.every=0"]
    return subprocess.Popen(command)


def stop(process: subprocess.Popen, end: float) -> None:
    """Tells a run to save and end, and kills it if it has not by `end`."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(recipe: str, workdir: Path, overrides: list[str], seconds: float) -> Speed:
    """Trains for some seconds after the first metrics, and throws the run away.

    Raises:
        SystemExit: The run ended by itself.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    start = time.monotonic()
    often = [f"--config.log_every={LOG_EVERY}", f"--config.save_every={FOR_EVER}"]
    process = train(recipe, workdir, [*overrides, *often, f"--config.total_steps={FOR_EVER}"])
    metrics, first = workdir / "metrics.jsonl", None
    while first is None or time.monotonic() < first + seconds:
        time.sleep(0.2)
        if process.poll() is not None:
            raise SystemExit(process.returncode)
        if first is None and metrics.exists():
            first = time.monotonic()
    told = time.monotonic()
    stop(process, told + 10 * seconds)
    saving = time.monotonic() - told
    batch_size = json.loads((workdir / "config.json").read_text())["batch_size"]
    steps = [
        batch_size / json.loads(line)["samples_per_second"]
        for line in metrics.read_text().splitlines()
    ]
    shutil.rmtree(workdir)
    step = statistics.median(steps[1:] or steps)
    return Speed(first - start - LOG_EVERY * step, step, saving)


def is_done(workdir: Path) -> bool:
    """Whether a run has made its last step."""
    file = workdir / "config.json"
    last = file.exists() and json.loads(file.read_text())["total_steps"]
    return last and (workdir / "checkpoints" / str(last)).is_dir()


def run(recipe: str, overrides: list[str], share: float, end: float) -> None:
    """Trains one recipe until it is done or `end` comes.

    Args:
        recipe: A name or a file.
        overrides: As `imprint train` takes them.
        share: Seconds for this run.
        end: By `time.monotonic`.

    Raises:
        SystemExit: It failed, or was not done in time.
    """
    workdir = Path("runs") / Path(recipe).stem
    file = workdir / "config.json"
    if file.exists():
        before = json.loads(file.read_text())
        steps, warmup = before["total_steps"], before["optim"]["warmup_steps"]
        saving = 10.0
    else:
        began = time.monotonic()
        trial = workdir.with_name(f"{workdir.name}.trial")
        speed = measure(recipe, trial, overrides, TRIAL * share)
        steps = steps_in(share - (time.monotonic() - began), speed)
        if steps < LEAST_STEPS:
            raise SystemExit(f"{recipe}: {share:.0f} s are too few. {speed}")
        warmup = configs.load(recipe, overrides).optim.warmup_steps
        warmup = min(warmup, int(WARM_UP * steps))
        saving = 2 * speed.save + 2
    print(f"{recipe}: {steps} steps", flush=True)
    schedule = [f"--config.total_steps={steps}", f"--config.optim.warmup_steps={warmup}"]
    saves = f"--config.save_every={max(steps // SAVES, 1)}"
    process = train(recipe, workdir, [saves, *overrides, *schedule])
    try:
        process.wait(max(end - saving - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        stop(process, end)
    if not is_done(workdir):
        if process.returncode in (STOPPED, -signal.SIGKILL):
            print(f"{recipe}: not done; the same command goes on", flush=True)
        raise SystemExit(process.returncode)


def main() -> None:
    """Reads the command line and trains what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "recipes", nargs="+", help="names or files; the second starts from the first"
    )
    parser.add_argument("--minutes", type=float, required=True, help="for all, in all")
    options, overrides = parser.parse_known_args()
    end = time.monotonic() + 60 * options.minutes
    left = [name for name in options.recipes if not is_done(Path("runs") / Path(name).stem)]
    while left:
        run(left[0], overrides, (end - time.monotonic()) / len(left), end)
        left = left[1:]


if __name__ == "__main__":
    main()
