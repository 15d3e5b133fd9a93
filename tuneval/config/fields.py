"""The settings of a command, sections opened: name -> type."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints


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
