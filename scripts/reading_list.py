"""Which functions one step, one run or one composite executes, and how many lines that is to read.

    python scripts/reading_list.py step|train|compose [--functions]

counts every function of the package that runs, its docstring and nested functions included, each
line once. It uses the tiny configuration of the tests, so it takes seconds.
"""

import argparse
import ast
import collections
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import imprint_jax  # noqa: E402

PACKAGE = Path(imprint_jax.__path__[0])


def executed(run: Callable[[], None]) -> dict[Path, set[int]]:
    """The first lines of the package's functions that run while `run` does, by file."""
    lines = collections.defaultdict(set)
    prefix = str(PACKAGE) + os.sep

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix) and code.co_name != "<module>":
            lines[Path(code.co_filename)].add(code.co_firstlineno)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return lines


def functions(path: Path, first_lines: set[int]) -> dict[str, range]:
    """The functions of a file that start at these lines, with all their lines, outermost only."""
    spans = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                start = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                if start in first_lines:
                    spans[name.rstrip(".")] = range(start, child.end_lineno + 1)
                    continue  # what is nested in it is part of it
            visit(child, name)

    visit(ast.parse(path.read_text()), "")
    return spans


def step(folder: Path) -> Callable[[], None]:
    """Tracing one training step of stage 2, everything around it made before."""
    from imprint_jax.data import batch as batches
    from imprint_jax.training import sharding
    from imprint_jax.training.state import Trainer
    from tests.tiny import tiny_config

    c = tiny_config(2)
    trainer = Trainer(c, sharding.make_mesh(c.fsdp))
    compiled, batch = trainer.train_step(), batches.batch_spec(c, c.batch_size)
    return lambda: compiled.lower(trainer.abstract_state, batch)


def train(folder: Path) -> Callable[[], None]:
    """A whole run of stage 1, with validation, previews and checkpoints."""
    from rich.console import Console

    from imprint_jax.config import Config
    from imprint_jax.data.preparation.prepare import prepare
    from imprint_jax.training.train import train
    from tests.tiny import tiny_recipe, write_objects

    write_objects(folder / "objects")
    splits = folder / "splits.json"
    splits.write_text('{"train": ["object0", "object1"], "validation": ["object2"]}')
    prepare("objaverse", folder / "objects", folder / "records", splits)
    c = tiny_recipe(1)
    c.data.sources = (dict(kind="views", records=str(folder / "records"), weight=1.0),)
    c.data.num_workers = 0
    c.validation.every = c.preview.every = 2
    return lambda: train(Config.of(c), folder / "run", console=Console(quiet=True))


def compose(folder: Path) -> Callable[[], None]:
    """One composite by a loaded model."""
    import numpy as np

    from imprint_jax import Compositor
    from imprint_jax.models import init
    from imprint_jax.weights import release
    from tests.tiny import tiny_config

    c = tiny_config(2)
    release.save(folder / "model", c.released(), init.draw_all(c.model, 0))
    compositor = Compositor.from_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    return lambda: compositor(photo, photo, mask, object_mask=mask)


CASES = {"step": step, "train": train, "compose": compose}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--functions", action="store_true", help="list every function")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = CASES[arguments.case](Path(folder))
        lines = executed(run)
    total, count = 0, 0
    for path in sorted(lines):
        spans = functions(path, lines[path])
        size = sum(len(span) for span in spans.values())
        if not size:
            continue
        total, count = total + size, count + 1
        print(f"{size:5d}  {path.relative_to(PACKAGE.parent)}")
        if arguments.functions:
            for name, span in spans.items():
                print(f"       {len(span):5d}  {name}")
    print(f"{total:5d}  lines in {count} files")


if __name__ == "__main__":
    main()
