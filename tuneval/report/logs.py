"""Logs of Megatron-LM and MindSpeed-LLM -> runs and scores that can stand in a report beside our own.

What a log does not say stays unsaid: no tokens, no speed, no hashes, and for an exam no single answers, so no paired test.
"""

from __future__ import annotations

import ast
import codecs
import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneval.errors import UserError
from tuneval.evaluation.exam import categories
from tuneval.evaluation.stats import summary
from tuneval.evaluation.tasks import TASKS, built_in_subjects
from tuneval.report.checks import groups_of, settings
from tuneval.report.gather import Evaluation, Run, key_of
from tuneval.report.records import EvalResult, RunRecord, Step, Validation, fits

ITERATION = re.compile(r"iteration\s+(\d+)\s*/\s*(\d+)\s*\|(.*)")
VALIDATION = re.compile(r"validation loss at iteration (\d+)[^|]*\| lm loss value: (\S+) \| lm loss PPL: (\S+)")
TEST = re.compile(r"validation loss at iteration \d+ on test set")
ARGUMENT = re.compile(r"(?:^|\s)([A-Za-z_]\w*) \.{2,} (.*)$")
TIME = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
MEMORY = re.compile(r"max allocated: ([\d.]+)")
SUBJECT = re.compile(r"(\w+) has (\d+) corrects in (\d+) questions")
TOTAL = re.compile(r"\b([a-z]+) acc = (\d+)/(\d+)")
TABLE_ROW = re.compile(r"^[\s|]*(?:\d+[\s|]+)?([a-z][a-z_0-9]+)[\s|]+(\d+)[\s|]+([01]?\.\d+|[01](?:\.0*)?)[\s|]*$")


@dataclass(frozen=True, kw_only=True)
class Log:
    """What one file holds; one of the two is there."""

    run: Run | None = None
    evaluation: Evaluation | None = None


def read_log(path: Path) -> Log:
    """Read a training log or an exam's log.

    Args:
        path: what the script printed, as a file; lines of several ranks and of a restarted run may stand in it (of an
            iteration that is logged twice the later one counts).

    Raises:
        UserError: no such file, no text, or nothing of either kind in it.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"--from-log {path}: no such file") from None
    # PowerShell's `>` and `tee` write UTF-16, with its mark first
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode("utf-16" if wide else "utf-8", errors="replace")
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*m", "", text))
    arguments = _arguments(lines)
    steps = _steps(lines)
    if steps:
        return Log(run=_run(path, lines, arguments, steps))
    scores = _scores(path, lines)
    if scores is not None:
        return Log(evaluation=_evaluation(path, arguments, *scores))
    raise UserError(
        f"--from-log {path}: holds neither Megatron's iteration lines (` iteration        1/    2000 | consumed samples: "
        "...`) nor an exam's result (`SUBJECT has 12 corrects in 19 questions`, `ceval acc = 12/19=...`)"
    )


def _arguments(lines: list[str]) -> dict[str, Any]:
    """The argument listing at the start: name -> value."""
    found = {}
    for line in lines:
        match = ARGUMENT.search(line)
        if match:
            found[match[1]] = _literal(match[2].strip())
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _fields(text: str) -> dict[str, float]:
    """`name: number | name: number |` -> name -> number."""
    found = {}
    for part in text.split("|"):
        name, colon, value = part.rpartition(":")
        number = _float(value)
        if colon and number is not None:
            found[name.strip()] = number
    return found


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _steps(lines: list[str]) -> list[Step]:
    """One a logged iteration; of a log interval above 1 each stands for the iterations since the last."""
    found: list[Step] = []
    memory = 0
    for line in lines:
        peak = MEMORY.search(line)
        if peak:
            memory = max(memory, round(float(peak[1]) * 2**20))
        match = ITERATION.search(line)
        if match is None:
            continue
        number, fields = int(match[1]), _fields(match[3])
        while found and found[-1].step >= number:
            found.pop()  # another rank's line, or a restart that went back: what came after is run again
        span = number - (found[-1].step if found else 0)
        per_second = fields.get("tokens per second", math.nan)
        seconds = fields.get("elapsed time per iteration (ms)", math.nan) / 1000 * span
        found.append(
            Step(
                step=number,
                loss=fields.get("lm loss", math.nan),
                grad_norm=fields.get("grad norm"),
                lr=fields.get("learning rate", math.nan),
                samples=int(fields.get("consumed samples", 0)),
                tokens=0 if math.isnan(per_second) or math.isnan(seconds) else round(per_second * seconds),
                trained_tokens=0,
                seconds=seconds,
                tokens_per_second=per_second,
                peak_memory_bytes=memory,
            )
        )
    return found


def _run(path: Path, lines: list[str], arguments: dict[str, Any], steps: list[Step]) -> Run:
    *_, planned = (int(m[2]) for line in lines if (m := ITERATION.search(line)))  # of the last start
    stamp = next((m[1] for line in lines if ITERATION.search(line) and (m := TIME.search(line))), None)
    record = RunRecord(
        command=[],
        created="" if stamp is None else datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S").isoformat(),
        config=_config(arguments),
        versions={},
        machine={},
        method=_method(arguments),
        model={"path": str(arguments["load"])} if arguments.get("load") else {},
        data={},
        parameters={},
        train_samples=0,
        train_iters=planned,
    )
    return Run(
        folder=path,
        label=path.stem,
        record=record,
        steps=tuple(steps),
        validations=_validations(lines),
        samples=(),
        evaluations={},
        preprocess={},
    )


def _validations(lines: list[str]) -> tuple[Validation, ...]:
    found = {}
    for line in lines:
        match = VALIDATION.search(line)
        if match and not TEST.search(line):
            loss, perplexity = _float(match[2]), _float(match[3])
            if loss is not None and perplexity is not None:
                found[int(match[1])] = Validation(step=int(match[1]), loss=loss, perplexity=perplexity)
    return tuple(found[step] for step in sorted(found))


def _config(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `tune` knows too; how the loss is averaged is Megatron's rule."""
    known = settings()
    found = {k: v for k, v in arguments.items() if k in known and v is not None and fits(v, known[k])}
    reduction = None
    if arguments:
        reduction = "token" if arguments.get("calculate_per_token_loss") is True else "micro-batch"
    return {**found, "loss_reduction": reduction}


