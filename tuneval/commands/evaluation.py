"""MindSpeed-LLM's evaluation.py: `tuneval evaluate`, then the lines that its users look for."""

from __future__ import annotations

import time
from dataclasses import replace

from tuneval import console, runtime
from tuneval.commands.evaluate import evaluate
from tuneval.commands.evaluation_flags import output_of
from tuneval.config.flags import Parsed
from tuneval.config.schema import EvaluationConfig
from tuneval.errors import UserError
from tuneval.report.records import EvalResult, Prediction, read_records


def main(parsed: Parsed) -> int:
    config: EvaluationConfig = parsed.config
    if config.load is None:
        raise UserError("--load: give the model")
    started = time.perf_counter()
    config = replace(config, output=output_of(config))
    (result,) = evaluate(config, parsed.model_facts)
    if not runtime.is_main() or not result.micro:  # nothing is right or wrong where the answers are secret
        return 0
    predictions = read_records(Prediction, config.output / "predictions.jsonl")
    for line in lines(result, predictions):
        console.out.print(line, markup=False)
    name = {"ceval": "Ceval"}.get(result.task, result.task)
    console.out.print(f"{name} Running Time: {time.perf_counter() - started}", markup=False)
    return 0


def lines(result: EvalResult, predictions: list[Prediction]) -> list[str]:
    """What MindSpeed-LLM logs: each question, each subject, the total, and its table (reference 6)."""
    said, table = [], [("subject", "question_n", "acc")]
    for subject in dict.fromkeys(p.subject for p in predictions):
        own = [p for p in predictions if p.subject == subject]
        right = sum(bool(p.correct) for p in own)
        said += [f"correct: {p.answer}, AI: {_answered(p)}" for p in own]
        said.append(f"{subject} has {right} corrects in {len(own)} questions, with accuracy {right / len(own)}")
        table.append((subject, str(len(own)), f"{right / len(own):.6f}"))
    right, n = sum(bool(p.correct) for p in predictions), len(predictions)
    said.append(f"{result.task} acc = {right}/{n}={right / n}")
    table.append(("total", str(n), f"{right / n:.6f}"))
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    return said + ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table]


def _answered(prediction: Prediction) -> str:
    """What was read out of the reply; where nothing was, the reply itself, on one line."""
    if prediction.prediction is not None or prediction.response is None:
        return str(prediction.prediction)
    return " ".join(prediction.response.split())
