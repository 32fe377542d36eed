"""What `scripts/benchmark.py` accepts on its command line."""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from imprint_jax.training import sharding
from imprint_jax.training.state import Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import benchmark_peer


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (benchmark_peer.positive_integers, "1,4,16", (1, 4, 16)),
        (benchmark_peer.training_batches, "largest", "largest"),
        (benchmark_peer.training_batches, "8", (8,)),
        (benchmark_peer.stage_numbers, "1,2", (1, 2)),
        (benchmark_peer.switches, "on,off", (True, False)),
    ],
)
def test_reads(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (benchmark_peer.positive_integers, "0"),
        (benchmark_peer.positive_integers, "1,,2"),
        (benchmark_peer.positive_integers, "-1"),
        (benchmark_peer.positive_integer, "10,20"),
        (benchmark_peer.training_batches, "large"),
        (benchmark_peer.stage_numbers, "3"),
        (benchmark_peer.switches, "yes"),
    ],
)
def test_refuses(read, text):
    with pytest.raises(argparse.ArgumentTypeError):
        read(text)


@pytest.mark.parametrize("theirs", [benchmark_peer.OUT_OF_MEMORY, benchmark_peer.FAILED])
def test_row_with_one_side_without_numbers(theirs):
    found = {"ours": {"rate": 2.0, "memory": 1.0, "compile": 3.0, "flops": 494.5e12}}
    found["torch"] = theirs
    row = benchmark_peer.cells(found, "rate", "NVIDIA H200")
    assert row == "2 / - | - | 100% / - | 1.00 / - | 3 / -"


def test_row_of_an_unknown_device_has_no_utilisation():
    side = {"rate": 2.0, "memory": 1.0, "compile": 3.0, "flops": 1e12}
    found = {"ours": side, "torch": side | {"rate": 4.0}}
    assert benchmark_peer.cells(found, "rate", "cpu").startswith("2 / 4 | 0.50 | - |")


def test_only_a_failure_of_the_torch_side_is_survived(tmp_path, capfd):
    script = tmp_path / "side.py"
    script.write_text("import sys; print('noise', file=sys.stderr); sys.exit('Broken: why')")
    assert benchmark_peer.in_process(str(script), "torch", {"batch": 3}) == benchmark_peer.FAILED
    said = capfd.readouterr().err
    assert "PyTorch's side failed, exit code 1" in said
    assert '"batch": 3' in said
    assert "Broken: why" in said
    with pytest.raises(subprocess.CalledProcessError):
        benchmark_peer.in_process(str(script), "ours", {"batch": 3})


def test_a_torch_side_that_succeeds_shows_no_noise(tmp_path, capfd):
    script = tmp_path / "side.py"
    script.write_text("import sys; print('noise', file=sys.stderr); print('{\"rate\": 2.0}')")
    assert benchmark_peer.in_process(str(script), "torch", {}) == {"rate": 2.0}
    assert not capfd.readouterr().err


def test_the_largest_batch_ends_at_a_failure(monkeypatch):
    answers = {1: {"rate": 1.0}, 2: {"rate": 2.0}, 4: benchmark_peer.FAILED}
    ask = lambda script, side, arguments: answers[arguments["batch"]]
    monkeypatch.setattr(benchmark_peer, "in_process", ask)
    assert benchmark_peer.largest("script", {})["torch"] == {"rate": 2.0}


def test_the_deep_case_trains_as_many_tensors_as_full_size_does():
    trainer = Trainer(benchmark_peer.case("deep", 2, "float32"), sharding.make_mesh(1))
    assert len(jax.tree.leaves(trainer.abstract_state.trained)) == pytest.approx(690, abs=20)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


@pytest.mark.parametrize(
    ("error", "used_up"),
    [
        (OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"), True),
        (RuntimeError("INTERNAL: cuDNN"), False),
    ],
)
def test_only_used_up_memory_counts_as_such(error, used_up):
    assert benchmark_peer.is_out_of_memory(error) == used_up
