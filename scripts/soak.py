"""Disturbs trainings in several processes at random, and checks that nothing is lost.

    python scripts/soak.py CONFIG FOLDER [--events 100] [--processes 2,4] [--seed 0]
        [--only kill_all,kill_one] [--config.a.b=value ...]

One run is left alone. Then events happen to others, one run after the other, until there were
enough; `EVENTS` says which, and what must come of each. After an event a run must go on from
exactly the newest whole checkpoint, and when it has ended, losses, position in the data and all
parameters, averaged and not, must equal those of the run left alone, bit for bit. A run that went
on in another number of processes adds gradients up in another order: its position must be the
same, its losses within 1e-5. Events and their moments follow from the seed; how fast the machine is
does not.

FOLDER gets `alone-N/`, made by N processes, `logs/` (one file a process and start), `compiled/` (so
that a start takes seconds), `records/` (a copy, to damage) and `events.jsonl`; called again with
the same FOLDER it keeps the run left alone and appends events. The table of what happened comes
last. The disturbed runs lie in `disk/`, which root makes a small disk of its own (tmpfs); without
root the full disk and the read-only one are left out. The clock jumps where libfaketime is
installed, and for the trainings only. Their processes are forked from one that has imported
everything.
"""

import argparse
import atexit
import collections
import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POLL = 0.1  # seconds between two looks at a run
MOVED = 0.2  # so many starts are in another number of processes, perhaps
MOVED_LOSS = 1e-5  # so far, relatively, may losses then be from the other's
EARLY = 0.5  # so many kills of all that nothing came before come at any moment of the start
PATIENCE = 600  # seconds without a step, or an end, after which a run counts as hung
SILENCE = 45  # seconds after which JAX has noticed that a process is silent
TOGETHER = 60  # seconds in which one process's end must have ended the others
DISK = "48m"  # of the small disk; a tiny checkpoint has some megabytes
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
# How a process ends that another is missing from; our sentence or JAX's.
UNHEALTHY = re.compile("Another process of this run|another task died")
# How often each harmless event happens to a run at work: most jumps of the clock end it.
OFTEN = {"clock": 0.15, "second_start": 0.5}
# Runs' processes have so many devices together, however many processes there are.
DEVICES = 4


class Lost(Exception):
    """Something is not as it must be after an event."""


class Done(Exception):
    """The run has made all its steps."""


