"""What a record's class can't see: the values inside its objects, and predictions that name a question twice."""

from __future__ import annotations

import json
import math
import types
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from tuneval.config.fields import flat_types
from tuneval.config.schema import TuneConfig
from tuneval.errors import Problems, UserError
from tuneval.report.records import EvalResult, Prediction, RunRecord, fits, read_record, read_records, spell

DATA = {"samples": int, "tokens": int, "trained_tokens": int, "lengths": dict[str, float], "skipped": dict[str, int]}
"""Keys of a run's `data` that figures are made of."""

FACTS: dict[str, dict[str, Any]] = {
    "self_test": {"trivial": int, "trivial_right": int, "largest_batch_difference": float | None},
    "noise": {"questions": int, "changed": int, "largest": float, "median": float},
    "contamination": {"judged": int, "touched": int, "whole": int, "run": int, "clean": dict[str, Any]},
}
"""What a result records about itself: an object is empty, or holds all of these."""


def read_run(folder: Path) -> RunRecord:
    """RUN/config.json, its settings and data statistics held against their types.

    Raises:
        UserError: every value that does not fit, by file and key.
    """
    path = folder / "config.json"
    record = read_record(RunRecord, path)
    problems = Problems()
    for group, values, hints in (("config", record.config, settings()), ("data", record.data, DATA)):
        for key in values.keys() & hints.keys():
            hint, value = Union[hints[key], None], values[key]  # noqa: UP007 - `|` takes no dict[...] on Python 3.10
            problems.check(
                fits(value, hint), f"{path}: {group}.{key} must be {spell(hints[key])}, found {_short(value)}"
            )
    problems.raise_if_any()
    return record


def read_result(path: Path) -> EvalResult:
    """results.json with every accuracy a share, every subject in a category, and whole facts about itself.

    Raises:
        UserError: every figure that is missing or no number, by file and key.
    """
    result = read_record(EvalResult, path)
    problems = Problems()
    scores = {"micro": result.micro, "macro": result.macro}
    scores |= {f"categories.{name}": facts for name, facts in result.categories.items()}
    scores |= {f"subjects.{name}": facts for name, facts in result.subjects.items()}
    for name, facts in scores.items():
        for key in ("accuracy", "low", "high"):
            if key == "accuracy" or any(facts.get(end) is not None for end in ("low", "high")):
                _check_share(facts.get(key), f"{path}: {name}.{key}", problems)
    for name, facts in result.subjects.items():
        found = facts.get("category")
        problems.check(
            isinstance(found, str), f"{path}: subjects.{name}.category must be a text, found {_short(found)}"
        )
        groups = facts.get("groups", [])
        problems.check(
            fits(groups, list[str] | str),
            f"{path}: subjects.{name}.groups must be a list of texts, found {_short(groups)}",
        )
    for name, hints in FACTS.items():
        facts = getattr(result, name)
        for key, hint in hints.items() if facts else ():
            problems.check(
                key in facts and fits(facts[key], hint) and _finite(facts[key]),
                f"{path}: {name}.{key} must be {spell(hint)}, found {_short(facts.get(key))}",
            )
    problems.check(math.isfinite(result.seconds), f"{path}: seconds must be a number, found {_short(result.seconds)}")
    problems.raise_if_any()
    return result


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """predictions.jsonl, every question once.

    Raises:
        UserError: a line that does not fit, or questions that stand there more than once.
    """
    rows = read_records(Prediction, path)
    counts = Counter((row.subject, str(row.id)) for row in rows)
    twice = sorted(key for key, n in counts.items() if n > 1)
    if twice:
        raise UserError(
            f"{path}: {len(twice)} questions stand in it more than once (such as {' '.join(twice[0])}), so no figure "
            "can be made from it; evaluate again into another --output"
        )
    return tuple(rows)


def groups_of(subjects: dict[str, dict[str, Any]]) -> dict[str, str | list[str]]:
    """Subject -> the categories it counts in, as results of any version hold them; for `evaluation.exam.categories`."""
    return {name: facts.get("groups", facts["category"]) for name, facts in subjects.items()}


@cache
def settings() -> dict[str, Any]:
    """Flag of `tune` -> type of its value in JSON."""
    return {name: _in_json(hint) for name, hint in flat_types(TuneConfig).items()}


def _in_json(hint: Any) -> Any:
    """The type that a setting's value has once it was written as JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Path:
        return str
    if origin is Literal:
        return type(arguments[0])
    if origin is tuple:
        return list[_in_json(arguments[0])]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return Union[tuple(_in_json(a) for a in arguments)]  # noqa: UP007
    return hint


def _check_share(value: Any, what: str, problems: Problems) -> None:
    is_share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    found = "nothing" if value is None else _short(value)
    problems.check(is_share, f"{what} must be a share from 0 to 1, found {found}; evaluate again")


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)[:60]
