import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from imprint_jax.errors import InputError
from imprint_jax.runtime.processes import in_processes


def add(base, number):
    return base + number, multiprocessing.parent_process() is None


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers, jobs", [(1, 5), (2, 5), (2, 1)])
def test_results_come_in_order(workers, jobs):
    here = workers == 1 or jobs == 1
    expected = [(10 + k, here) for k in range(jobs)]
    assert list(in_processes(add, [(k,) for k in range(jobs)], workers, 10)) == expected


def test_what_cannot_be_done_is_said():
    with pytest.raises(InputError, match="need 1 at least"):
        list(in_processes(add, [(1,)], -1, 10))
    with pytest.raises(InputError, match="fewer --workers"):
        list(in_processes(die, [(1,), (2,)], 2))


SLEEPING = """
import time
from imprint_jax.runtime.processes import in_processes

def sleep(seconds):
    print("started", flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    list(in_processes(sleep, [(60,), (60,)], 2))
"""


def test_a_killed_parent_leaves_no_process(tmp_path):
    script = tmp_path / "sleeping.py"
    script.write_text(SLEEPING)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    for _ in range(2):
        assert parent.stdout.readline() == b"started\n"
    parent.kill()
    parent.communicate(timeout=20)  # returns when nobody holds the other end any more