def saved(workdir: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def result(workdir: Path) -> dict[str, np.ndarray]:
    """A run's losses, its positions in the data and its final parameters, by name."""
    from flax import traverse_util

    from imprint_jax.training import checkpoint

    lines = (json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines())
    values = {f"loss {x['step']}": np.float64(x["loss"]) for x in lines if "loss" in x}
    last = saved(workdir)[-1]
    data = json.loads((workdir / "checkpoints" / str(last) / "data/metadata").read_text())
    values["position"] = np.int64(data["position"])
    for ema in (True, False):
        params = checkpoint.load_params(workdir, ema=ema)[1]
        flat = traverse_util.flatten_dict(params, sep="/")
        values |= {f"{path} {'averaged' if ema else ''}": x for path, x in flat.items()}
    return values


def differing(want: dict, got: dict, moved: bool = False) -> list[str]:
    """Names of what is not equal, bit for bit.

    After a move to another number of processes, losses may differ by `MOVED_LOSS`, and parameters
    need only be finite: Adam takes a step of full length even where a gradient is all rounding.
    """
    if want.keys() != got.keys():
        return sorted(want.keys() ^ got.keys())
    if not moved:
        return [name for name in want if not np.array_equal(got[name], want[name])]

    def near(name: str) -> bool:
        if name.startswith("loss "):
            return math.isclose(want[name], got[name], rel_tol=MOVED_LOSS)
        if name == "position":
            return want[name] == got[name]
        return want[name].shape == got[name].shape and bool(np.isfinite(got[name]).all())

    return [name for name in want if not near(name)]


def _train(arguments: list[str], devices: int, log: Path) -> None:
    """`imprint train` in a process that has imported everything."""
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import logging

    import jax

    from imprint_jax import cli

    logging.getLogger().handlers.clear()  # as in a process of its own

    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = ["imprint", "train", *arguments]
    try:
        cli.main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:  # a forked process does not do by itself what all others do at their end
        sys.stdout.flush()
        atexit._run_exitfuncs()


@dataclass
class Start:
    """The processes of one start of a run, and where they write."""

    processes: list
    logs: list[Path]

    def said(self, number: int = 0) -> str:
        """What a process has written so far."""
        return self.logs[number].read_text(errors="replace") if self.logs[number].exists() else ""

    def all_said(self) -> list[str]:
        """What each process has written so far."""
        return [self.said(number) for number in range(len(self.processes))]

    def resumed(self) -> int | None:
        """The step it went on from, 0 for a new run; None: not yet known."""
        starts = re.findall(r"resumed from step (\d+)|(starts at random)", self.said())
        return int(starts[-1][0] or 0) if starts else None

    def step(self) -> int | None:
        """The last step it has made; None: none yet."""
        steps = re.findall(r"^step (\d+) of", self.said(), re.MULTILINE)
        return int(steps[-1]) if steps else None

    def running(self) -> bool:
        """Whether no process has ended."""
        return all(process.exitcode is None for process in self.processes)

    def signal(self, number: int, *processes: int) -> None:
        """Sends a signal to some of the processes, or to all."""
        for k in processes or range(len(self.processes)):
            if self.processes[k].exitcode is None:
                os.kill(self.processes[k].pid, number)

    def ended(self, seconds: float) -> list[int]:
        """Exit codes of all, which must end within so many seconds.

        Raises:
            Lost: They do not; they are killed.
        """
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
            raise Lost(f"not ended within {seconds} s: {codes}")
        return codes

    def kill(self) -> None:
        """SIGKILL to all that is left."""
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()


class Soak:
    """Where everything lies, and the trainings' processes.

    Args:
        config: A recipe.
        folder: See the module's docstring.
        overrides: Of the recipe.
    """

    def __init__(self, config: str, folder: Path, overrides: list[str]):
        self.folder = folder.resolve()
        self.disk, self.logs = self.folder / "disk", self.folder / "logs"
        for path in (self.disk, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        self.root = os.geteuid() == 0
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "COLUMNS": "200",
        }
        from imprint_jax import config as configs

        recipe = configs.load(config, overrides)
        self.steps, self.save_every = recipe.total_steps, recipe.save_every
        sources = [dict(source) for source in recipe.data.sources]
        records = self.folder / "records"
        if not records.exists():
            shutil.copytree(sources[0]["records"], records)
        sources[0]["records"] = str(records)
        self.shard = min(records.glob("*-train.array_record-*"))
        self.arguments = ["--config", config, "--resume", *overrides]
        self.arguments += ["--config.log_every=1", f"--config.data.sources={tuple(sources)!r}"]
        self.clock = self.folder / "clock"
        self.starts = len(list(self.logs.glob("*-0.log")))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["imprint_jax.cli", "imprint_jax.training.train"])
        self._start_server()

    def _start_server(self) -> None:
        # Only the trainings' clock jumps, not this process's own.
        self.set_clock(0)
        fake = {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        os.environ |= fake if FAKETIME else {}
        first = self.context.Process(target=int)
        first.start()
        first.join()
        for name in fake:
            os.environ.pop(name, None)

    def set_clock(self, seconds: float) -> None:
        """Makes the trainings' clock be wrong by so many seconds."""
        self.clock.write_text(f"{seconds:+.0f}s\n")

    def begin(self, workdir: Path, count: int, *more: str) -> Start:
        """Starts or resumes a run in so many processes, with further arguments."""
        self.starts += 1
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        where = ["--coordinator", f"localhost:{port}", "--num-processes", str(count)]
        start = Start([], [])
        for number in range(count):
            log = self.logs / f"{self.starts:04d}-{number}.log"
            arguments = [*self.arguments, "--workdir", str(workdir), *more]
            arguments += [*where, "--process-id", str(number)] if count > 1 else []
            process = self.context.Process(
                target=_train, args=(arguments, DEVICES // count, log), daemon=True
            )
            process.start()
            start.processes.append(process)
            start.logs.append(log)
        return start

    def until_step(self, start: Start, step: int) -> None:
        """Returns when a start has made a step.

        Raises:
            Done: It has made all its steps.
            Lost: It hangs, or ends by itself before its time.
        """
        seen, since = None, time.monotonic()
        while (now := start.step() or start.resumed()) is None or now < min(step, self.steps):
            if now != seen:
                seen, since = now, time.monotonic()
            if not start.running() and (start.step() or 0) < self.steps:
                codes = start.ended(PATIENCE)
                raise Lost(f"ended by itself with {codes}: {start.said()[-600:]}")
            if time.monotonic() - since > PATIENCE:
                start.kill()
                raise Lost(f"no step for {PATIENCE} s after step {now}")
            time.sleep(POLL)
        if now >= self.steps:
            raise Done

    @contextlib.contextmanager
    def own_disk(self) -> Iterator[None]:
        """Makes the folder of disturbed runs a disk of its own, where root may."""
        if not self.root:
            yield
            return
        size = f"size={DISK}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.disk], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", self.disk], check=True)


