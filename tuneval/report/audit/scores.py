"""Are a run's results those of its predictions, its predictions those of the exam, and the model scored the run's own?"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from tuneval.checkpoints.load import open_source, weights_hash
from tuneval.errors import UserError
from tuneval.evaluation import stats
from tuneval.evaluation.exam import Exam, categories
from tuneval.evaluation.extract import EXTRACTIONS
from tuneval.evaluation.margins import decide, near_tie
from tuneval.evaluation.stats import Paired, at_chance, summary
from tuneval.evaluation.tasks import TASKS, find_task, load_exam
from tuneval.report.audit.findings import OK, OPEN, Findings
from tuneval.report.checks import groups_of, read_predictions, read_result
from tuneval.report.comparison import compare_results
from tuneval.report.gather import result_files
from tuneval.report.records import Comparison, EvalResult, Prediction, read_record


def check_scores(run: Path, found: Findings) -> None:
    """Every result below RUN/evaluation.

    Args:
        run: the run folder.
        found: gets the findings.
    """
    places = result_files(run / "evaluation")
    if not places:
        found.add("evaluation", OPEN, "no exam was taken")
        return
    try:
        own = weights_hash(open_source(run))
    except UserError as error:
        own = None
        found.add("the model that was scored", OPEN, str(error))
    for path in places:
        _check_evaluation(run, path.parent, own, found)


def _check_evaluation(run: Path, folder: Path, own: str | None, found: Findings) -> None:
    name = folder.name
    result = found.attempt(f"{name}: results.json", lambda: read_result(folder / "results.json"))
    rows = found.attempt(f"{name}: predictions.jsonl", lambda: read_predictions(folder / "predictions.jsonl"))
    if not isinstance(result, EvalResult) or not isinstance(rows, tuple):
        return
    _check_rows(name, result, rows, found)
    _check_figures(name, result, rows, found)
    if own is not None:
        scored = result.model.get("weights_sha256")
        wrong = f"its weights have hash {str(scored)[:12]}, this run's {own[:12]}"
        found.check(f"{name}: the model scored is this run's", scored == own, wrong)
    _check_exam(name, result, rows, found)
    _check_comparison(name, run, folder, found)


def _check_rows(name: str, result: EvalResult, rows: tuple[Prediction, ...], found: Findings) -> None:
    """Each prediction against its own scores and its own answer."""
    faults = []
    for row in rows:
        where = f"{row.subject} {row.id}"
        # What is right of a reply is the harness's metric to say, where it asked.
        judged = result.task in TASKS or row.response is None
        if row.answer is not None and row.correct is not (row.prediction == row.answer) and judged:
            faults.append(f"{where}: {row.prediction} for {row.answer} is called {'right' if row.correct else 'wrong'}")
        if row.scores and row.response is None:
            label, margin = decide(row.scores)
            if label != row.prediction:
                faults.append(f"{where}: {row.prediction} chosen, its scores say {label}")
            elif row.margin is not None and not math.isclose(margin, row.margin, rel_tol=1e-6, abs_tol=1e-9):
                faults.append(f"{where}: margin {row.margin:g}, its scores say {margin:g}")
    found.none_of(f"{name}: predictions agree with their scores", faults, f"{len(rows)} questions")


def _check_figures(name: str, result: EvalResult, rows: tuple[Prediction, ...], found: Findings) -> None:
    """Every accuracy and interval, computed again from the predictions."""
    faults = [] if result.questions == len(rows) else [f"{result.questions} questions, {len(rows)} predictions"]
    right: dict[str, list[bool]] = {}
    for row in rows:
        if row.correct is not None:
            right.setdefault(row.subject, []).append(row.correct)
    if set(right) != set(result.subjects):
        faults.append(f"subjects differ: {', '.join(sorted(set(right) ^ set(result.subjects)))}")
    else:
        again = summary(right, categories(groups_of(result.subjects)))
        for part in ("micro", "macro", "categories", "subjects"):
            faults += _differences(part, getattr(result, part), again[part])
    counts = dict(Counter(row.prediction for row in rows if row.prediction is not None))
    if any(n != counts.get(label, 0) for label, n in result.answers.items()):  # a reply may hold what is no label
        faults.append(f"answers chosen are {counts}, results.json says {result.answers}")
    faults += _differences("", _told(result), _counted(result, rows))
    found.none_of(
        f"{name}: results.json follows from predictions.jsonl", faults, f"{100 * result.micro['accuracy']:.1f}%"
    )


def _told(result: EvalResult) -> dict[str, Any]:
    """What a result says about itself, as far as its predictions say it too; absent: not recorded."""
    names = ("unparsed", "exact_ties", "near_ties", "within_noise", "at_chance")
    told = {name: value for name in names if (value := getattr(result, name)) is not None}
    if result.contamination:
        told |= {
            f"contamination.{key}": result.contamination.get(key) for key in ("judged", "touched", "half", "whole")
        }
        told["contamination.clean"] = result.contamination["clean"]
    return told


def _counted(result: EvalResult, rows: tuple[Prediction, ...]) -> dict[str, Any]:
    """The same from the predictions."""
    scored = [row for row in rows if row.margin is not None]
    shares = [(row.contamination, row.correct) for row in rows if row.contamination is not None]
    clean = [bool(correct) for share, correct in shares if share == 0]
    return {
        "unparsed": sum(row.prediction is None for row in rows),
        "exact_ties": sum(row.margin == 0 for row in scored),
        "near_ties": sum(near_tie(row.scores) for row in scored if row.scores),
        "within_noise": sum(row.margin <= result.noise["largest"] for row in scored) if result.noise else 0,
        "at_chance": at_chance(result.micro, result.chance) if "low" in result.micro else None,
        "contamination.judged": len(shares),
        "contamination.touched": sum(share > 0 for share, _ in shares),
        "contamination.half": sum(share >= 0.5 for share, _ in shares),
        "contamination.whole": sum(share == 1 for share, _ in shares),
        "contamination.clean": {
            "n": len(clean),
            "correct": sum(clean),
            "accuracy": sum(clean) / len(clean) if clean else None,
        },
    }


def _differences(where: str, told: Any, again: Any) -> list[str]:
    """Figures of `again` that `told` states otherwise; what only one of them has is left alone."""
    if isinstance(again, dict):
        inner = [
            _differences(f"{where}.{k}".removeprefix("."), told[k], v)
            for k, v in again.items()
            if isinstance(told, dict) and k in told
        ]
        return [fault for faults in inner for fault in faults]
    if isinstance(again, (list, tuple)) and isinstance(told, (list, tuple)):
        return [fault for x, y in zip(told, again) for fault in _differences(where, x, y)]
    if isinstance(again, (int, float)) and isinstance(told, (int, float)):
        same = math.isclose(told, again, rel_tol=1e-9, abs_tol=1e-12)
        return [] if same else [f"{where} is {told:.6g}, the predictions give {again:.6g}"]
    return []


def _check_exam(name: str, result: EvalResult, rows: tuple[Prediction, ...], found: Findings) -> None:
    """The right answers against the exam's own files."""
    what, config = f"{name}: the exam's own answers", result.config
    path = config.get("task_data_path")
    if result.task not in TASKS or not path or not Path(path).exists():
        found.add(what, OPEN, f"{path or 'the path is not recorded'}: not on this machine")
        return
    subjects = tuple(s.strip() for s in str(config.get("subjects") or "").split(",") if s.strip())
    exam = found.attempt(
        what,
        lambda: load_exam(find_task(result.task), path, result.split, subjects, config.get("limit"), result.shots),
    )
    if exam is None:
        return
    answers = {(q.subject, str(q.id)): q.answer for qs in exam.questions.values() for q in qs}  # type: ignore[attr-defined]
    faults = []
    if answers.keys() != {(r.subject, str(r.id)) for r in rows}:
        faults.append("the predictions are of other questions")
    faults += [
        f"{r.subject} {r.id}: {r.answer}, the exam says {answers[r.subject, str(r.id)]}"
        for r in rows
        if answers.get((r.subject, str(r.id)), r.answer) != r.answer
    ]
    faults += _misread(result, rows, exam)  # type: ignore[arg-type]
    if exam.data_sha256 != result.data_sha256:  # type: ignore[attr-defined]
        faults.append("the exam's files have another hash than results.json names")
    found.none_of(what, faults, str(path))


