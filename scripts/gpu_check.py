"""What a GPU does with imprint_jax: `python scripts/gpu_check.py --minutes 8 --out DIR`.

Parts, each a process of its own with a time limit: versions and a smoke test; loss and gradients in
bfloat16 against float32; pictures a second; training steps of both stages, both beside PyTorch.
DIR/results.md and DIR/results.json have each result as soon as it is there, DIR/logs what parts
wrote. A part that fails or is late costs its own results and no other's, and the command ends in
time. With the same DIR again, what was not done is done.

Most of the time goes into compiling, on the CPU. So where a GPU has memory for it, parts run beside
each other, and while one of them measures all others are stopped (SIGSTOP).

Without a GPU the same runs with small networks.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import check_part
import numpy as np

from imprint_jax.runtime.accelerators import PEAK_FLOPS
from imprint_jax.runtime.files import atomic_file

SCRIPTS = Path(__file__).resolve().parent

# Seconds before the end at which everything is killed, for writing and for what is slow to die.
RESERVE = 5.0
# With less than this nothing is started.
LEAST = 20.0
# For so many cores one of JAX's parts runs at a time, but no more than three: kernels are timed
# while they are chosen, and that wants a GPU that does little else.
CORES = 4
# The share of the device's memory that all parts together may take.
USABLE = 0.9
# GiB of that from which on PyTorch's parts run beside JAX's, each library with its half.
SHARED_FROM = 64.0
# A training that has no room for so many samples in its half gets all of the memory.
ENOUGH = 16
# On an H200 with jax 0.11 XLA's own choice of kernels had not compiled one program in two minutes;
# without Triton's matrix products, and without a check of each kernel's result, it takes one.
XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=2"
BEGUN, DONE = "begun", "done"  # states of parts
PICTURES = "pictures"  # folder in DIR

# Of training at full size: GiB of state and gradients, and of a sample, as XLA plans for an H100.
TRAINING_MEMORY = {1: (32.6, 0.6), 2: (19.3, 0.5)}


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: In the tables.
        script: A file beside this one.
        function: What is called in it, with `arguments`.
        time: The share of the whole time that it may take.
        memory: The share of the device's memory.
    """

    name: str
    script: str
    function: str
    arguments: dict
    time: float
    memory: float = USABLE

    @property
    def library(self) -> str:
        """Whose memory it takes."""
        return "torch" if self.function == "torch" else "jax"


SMOKE = Part("smoke test", "check_numerics.py", "smoke", {}, 0.25)


def parts(size: str, memory: float, beside: bool, pictures: Path, eager: bool) -> list[Part]:
    """All parts after the smoke test, the most important ones first.

    Args:
        size: Of the networks.
        memory: GiB that all parts together may take.
        beside: Whether both libraries' parts run at the same time.
        pictures: Folder for samples of both.
        eager: PyTorch without `torch.compile`.
    """
    full = size == "full"
    dtype = "bfloat16" if full else "float32"
    half = USABLE / 2 if beside else USABLE
    # With fewer than 5 steps ours would not space its timesteps as diffusers' scheduler does.
    common = dict(size=size, num_steps=50 if full else 5, dtype=dtype, pictures=str(pictures))
    # JAX tells the peak of all that a process did before: the largest batch comes last. Ours are
    # compiled together; PyTorch's one after the other, the one that matters first.
    batches, torch_batches = ((1, 4, 16), (16, 1, 4)) if full else ((1, 2), (2, 1))
    torch = dict(eager=eager, memory_share=half)
    script = "check_numerics.py"
    work = [
        Part(f"numerics, stage {i}", script, "gradients", dict(size=size, stage=i), 0.4, half)
        for i in (1, 2)
    ]
    script, name = "check_sampling.py", "sampling"
    arguments = common | dict(batches=batches)
    work.append(Part(name, script, "jax", arguments, 0.5, half))
    arguments = common | torch | dict(batches=torch_batches)
    work.append(Part(f"{name}, PyTorch", script, "torch", arguments, 0.45, half))
    script = "check_training.py"
    for stage in (1, 2):
        share = half
        if training_batch(stage, memory * share / USABLE) < ENOUGH:
            share = USABLE
        batch = training_batch(stage, memory * share / USABLE) if full else 4
        arguments = dict(size=size, stage=stage, dtype=dtype, batch=batch)
        name = f"training, stage {stage}"
        work.append(Part(name, script, "jax", arguments, 0.75, share))
        arguments = arguments | dict(eager=eager, memory_share=share)
        work.append(Part(f"{name}, PyTorch", script, "torch", arguments, 0.45, share))
    return work


