"""The commands in README and documents are commands that exist, and those of README's start run."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from imprint_jax import cli, config
from tests.commands import ROOT, run_alone

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data/README.md",
    *(ROOT / "docs").glob("*.md"),
]


def commands(document: Path) -> list[list[str]]:
    """The words after `imprint` of each command in a document's blocks, as a shell splits them."""
    found = []
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        for part in re.sub(r"(^|\s)#.*", "", line).split("&&"):
            words = shlex.split(re.sub(r"\[.*?\]|\.\.\.", "", part))  # [what may follow], ...
            if words[:1] == ["imprint"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_the_commands_of_a_document_exist(document):
    group = typer.main.get_command(cli.app)
    for words in commands(document):
        command, rest, context = group, words, None
        while hasattr(command, "commands"):
            context = command.make_context(command.name, rest[:1], parent=context)
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        # Options that do not exist, or whose values are of another kind, raise.
        context = command.make_context(command.name, list(rest), parent=context)
        if context.params.get("config"):
            config.load(context.params["config"], [x for x in rest if x.startswith("--config.")])


def test_every_document_with_commands_is_read():
    assert sum(len(commands(document)) for document in DOCUMENTS) > 60


@pytest.mark.long
def test_readmes_commands_run_one_after_the_other(tmp_path):
    """As a newcomer would, from the first picture to one by a model of their own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/samples").symlink_to(ROOT / "data/samples")
    mine, said = [], ["compose", "data", "data", "train", "train", "export", "compose"]
    for words in commands(ROOT / "README.md"):
        words = [word for word in words if word != "--resume"]
        if "cup.png" in words or words[0] in ("plan", "convert"):
            continue  # pictures, chips or weights that are not here
        if words[0] == "train":
            words += ["--config.total_steps=2", "--config.save_every=2"]
        if "my_mini" in words and words[0] == "compose":
            words += ["--object", "data/samples/objects/cap/030.webp"]
            words += ["--background", "data/samples/photos/mountains.jpg"]
            words += ["--box", "320,410,470,550"]
        done = run_alone(*words, folder=tmp_path, devices=1)
        assert done.returncode == 0, done.stderr
        mine.append(words[0])
    assert mine == said
    assert (tmp_path / "out.png").is_file() and (tmp_path / "mine.png").is_file()
