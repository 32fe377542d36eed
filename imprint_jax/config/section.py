"""What all sections of a configuration have in common: they check themselves and go to JSON."""

import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from ml_collections import ConfigDict

from imprint_jax.errors import InputError


class Range(NamedTuple):
    """The smallest and the largest value of a number."""

    low: float
    high: float = math.inf


Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


@dataclass(frozen=True)
class Section:
    """A part of a configuration. Its fields' annotations say what each may be.

    Lists are taken for tuples, whole numbers for floats and mappings for sections, as they come
    from JSON.

    Raises:
        InputError: A value of another type, or none of the choices, or out of range.
    """

    NAME: ClassVar[str] = "config"  # as errors call it

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            value = _taken(getattr(self, name), hint, f"{self.NAME}.{name}")
            object.__setattr__(self, name, value)  # how a frozen dataclass sets its own fields

    @classmethod
    def of(cls, content: Mapping[str, Any] | ConfigDict, name: str = "") -> Self:
        """The section with this content; fields that it lacks have their defaults, if any.

        Args:
            content: Of a recipe, or of JSON.
            name: What to call it in an error, if not by its own name.

        Raises:
            InputError: Unknown fields, missing ones, or as the constructor.
        """
        name = name or cls.NAME
        if isinstance(content, ConfigDict):
            content = content.to_dict()
        if not isinstance(content, Mapping):
            raise InputError(f"{name} = {content!r} must be a section with fields.")
        by_name = {field.name: field for field in fields(cls)}
        if unknown := [repr(key) for key in content if key not in by_name]:
            raise InputError(
                f"{name} has no field {', '.join(unknown)}; its fields: {', '.join(by_name)}."
            )
        needed = [key for key, x in by_name.items() if x.default is x.default_factory is MISSING]
        if missing := [repr(key) for key in needed if key not in content]:
            raise InputError(f"{name} lacks {', '.join(missing)}.")
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """The content as `of` takes it: nested dicts."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@functools.cache
def _hints(section: type[Section]) -> dict[str, Any]:
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.name: hints[field.name] for field in fields(section)}


def _taken(value: Any, hint: Any, name: str) -> Any:
    """A value as an annotation says.

    Raises:
        InputError: As `Section`.
    """
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        value, (low, high) = _taken(value, parts[0], name), parts[1]
        if not low <= value <= high:
            allowed = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            raise InputError(f"{name} = {value} must be {allowed}.")
        return value
    if kind is Literal:
        if value not in parts:
            raise InputError(f"{name} is {value!r}; it may be one of {', '.join(parts)}.")
        return value
    if kind is tuple:
        if not isinstance(value, tuple | list):
            raise InputError(f"{name} = {value!r} must be a tuple.")
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(parts) != len(value):
            raise InputError(f"{name} = {value!r} must have {len(parts)} entries.")
        rows = enumerate(zip(value, parts, strict=True))
        return tuple(_taken(x, part, f"{name}[{i}]") for i, (x, part) in rows)
    if hint is Any:
        return _with_tuples(value)
    if isinstance(value, hint) and issubclass(type(value), Section):
        return value
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint.of(value, name)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{name} = {value!r} must be {WORDS.get(hint, 'a section')}.")
    return value


def _with_tuples(value: object) -> object:
    """JSON's lists as the tuples they were."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.to_dict() if isinstance(value, Section) else value
