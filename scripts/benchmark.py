"""Speed and memory, measured: `python scripts/benchmark.py WHAT`.

startup  seconds from the command to the picture with `mini`, with an empty compilation cache and
         with a filled one, and the process's peak memory
steps    mini's composites by number of steps and sampler: distance to 200 steps of DDIM
shards   CPU time of a manifest with `mini` in two shards, beside one process that does all of it
scaling  samples/s of mini's first stage in 1, 2 and 4 processes, and what is planned to be sent
records  time and memory of listing, shuffling and resuming a million records
data     samples/s of the input pipeline at 512 px, beside PyTorch's, TFDS's and WebDataset

Beside PyTorch: sampling and training by `gpu_check.py`, each full-size network by `full_size.py`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import benchmark_data
import benchmark_sampling
import benchmark_scaling

WHAT = ("startup", "steps", "shards", "scaling", "records", "data")
SHARED_ENTRIES = 48  # of the manifest for two shards: minutes of work, beside starts of seconds
SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Runs a command; returns its seconds and its peak memory in MiB.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return seconds, usage.ru_maxrss / 1024


def startup(repeats: int) -> None:
    """The default command on a shipped object and photo, cold and warm."""
    view = sorted((SAMPLES / "objects").glob("*/000.webp"))[0]
    photo = sorted((SAMPLES / "photos").glob("*.jpg"))[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "imprint_jax", "compose"]
        command += ["--object", str(view), "--background", str(photo)]
        command += ["--box", "100,100,300,300", "--out", f"{folder}/out.png"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for run in range(1 + repeats):
            seconds, memory = timed(command, environment)
            line = f"{'warm' if run else 'cold'}  {seconds:6.1f} s  {memory:6.0f} MiB"
            print(line, flush=True)


def shards(repeats: int) -> None:
    """One manifest of shipped objects and photos, whole and in two shards that run together.

    CPU time counts, not the clock: whether there is a core for each shard is the machine's matter.
    A turn takes some twenty minutes of CPU time.
    """
    views = sorted((SAMPLES / "objects").glob("*/000.webp"))
    photo = sorted((SAMPLES / "photos").glob("*.jpg"))[0]
    with tempfile.TemporaryDirectory() as folder:
        entry = {"background": str(photo), "box": [100, 100, 300, 300]}
        lines = [
            json.dumps(entry | {"id": str(k), "object": str(views[k % len(views)]), "seed": k})
            for k in range(SHARED_ENTRIES)
        ]
        manifest = Path(folder) / "manifest.jsonl"
        manifest.write_text("\n".join(lines) + "\n")
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for run in range(1 + repeats):
            used = {}
            for count in (2, 1) if run else (2,):
                command = [sys.executable, "-m", "imprint_jax", "compose", "--model", "mini"]
                command += ["--manifest", str(manifest), "--out", f"{folder}/out{run}-{count}"]
                processes = [
                    subprocess.Popen(
                        [*command, "--shard", f"{k + 1}/{count}"],
                        env=environment,
                        stderr=subprocess.DEVNULL,
                    )
                    for k in range(count)
                ]
                usages = [os.wait4(process.pid, 0)[1:] for process in processes]
                if any(status for status, _ in usages):
                    raise RuntimeError(f"exit codes {[status for status, _ in usages]}")
                used[count] = sum(usage.ru_utime + usage.ru_stime for _, usage in usages)
            if run:
                ratio = used[1] / used[2]
                line = f"one process {used[1]:.1f} s of CPU, two {used[2]:.1f} s: {ratio:.3f} times"
            else:
                line = f"compiled and warmed up in {used[2]:.1f} s of CPU"
            print(line, flush=True)


def main() -> None:
    """Reads the command line, says what machine this is, runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHAT)
    parser.add_argument(
        "--repeats", type=int, default=3, help="of startup, shards: warm runs; of data: turns"
    )
    parser.add_argument("--workers", type=int, default=2, help="of data: processes of each loader")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(
        f"Python {platform.python_version()}, jax {importlib.metadata.version('jax')}", flush=True
    )
    if options.what == "startup":
        startup(options.repeats)
    elif options.what == "shards":
        shards(options.repeats)
    elif options.what == "scaling":
        benchmark_scaling.scaling()
    elif options.what == "records":
        benchmark_data.records(1_000_000)
    elif options.what == "data":
        benchmark_data.data(options.workers, options.repeats)
    else:
        benchmark_sampling.steps()


if __name__ == "__main__":
    main()
