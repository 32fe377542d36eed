"""Several processes: when one is gone, the others end soon and say why."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from imprint_jax.runtime import distributed

# Two processes that ask each other for ever, or that do something else meanwhile.
TALKING = """
import sys, time
from imprint_jax.runtime import distributed
distributed.HEARTBEAT, distributed.FAREWELL = 4, 2
distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with distributed.losses_named():
    distributed.wait_for_all("begun")
    print("begun", flush=True)
    while True:
        {what}
"""


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("what", ["distributed.any_of_all(False)", "time.sleep(0.1)"])
def test_a_dead_process_ends_the_other_with_a_reason(victim, what):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-c", TALKING.format(what=what), address]
    pair = [
        subprocess.Popen(
            [*command, str(k)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for k in range(2)
    ]
    try:
        for process in pair:
            assert "begun\n" in iter(process.stdout.readline, "")  # after what Gloo says
        pair[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        said = pair[1 - victim].communicate(timeout=60)[1]
        assert time.monotonic() - begin < 30
        assert pair[1 - victim].returncode != 0
        # Our sentence, or where JAX's own watch is faster, its.
        assert re.search("Another process of this run|another task died", said)
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def test_all_have_ended_within_a_minute():
    assert distributed.HEARTBEAT + distributed.FAREWELL < 60
