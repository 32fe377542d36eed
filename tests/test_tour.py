"""The notebook docs/tour.ipynb runs from its first cell to its last."""

import os
import shutil
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.commands import ROOT


@pytest.mark.long
def test_the_tour_runs(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "data/samples", tmp_path / "data/samples")
    (tmp_path / "docs").mkdir()
    # `imprint` is this checkout's, whatever is installed.
    command = tmp_path / "bin/imprint"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m imprint_jax "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 20", "STEPS = 3")
    NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": tmp_path / "docs"}}
    ).execute()
    pictures = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 8
    assert (tmp_path / "runs/tour/my_mini/unet.safetensors").is_file()