def _says(verdict: str, again: Comparison) -> bool:
    """Whether a verdict holds these figures; how it calls the two folders may differ."""
    test = Paired(**{f.name: getattr(again, f.name) for f in fields(Paired)})
    return all(piece in verdict for piece in re.split("\0[ab]", stats.verdict(test, "\0a", "\0b")))


def _misread(result: EvalResult, rows: tuple[Prediction, ...], exam: Exam) -> list[str]:
    """Replies in which the style's rule finds another answer than the prediction."""
    extraction = EXTRACTIONS.get(str(result.decision.get("extraction")))
    if extraction is None:
        return []
    questions = {(q.subject, str(q.id)): q for qs in exam.questions.values() for q in qs}
    read = [
        (row, extraction.take(row.response, question))
        for row in rows
        if row.response is not None and (question := questions.get((row.subject, str(row.id)))) is not None
    ]
    return [
        f"{row.subject} {row.id}: {row.prediction}, its reply says {taken}"
        for row, taken in read
        if taken != row.prediction
    ]


def _check_comparison(name: str, run: Path, folder: Path, found: Findings) -> None:
    """comparison.json, computed again where the earlier result is still there."""
    path, what = folder / "comparison.json", f"{name}: comparison.json"
    if not path.is_file():
        return
    told = found.attempt(what, lambda: read_record(Comparison, path))
    if not isinstance(told, Comparison):
        return
    earlier = next((p for p in (Path(told.a), run.parent / told.a) if (p / "results.json").is_file()), None)
    if earlier is None:
        found.add(what, OPEN, f"the earlier result, {told.a}, is not on this machine")
        return
    again = found.attempt(what, lambda: compare_results(earlier, folder))
    if isinstance(again, Comparison):
        names = ("n", "a_accuracy", "b_accuracy", "difference", "low", "high", "a_only", "b_only", "p_value")
        names += ("detectable", "categories", "subjects", "bootstrap")
        faults = [f for n in names for f in _differences(n, getattr(told, n), getattr(again, n))]
        faults += [] if _says(told.verdict, again) else [f"the verdict says otherwise: {told.verdict}"]
        found.none_of(f"{what} follows from both predictions", faults, told.verdict if not faults else "")
        return
    assert found.found[-1].state != OK
