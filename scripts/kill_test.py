"""Kills training runs at random moments and checks that resuming loses nothing.

    python scripts/kill_test.py CONFIG [--runs 20] [--devices 2,4] [--config.a.b=value ...]

One run is left alone; each of the others gets SIGKILL at a random moment and is resumed in a new
process until it is done. Most are killed between their first checkpoint and their last, every fifth
before its first. Their final parameters, averaged and not, must equal the first run's bit for bit,
and their losses and positions in the data too.

With --devices 2,4 a run has 2 fake CPU devices until it is killed and 4 afterwards; the one that is
left alone has 2. Sums over devices are rounded otherwise, so losses are compared to 1e-5 and
parameters not at all; positions stay equal. A position stands for the samples before it: which
sample has which number is the same on any number of devices (tests/test_pipeline.py).
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import traverse_util

from imprint_jax.training import checkpoint

EARLY = 5  # every so many runs are killed before their first checkpoint
ROUNDING = 1e-5  # relative difference of losses on other numbers of devices
POLL = 0.02  # seconds between two looks at a run's folder

# Starts or resumes the run in a folder, before (0) or after (1) it is killed.
Begin = Callable[[Path, int], subprocess.Popen]


def start(
    config: str, overrides: list[str], workdir: Path, devices: int | None
) -> subprocess.Popen:
    """Starts or resumes a run in a process of its own, on so many fake devices or all there are."""
    command = [sys.executable, "-m", "imprint_jax", "train", "--config", config]
    command += ["--workdir", str(workdir), "--resume", *overrides]
    environment = dict(os.environ)
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}"
        environment["JAX_PLATFORMS"] = "cpu"
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def saved(workdir: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def watched(process: subprocess.Popen, workdir: Path) -> tuple[float, float]:
    """Seconds from now until a run's first checkpoint and until its last.

    Raises:
        RuntimeError: It failed, or saved only once: nothing lies between.
    """
    begin, seen = time.monotonic(), {}
    while process.poll() is None:
        for step in saved(workdir):
            seen.setdefault(step, time.monotonic() - begin)
        time.sleep(POLL)
    if process.returncode:
        raise RuntimeError("The run that is left alone failed.")
    if len(seen) < 2:
        raise RuntimeError("A run must save twice or more: lower --config.save_every.")
    return min(seen.values()), max(seen.values())


def killed(
    process: subprocess.Popen, workdir: Path, times: tuple[float, float], early: bool
) -> bool:
    """Kills a run at a random moment; false if it was done before.

    Args:
        process: The run.
        workdir: Its folder.
        times: What `watched` found of another.
        early: Before the first checkpoint, not after it.
    """
    first, last = times
    while not early and not saved(workdir) and process.poll() is None:
        time.sleep(POLL)
    try:
        process.wait(random.uniform(0, first if early else last - first))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if process.returncode:
        raise RuntimeError(f"{workdir} failed by itself.")
    return False


def run_with_a_kill(begin: Begin, workdir: Path, times: tuple[float, float], early: bool) -> int:
    """Runs to the end in two processes, the first of them killed; the step it had saved."""
    while not killed(begin(workdir, 0), workdir, times, early):
        shutil.rmtree(workdir)
    step = max(saved(workdir), default=0)
    if begin(workdir, 1).wait():
        raise RuntimeError(f"{workdir} could not be resumed.")
    return step


def result(workdir: Path, *, parameters: bool) -> dict[str, np.ndarray]:
    """A run's losses, its positions in the data and perhaps its final parameters, by name."""
    lines = (json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines())
    values = {f"loss {x['step']}": np.float64(x["loss"]) for x in lines if "loss" in x}
    for step in saved(workdir):
        data = json.loads((workdir / "checkpoints" / str(step) / "data/metadata").read_text())
        values[f"position {step}"] = np.int64(data["position"])
    for ema in (True, False) if parameters else ():
        params = checkpoint.load_params(workdir, ema=ema)[1]
        flat = traverse_util.flatten_dict(params, sep="/")
        values |= {f"{path} {'averaged' if ema else ''}": x for path, x in flat.items()}
    return values


def differing(want: dict, got: dict, rounding: float) -> list[str]:
    """Names of what is not equal, floats up to a relative difference of `rounding`."""
    if want.keys() != got.keys():
        return sorted(want.keys() ^ got.keys())
    same = lambda a, b: (
        np.allclose(a, b, rtol=rounding, atol=0)
        if rounding and a.dtype.kind == "f"
        else np.array_equal(a, b)
    )
    return [name for name in want if not same(got[name], want[name])]


def device_counts(text: str) -> tuple[int, int]:
    """ "2,4" -> (2, 4).

    Raises:
        argparse.ArgumentTypeError: It is no pair of positive whole numbers.
    """
    words = text.split(",")
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of positive whole numbers")
    return int(words[0]), int(words[1])


def main() -> None:
    """Reads the command line, runs, compares; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a recipe's name or file")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument(
        "--devices", type=device_counts, help="fake CPU devices before and after the kill: 2,4"
    )
    options, overrides = parser.parse_known_args()
    moved = options.devices is not None
    devices = options.devices or (None, None)
    begin = lambda workdir, part: start(options.config, overrides, workdir, devices[part])
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        times = watched(begin(alone, 0), alone)
        want = result(alone, parameters=not moved)
        failed = 0
        for number in range(1, options.runs + 1):
            workdir = Path(folder) / str(number)
            step = run_with_a_kill(begin, workdir, times, early=number % EARLY == 0)
            got = result(workdir, parameters=not moved)
            differ = differing(want, got, ROUNDING if moved else 0.0)
            failed += bool(differ)
            print(
                f"run {number}: resumed from step {step}, {len(differ)} of {len(want)} differ",
                flush=True,
            )
            shutil.rmtree(workdir)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
