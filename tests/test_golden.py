"""Every recipe's parameters, one a line: a change of names, shapes or what trains shows as a diff.

After a change that is meant: pytest tests/test_golden.py --update-golden
"""

from pathlib import Path

import pytest
from flax import traverse_util

from imprint_jax import config, optim
from imprint_jax.models import imprint

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("recipe", ["stage1", "stage2", "mini_stage1", "mini_stage2"])
def test_parameter_table(recipe, full_size, request):
    settings = config.load(recipe)
    is_full = settings.model.to_dict() == config.default().model.to_dict()
    params = full_size if is_full else imprint.split(settings.model)[1]
    labels = optim.label_params(params, settings.groups)
    flat = traverse_util.flatten_dict(params, sep="/")
    lines = [f"{path} {x.shape} {x.dtype} {labels[path]}\n" for path, x in sorted(flat.items())]
    file = GOLDEN / f"{recipe}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text("".join(lines))
    assert file.read_text().splitlines(keepends=True) == lines
