"""Command line -> configuration: tyro over the schema, `--config` files, and Megatron's further flags."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tuneval.config.compatibility import (
    AT_LEAST,
    CHECKED,
    CHECKED_SWITCHES,
    ELSEWHERE,
    NO_EFFECT,
    ONLY,
    SWITCHES,
    UNSUPPORTED,
    known,
)
from tuneval.config.fields import flat_types, misfit, needed
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
        UserError: all that is wrong: flags that are unknown (with the nearest known spelling), missing, or followed by
            what they don't take. An unreadable `--config` file.
        SystemExit: `--help` (status 0).
    """
    arguments, file_values = _take_config_file(normalise(arguments))
    words = _flags_from_file(file_values, given=arguments) + arguments
    facts: dict[str, str] = {}
    notices: tuple[str, ...] = ()
    if not {"-h", "--help"} & set(words):
        words, facts, notices = _checked(config_type, words, program)
    import tyro

    marker = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    config = tyro.cli(config_type, prog=program, args=words, config=marker, add_help=True)
    return Parsed(_at_home(config), facts, notices)


def _checked(config_type: type, words: list[str], program: str) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """The words that set the schema's flags, each flag once; facts about the model; notices."""
    problems = Problems()
    types = {name.replace("_", "-"): kind for name, kind in flat_types(config_type).items()}
    grouped = _grouped(words, types, problems)
    own = {name: values for name, values in grouped if name in types}  # of a flag given twice the last counts
    for name, values in own.items():
        wanted = misfit(types[name], values)
        problems.check(wanted is None, f"{' '.join([f'--{name}', *values])}: {wanted}")
    facts, notices = _sort_out([group for group in grouped if group[0] not in types], [*types], problems)
    missing = [f"--{flag}" for name in needed(config_type) if (flag := name.replace("_", "-")) not in own]
    problems.check(not missing, f"{', '.join(missing)}: needed; {program} --help says what for")
    problems.raise_if_any()
    return [word for name, values in own.items() for word in flag_words(name, values)], facts, notices


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

    A value that looks like a flag stays behind its `=`: `--prompt=--x` says what `--prompt --x` can't.
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


def flag_words(name: str, values: list[str]) -> list[str]:
    """A flag and its values, of which there may be none or several, as a command line says them."""
    return as_words(f"--{name}", values[0]) if len(values) == 1 else [f"--{name}", *values]


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
    if isinstance(values.get("config"), dict):  # the record of a run or an evaluation
        values = values["config"]
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


def _sort_out(
    groups: list[tuple[str, list[str]]], schema_flags: list[str], problems: Problems
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the flags that no schema class has mean: facts about the model, and notices of flags without effect."""
    facts: dict[str, str] = {}
    without_effect: dict[str, list[str]] = {}
    for name, values in groups:
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
            problems.add(f"--{name}: unknown flag{_meant(name, schema_flags)}")
    return facts, tuple(f"{', '.join(names)}: no effect, {reason}" for reason, names in without_effect.items())


_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "mbs": "micro-batch-size",
    "gbs": "global-batch-size",
}
"""What everybody calls them; too few letters to be like the flag."""


def _meant(name: str, schema_flags: list[str]) -> str:
    """A question that names the flag most likely meant; nothing where none is near."""
    in_full = "-".join(_SHORT.get(part, part) for part in name.split("-"))
    near = [flag for flag in ELSEWHERE.get(name, ()) if flag in schema_flags]
    near += difflib.get_close_matches(in_full, [*schema_flags, *known(), "config"], n=1)
    return f"; did you mean --{near[0]}?" if near else ""


_DASHED = re.compile(r"[-–—]{1,2}([a-zA-Z][\w-]*)(?:=(.*))?", re.DOTALL)
"""What an editor or a chat makes of `--flag`, or one who leaves a hyphen out."""


def _grouped(words: list[str], types: dict[str, Any], problems: Problems) -> list[tuple[str, list[str]]]:
    """(flag, its values) of each flag; a switch takes none. A word that belongs to no flag is a problem.

    Args:
        types: the schema's flags.
    """
    grouped: list[tuple[str, list[str]]] = []
    for word in words:
        dashed = _DASHED.fullmatch(word)
        name = dashed[1].replace("_", "-") if dashed else ""
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            grouped.append((name, [value] if equals else []))
        elif name in types or name in known():
            problems.add(f"{word}: a flag begins with two plain hyphens, --{name}")
            grouped.append((name, [] if dashed[2] is None else [dashed[2]]))
        elif not grouped or grouped[-1][0] in SWITCHES:
            problems.add(f"{word}: not a flag, and no flag before it takes it")
        else:
            grouped[-1][1].append(word)
    return grouped
