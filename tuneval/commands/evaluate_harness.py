"""`tuneval evaluate --task lm_eval:NAME`: a task of lm-evaluation-harness, its record in the form of every other result."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

from tuneval import console, runtime
from tuneval.commands.evaluate_flags import harness_name, harness_style, output_of
from tuneval.commands.evaluate_run import load
from tuneval.config import flags
from tuneval.config.schema import EvaluateConfig
from tuneval.evaluation import stats
from tuneval.evaluation.catalogue import HARNESS
from tuneval.evaluation.harness import HarnessRun, check_can_run, run_harness
from tuneval.evaluation.units import Ranks
from tuneval.files import sha256_json, write_json
from tuneval.report import tables
from tuneval.report.comparison import check_comparable, compare_results
from tuneval.report.records import EvalResult, Prediction, write_record, write_records

SPLIT = "lm_eval"
"""What results name as the split, which the harness's task decides."""
_UNUSED = (
    *("split", "subjects", "prompt_type", "no_chat_template", "max_new_tokens", "allow_unparsed", "train_data"),
    *("noise_questions", "batch_tokens"),
)


def evaluate(config: EvaluateConfig, model_facts: dict[str, str] | None = None) -> EvalResult | None:
    """Evaluate a model on a task of the harness. Of several processes each must call it; the first writes.

    Returns:
        The result, as written; None where the task has no metric that says of each question whether it is right, so that
        only the harness's own record is written.

    Raises:
        UserError: settings, task or model can't be used.
    """
    style, output = harness_style(config), output_of(config, harness_name(config))
    name = config.task.removeprefix(HARNESS)
    check_can_run(name, config.task_data_path)
    for f in fields(config):
        if f.name in _UNUSED and getattr(config, f.name) != f.default:
            console.note(f"--{f.name.replace('_', '-')}: no effect, the harness's task decides")
    for earlier in config.compare:
        check_comparable(earlier, replace(config, style=style, split=SPLIT), None)
    console.note(f"loading {config.load}")
    loaded = load(config)
    flags.check_model_facts(model_facts or {}, loaded.config.to_dict())
    started = time.monotonic()
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
    for name in ("results.json", "predictions.jsonl", "comparison.json"):  # of an earlier call
        (output / name).unlink(missing_ok=True)
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
        split=SPLIT,
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
