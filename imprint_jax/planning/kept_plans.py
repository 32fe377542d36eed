"""Plans that were made before, one JSON file of a few kB each.

A plan is for one traced program, which its key stands for: the jaxpr with all shapes, dtypes,
shardings and kernels, what is donated, the mesh, the chip's description, the compiler's flags and
jax's version. So it holds as long as the program is the same, whatever else in the code, or in the
configuration, has changed. Values of constants are not in the key: they change no memory. The
compiler's own version (libtpu's, cuDNN's) is beside it: a plan by another one than is installed is
not taken; where none is installed, it is.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from imprint_jax.planning.plan import Plan
from imprint_jax.runtime.files import atomic_file


def published_folder() -> Path:
    """Plans of the paper's recipes: docs/plans in a checkout, inside the package in a wheel."""
    package = Path(__file__).parent.parent
    in_wheel = package / "plans"
    return in_wheel if in_wheel.is_dir() else package.parent / "docs" / "plans"


# In a jaxpr's text, what depends on the process and the devices that it was traced on: addresses of
# Python's objects, and a mesh's devices. The chip that a program is for has its own part of a key.
_NOT_THE_PROGRAM = re.compile(r"0x[0-9a-f]+|, memory_kind=\w+|, device_kind=[^)]*, platform=\w+")


def digest(*parts: str) -> str:
    """A key of what was traced, as text."""
    text = "\0".join(_NOT_THE_PROGRAM.sub("", part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def find(folders: Iterable[Path], key: str, compiler: str | None) -> Plan | None:
    """The plan of this key, if any folder has it.

    Args:
        folders: Where to look; missing ones are empty.
        key: From `digest`.
        compiler: The installed one; None: there is none, and any other's plan will do.
    """
    for folder in folders:
        for path in sorted(folder.glob(f"*-{key[:12]}.json")):
            plan = Plan.from_json(json.loads(path.read_text()))
            if plan.key == key and compiler in (None, plan.compiler):
                return plan
    return None


def save(folder: Path, plan: Plan) -> Path:
    """Writes a plan, under a name that says what it is of; returns the file."""
    request = plan.request
    what = "train" if request.sampling_batch is None else "sample"
    mesh = "x".join(str(size) for size in request.mesh.values())
    parts = (
        *(re.sub(r"\W+", "_", Path(request.recipe).name.removesuffix(".py")), what),
        *(request.accelerator or "cpu", mesh, f"batch{plan.batch_size}"),
        *([f"accumulation{plan.accumulation}"] if plan.accumulation > 1 else []),
        plan.key[:12],
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'-'.join(parts)}.json"
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(plan.to_json(), indent=1) + "\n")
    return path