# Each event takes the soak, the run's folder, its start and a random generator, and returns what is
# worth knowing of it. The harmless ones mostly leave the run at work, an ending one ends it, those
# at rest happen to a run that has ended.


def clock(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """The clock jumps by seconds to weeks, forward or back: the run goes on, or all end and say so.

    After a jump by more than `distributed.HEARTBEAT` seconds JAX may take a process for dead.
    """
    seconds = rng.choice((-1, 1)) * math.exp(rng.uniform(0, math.log(20 * 86400)))
    soak.set_clock(seconds)
    until = time.monotonic() + SILENCE
    while start.running() and time.monotonic() < until:
        time.sleep(POLL)
    if start.running():
        soak.until_step(start, (start.step() or 0) + 1)
        return {"to_seconds": round(seconds), "ended": False}
    if set(start.ended(TOGETHER)) == {0}:
        raise Done
    if not all(UNHEALTHY.search(said) for said in start.all_said()):
        raise Lost(f"ended without a reason: {start.said()[-600:]}")
    return {"to_seconds": round(seconds), "ended": True}


def second_start(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """A second start of the same run: refused in a sentence, and the first goes on."""
    second = soak.begin(workdir, 1)
    codes = second.ended(PATIENCE)
    if not start.running():
        raise Done
    if codes != [2] or "Another training is at work" not in second.said():
        raise Lost(f"the second start ended with {codes}: {second.said()[-600:]}")
    return {}


def kill_all(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """SIGKILL of all processes, as when a machine room loses its power."""
    start.kill()
    return {}


def kill_one(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """SIGKILL of one process: the others end within a minute, and say why."""
    victim = rng.randrange(len(start.processes))
    begin = time.monotonic()
    start.signal(signal.SIGKILL, victim)
    codes = start.ended(TOGETHER)
    if 0 in codes and start.step() == soak.steps:
        return {"victim": victim}
    if 0 in codes:
        raise Lost(f"process {victim} was killed, and the exit codes are {codes}")
    for k in range(len(codes)):
        if k != victim and not UNHEALTHY.search(start.said(k)):
            raise Lost(f"process {k} says nothing of the killed one: {start.said(k)[-600:]}")
    return {"victim": victim, "seconds": round(time.monotonic() - begin, 1)}


def terminate(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """SIGTERM to one process: all save after the same step and end with 143."""
    start.signal(signal.SIGTERM, rng.randrange(len(start.processes)))
    codes = start.ended(PATIENCE)
    if set(codes) == {0}:
        raise Done
    if set(codes) != {143} or saved(workdir)[-1:] != [start.step()]:
        raise Lost(f"exit codes {codes}, step {start.step()}, checkpoints {saved(workdir)}")
    return {}


def full_disk(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """A full disk: all end and it is named; then there is room again."""
    filler = soak.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    try:
        codes = start.ended(PATIENCE)
    finally:
        filler.unlink()
    if set(codes) == {0}:
        raise Done
    said = "".join(start.all_said())
    if 0 in codes or "No space left on device" not in said:
        raise Lost(f"exit codes {codes}: {said[-600:]}")
    return {}


def cut_shard_at_work(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """A shard of records loses its end while the run reads it: it ends, or is killed at last."""
    content = soak.shard.read_bytes()
    os.truncate(soak.shard, rng.randrange(len(content)))
    try:
        codes = start.ended(TOGETHER)
    except Lost:  # what it read before may still be in memory
        codes = []
    finally:
        soak.shard.write_bytes(content)
    said = "".join(start.all_said())
    if set(codes) == {0}:
        raise Done
    if codes and (0 in codes or f"{soak.shard.name} is damaged" not in said):
        raise Lost(f"exit codes {codes}: {said[-600:]}")
    return {"ended_by_itself": bool(codes)}


def cut_shard(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """A shard of records loses its end before a start: the start names it and is refused."""
    content = soak.shard.read_bytes()
    os.truncate(soak.shard, rng.randrange(len(content)))
    try:
        _refused(soak.begin(workdir, len(start.processes)), f"{soak.shard.name} is damaged")
    finally:
        soak.shard.write_bytes(content)
    return {}


def read_only(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """A disk that can only be read: a start is refused in a sentence."""
    mount = lambda how: subprocess.run(["mount", "-o", f"remount,{how}", soak.disk], check=True)
    mount("ro")
    try:
        _refused(soak.begin(workdir, len(start.processes)), "Read-only file system")
    finally:
        mount("rw")
    return {}


def damaged_checkpoint(soak: Soak, workdir: Path, start: Start, rng: random.Random) -> dict:
    """A damaged file in the newest checkpoint: it is set aside, and the one before is taken.

    A byte changes, or the file is cut or missing. Of a checkpoint that no checksums vouch for yet a
    changed byte could not be told, and only a cut is tried.
    """
    steps = saved(workdir)
    newest = workdir / "checkpoints" / str(steps[-1])
    vouched = (workdir / "checksums" / f"{newest.name}.json").exists()
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size]
    if not vouched:
        # The largest holds arrays; smaller ones may be what Orbax needed for writing only.
        files = [max(files, key=lambda path: path.stat().st_size)]
    path = rng.choice(files)
    how = rng.choice(("changed", "cut", "missing")) if vouched else "cut"
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[rng.randrange(len(content))] ^= 255
        path.write_bytes(content)
    file = str(path.relative_to(newest))
    return {"how": how, "file": file, "vouched": vouched, "newest": steps[-2]}


def _refused(start: Start, sentence: str) -> None:
    codes = start.ended(PATIENCE)
    said = "".join(start.all_said())
    if 0 in codes or sentence not in said:
        raise Lost(f"not refused with {sentence!r}: {codes}: {said[-600:]}")


HARMLESS = (clock, second_start)
ENDING = (kill_all, kill_one, terminate, full_disk, cut_shard_at_work)
AT_REST = (cut_shard, read_only, damaged_checkpoint)
EVENTS = {event.__name__: event for event in (*HARMLESS, *ENDING, *AT_REST)}
NEED_ROOT = {"full_disk", "read_only"}


def planned(kinds: list[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """What happens to a run at work, the last of it ending it, and then at rest."""
    chosen = lambda events: [x.__name__ for x in events if x.__name__ in kinds]
    at_work = [kind for kind in chosen(HARMLESS) if rng.random() < OFTEN[kind]]
    at_work.append(rng.choice(chosen(ENDING) or ["kill_all"]))
    return at_work, [kind for kind in chosen(AT_REST) if rng.random() < 0.7]


def main() -> None:
    """Reads the command line, runs, compares; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a recipe's name or file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--processes", default="2,4", help="of the first start, and of some others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="these events, of: " + ", ".join(EVENTS))
    options, overrides = parser.parse_known_args()
    counts = [int(word) for word in options.processes.split(",")]
    soak = Soak(options.config, options.folder, overrides)
    kinds = [kind for kind in options.only.split(",") if kind] or list(EVENTS)
    kinds = [
        kind
        for kind in kinds
        if (soak.root or kind not in NEED_ROOT) and (FAKETIME or kind != "clock")
    ]
    alone = soak.folder / f"alone-{counts[0]}"
    if saved(alone)[-1:] != [soak.steps]:
        shutil.rmtree(alone, ignore_errors=True)
        start = soak.begin(alone, counts[0], f"--config.save_every={soak.steps}")
        with contextlib.suppress(Done):
            soak.until_step(start, soak.steps)
        if set(start.ended(PATIENCE)) != {0}:
            sys.exit(f"The run that is left alone failed: {start.said()[-2000:]}")
    want = result(alone)
    log = soak.folder / "events.jsonl"
    rng = random.Random(options.seed)
    with soak.own_disk():
        happened = 0
        while happened < options.events:
            happened += one_run(soak, kinds, counts, rng, want, log)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    print(table(events))
    sys.exit(any("lost" in event for event in events))


def one_run(soak: Soak, kinds, counts, rng: random.Random, want: dict, log: Path) -> int:
    """A run from its start to its end with all that happens to it; how many events there were."""

    def note(**event) -> None:
        event = {"time": time.strftime("%Y-%m-%dT%H:%M:%S")} | event
        with log.open("a") as file:
            file.write(json.dumps(event) + "\n")
        print(json.dumps(event), flush=True)

    def happen(kind: str) -> int:
        event = {"kind": kind, "processes": count, "step": start.step()}
        event |= EVENTS[kind](soak, workdir, start, rng)
        note(**event)
        return event.get("newest", max(saved(workdir), default=0))

    workdir = soak.disk / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    count, happened, moved = counts[0], 0, False
    start = soak.begin(workdir, count)
    try:
        while True:
            at_work, at_rest = planned(kinds, rng)
            if at_work == ["kill_all"] and rng.random() < EARLY:
                time.sleep(rng.uniform(0, 20))  # perhaps before its first step
                happen("kill_all")
                happened += 1
            else:
                for kind in at_work:
                    more = rng.randint(1, soak.save_every + 3 if kind == at_work[-1] else 2)
                    soak.until_step(start, (start.step() or start.resumed() or 0) + more)
                    time.sleep(rng.uniform(0, 1))  # at any moment of a step, or of writing
                    happen(kind)
                    happened += 1
                    if not start.running():
                        break  # the clock can end a run, too
            newest, step = max(saved(workdir), default=0), start.step()
            for kind in at_rest:
                if kind == "damaged_checkpoint" and len(saved(workdir)) < 2:
                    continue  # there must be one to go on from
                newest = happen(kind)
                happened += 1
            count = rng.choice(counts) if rng.random() < MOVED else count
            moved = (moved and newest > 0) or count != counts[0]  # from 0 on, it is a new run
            start = soak.begin(workdir, count)
            with contextlib.suppress(Done):
                soak.until_step(start, newest + 1)
            if start.resumed() != newest:
                raise Lost(f"went on from {start.resumed()}, not from {newest}")
            note(resumed=newest, processes=count, steps_again=max(0, (step or 0) - newest))
    except Done:
        codes = start.ended(PATIENCE)
        got = result(workdir) if set(codes) == {0} else {}
        differ = differing(want, got, moved) if got else [f"exit codes {codes}"]
        losses = [name for name in want.keys() & got.keys() if name.startswith("loss ")]
        farthest = max((abs(1 - got[name] / want[name]) for name in losses), default=None)
        outcome = {"moved": moved, "compared": len(want), "loss_off": farthest, "differing": differ}
        note(end=True, processes=count, **outcome, **({"lost": True} if differ else {}))
    except Lost as error:
        start.kill()
        note(lost=str(error))
        # Kept for whoever looks for the reason.
        shutil.copytree(workdir, soak.folder / f"lost-{soak.starts:04d}", dirs_exist_ok=True)
    return happened


def table(events: list[dict]) -> str:
    """How often what happened, and what came of it, in Markdown."""
    times = collections.Counter(event.get("kind") for event in events)
    lines = ["| event: what must come of it | times |", "|---|---:|"]
    for kind, event in EVENTS.items():
        lines.append(f"| {event.__doc__.splitlines()[0].rstrip('.')} | {times[kind]} |")
    starts = [event for event in events if "resumed" in event]
    again = [event["steps_again"] for event in starts]
    seconds = [event["seconds"] for event in events if "seconds" in event]
    ends = [event for event in events if "end" in event]
    moved = [event for event in ends if event.get("moved")]
    stayed = [event for event in ends if not event.get("moved")]
    as_it_must = lambda events: sum(not event["differing"] for event in events)
    lost = sum("lost" in event for event in events)
    happened = sum(times[kind] for kind in EVENTS)
    said = [f"{happened} events, after which runs went on {len(starts)} times"]
    if again:
        said.append(f"at most {max(again)} steps were made again")
    if seconds:
        said.append(f"after the kill of one process the others had ended in {max(seconds)} seconds")
    if stayed:
        said.append(f"{as_it_must(stayed)} of {len(stayed)} runs ended equal, bit for bit")
    if moved:
        said.append(
            f"{as_it_must(moved)} of {len(moved)} that changed the number of processes ended with"
            f" the same losses to {MOVED_LOSS:.0e}"
        )
    said.append(f"something was lost: {lost}")
    lines.append(f"\n{'; '.join(said)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
