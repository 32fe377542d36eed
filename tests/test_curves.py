"""The picture of a run's losses has axes, a legend and both curves."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "curves.py"


@pytest.mark.parametrize("validation", [True, False])
def test_curves(tmp_path, validation):
    lines = [{"step": step, "loss": 10 / step} for step in range(1, 201)]
    if validation:
        lines += [{"step": step, "validation_loss": 0.5} for step in (100, 200)]
    metrics, out = tmp_path / "run" / "metrics.jsonl", tmp_path / "curves.svg"
    metrics.parent.mkdir()
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    subprocess.run([sys.executable, SCRIPT, metrics, out], check=True)
    svg = ElementTree.parse(out).getroot()
    tag = lambda name: svg.findall(f"{{http://www.w3.org/2000/svg}}{name}")
    words = [text.text for text in tag("text")]
    assert {"step", "loss", "run", "0", "100", "200", "training: 0.0500 at the end"} <= {*words}
    assert ("validation, averaged weights: 0.5000 at the end" in words) == validation
    curves = [line.get("points").split() for line in tag("polyline")]
    assert [len(points) for points in curves] == ([200, 2] if validation else [200])
