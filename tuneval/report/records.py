"""What a run and an evaluation leave behind, as dataclasses <-> JSON; docs/report-format.md documents the fields.

Readers ignore fields they don't know, so an addition does not break an older reader; a `schema_version` above
ours, a missing field or a wrong type is a `UserError` that names the file, the line and the field.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tuneval.errors import Problems, UserError
from tuneval.files import read_json, read_jsonl, write_json, write_jsonl

SCHEMA_VERSION = 1
"""Of config.json and results.json; raised when a field changes its meaning or goes."""

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """RUN/config.json: everything that is known before the first step."""

    schema_version: int = SCHEMA_VERSION
    command: list[str]
    """Arguments as given, program first."""
    created: str
    """Start, ISO 8601 with the time zone."""
    config: dict[str, Any]
    """Resolved settings, flat, as a `--config` file spells them."""
    versions: dict[str, str]
    machine: dict[str, Any]
    git: str | None = None
    """Commit of the working folder, `+` where files differ from it."""
    method: str
    """`full` or `lora`."""
    model: dict[str, Any]
    """Identity of the model started from: path, kind, hash of the weights."""
    data: dict[str, Any]
    """The data set's manifest in excerpt, with data_sha256; {} where the files have no manifest."""
    template_fingerprint: str | None = None
    parameters: dict[str, int]
    """`total` and `trainable`, counts."""
    train_samples: int
    """Samples of the training split."""
    train_iters: int
    """Optimizer steps planned."""
    baseline_evaluation: str | None = None
    """Folder of the evaluation of the model before tuning."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of RUN/metrics.jsonl: one optimizer step."""

    step: int
    """From 1."""
    loss: float
    """Of the step's global batch, nats per trained token (or per sample, with `--loss-reduction sample`)."""
    grad_norm: float | None
    """Global norm before clipping; None where fp16 overflowed, which skips the step."""
    lr: float
    samples: int
    """Samples seen since the start of the run."""
    tokens: int
    """Tokens of this step, prompts included."""
    trained_tokens: int
    """Tokens of this step that the loss counts."""
    seconds: float
    """Wall time of this step."""
    tokens_per_second: float
    """tokens / seconds."""
    peak_memory_bytes: int
    """Highest memory of the process so far."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One line of RUN/validation.jsonl."""

    step: int
    loss: float
    """Nats per trained token of the validation split."""
    perplexity: float
    """exp(loss), of 20 at most, as Megatron caps it."""


@dataclass(frozen=True, kw_only=True)
class SampleAnswer:
    """One line of RUN/samples.jsonl: the same prompt answered before and after tuning."""

    prompt: str
    before: str | None = None
    after: str | None = None
    before_stopped: bool | None = None
    """The answer ended by itself, not at the longest length allowed."""
    after_stopped: bool | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the sampling: greedy, max_new_tokens, temperature, ..."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """results.json: one model's score in one exam."""

    schema_version: int = SCHEMA_VERSION
    task: str
    style: str
    shots: int
    split: str
    model: dict[str, Any]
    """Identity of the model scored: path, kind, hash of the weights."""
    versions: dict[str, str]
    data_sha256: str
    prompt_sha256: str
    """Over all prompts, in order."""
    template_fingerprint: str | None = None
    dtype: str
    seconds: float
    questions: int
    """Questions scored."""
    micro: dict[str, Any]
    """Every question weighs the same: accuracy, low, high (95%), correct, n."""
    macro: dict[str, Any]
    """Every subject weighs the same: accuracy, low, high (95%)."""
    categories: dict[str, dict[str, Any]]
    """Category -> as `micro`, and `macro`. `Hard` overlaps with the others."""
    subjects: dict[str, dict[str, Any]]
    """Subject -> as `micro`, and name_zh, category."""
    near_ties: int | None = None
    """Questions whose best two letters are closer than the arithmetic can tell apart."""
    chance: float = 0.25
    """Accuracy of guessing."""
    exact_ties: int | None = None
    """Questions whose best two letters have the same score; the first counts."""
    methods: dict[str, str] = field(default_factory=dict)
    """Figure -> how it comes about: weights, interval, tie rule."""
    config: dict[str, Any] = field(default_factory=dict)
    """Resolved settings, flat, as a `--config` file spells them."""
    machine: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    """How an answer is read: `kind` (letter_logits, option_likelihood, reply) and its settings."""
    aggregation: str | None = None
    """`micro` or `macro`: the mean that the style's own recipe reports."""
    source: str | None = None
    """Where the style's recipe comes from."""
    unparsed: int | None = None
    """Replies without a readable answer; they count as wrong."""
    answers: dict[str, int] = field(default_factory=dict)
    """Label -> how often it was chosen."""
    at_chance: bool | None = None
    """Whether guessing would explain the accuracy: `chance` lies in the micro interval or above it."""
    noise: dict[str, Any] = field(default_factory=dict)
    """What computing in fp32 changes: questions compared, largest and median change of a margin, answers changed."""
    within_noise: int | None = None
    """Questions whose margin is no larger than the largest change that fp32 made."""
    self_test: dict[str, Any] = field(default_factory=dict)
    """Questions whose answers stand in them, and how far a batch changes a score."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Questions that stand more than once in the exam, or are among its worked examples."""
    contamination: dict[str, Any] = field(default_factory=dict)
    """Questions that occur in the training data named by --train-data, and the score without them; {}: not looked at."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One line of predictions.jsonl: one question."""

    subject: str
    id: int | str
    answer: str | None
    """The right letter; null where the split's answers are secret."""
    prediction: str | None
    correct: bool | None
    scores: dict[str, float] = field(default_factory=dict)
    """Letter -> score (fp32 logit)."""
    margin: float | None = None
    """Best score minus the second."""
    prompt_sha256: str | None = None
    response: str | None = None
    """The generated reply, where the style generates."""
    contamination: float | None = None
    """Share of the question's runs of words that the training data holds; null: not looked at, or too short to judge."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """comparison.json: two results on the same questions, tested in pairs."""

    a: str
    """Folder of the first result (before)."""
    b: str
    """Folder of the second result (after)."""
    n: int
    """Questions both answered."""
    a_accuracy: float
    b_accuracy: float
    difference: float
    """b_accuracy - a_accuracy."""
    low: float
    """Lower end of the difference's 95% interval."""
    high: float
    a_only: int
    """Questions only the first has right."""
    b_only: int
    p_value: float
    """Exact McNemar test, two-sided."""
    verdict: str
    categories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Category -> the same figures, without names and verdict or with them; `p_holm` is corrected for their number."""
    detectable: float | None = None
    """Smallest true difference that a test of this size finds four times in five."""
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Subject -> the same figures; `p_holm` is corrected for their number."""
    bootstrap: dict[str, Any] = field(default_factory=dict)
    """Paired bootstrap within subjects: resamples, seed, 95% intervals `micro` and `macro`, and macro_difference."""


