"""Recipes: found by name or file, run, checked, changed by overrides."""

import ast
import inspect
import runpy
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from imprint_jax.config.fields import Config
from imprint_jax.errors import InputError


def default() -> ConfigDict:
    """The paper's stage 1, for a recipe to start from; locked."""
    return Config().recipe().lock()


def config_file(name: str) -> Path:
    """The recipe called `name`, or the file of that path.

    Raises:
        InputError: There is none.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"There is no config file {name}.")
        return path
    # In a checkout the recipes stand beside the package; in an installed wheel inside it.
    package = Path(__file__).parent.parent
    folders = [package / "configs", package.parent / "configs"]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    recipes = {p.relative_to(f).with_suffix("") for f in folders for p in f.rglob("*.py")}
    names = sorted(path.as_posix() for path in recipes)
    raise InputError(f"Unknown config {name!r}; known are {', '.join(names)}, or give a .py file.")


def load(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of a recipe, with overrides applied, locked.

    Args:
        name: A recipe's name ("mini_stage1") or a path ending in .py that defines `get_config()`;
            arguments of that function may follow behind a colon ("ablations/no_swap:mini,2").
        overrides: Arguments of the form "--config.a.b=value".

    Raises:
        InputError: Unknown recipe, field, or a value of another type than the field's; or a recipe
            that has nothing to train with these arguments.
    """
    before, _, argument = name.rpartition(":")
    if len(before) > 1:  # else it is the colon of a drive, or there is none
        name = before
    else:
        argument = ""
    arguments = [int(x) if x.isdecimal() else x for x in argument.split(",")] if argument else []
    config = load_recipe(name, *arguments)
    if config is None:
        raise InputError(f"{name} trains nothing with {argument}.")
    for override in overrides:
        apply(config, override)
    return config.lock()


def load_recipe(name: str, *arguments: str | int) -> ConfigDict | None:
    """What a recipe's `get_config` returns for these arguments.

    Raises:
        InputError: Unknown recipe, it takes other arguments, or it has unknown fields or a value of
            another type than the field's.
    """
    path = config_file(name)
    recipe = runpy.run_path(str(path))
    if "get_config" not in recipe:
        raise InputError(f"{path} defines no get_config().")
    try:
        inspect.signature(recipe["get_config"]).bind(*arguments)
    except TypeError as error:
        raise InputError(f"{path} does not take {arguments}: {error}.") from error
    try:
        config = recipe["get_config"](*arguments)
    # ml_collections' for a field that is none, and for a value of another type
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {error.args[0]}") from error
    if config is not None:
        # What is unlocked, or replaced as a whole, ml_collections does not check.
        present, expected = _fields(config), _fields(default())
        unknown, missing = sorted(present - expected), sorted(expected - present)
        if unknown or missing:
            raise InputError(f"{path}: unknown fields {unknown}, missing fields {missing}.")
    return config


# Sections whose fields are those of the network that a recipe chooses.
OWN_FIELDS = ("model.dinov2", "model.vae")


def _fields(section: ConfigDict, prefix: str = "") -> set[str]:
    """The dotted names of all fields; of `OWN_FIELDS` their own only."""
    names = set()
    for name, value in section.items():
        if isinstance(value, ConfigDict) and prefix + name not in OWN_FIELDS:
            names |= _fields(value, f"{prefix}{name}.")
        else:
            names.add(prefix + name)
    return names


def stage_recipe(scale: str, stage: int) -> ConfigDict:
    """The recipe of a stage that ablations start from.

    Args:
        scale: "paper", "mini", or a folder with stage1.py and stage2.py.
        stage: 1 or 2.

    Raises:
        InputError: There is no such recipe.
    """
    names = {"paper": f"stage{stage}", "mini": f"mini_stage{stage}"}
    return load_recipe(names.get(scale, f"{scale}/stage{stage}.py"))


def rate(groups: Sequence[tuple], name: str) -> float | tuple[float, ...] | None:
    """The learning rate of a group of `config.groups`."""
    return next(rate for group, _, rate in groups if group == name)


def with_rate(groups: Sequence[tuple], name: str, rate: float | tuple[float, ...] | None) -> tuple:
    """`config.groups` with another rate for one group."""
    return tuple((g, pattern, rate if g == name else old) for g, pattern, old in groups)


def apply(config: ConfigDict, override: str) -> None:
    """Sets a field as "--config.a.b=value" says.

    Raises:
        InputError: Unknown field, or a value of another type than the field's.
    """
    name, equals, text = override.partition("=")
    if not name.startswith("--config.") or not equals:
        raise InputError(f"Cannot read {override!r}; overrides look like --config.seed=1.")
    *parents, field = name.removeprefix("--config.").split(".")
    section = config
    for parent in [*parents, field]:
        if not isinstance(section, ConfigDict) or parent not in section:
            fields = ", ".join(section) if isinstance(section, ConfigDict) else "none"
            raise InputError(f"Unknown config field in {override!r}; at {parent!r}: {fields}.")
        section, owner = section[parent], section
    if isinstance(section, ConfigDict):
        raise InputError(f"{override!r} sets a whole section; its fields: {', '.join(section)}.")
    owner[field] = _parse(text, section, override)


def _parse(text: str, current: object, override: str) -> object:
    """The text as a value of the current one's type; whole numbers may stand for floats."""
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(current):
        raise InputError(
            f"{override!r}: the field is of type {type(current).__name__}"
            f" (now {current!r}), {text!r} is not."
        )
    return value