def training_batch(stage: int, memory: float) -> int:
    """The largest power of two that should fit; parts halve it where it does not."""
    resident, sample = TRAINING_MEMORY[stage]
    batch = 1
    while resident + 2 * batch * sample <= memory:
        batch *= 2
    return batch


class Check:
    """One run of the command: its clock, its files, and the parts that are under way.

    Args:
        out: The folder for everything.
        record: What results.json holds.
        minutes: From now to the end.
    """

    def __init__(self, out: Path, record: dict, minutes: float):
        self.out, self.record = out, record
        self.total = 60 * minutes
        self.end = time.monotonic() + self.total - RESERVE
        self.files = threading.Lock()
        self.quiet = threading.RLock()  # held by the part that measures
        self.memory = {"jax": threading.Lock(), "torch": threading.Lock()}
        self.processes: dict[str, subprocess.Popen] = {}  # by name of the part
        self.stopped: dict[str, float] = {}  # seconds

    @property
    def left(self) -> float:
        """Seconds until everything is killed."""
        return self.end - time.monotonic()

    def note(self, name: str, state: str, seconds: float = 0.0, result: dict | None = None) -> None:
        """Writes down how a part stands, and a result; a part that begins has none."""
        with self.files:
            if state == BEGUN:
                self.record["parts"].pop(name, None)
            entry = self.record["parts"].setdefault(name, {"results": []})
            entry |= {"state": state, "seconds": round(seconds, 1)}
            if result:
                entry["results"].append(result)
            results = {
                "results.json": json.dumps(self.record, indent=1) + "\n",
                "results.md": markdown(self.record, self.out / PICTURES),
            }
            for file, text in results.items():
                with atomic_file(self.out / file) as partial:
                    partial.write_text(text)

    def run_all(self, *queues: tuple[list[Part], int]) -> None:
        """Runs parts, and kills what still runs when the time is over.

        Args:
            *queues: Parts, and how many of them run at a time; queues run beside each other.
        """
        threads = []
        for work, count in queues:
            shared = iter(work)  # which gives each part to one thread
            # Daemons: a thread that hangs on a process that does not die must not keep this one.
            threads += [
                threading.Thread(target=self._work, args=(shared,), daemon=True)
                for _ in range(count)
            ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(self.left + RESERVE / 2, 0))
        finally:
            for name, process in list(self.processes.items()):
                _signal(process, signal.SIGKILL)
                self.note(name, "killed at the end")

    def _work(self, shared: Iterator[Part]) -> None:
        for part in shared:
            before = self.record["parts"].get(part.name, {"state": None})
            if before["state"] == DONE:
                continue
            if self.left < LEAST:
                self.note(part.name, before["state"] or "no time left")
            else:
                self.run(part)

    def run(self, part: Part) -> None:
        """Runs one part to its end, whichever that is."""
        limit = min(part.time * self.total, self.left)
        log = self.out / "logs" / f"{part.name.replace(', ', '_').replace(' ', '_')}.txt"
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, SCRIPTS / part.script, part.function, json.dumps(part.arguments)]
        start = time.monotonic()
        self.note(part.name, BEGUN)
        with log.open("w") as file:
            with self.quiet:  # nothing starts while something is measured
                process = subprocess.Popen(
                    command,
                    env=self._environment(part),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    start_new_session=True,
                )
                self.processes[part.name], self.stopped[part.name] = process, 0.0
            watchdog = threading.Timer(limit, _signal, (process, signal.SIGKILL))
            watchdog.daemon = True
            watchdog.start()
            for result in self._results(part, process, file):
                self.note(part.name, "running", result=result)
            process.wait()
            watchdog.cancel()
            del self.processes[part.name]
        seconds = time.monotonic() - start
        if process.returncode == 0:
            state = DONE
        elif seconds >= limit:
            state = f"not done in {limit:.0f} s"
        else:
            state = f"failed: {_last_line(log)}"
        self.note(part.name, state, seconds)

    def _results(self, part: Part, process: subprocess.Popen, log: TextIO) -> Iterator[dict]:
        """Answers a part's requests; yields its results, and writes other lines to the log."""
        answer = lambda text: print(text, file=process.stdin, flush=True)
        has_memory = False
        with ExitStack() as memory, ExitStack() as alone:
            for line in process.stdout:
                if not line.startswith(check_part.MARK):
                    log.write(line)
                    continue
                message = json.loads(line.removeprefix(check_part.MARK))
                request = message.get("request")
                if request is None:
                    yield message
                    continue
                match request:
                    case "alone":
                        alone.enter_context(self._others_stopped(part.name))
                    case "together":
                        alone.close()
                        continue
                    case "memory" if not has_memory:
                        has_memory = True
                        # Always in this order, so that no two wait for each other.
                        for library, lock in self.memory.items():
                            if library == part.library or part.memory > USABLE / 2:
                                memory.enter_context(lock)
                with self.quiet, suppress(BrokenPipeError):  # where it has ended since
                    answer(time.monotonic() - self.stopped[part.name])

    @contextmanager
    def _others_stopped(self, name: str) -> Iterator[None]:
        with self.quiet:
            start = time.monotonic()
            others = {n: p for n, p in list(self.processes.items()) if n != name}
            for process in others.values():
                _signal(process, signal.SIGSTOP)
            try:
                yield
            finally:
                for other, process in others.items():
                    _signal(process, signal.SIGCONT)
                    self.stopped[other] += time.monotonic() - start

    def _environment(self, part: Part) -> dict[str, str]:
        paths = [str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "JAX_COMPILATION_CACHE_DIR": str(self.out / "cache/jax"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.out / "cache/torch"),
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{part.memory:.2f}",
            "XLA_FLAGS": f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}",
        }
        if part.library == "torch":
            # It draws weights and noise by our code, which must leave the device to PyTorch.
            environment["JAX_PLATFORMS"] = "cpu"
        return environment


