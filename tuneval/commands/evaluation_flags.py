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
    evaluate_flags.check(replace(config, output=config.output or Path("evaluation")))