def to_dict(record: Any) -> dict[str, Any]:
    """The record as JSON values, fields in the order of the class."""
    return asdict(record)


def from_dict(kind: type[R], values: Any, where: str) -> R:
    """Check `values` against the fields of `kind` and build it.

    Args:
        kind: a dataclass of this file.
        values: what the JSON held.
        where: file (and line) for the error text.

    Raises:
        UserError: not an object, a newer schema_version, missing fields or wrong types; all are listed at once.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold a JSON object, found {type(values).__name__}")
    _check_version(kind, values, where)
    problems = Problems()
    hints = _hints(kind)
    given = {}
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name in values:
            given[f.name] = values[f.name]
            problems.check(
                fits(values[f.name], hints[f.name]),
                f"{where}: {f.name} must be {spell(hints[f.name])}, found {json.dumps(values[f.name])[:60]}",
            )
        else:
            optional = f.default is not MISSING or f.default_factory is not MISSING
            problems.check(optional, f"{where}: {f.name} is missing; is it really a {kind.__name__} file?")
    problems.raise_if_any()
    return kind(**given)


def read_record(kind: type[R], path: str | Path) -> R:
    """One record from a JSON file."""
    return from_dict(kind, read_json(path), str(path))


def result_folder(path: Path) -> Path:
    """The folder of a result that is named by itself or by its results.json."""
    return path.parent if path.name == "results.json" else path


def write_record(path: str | Path, record: Any) -> None:
    write_json(path, to_dict(record))


def read_records(kind: type[R], path: str | Path) -> list[R]:
    """The records of a JSON-lines file; a torn last line is left out.

    Raises:
        UserError: no such file, or a line that does not fit (named by its number).
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return [from_dict(kind, row, f"{path}, line {number}") for number, row in enumerate(read_jsonl(path), 1)]


def write_records(path: str | Path, records: Iterable[Any]) -> None:
    write_jsonl(path, (to_dict(r) for r in records))


def append_record(path: str | Path, record: Any) -> None:
    """Add one line to a JSON-lines file; the line is whole on disk or, after a crash, a torn last line readers skip."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")


def _check_version(kind: type, values: dict[str, Any], where: str) -> None:
    if not any(f.name == "schema_version" for f in fields(kind)):
        return
    version = values.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{where}: schema_version must be a whole number from 1, found {json.dumps(version)}")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema_version {version}, this tuneval reads up to {SCHEMA_VERSION}: upgrade tuneval to read it"
        )


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a type hint of this file (an int is a number too, a bool is none)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(v, arguments[1]) for v in value.values())
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def spell(hint: Any) -> str:
    """A type hint in words."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(spell(a) for a in get_args(hint))
    return names.get(hint) or {list: "a list", dict: "an object"}.get(get_origin(hint), str(hint))
