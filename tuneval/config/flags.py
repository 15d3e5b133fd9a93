"""Command line -> configuration: tyro over the schema, `--config` files, and Megatron's further flags."""

from __future__ import annotations

import difflib
import json
import math
import os
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tuneval.config.compatibility import (
    AT_LEAST,
    CHECKED,
    CHECKED_SWITCHES,
    NO_EFFECT,
    ONLY,
    SWITCHES,
    UNSUPPORTED,
    known,
)
from tuneval.config.fields import flat_types
from tuneval.errors import Problems, UserError

C = TypeVar("C")

_SIZES = {
    "tensor-model-parallel-size": "target-tensor-parallel-size",
    "pipeline-model-parallel-size": "target-pipeline-parallel-size",
}
"""Size of a model in memory -> what a command that writes one calls it."""


@dataclass(frozen=True)
class Parsed:
    """A configuration and what else the command line said."""

    config: Any
    model_facts: dict[str, str]
    """Flag -> what the user stated about the model ("" for a switch); `check_model_facts` holds it against the model."""
    notices: tuple[str, ...]
    """One line for each reason why flags change nothing, with the flags."""


def parse(config_type: type[C], arguments: list[str], program: str) -> Parsed:
    """Parse `arguments` into `config_type`.

    Args:
        config_type: a dataclass of `config.schema`.
        arguments: the words after the command's name.
        program: the command as typed, for usage texts.

    Raises:
        UserError: an unknown flag (with the nearest known spelling) or an unreadable `--config` file.
        SystemExit: tyro's own usage errors (status 2) and `--help` (status 0).
    """
    import tyro

    arguments, file_values = _take_config_file(normalise(arguments))
    defaults = _flags_from_file(file_values, given=arguments)
    marker = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    config, unknown = tyro.cli(
        config_type, prog=program, args=defaults + arguments, config=marker, return_unknown_args=True, add_help=True
    )
    facts, notices = _sort_out(unknown, [name.replace("_", "-") for name in flat_types(config_type)])
    return Parsed(_at_home(config), facts, notices)


def check_model_facts(facts: dict[str, str], hf_config: dict[str, Any]) -> None:
    """Raise one UserError that lists every stated fact the model contradicts."""
    problems = Problems()
    for flag, stated in facts.items():
        if flag in CHECKED_SWITCHES:
            wrong, is_so = CHECKED_SWITCHES[flag]
            problems.check(is_so(hf_config) is not False, f"--{flag}: {wrong}. Leave the flag out.")
            continue
        name, fact = CHECKED[flag]
        actual = fact(hf_config)
        padded = flag in AT_LEAST and _is_above(stated, actual)
        if actual is not None and not padded and not _equal(stated, actual):
            problems.add(f"--{flag} {stated}: the model's {name} is {actual}. Leave the flag out or give {actual}.")
    problems.raise_if_any()


def _equal(stated: str, actual: Any) -> bool:
    """Equal as words, or as numbers to fp32's precision: some configs hold 1e-6 as 9.999999974752427e-07."""
    try:
        return math.isclose(float(stated), float(actual), rel_tol=1e-6)
    except (ValueError, TypeError, OverflowError):  # a word, or what no number is
        return stated == str(actual)


def _is_above(stated: str, actual: Any) -> bool:
    """Above twice as much it is a slip of the finger."""
    return stated.isdecimal() and isinstance(actual, int) and actual < int(stated) <= 2 * actual


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON values, one flat level, as a `--config` file would spell it."""
    flat: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            flat.update(to_dict(value))
        else:
            flat[f.name] = json.loads(json.dumps(value, default=str))
    return flat


def normalise(arguments: list[str]) -> list[str]:
    """`--some_flag=v` and `--some_flag v` -> `--some-flag v`; values are left alone.

    A value that looks like a flag stays behind its `=`: `--prompt=-x` says what `--prompt -x` can't.
    """
    words = []
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.partition("=")
            words += as_words(name.replace("_", "-"), value) if equals else [name.replace("_", "-")]
        else:
            words.append(word)
    return words


def as_words(name: str, value: str) -> list[str]:
    """A flag and its value as a command line says them."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def setting_words(key: str, value: Any) -> list[str]:
    """A setting, as a `--config` file spells it, in the words of a command line; [] where it is None or False."""
    flag = "--" + key.replace("_", "-")
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return as_words(flag, json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value))