def _method(arguments: dict[str, Any]) -> str:
    if not arguments:
        return "unknown"
    return "lora" if arguments.get("lora_target_modules") else "full"


Counts = dict[str, tuple[int, int]]
"""Subject -> (right, questions)."""


def _scores(path: Path, lines: list[str]) -> tuple[str, Counts] | None:
    """Task and counts by subject, those without a question left out; only the total where no subject is told."""
    counts: Counts = {}
    task, total = "ceval", None
    for line in lines:
        if match := SUBJECT.search(line):
            counts[match[1]] = (int(match[2]), int(match[3]))
        elif match := TABLE_ROW.match(line):
            n = int(match[2])
            if match[1] == "total":
                total = total or (round(float(match[3]) * n), n)
            elif n > 0:
                counts.setdefault(match[1], (round(float(match[3]) * n), n))
        if match := TOTAL.search(line):
            task, total = match[1], (int(match[2]), int(match[3]))
    counts = {subject: (right, n) for subject, (right, n) in counts.items() if n}
    if not counts and total is not None and total[1]:
        counts = {task: total}
    for subject, (right, n) in counts.items():
        if right > n:
            raise UserError(
                f"--from-log {path}: {subject} has {right} right answers to {n} questions; is the log whole?"
            )
    return (task, counts) if counts else None


def _evaluation(path: Path, arguments: dict[str, Any], task: str, counts: Counts) -> Evaluation:
    table = built_in_subjects(TASKS[task]) if task in TASKS else {}
    right = {s: [True] * correct + [False] * (n - correct) for s, (correct, n) in counts.items()}
    facts = {
        s: {
            "name_zh": table[s].name_zh if s in table else s,
            "category": table[s].category if s in table else "",
            "groups": list(table[s].groups) if s in table else [],
        }
        for s in right
    }
    figures = summary(right, categories(groups_of(facts)))
    figures["subjects"] = {s: {**facts[s], **values} for s, values in figures["subjects"].items()}
    result = EvalResult(
        task=task,
        style="mindspeed",
        shots=5,
        split=_split(arguments),
        model={"path": str(arguments["load"])} if arguments.get("load") else {},
        versions={},
        data_sha256="",
        prompt_sha256="",
        dtype="bf16" if arguments.get("bf16") is True else "fp16" if arguments.get("fp16") is True else "fp32",
        seconds=math.nan,
        questions=sum(n for _, n in counts.values()),
        **figures,
    )
    return Evaluation(folder=path, result=result, predictions=None)


def _split(arguments: dict[str, Any]) -> str:
    """Last part of the data's path, which for MindSpeed is the folder of the split."""
    given = arguments.get("task_data_path")
    last = given[-1] if isinstance(given, (list, tuple)) and given else given
    name = str(last).rstrip("/").rsplit("/", 1)[-1] if last else ""
    return name if name in ("val", "dev", "test") else "?"


def read_logs(paths: tuple[Path, ...]) -> tuple[tuple[Run, ...], dict]:
    """Runs of the training logs, each with the exams whose logs follow it; exams before the first are the baseline.

    Args:
        paths: in the order given.

    Returns:
        The runs, and (task, style, shots, split) -> evaluation of the model before tuning.

    Raises:
        UserError: as `read_log`, or two logs of the same exam for one run.
    """
    runs: list[Run] = []
    baseline: dict = {}
    for path in paths:
        log = read_log(path)
        if log.run is not None:
            runs.append(log.run)
            continue
        assert log.evaluation is not None
        place = runs[-1].evaluations if runs else baseline
        key = key_of(log.evaluation.result)
        if key in place:
            raise UserError(
                f"--from-log {path}: a second result of {key[0]} after {runs[-1].folder if runs else 'the start'} "
                f"(the first is {place[key].folder}); leave one out"
            )
        place[key] = log.evaluation
    return tuple(runs), baseline
