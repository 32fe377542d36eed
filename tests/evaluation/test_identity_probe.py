"""The identity probe on rendered objects of one colour each."""

import numpy as np
import pytest
from typer.testing import CliRunner

from imprint_jax.cli import app
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from imprint_jax.evaluation import encoders
from imprint_jax.evaluation.identity_probe import probe
from imprint_jax.evaluation.test_sets import untracked
from tests.tiny import write_records


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


class MeanColour:
    """An encoder whose embedding is the mean colour."""

    size, about = 28, "mean colour"

    def embed(self, items):
        return (np.float32(x).mean(axis=(0, 1)) for (x,) in items)


def test_colours_tell_these_objects_apart(folders):
    found = probe(MeanColour(), RecordSource(folders[0], "train"), apart=3, track=untracked)
    assert (found.top1, found.mean_precision) == (1.0, pytest.approx(1.0))
    assert (found.views, found.objects) == (30, 3)
    assert 0.1 < found.chance < 0.3


def test_changed_colours_make_it_harder(folders):
    records = RecordSource(folders[0], "train")
    plain, changed = (
        probe(MeanColour(), records, apart=1, color=c, track=untracked) for c in (0.0, 1.0)
    )
    assert changed.mean_precision < plain.mean_precision


def test_photos_without_masks_are_refused(folders):
    with pytest.raises(InputError, match="with masks"):
        probe(MeanColour(), RecordSource(folders[1], "train"), track=untracked)


def test_the_command_shows_trained_and_untrained(folders, tiny_release):
    arguments = ["probe", folders[0], "--split", "train", "--encoder", str(tiny_release)]
    done = CliRunner().invoke(
        app, [*arguments, "--untrained"], env={"COLUMNS": "250"}, catch_exceptions=False
    )
    assert done.exit_code == 0
    assert encoders.load(tiny_release).about in done.stderr
    assert "untrained" in done.stdout  # the path before it may be broken over lines
