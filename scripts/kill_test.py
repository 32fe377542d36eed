"""Kills training runs at random moments and checks that resuming loses nothing.

    python scripts/kill_test.py CONFIG [--runs 20] [--config.a.b=value ...]

One run is left alone; each of the others gets SIGKILL at a random moment and is resumed in a new
process until it is done. Their final parameters, averaged and not, must equal the first run's bit
for bit, and their losses too.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flax import traverse_util

from imprint_jax import checkpoint


def start(config: str, workdir: Path, overrides: list[str]) -> subprocess.Popen:
    """Starts or resumes a run in a process of its own."""
    command = [sys.executable, "-m", "imprint_jax", "train", "--config", config]
    command += ["--workdir", str(workdir), "--resume", *overrides]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def killed(config: str, workdir: Path, overrides: list[str], seconds: float) -> bool:
    """Starts a run and kills it at a random moment; false if it was done before."""
    process = start(config, workdir, overrides)
    try:
        process.wait(random.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if process.returncode:
        raise RuntimeError(f"{workdir} failed by itself.")
    return False


def run_with_a_kill(config: str, workdir: Path, overrides: list[str], seconds: float) -> int:
    """Runs to the end in two processes, the first of them killed; the step it had saved."""
    while not killed(config, workdir, overrides, seconds):
        shutil.rmtree(workdir)
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    if start(config, workdir, overrides).wait():
        raise RuntimeError(f"{workdir} could not be resumed.")
    return max(saved, default=0)


def result(workdir: Path) -> dict:
    """A run's final parameters and losses, by name."""
    values = {}
    for ema in (True, False):
        params = checkpoint.load_params(workdir, ema=ema)[1]
        flat = traverse_util.flatten_dict(params, sep="/")
        values |= {f"{path} {'averaged' if ema else ''}": x for path, x in flat.items()}
    lines = (json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines())
    return values | {f"loss {x['step']}": np.float64(x["loss"]) for x in lines if "loss" in x}


def main() -> None:
    """Reads the command line, runs, compares; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a recipe's name or file")
    parser.add_argument("--runs", type=int, default=20)
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        begin = time.monotonic()
        if start(options.config, alone, overrides).wait():
            raise RuntimeError("The run that is left alone failed.")
        seconds = time.monotonic() - begin
        want = result(alone)
        failed = 0
        for number in range(1, options.runs + 1):
            workdir = Path(folder) / str(number)
            saved = run_with_a_kill(options.config, workdir, overrides, seconds)
            got = result(workdir)
            same = got.keys() == want.keys()
            differ = [k for k in want if not (same and np.array_equal(got[k], want[k]))]
            failed += bool(differ)
            print(
                f"run {number}: resumed from step {saved}, {len(differ)} of {len(want)} differ",
                flush=True,
            )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