def _signal(process: subprocess.Popen, number: int) -> None:
    """To a part and all processes that it started."""
    if process.returncode is None:  # else its number may be another's
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "without a word"


# ------------------------------------------------------------------------------------ the tables


def markdown(record: dict, pictures: Path) -> str:
    """The results as tables; what is not there yet is a dash.

    Args:
        record: What results.json holds.
        pictures: Folder with samples of both.
    """
    results = {name: part["results"] for name, part in record["parts"].items()}
    machine = next(iter(results.get(SMOKE.name, [])), {})
    peak = PEAK_FLOPS.get(machine.get("device"))
    versions = ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items())
    device = machine.get("device", "no device")
    lines = [
        "# GPU check",
        "",
        f"{device}, {machine.get('memory', 0):.0f} GiB to use; {versions}."
        f" Networks of {record.get('size')} size; imprint_jax / PyTorch {record.get('peer')}.",
        *_table("part", "state", "seconds"),
    ]
    for name, part in record["parts"].items():
        lines.append(f"| {name} | {part['state']} | {part['seconds']} |")

    lines += ["", "## Numerics, as trained against float32"]
    lines += _table("stage", "what", "bfloat16", "float32", "ratio", "gradients differ by")
    for stage in (1, 2):
        for x in results.get(f"numerics, stage {stage}", []):
            differ = f"{x['difference']:.2%}" if "difference" in x else ""
            ratio = f"{x['bfloat16'] / x['float32']:.4f}"
            cells = (str(stage), x["what"], f"{x['bfloat16']:.5g}", f"{x['float32']:.5g}")
            lines.append(_row(*cells, ratio, differ))

    common = ("ratio", "MFU", "peak GiB", "as planned", "compile s")
    lines += ["", "## Sampling"]
    lines += _table("batch", "pictures/s", *common, "pictures differ by")
    jax, torch = ({x["batch"]: x for x in results.get(n, [])} for n in _pair("sampling"))
    for batch in sorted(jax | torch):
        sides = jax.get(batch, {}), torch.get(batch, {})
        difference = "-"
        if all("rate" in side for side in sides):
            difference = f"{largest_difference(pictures, batch):.1e}"
        lines.append(_row(str(batch), *_compared(*sides, peak), difference))

    lines += ["", "## Training"]
    lines += _table("stage", "batch", "samples/s", *common, "first loss", "host ms a step")
    for stage in (1, 2):
        # The last one that was measured; the ones before were too large.
        sides = [(results.get(n) or [{}])[-1] for n in _pair(f"training, stage {stage}")]
        cells = (
            _both(*sides, "batch", "d"),
            *_compared(*sides, peak),
            _both(*sides, "loss", ".5f"),
        )
        lines.append(_row(str(stage), *cells, _cell(sides[0], "host", ".1f")))
    return "\n".join(lines) + "\n"


