"""What the flags of MindSpeed-LLM's evaluation.py show by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tuneval.commands import evaluate_flags
from tuneval.config.schema import EvaluationConfig
from tuneval.errors import UserError


def check(config: EvaluationConfig) -> None:
    """Raise one UserError for all that is wrong."""
    if config.load is None:
        raise UserError("--load: give the model")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"--max-eval-samples {config.limit}: must be at least 1")
    _, styles = evaluate_flags.chosen(config)
    if len(styles) > 1:
        raise UserError(
            f"--style {config.style}: {len(styles)} styles; evaluation.py takes one, tuneval evaluate several"
        )
    evaluate_flags.check(replace(config, output=output_of(config)))


def output_of(config: EvaluationConfig) -> Path:
    """`--output`, or RUN/evaluation/NAME of a run folder; else the same under evaluation/ here, by the model's name."""
    name = evaluate_flags.result_name(config, *evaluate_flags.chosen(config))
    if config.output is not None or evaluate_flags.is_run(config.load):
        return evaluate_flags.output_of(config, name)
    of_adapter = [config.lora_load.name] if config.lora_load else []
    return Path("evaluation") / "-".join([config.load.resolve().name, *of_adapter, name])
