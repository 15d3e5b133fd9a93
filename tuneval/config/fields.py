"""The settings of a command, sections opened: name -> type, which of them are needed, and what words fit a type."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@cache
def flat_types(config_type: type) -> dict[str, Any]:
    """Every setting of a schema class, those of its sections included, as one flat level.

    Args:
        config_type: a dataclass of `config.schema`.
    """
    hints = get_type_hints(config_type)
    found: dict[str, Any] = {}
    for f in fields(config_type):  # type: ignore[arg-type]
        hint = hints[f.name]
        opened = flat_types(hint) if is_dataclass(hint) else {f.name: hint}
        assert not found.keys() & opened.keys(), f"{config_type.__name__} has {f.name} twice: flags are flat"
        found |= opened
    return found


def needed(config_type: type) -> list[str]:
    """The settings without a default, those of sections included."""
    hints, names = get_type_hints(config_type), []
    for f in fields(config_type):  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING:
            names += needed(hints[f.name]) if is_dataclass(hints[f.name]) else [f.name]
    return names


def misfit(kind: Any, values: list[str]) -> str | None:
    """What a setting of this type asks for, where it is not what the words say; None where it is.

    Args:
        kind: a type of `flat_types`.
        values: the words behind the flag.
    """
    if kind is bool:
        return "takes no value" if values else None
    if get_origin(kind) is tuple:
        return next((wanted for value in values if (wanted := misfit(get_args(kind)[0], [value]))), None)
    if len(values) != 1:
        return "give one value; quotes hold words together" if values else "give a value"
    (value,) = values
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value == "None" and NoneType in kinds:
        return None
    if get_origin(kinds[0]) is Literal:
        choices = get_args(kinds[0])
        return None if value in choices else f"give {' or '.join(choices)}"
    number, name = {int: (int, "a whole number"), float: (float, "a number")}.get(kinds[0], (str, ""))
    try:
        number(value)
    except ValueError:
        return f"give {name}"
    return None
