"""`scripts/launch`: what ends a run and what restarts it, with stand-ins for the queues."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "scripts" / "launch"


def launch(folder: Path, script: str, stand_ins: dict[str, str], **environment):
    """Runs a launch file where these commands are others; each notes how it was called."""
    for name, body in stand_ins.items():
        command = folder / name
        command.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
        command.chmod(0o755)
    done = subprocess.run(
        [LAUNCH / script, "--config", "stage1", "--workdir", "a b"],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    "code, restarts, queued",
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (130, 0, False),
        (143, 0, True),
        (143, 99, True),  # time limits and preemptions are no failures
        (137, 0, True),
        (134, 2, True),
        (134, 3, False),
    ],
)
def test_slurm_queues_again_what_was_stopped_or_killed(tmp_path, code, restarts, queued):
    done, calls = launch(
        tmp_path,
        "slurm.sh",
        {"srun": f"exit {code}", "scontrol": ""},
        SLURM_JOB_ID="7",
        SLURM_RESTART_COUNT=str(restarts),
        MAX_RESTARTS="3",
    )
    assert done.returncode == code
    train = "imprint train --distributed --resume --config stage1 --workdir a b"
    assert calls[0] == f"srun --kill-on-bad-exit=0 {train}"
    assert calls[1:] == (["scontrol requeue 7"] if queued else [])
    assert ("not queued again" in done.stderr) == (code == 134 and restarts == 3)


# A pod that loses a host at first, is then preempted and made anew, and ends well at last.
GCLOUD = """
times() { grep -c "$1" "$(dirname "$0")/calls"; }
case $4 in
    ssh) [ "$(times ' ssh ')" -lt 3 ] && exit 255; exit 0 ;;
    describe) [ "$(times describe)" = 2 ] && echo PREEMPTED || echo READY ;;
esac
"""


def test_a_tpu_pod_is_started_again_once_it_is_ready(tmp_path):
    done, calls = launch(
        tmp_path, "tpu_pod.sh", {"gcloud": GCLOUD}, TPU="pod", ZONE="here", WAIT="0"
    )
    assert done.returncode == 0, done.stderr
    assert [call.split()[4] for call in calls] == [
        *("ssh", "describe"),
        *("ssh", "describe", "describe"),
        "ssh",
    ]
    assert calls[0] == (
        "gcloud compute tpus tpu-vm ssh pod --zone here --worker all --command"
        r" imprint train --distributed --resume --config stage1 --workdir a\ b "
    )
    assert done.stderr.count("starting again when pod is ready") == 2


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_tpu_pod_is_not_started_again_after_a_failure(tmp_path, code):
    stand_ins = {"gcloud": f"exit {code}"}
    done, calls = launch(tmp_path, "tpu_pod.sh", stand_ins, TPU="pod", ZONE="here", WAIT="0")
    assert done.returncode == code and len(calls) == 1
