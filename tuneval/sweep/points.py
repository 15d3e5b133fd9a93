"""A sweep's points, and how their values are spelled: in labels, and as the names of folders."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

NAME = "point"
"""In place of an axis: the name that a listed point was given."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of an axis."""

    label: str
    flags: dict[str, Any]
    """Flag (as a `--config` file spells it) -> value; None: the flag is not given, whatever `base` says."""
    number: float | None = None
    """The value where it is one, so that levels can stand on a scale."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One tuning of the sweep."""

    id: str
    """Name of its run folder; the same for the same settings, whatever else the file holds."""
    levels: dict[str, str]
    """Axis -> label of the level; of a listed point, only what it names."""
    flags: dict[str, Any]
    """What it sets over `base`."""
    seed: int | None = None
    """Where the sweep repeats its points with several seeds."""
    listed: bool = False
    """From `points`, not from the axes."""

    @property
    def settings(self) -> str:
        """Its levels in one line, without the seed: the same for its repetitions."""
        return spell_levels(self.levels)

    @property
    def label(self) -> str:
        return self.settings if self.seed is None else f"{self.settings}, seed {self.seed}"


def level_of(name: str, value: Any) -> Level:
    """A value of the flag `name` as a level."""
    value = as_number(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Level(label=spell_value(value), flags={name: value}, number=float(value) if is_number else None)


def flag_name(key: Any) -> str:
    """`--lora-r`, `lora-r`, `lora_r` -> `lora_r`."""
    return str(key).removeprefix("--").replace("-", "_")


def as_number(value: Any) -> Any:
    """YAML 1.1 takes `1e-4` for a text; here it is a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def spell_value(value: Any) -> str:
    """A level's short name: 1e-4, 16, qwen2.5-0.5b (of a path), q_proj+v_proj."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value and (abs(value) < 0.05 or abs(value) >= 1e5):
            mantissa, exponent = f"{value:.6e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(map(spell_value, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{k}={spell_value(v)}" for k, v in value.items()) or "none"
    text = str(value).rstrip("/")
    return text.rsplit("/", 1)[-1] if "/" in text else text


def spell_levels(labels: dict[str, str]) -> str:
    """Axis -> label, in one line."""
    return ", ".join(label if axis == NAME else f"{axis}={label}" for axis, label in labels.items()) or "base"


def folder_name(labels: dict[str, str]) -> str:
    """Readable and safe in any file system; what was changed or cut leaves a hash of the whole."""
    whole = ".".join(label if axis == NAME else f"{axis}-{label}" for axis, label in labels.items()) or "base"
    safe = re.sub(r"[^\w.+-]", "-", whole, flags=re.ASCII).strip(".")
    if safe == whole and len(safe) <= 80:
        return safe
    return f"{safe[:72]}-{hashlib.sha256(whole.encode()).hexdigest()[:7]}"