def _pair(name: str) -> tuple[str, str]:
    return name, f"{name}, PyTorch"


def largest_difference(pictures: Path, batch: int) -> float:
    """Of both sides' first picture, of a range of 2."""
    files = [pictures / f"{side}_{batch}.npy" for side in ("jax", "torch")]
    return float(np.abs(np.subtract(*map(np.load, files))).max())


def _compared(jax: dict, torch: dict, peak: float | None) -> tuple[str, ...]:
    """Rates, ratio, utilisation, memory, the plan's memory and compile time of both sides."""
    ratio = f"{jax['rate'] / torch['rate']:.2f}" if "rate" in jax and "rate" in torch else "-"
    work = jax.get("flops", 0) / peak if peak else 0
    shares = [{"share": x["rate"] * work} if work and "rate" in x else {} for x in (jax, torch)]
    return (
        _both(jax, torch, "rate", ".3g"),
        ratio,
        _both(*shares, "share", ".0%"),
        _both(jax, torch, "memory", ".2f"),
        _cell(jax, "planned", ".2f"),
        _both(jax, torch, "compile", ".0f"),
    )


def _cell(result: dict, key: str, form: str) -> str:
    if key in result:
        return f"{result[key]:{form}}"
    return "out of memory" if "out_of_memory" in result and key == "rate" else "-"


def _both(jax: dict, torch: dict, key: str, form: str) -> str:
    return f"{_cell(jax, key, form)} / {_cell(torch, key, form)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(*names: str) -> list[str]:
    return ["", _row(*names), "|" + "---|" * len(names)]


# ------------------------------------------------------------------------------- the command line


def main() -> None:
    """Reads the command line and runs what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="until it ends, done or not")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, logs, caches")
    parser.add_argument("--size", choices=check_part.SIZES, help="by default full on a GPU")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    options = parser.parse_args()
    if options.minutes * 60 < RESERVE + LEAST:
        parser.error("--minutes is too short for anything")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # parts are killed on the way out

    options.out = options.out.resolve()
    (options.out / PICTURES).mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    record = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    check = Check(options.out, record, options.minutes)
    check.run_all(([SMOKE], 1))
    machine = next(iter(record["parts"][SMOKE.name]["results"]), None)
    if machine is None:
        print((options.out / "results.md").read_text())
        sys.exit(f"the smoke test has no result: see {options.out} for what it printed")
    size = options.size or ("mini" if machine.get("backend") == "cpu" else "full")
    if record.get("size", size) != size:
        parser.error(f"{options.out} holds results of {record['size']} size; take another folder")
    record |= {"size": size, "peer": "eager" if options.eager else "compiled"}

    memory = machine.get("memory", 0.0)
    beside = memory >= SHARED_FROM
    work = parts(size, memory, beside, options.out / PICTURES, options.eager)
    if beside:
        jax, torch = ([p for p in work if p.library == x] for x in check.memory)
        check.run_all((jax, min(max(os.cpu_count() // CORES, 1), 3)), (torch, 1))
    else:
        check.run_all((work, 1))
    print((options.out / "results.md").read_text())


if __name__ == "__main__":
    main()
