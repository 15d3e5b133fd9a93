"""`tuneval evaluate --task lm_eval:NAME`: a task of lm-evaluation-harness, its record in the form of every other result."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path

from tuneval import console, runtime
from tuneval.commands.evaluate_run import load
from tuneval.config import flags
from tuneval.config.schema import EvaluateConfig
from tuneval.errors import UserError
from tuneval.evaluation import stats
from tuneval.evaluation.catalogue import HARNESS
from tuneval.evaluation.harness import HarnessRun, run_harness
from tuneval.evaluation.units import Ranks
from tuneval.files import sha256_json, write_json
from tuneval.report import tables
from tuneval.report.comparison import compare_results
from tuneval.report.records import EvalResult, Prediction, write_record, write_records

STYLES = ("plain", "chat")
_UNUSED = ("split", "subjects", "prompt_type", "no_chat_template", "max_new_tokens", "allow_unparsed", "train_data")


def evaluate(config: EvaluateConfig, model_facts: dict[str, str] | None = None) -> EvalResult | None:
    """Evaluate a model on a task of the harness. Of several processes each must call it; the first writes.

    Returns:
        The result, as written; None where the task has no metric that says of each question whether it is right, so that
        only the harness's own record is written.

    Raises:
        UserError: settings, task or model can't be used.
    """
    style = config.style or STYLES[0]
    if style not in STYLES:
        raise UserError(f"--style {style}: {config.task} takes {' or '.join(STYLES)}")
    if len(config.compare) > 1:
        raise UserError(f"--compare: {len(config.compare)} results beside --load; give one earlier result")
    for name in _UNUSED:
        if getattr(config, name):
            console.note(f"--{name.replace('_', '-')}: no effect, the harness's task decides")
    output = _output(config, style)
    console.note(f"loading {config.load}")
    loaded = load(config)
    flags.check_model_facts(model_facts or {}, loaded.config.to_dict())
    started = time.monotonic()
    name = config.task.removeprefix(HARNESS)
    run = run_harness(loaded, name, config.task_data_path, config.shots, style == "chat", config.limit)
    seconds = time.monotonic() - started
    if run.metric is None:
        console.note(f"{config.task} has no metric of right and wrong; its figures: {output / 'lm_eval.json'}")
        result = None
    else:
        result = _result(config, style, run, loaded.identity, seconds)
    if Ranks.of(loaded.mesh).is_main:
        _write(config, output, run, result)
    return result


def _write(config: EvaluateConfig, output: Path, run: HarnessRun, result: EvalResult | None) -> None:
    write_json(output / "lm_eval.json", run.results)
    if result is None:
        return
    write_records(output / "predictions.jsonl", [_prediction(row) for row in run.rows])
    write_record(output / "results.json", result)
    tables.print_result(result, output)
    for earlier in config.compare:
        comparison = compare_results(earlier, output)
        write_record(output / "comparison.json", comparison)
        tables.print_comparison(comparison, output)


def _output(config: EvaluateConfig, style: str) -> Path:
    if config.output is not None:
        return config.output
    if not (config.load / "metrics.jsonl").is_file():
        raise UserError(f"--output: give a folder for the result ({config.load} is not a run folder)")
    return config.load / "evaluation" / f"{config.task.replace(':', '-')}-{style}"


def _prediction(row) -> Prediction:
    return Prediction(**vars(row), margin=None)


def _result(config: EvaluateConfig, style: str, run: HarnessRun, identity: dict, seconds: float) -> EvalResult:
    right: dict[str, list[bool]] = {}
    for row in run.rows:
        right.setdefault(row.subject, []).append(row.correct)
    figures = stats.summary(right, {})
    for subject, facts in figures["subjects"].items():
        figures["subjects"][subject] = {"name_zh": subject, "category": "", "groups": [], **facts}
    return EvalResult(
        task=config.task,
        style=style,
        shots=run.shots,
        split="lm_eval",
        model=identity,
        versions={**runtime.versions(), "lm_eval": metadata.version("lm_eval")},
        data_sha256=sha256_json([[row.subject, row.id, row.answer] for row in run.rows]),
        prompt_sha256=sha256_json([row.prompt_sha256 for row in run.rows]),
        dtype=config.dtype,
        seconds=seconds,
        questions=len(run.rows),
        chance=run.chance,
        methods={**stats.METHODS, "prediction": f"lm-evaluation-harness, metric {run.metric}"},
        config=flags.to_dict(config),
        machine=runtime.machine(),
        decision={"kind": "lm_eval", "metric": run.metric},
        aggregation="micro",
        source="lm-evaluation-harness",
        at_chance=stats.at_chance(figures["micro"], run.chance),
        **figures,
    )
