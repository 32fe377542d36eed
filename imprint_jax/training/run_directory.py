"""A run's folder: what it was started with, whether a run may begin or go on there, and its lock.

    WORKDIR/config.json     the resolved configuration
    WORKDIR/records.json    checksums of the records it trains on, one row a source
    WORKDIR/licences.json   of the public weights it started from
    WORKDIR/metrics.jsonl   see metrics.py
    WORKDIR/lock            held by the training that is at work there

What else is there is described in checkpoint.py, metrics.py and validation.py.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flax import traverse_util

from imprint_jax import config as configs
from imprint_jax.config.fields import Config, InitFromConfig
from imprint_jax.data.records import content_hash
from imprint_jax.errors import InputError
from imprint_jax.runtime import distributed
from imprint_jax.runtime.files import atomic_file, check_local
from imprint_jax.weights import release

# What may change when a run goes on: what it shows and keeps, and how it is spread over machines.
MAY_CHANGE = {
    *("log_every", "save_every", "keep", "keep_every", "data.num_workers"),
    *("validation.every", "validation.batches", "preview.every", "preview.samples"),
    *("fsdp", "accumulation", "remat.dinov2", "remat.unet", "attention", "precision"),
}
# What a new run would write over, or take for its own.
RUNS_OWN = ("config.json", "checkpoints", "frozen", "checksums", "damaged")
# The fields of a source that are paths: the records' checksums count, not where they are.
PATHS = ("records", "backgrounds")


def holds_run(workdir: Path) -> bool:
    """Whether a run was begun there; a released model, which has a config.json too, is none."""
    path = workdir / "config.json"
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return True  # `load_config` says what is wrong with it
    return not isinstance(content, dict) or "stage" in content


def load_config(workdir: Path) -> Config:
    """The configuration a run was started with; fields that are newer have their defaults.

    Raises:
        InputError: It cannot be read.
    """
    path = workdir / "config.json"
    try:
        return Config.of(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): put back a copy of it, or start another run."
        ) from error


def config_to_resume(workdir: Path, recipe: str | None, overrides: Sequence[str]) -> Config:
    """The run's own configuration, with overrides of what may change.

    Args:
        workdir: The run's folder.
        recipe: What `--config` names, if anything; its stage must be the run's.
        overrides: Arguments of the form "--config.a.b=value".

    Raises:
        InputError: The recipe is of another stage, or an override is none.
    """
    config = load_config(workdir).recipe()
    if recipe and (stage := configs.load(recipe, overrides).stage) != config.stage:
        raise InputError(
            f"{workdir} holds a run of stage {config.stage}, and {recipe} is stage {stage}; use"
            " another workdir."
        )
    for override in overrides:
        configs.apply(config, override)
    return Config.of(config)


def check(workdir: Path, config: Config, *, resume: bool, overwrite: bool) -> bool:
    """Whether there is a checkpoint to go on from; changes nothing.

    Raises:
        InputError: The folder holds a run already, or something else, or a run with another
            configuration or other records; or it lacks what is needed to go on, or is an address.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other.")
    check_local(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; --workdir wants a folder.")
    if not holds_run(workdir):
        if overwrite and workdir.exists() and any(workdir.iterdir()):
            raise InputError(f"{workdir} holds files but no run: --overwrite will not delete it.")
        for name in RUNS_OWN:
            if (workdir / name).exists():
                raise InputError(
                    f"{workdir} holds {name}, but not the config.json of a run: put it back, or"
                    " give another --workdir."
                )
        return False
    if overwrite:
        _check_sources_outlive(workdir, config.init_from)
        return False
    if not resume:
        raise InputError(
            f"{workdir} already holds a run: --resume continues it, --overwrite deletes it."
        )
    if changed := _differences(load_config(workdir), config):
        raise InputError(
            f"{workdir} was started with another configuration, which differs in"
            f" {', '.join(changed)}; --resume with the same, or use another workdir."
        )
    _check_records(workdir, config)
    saved = any(p.name.isdecimal() for p in (workdir / "checkpoints").glob("*"))
    if not saved and (workdir / "damaged").exists():
        raise InputError(
            f"All checkpoints of {workdir} were damaged and are in its damaged/: nothing is left to"
            " go on from. Start again with --overwrite or in another workdir."
        )
    return saved


def _check_sources_outlive(workdir: Path, init_from: InitFromConfig) -> None:
    for component, source in vars(init_from).items():
        if source not in ("", configs.RANDOM) and release.resolve(source).resolve().is_relative_to(
            workdir.resolve()
        ):
            raise InputError(
                f"config.init_from.{component} = {source} lies in {workdir}, which --overwrite"
                " deletes: choose another --workdir, or move that run first."
            )


def _differences(before: Config, after: Config) -> list[str]:
    """The fields that differ and may not, as dotted paths."""

    def flat(config: Config) -> dict:
        content = config.to_dict()
        for source in content["data"]["sources"]:
            for field in PATHS:
                source.pop(field, None)
        return traverse_util.flatten_dict(content, sep=".")

    old, new = flat(before), flat(after)
    changed = {key for key in old | new if old.get(key) != new.get(key)}
    return sorted(changed - MAY_CHANGE)


def _checksums(config: Config) -> list[dict[str, str]]:
    """Of the records of each source, by field; nothing of one that is not read.

    Raises:
        InputError: There are none, or they have no checksums.
    """
    return [
        {field: content_hash(path) for field in PATHS if (path := getattr(source, field))}
        if source.weight
        else {}
        for source in config.data.sources
    ]


def _check_records(workdir: Path, config: Config) -> None:
    path = workdir / "records.json"
    if not path.is_file():  # the run was stopped as it began, or is of a time before
        return
    rows = zip(config.data.sources, json.loads(path.read_text()), _checksums(config), strict=True)
    for source, before, now in rows:
        for field in before:
            if before[field] != now.get(field):
                raise InputError(
                    f"{getattr(source, field)} holds other records than those {workdir} was started"
                    " with: their checksums differ. Go on with the same, wherever they are"
                    " (--config.data.sources=...), or start another run."
                )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps other trainings out of it.

    Raises:
        InputError: Another training is at work there, or the folder cannot be made.
    """
    refusal, file = "", None
    if distributed.is_main():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = open(workdir / "lock", "w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(workdir / "lock")):
                raise BlockingIOError  # another training took its lock away as it ended
        except BlockingIOError:
            refusal = f"Another training is at work in {workdir}."
        except OSError as error:
            refusal = f"Cannot write to {workdir}: {error.strerror}."
    try:
        if distributed.any_of_all(bool(refusal)):
            raise InputError(refusal or "Process 0 cannot have the run's folder.")
        yield
    finally:
        if file is not None:
            if not refusal:
                (workdir / "lock").unlink(missing_ok=True)
            file.close()
            with contextlib.suppress(OSError):  # it holds something, unless no run began
                workdir.rmdir()


def begin(workdir: Path, config: Config, licences: Mapping[str, str], *, overwrite: bool) -> None:
    """Writes what a new run is started with; with `overwrite` deletes the run that is there.

    Raises:
        InputError: Records have no checksums; nothing is deleted then.
    """
    checksums = json.dumps(_checksums(config), indent=2)
    if overwrite:
        # By config.json the folder is known for a run, should this end on the way.
        for path in sorted(workdir.iterdir(), key=lambda path: path.name == "config.json"):
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    _forget_steps(workdir, after=0)  # of a run that ended before its first checkpoint
    _write(workdir / "licences.json", json.dumps(licences, indent=2))
    _write(workdir / "records.json", checksums)
    _write(workdir / "config.json", json.dumps(config.to_dict(), indent=2))


def go_on(workdir: Path, config: Config, step: int) -> None:
    """Prepares the folder for a run to go on after a step: metrics of later ones are taken out."""
    _forget_steps(workdir, after=step)
    _write(workdir / "config.json", json.dumps(config.to_dict(), indent=2))


def _forget_steps(workdir: Path, *, after: int) -> None:
    path = workdir / "metrics.jsonl"
    if path.exists():
        with atomic_file(path) as file:
            lines = path.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if _step(line) <= after))


def _step(line: str) -> float:
    """The step of a line of metrics; infinite where the run was killed as it wrote it."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except ValueError:
        return float("inf")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write_text(text + "\n", encoding="utf-8")
