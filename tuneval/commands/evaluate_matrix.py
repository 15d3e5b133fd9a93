"""Several styles of one exam side by side: how far scores of one model differ by the recipe and by the averaging alone."""

from __future__ import annotations

from pathlib import Path

from tuneval.files import write_json
from tuneval.report import tables
from tuneval.report.records import EvalResult


def write(results: list[EvalResult], output: Path) -> None:
    """Write matrix.json and print the table: a row a style, micro and macro."""
    rows = {
        result.style: {
            "shots": result.shots,
            "decision": result.decision["kind"],
            "aggregation": result.aggregation,
            "micro": result.micro,
            "macro": result.macro,
            "questions": result.questions,
            "prompt_sha256": result.prompt_sha256,
        }
        for result in results
    }
    first = results[0]
    facts = {"task": first.task, "split": first.split, "dtype": first.dtype, "model": first.model}
    write_json(output / "matrix.json", {**facts, "styles": rows})
    tables.print_matrix(results, output)