def _take_config_file(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    if "--config" not in arguments:
        return arguments, {}
    import yaml

    at = arguments.index("--config")
    if at + 1 == len(arguments):
        raise UserError("--config: give a YAML file")
    path = Path(arguments[at + 1])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--config {path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: must hold `flag: value` lines, found {type(values).__name__}")
    rest = arguments[:at] + arguments[at + 2 :]
    if "--config" in rest:
        raise UserError("--config: given twice; put everything in one file")
    return rest, values


def _flags_from_file(values: dict[str, Any], given: list[str]) -> list[str]:
    """The file's values as flags, for those the command line does not give itself."""
    words: list[str] = []
    on_the_line = {word.partition("=")[0] for word in given}
    for key, value in values.items():
        of_key = setting_words(str(key), value)
        if of_key and of_key[0].partition("=")[0] not in on_the_line:
            words += of_key
    return words


def _at_home(value: Any, name: str = "") -> Any:
    """Paths with the home folder for ~: a shell leaves it in `--save=~/run` and between quotes, files have no shell."""
    if is_dataclass(value):
        return replace(value, **{f.name: _at_home(getattr(value, f.name), f.name) for f in fields(value)})
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if isinstance(value, str) and name in ("tokenizer_name_or_path", "output_prefix"):  # text: an id, a / at the end
        return os.path.expanduser(value)
    return value


def _sort_out(unknown: list[str], schema_flags: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the flags that no schema class has mean: facts about the model, and notices of flags without effect."""
    facts: dict[str, str] = {}
    without_effect: dict[str, list[str]] = {}
    problems = Problems()
    for name, values in _grouped(unknown, problems):
        given = " ".join([f"--{name}", *values])
        if name in CHECKED or name in CHECKED_SWITCHES:
            problems.check(name in CHECKED_SWITCHES or len(values) == 1, f"{given}: give one value")
            facts[name] = values[0] if values else ""
        elif name in ONLY:
            choices, why = ONLY[name]
            problems.check(" ".join(values) in choices, f"{given}: give {' or '.join(choices)}; {why}")
        elif name in UNSUPPORTED:
            problems.add(f"{given}: known from MindSpeed-LLM, but not done here: {UNSUPPORTED[name]}")
        elif _SIZES.get(name) in schema_flags:
            remedy = f"any layout is read; --{_SIZES[name]} is that of the checkpoint written"
            problems.check(values == ["1"], f"{given}: {remedy}")
        elif name in NO_EFFECT:
            without_effect.setdefault(NO_EFFECT[name], []).append(f"--{name}")
        elif name in _SIZES:
            remedy = "this command does not split the model so; give 1 (a checkpoint of any layout loads as it is)"
            problems.check(values == ["1"], f"{given}: {remedy}")
        else:
            nearest = difflib.get_close_matches(_in_full(name), [*schema_flags, *known(), "config"], n=1)
            problems.add(f"--{name}: unknown flag" + (f"; did you mean --{nearest[0]}?" if nearest else ""))
    problems.raise_if_any()
    return facts, tuple(f"{', '.join(names)}: no effect, {reason}" for reason, names in without_effect.items())


_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "mbs": "micro-batch-size",
    "gbs": "global-batch-size",
}
"""What everybody calls them; too few letters to be like the flag."""


def _in_full(name: str) -> str:
    return "-".join(_SHORT.get(part, part) for part in name.split("-"))


def _grouped(words: list[str], problems: Problems) -> list[tuple[str, list[str]]]:
    """(flag, its values) of each flag; a switch takes none. A word that belongs to no flag is a problem."""
    grouped: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            grouped.append((name, [value] if equals else []))
        elif not grouped or grouped[-1][0] in SWITCHES:
            problems.add(f"{word}: not a flag, and no flag before it takes it")
        else:
            grouped[-1][1].append(word)
    return grouped
