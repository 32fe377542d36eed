"""A fine-tuning of the full-size model from random weights, on any machine.

Every command runs in a process of its own, whose time and peak memory are printed: training until
its first checkpoint, when it gets SIGKILL; training on from there to the end, with a validation and
a preview on the way; the export; and a composite by the exported model.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import full_size
import numpy as np
from PIL import Image
from soak import POLL, saved

STEPS, SAVE_EVERY = 4, 2
PAIRS, PAIR_SIZE = 12, 256  # pixels
OVERRIDES = (
    "--config.dtype=float32",
    "--config.batch_size=2",
    "--config.accumulation=2",
    "--config.log_every=1",
    "--config.data.num_workers=0",
    "--config.sampling.num_steps=2",
    f"--config.total_steps={STEPS}",
    f"--config.save_every={SAVE_EVERY}",
    f"--config.validation.every={STEPS}",
    "--config.validation.batches=1",
    f"--config.preview.every={STEPS}",
    "--config.preview.samples=1",
)
HEADER = "| | seconds | peak memory, GiB | |\n|---|---:|---:|---|"


def write_pairs(folder: Path) -> None:
    """Pairs as `imprint data prepare folder` reads them: a disc, and noise with the disc on it."""
    size = PAIR_SIZE
    rows, columns = np.mgrid[:size, :size]
    disc = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 4) ** 2
    mask = np.where(disc, 255, 0).astype(np.uint8)
    for number in range(PAIRS):
        rng = np.random.default_rng(number)
        background = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        target = np.where(disc[..., None], rng.integers(0, 256, 3), background).astype(np.uint8)
        pictures = {
            "foreground": target,
            "foreground_mask": mask,
            "mask": mask,
            "background": background,
            "target": target,
        }
        for part, picture in pictures.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part / f"{number:02d}.png")


def kill_when_saved(command: list[str], workdir: Path) -> tuple[float, float]:
    """Runs a training until it has saved, then kills it; returns seconds and peak memory in GiB.

    Raises:
        RuntimeError: It ended before.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command])
    while process.poll() is None and not saved(workdir):
        time.sleep(POLL)
    if process.returncode is not None:
        raise RuntimeError(f"The training ended with exit code {process.returncode}.")
    process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def metrics(workdir: Path, name: str) -> dict[int, float]:
    """{step: value} of a run; of a step that was done twice the later."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def train(folder: Path, recipe: str, model: Path | None, size: int) -> None:
    """Prints a table, a row a command as soon as it has ended.

    Args:
        folder: Where pairs, run, model and picture go; `full_size.py`'s, for its weights.
        recipe: What is trained, float32 at `size` pixels.
        model: A released folder to start from; None: random weights of full size are written.
        size: Side of the model's pictures in pixels.

    Raises:
        RuntimeError: Something did not work as it should.
    """
    if model is None:
        full_size.prepare(folder)
        full_size.write_adapter(folder)
        model = folder / "ours"
    run, exported, picture = folder / "run", folder / "exported", folder / "composite.png"
    if run.exists():
        raise RuntimeError(f"{run} holds an earlier run; move it away.")
    write_pairs(folder / "pairs")
    imprint = ["-m", "imprint_jax"]
    prepare = ["data", "prepare", "folder", folder / "pairs", folder / "records"]
    full_size.measured(
        [*imprint, *map(str, prepare), "--split-by", "object", "--fractions", "0.7,0.3,0"]
    )
    source = dict(kind="pair", records=str(folder / "records"), weight=1.0)
    training = [*imprint, "train", "--config", recipe, "--workdir", str(run), *OVERRIDES]
    training += [f"--config.image_size={size}", f"--config.data.sources={(source,)!r}"]
    training += [f"--config.init_from.{x}={model}" for x in ("dinov2", "adapter", "unet", "vae")]

    print(HEADER)

    def row(what: str, seconds: float, memory: float, remark: str = "") -> None:
        print(f"| {what} | {seconds:.0f} | {memory:.1f} | {remark} |", flush=True)

    seconds, memory = kill_when_saved(training, run)
    reached = saved(run)[-1]
    row("training, killed when it had saved", seconds, memory, f"saved step {reached}")
    seconds, memory, _ = full_size.measured([*training, "--resume"])
    losses = metrics(run, "loss")
    if sorted(losses) != list(range(1, STEPS + 1)) or saved(run)[-1] != STEPS:
        raise RuntimeError(f"The run did not go on to step {STEPS}: {losses}.")
    validation = metrics(run, "validation_loss")[STEPS]
    if not all(map(math.isfinite, [*losses.values(), validation])):
        raise RuntimeError(f"Losses that are not finite: {losses}, {validation}.")
    if not (run / "previews" / f"{STEPS:08d}.png").exists():
        raise RuntimeError("There is no preview.")
    shown = ", ".join(f"{loss:.3f}" for _, loss in sorted(losses.items()))
    row("resumed", seconds, memory, f"losses {shown}; validation {validation:.3f}; a preview")
    seconds, memory, _ = full_size.measured([*imprint, "export", str(run), str(exported)])
    row("export", seconds, memory)
    compose = ["compose", "--model", exported, "--out", picture, "--steps", "2"]
    compose += ["--object", folder / "pairs/foreground/00.png"]
    compose += ["--object-mask", folder / "pairs/foreground_mask/00.png"]
    compose += ["--background", folder / "pairs/background/01.png"]
    compose += ["--mask", folder / "pairs/mask/01.png"]
    seconds, memory, _ = full_size.measured([*imprint, *map(str, compose)])
    with Image.open(picture) as image:
        if image.size != (PAIR_SIZE, PAIR_SIZE):
            raise RuntimeError(f"{picture} has {image.size} pixels.")
    row("composite, 2 steps", seconds, memory)


def main() -> None:
    """Reads the command line and does all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where all goes; weights there are used again")
    parser.add_argument("--recipe", default="finetune", help="what is trained")
    parser.add_argument("--model", type=Path, help="a released folder to start from")
    parser.add_argument("--size", type=int, default=256, help="side of pictures in pixels")
    options = parser.parse_args()
    train(options.folder, options.recipe, options.model, options.size)


if __name__ == "__main__":
    main()
