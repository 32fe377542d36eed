"""The process that compiles, from both its ends: who starts it, and what it does.

It is a process of its own because XLA reads its flags once, and libtpu does not always end.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from imprint_jax.errors import InputError
from imprint_jax.planning.compile import environment, make_plan
from imprint_jax.planning.plan import Plan, Request


def plan(
    request: Request, folders: Sequence[Path] = (), say: Callable[[str], None] = lambda text: None
) -> Plan:
    """A plan, compiled in a process of its own, or kept from before.

    Args:
        request: What is to be planned.
        folders: Where plans are kept, if any; a new one goes to the first.
        say: Is told what is being done.

    Raises:
        InputError: The accelerator's compiler is not installed, and no plan was kept.
        RuntimeError: Compiling failed.
    """
    order = {"request": dataclasses.asdict(request), "folders": [str(x) for x in folders]}
    answer = None
    # What the compiler writes beside goes with the folder, however the process ends.
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "imprint_jax.planning.compile_process", json.dumps(order)],
            env=os.environ | environment(request) | {"TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    answer = json.loads(line)
                    if "doing" in answer:
                        say(answer["doing"])
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        said = errors.read()[-4000:]
    if process.returncode or answer is None:
        raise RuntimeError(f"Compiling ended with {process.returncode}:\n{said}")
    if "refused" in answer:
        raise InputError(answer["refused"])
    return Plan.from_json(answer["plan"])


def main() -> None:
    """Reads an order from the command line; writes lines of JSON, the last of which is the plan."""
    order = json.loads(sys.argv[1])
    request = Request(**order["request"] | {"overrides": tuple(order["request"]["overrides"])})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else writes to the standard output does not get in between
    answer = lambda **fields: print(json.dumps(fields), file=answers, flush=True)
    try:
        folders = [Path(x) for x in order["folders"]]
        plan = make_plan(request, folders, lambda text: answer(doing=text))
        answer(plan=plan.to_json())
    except InputError as error:
        answer(refused=str(error))
    os._exit(0)  # libtpu does not always end by itself


if __name__ == "__main__":
    main()
