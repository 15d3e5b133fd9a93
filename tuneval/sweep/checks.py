"""A sweep held against the commands it calls, before anything runs: every problem of every point is told at once."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from tuneval.config import flags, schema
from tuneval.config.fields import flat_types
from tuneval.errors import Problems, UserError
from tuneval.evaluation.catalogue import ALL
from tuneval.files import read_jsonl
from tuneval.sweep.spec import DATA_KEYS, Sweep
from tuneval.sweep.steps import Plan, preprocess_flags

CHOSEN = {
    "preprocess": (schema.PreprocessConfig, {"output_prefix"}),
    "convert": (schema.ConvertConfig, {"load", "save"}),
    "evaluate": (schema.EvaluateConfig, {"load", "output", "compare"}),
    "answers": (schema.GenerateConfig, {"load", "input", "output", "before", "prompt"}),
}
"""Section -> its command's settings, and those that the sweep chooses itself."""


def check_sweep(sweep: Sweep) -> None:
    """Hold every flag's name against the commands, and look for what is missing.

    Raises:
        UserError: unknown flags with the nearest known one, and settings without which no point can run.
    """
    problems = Problems()
    known = set(flat_types(schema.TuneConfig)) | preprocess_flags(sweep)
    known |= set(DATA_KEYS) if sweep.preprocess is not None else set()
    known -= {"save", "output_prefix"}
    places = [("base", key) for key in sweep.base]
    places += [(f"axes.{axis}", key) for axis, levels in sweep.axes.items() for level in levels for key in level.flags]
    places += [("points", key) for point in sweep.points if point.listed for key in point.flags]
    for where, key in dict.fromkeys(places):
        _check_flag(where, key, known, problems)
    for name, (config_type, own) in CHOSEN.items():
        allowed = set(flat_types(config_type)) - own | ({"prompts"} if name == "answers" else set())
        for key in getattr(sweep, name) or {}:
            _check_flag(name, key, allowed, problems)
    _check_needed(sweep, problems)
    problems.messages = list(dict.fromkeys(problems.messages))
    problems.raise_if_any()


def check_commands(plan: Plan) -> None:
    """Let every command's own parser see its words: a value it would refuse in an hour is refused now.

    Raises:
        UserError: what the parsers refuse, by step.
    """
    problems = Problems()
    for step in (*plan.shared, *(step for job in plan.jobs for step in job.steps)):
        if step.action is not None:
            continue
        config_type = getattr(schema, f"{step.kind.capitalize()}Config")
        try:
            flags.parse(config_type, list(step.words[1:]), f"tuneval {step.kind}")
        except UserError as error:
            problems.add(f"{step.id}: {error}")
    problems.raise_if_any()


def _check_flag(where: str, key: str, known: set[str], problems: Problems) -> None:
    if key in known:
        return
    if key in DATA_KEYS:
        problems.add(f"{where}: {key}: works on records; give a `preprocess` section with their `input`")
    elif (where in CHOSEN and key in CHOSEN[where][1]) or key in ("save", "output_prefix"):
        problems.add(f"{where}: {key}: is chosen by the sweep; leave it out")
    else:
        nearest = difflib.get_close_matches(key, sorted(known), n=1)
        problems.add(f"{where}: {key}: unknown flag" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def _check_needed(sweep: Sweep, problems: Problems) -> None:
    for point in sweep.points:
        settings = {**sweep.base, **point.flags}
        problems.check(settings.get("load"), f"base: load: give the model that {point.label} starts from")
        if sweep.preprocess is None:
            problems.check(settings.get("data_path"), "base: data_path: give it, or a `preprocess` section")
        else:
            has_input = settings.get("input") or sweep.preprocess.get("input")
            problems.check(has_input, "preprocess: input: give the records")
    if sweep.evaluate is not None:
        problems.check(sweep.evaluate.get("task_data_path"), "evaluate: task_data_path: give the exam's folder or zip")
        style = str(sweep.evaluate.get("style") or "")
        problems.check(
            style != ALL and "," not in style,
            f"evaluate: style {style}: a sweep is judged by one score; give one style",
        )
    if sweep.answers is not None:
        _check_prompts(sweep.answers.get("prompts"), problems)


def _check_prompts(prompts: object, problems: Problems) -> None:
    prompts = os.path.expanduser(prompts) if isinstance(prompts, str) else prompts
    texts = isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts)
    if not isinstance(prompts, str):
        problems.check(texts, "answers: prompts: give a list of texts, or a JSON-lines file")
    elif not Path(prompts).is_file():
        problems.add(f"answers: prompts {prompts}: no such file")
    else:
        right = all(isinstance(row, dict) and "prompt" in row for row in read_jsonl(prompts))
        problems.check(right, f"answers: prompts {prompts}: every line must hold `prompt`")
