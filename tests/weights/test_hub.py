"""Models by their names on the hub: a fake cache, no network."""

import hashlib
import json
import logging
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from imprint_jax.composing import job
from imprint_jax.composing.settings import Settings
from imprint_jax.errors import InputError
from imprint_jax.weights import hub, publish, release
from tests.commands import run
from tests.parity import reference

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache in the place of the user's, and no network: (repository, {name: bytes}) -> its
    snapshot's folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", no_network)

    def add(repository: str, files: dict[str, bytes], commit: str = COMMIT) -> Path:
        folder = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        for name, content in files.items():
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = folder / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text(commit)
        return folder / "snapshots" / commit

    return add


def no_network(*args):
    raise AssertionError("a test wants the network")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_model_by_its_name(cache, tiny_release, caplog):
    caplog.set_level(logging.INFO, "imprint_jax.weights.hub")
    snapshot = cache("org/name", files_of(tiny_release) | {"extra.bin": b"a pickle"})
    for name in ("org/name", "org/name@main", f"org/name@{COMMIT}"):
        assert release.model_folder(name) == snapshot
        assert f"{name} is commit {COMMIT}" in caplog.text
    config, _ = release.load(snapshot)
    assert config.image_size == release.load_config(tiny_release).image_size
    how = job.provenance(snapshot, config, Settings().filled(config), {}, "float32")
    assert how["model"] == f"org/name@{COMMIT}"
    assert how["model_sha256"] == release.model_hash(tiny_release)


def test_a_folder_of_that_name_comes_first(cache, tiny_release, tmp_path, monkeypatch):
    cache("org/name", files_of(tiny_release))
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert release.resolve("org/name") == Path("org/name")
    assert release.resolve("./org/other") == Path("./org/other")
    assert release.resolve(Path("other/name")) == Path("other/name")
    assert not hub.is_name("a/b/c") and not hub.is_name("../name") and not hub.is_name("name")


def test_what_is_not_there(cache, tiny_release):
    snapshot = cache("org/name", files_of(tiny_release))
    for name in ("org/absent", "org/name@v2", f"org/name@{'b' * 40}"):
        with pytest.raises(InputError, match=r"not among the files fetched .* cannot be reached"):
            release.resolve(name)
    with pytest.raises(InputError, match="is no name on the hub"):
        release.resolve("org/na..me")
    with pytest.raises(InputError, match="is no name on the hub: give ORG/NAME"):
        hub.fetch("a/b/c")
    # A snapshot with a list of its files, of which one was not fetched.
    listing = snapshot.parent.parent / "trees" / f"{COMMIT}.json"
    listing.parent.mkdir()
    entry = {"size": 1, "blob_id": "0" * 40}
    listing.write_text(json.dumps({"format_version": 1, "files": {"more.safetensors": entry}}))
    with pytest.raises(InputError, match="not among the files fetched"):
        release.resolve("org/name")


@pytest.mark.parametrize(
    "error, message",
    [
        (errors.GatedRepoError, "org/name is gated: accept its terms"),
        (errors.RepositoryNotFoundError, "no such repository on the hub that this user may read"),
        (errors.RevisionNotFoundError, "has no revision as in org/name"),
        (errors.HfHubHTTPError, "org/name could not be fetched or sent: 500"),
    ],
)
def test_what_the_hub_says(cache, monkeypatch, error, message):
    def refuse(*args, **kwargs):
        response = SimpleNamespace(headers={}, status_code=500, request=None)
        raise error("500 Server Error", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=message):
        release.resolve("org/name")


def test_public_weights_are_fetched_and_converted(cache, tmp_path, monkeypatch):
    reference.unet().save_pretrained(tmp_path / "sd/unet")
    reference.vae().save_pretrained(tmp_path / "sd/vae", safe_serialization=False)
    cache("org/sd", files_of(tmp_path / "sd") | {"sd.ckpt": b"a pickle"})
    code, said = run("convert", "hub:org/sd", tmp_path / "ours", "--kind", "sd")
    assert code == 0, said
    assert {p.name for p in (tmp_path / "ours").iterdir()} >= {"unet.safetensors", "config.json"}
    for arguments, message in (
        (("hub:org/sd",), "Say what org/sd is: --kind"),
        (("hub:org/absent", "--kind", "sd"), "cannot be reached"),
        (("hub:org", "--kind", "sd"), "is no name on the hub"),
    ):
        code, said = run("convert", *arguments, tmp_path / "refused")
        assert code == 2 and message in " ".join(said.split())
    assert not (tmp_path / "refused").exists()


def test_pushing(tiny_release, tmp_path, monkeypatch):
    pushed = {}

    class Api:
        def create_repo(self, name, **options):
            pushed["repository"] = name, options

        def create_commit(self, name, operations, **options):
            pushed["files"] = {x.path_in_repo: x.path_or_fileobj for x in operations}
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "shown.png").write_bytes(b"png")
    how = dict(trained="Four steps on noise.", picture=tmp_path / "shown.png")
    with pytest.raises(InputError, match="under which licence"):
        publish.push(tiny_release, "org/name", **how)
    address = publish.push(tiny_release, "org/name", licence="apache-2.0", **how)
    assert address == "https://hub/commit"
    assert pushed["repository"] == ("org/name", {"private": False, "exist_ok": True})
    assert {"config.json", "unet.safetensors", "picture.png"} <= pushed["files"].keys()
    card = pushed["files"]["README.md"].decode()
    assert "license: apache-2.0" in card and "Four steps on noise." in card
    assert "(picture.png)" in card and "--model org/name" in card

    for folder in tiny_release.glob("*"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / folder.name).write_bytes(folder.read_bytes())
    file = tmp_path / "model/config.json"
    for licence, message in (
        ("not stated", "The licence of unet is not stated"),
        ("CreativeML OpenRAIL-M", None),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"licences": {"unet": licence}}))
        if message:
            with pytest.raises(InputError, match=message):
                publish.push(tmp_path / "model", "org/name", licence="mit", **how)
    publish.push(tmp_path / "model", "org/name", licence="mit", **how)
    assert "license: creativeml-openrail-m" in pushed["files"]["README.md"].decode()
    (tmp_path / "model/adapter.safetensors").unlink()
    with pytest.raises(InputError, match="is not a whole model"):
        publish.push(tmp_path / "model", "org/name", **how)
