"""Two evaluation results -> one paired test. Refuses what can't be compared and says what differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tuneval import console
from tuneval.config.schema import EvaluateConfig
from tuneval.errors import Problems, UserError
from tuneval.evaluation import stats
from tuneval.evaluation.bootstrap import paired_bootstrap
from tuneval.evaluation.exam import categories
from tuneval.report.checks import groups_of, read_predictions, read_result
from tuneval.report.records import Comparison, EvalResult, Prediction, result_folder

Asked = dict[tuple[str, str], tuple[str | None, str | None]]
"""(subject, id) of a question -> its right answer and the hash of its prompt."""
SAME = ("task", "style", "shots", "split")
"""Settings that two results must share; the questions, prompts and answers are compared one by one."""


def compare_results(a: Path, b: Path) -> Comparison:
    """Test the result in folder `b` (after) against that in `a` (before), over all questions and by category.

    Args:
        a: folder with results.json and predictions.jsonl, or its results.json.
        b: the same.

    Returns:
        The comparison; the categories hold the same figures. It is not written.

    Raises:
        UserError: no result there, or results of different exams, styles, shots, questions, prompts or answers.
    """
    a, b = result_folder(a), result_folder(b)
    (result_a, rows_a), (result_b, rows_b) = _read(a), _read(b)
    _check_same(a, result_a, b, result_b)
    _check_questions(str(a), _asked(rows_a), str(b), _asked(rows_b))
    if result_a.dtype != result_b.dtype:
        console.warn(
            f"{a} was scored in {result_a.dtype}, {b} in {result_b.dtype}; some letters may differ by that alone"
        )
    groups = categories(groups_of(result_b.subjects))
    right_a, right_b = _right(rows_a.values()), _right(rows_a.values(), rows_b)
    test, within = stats.compare(right_a, right_b, groups)
    _, each = stats.compare(right_a, right_b, {subject: [subject] for subject in right_a})
    names = _names(a, b)
    return Comparison(
        a=str(a),
        b=str(b),
        **{name: getattr(test, name) for name in _FIGURES},
        verdict=stats.verdict(test, *names),
        categories=_corrected(within),
        detectable=test.detectable,
        subjects=_corrected(each),
        bootstrap=asdict(paired_bootstrap(right_a, right_b)),
    )


def _corrected(tests: dict[str, dict]) -> dict[str, dict]:
    """The tests with their p values corrected for their number."""
    p_holm = stats.holm({name: figures["p_value"] for name, figures in tests.items()})
    return {name: {**figures, "p_holm": p_holm[name]} for name, figures in tests.items()}


def check_comparable(earlier: Path, config: EvaluateConfig, asked: Asked | None) -> None:
    """Before anything is scored: whether the result to come could be compared with an earlier one.

    Args:
        earlier: folder of the earlier result.
        config: settings of the one to come; None: not known yet.
        asked: its questions; None: not known yet.

    Raises:
        UserError: as `compare_results`.
    """
    result, rows = _read(earlier)
    problems = Problems()
    for name in SAME:
        theirs, ours = getattr(result, name), getattr(config, name)
        problems.check(
            ours in (None, theirs), f"--compare {earlier}: {name} {theirs} there, {ours} here; score with {theirs}"
        )
    problems.raise_if_any()
    if asked is not None:
        _check_questions(str(earlier), _asked(rows), "this call", asked)


def check_same_template(earlier: Path, fingerprint: str | None) -> None:
    """The same of the chat template, which the model decides: whether an earlier result was asked through this one.

    Raises:
        UserError: it was not.
    """
    problems, result = Problems(), read_result(result_folder(earlier) / "results.json")
    _check_template(str(earlier), result.template_fingerprint, "this call", fingerprint, problems)
    problems.raise_if_any()


_FIGURES = ("n", "a_accuracy", "b_accuracy", "difference", "low", "high", "a_only", "b_only", "p_value")
Key = tuple[str, str]
"""Subject and id of a question."""
Rows = dict[Key, Prediction]


def _read(path: Path) -> tuple[EvalResult, Rows]:
    folder = result_folder(path)
    if not (folder / "results.json").is_file():
        secret = (
            " (its split's answers are secret, so it has no accuracy)" if (folder / "record.json").is_file() else ""
        )
        raise UserError(f"--compare {path}: no results.json in it{secret}; give the folder of an evaluation's result")
    rows = read_predictions(folder / "predictions.jsonl")
    if not rows:
        raise UserError(
            f"{folder / 'predictions.jsonl'}: holds no question, so nothing can be compared; evaluate again"
        )
    return read_result(folder / "results.json"), {(row.subject, str(row.id)): row for row in rows}


def _check_same(a: Path, result_a: EvalResult, b: Path, result_b: EvalResult) -> None:
    problems = Problems()
    for name in SAME:
        x, y = getattr(result_a, name), getattr(result_b, name)
        problems.check(x == y, f"{name}: {x} in {a}, {y} in {b}; score both with the same")
    _check_template(str(a), result_a.template_fingerprint, str(b), result_b.template_fingerprint, problems)
    problems.raise_if_any()


def _check_template(a: str, of_a: str | None, b: str, of_b: str | None, problems: Problems) -> None:
    problems.check(
        of_a == of_b,
        f"chat template: {str(of_a)[:12]} in {a}, {str(of_b)[:12]} in {b}; score both with the same --prompt-type",
    )


def _asked(rows: Rows) -> Asked:
    return {key: (row.answer, row.prompt_sha256) for key, row in rows.items()}


def _check_questions(a: str, asked_a: Asked, b: str, asked_b: Asked) -> None:
    problems = Problems()
    for here, there, missing in (
        (a, b, asked_a.keys() - asked_b.keys()),
        (b, a, asked_b.keys() - asked_a.keys()),
    ):
        if missing:
            problems.add(f"{len(missing)} questions are in {here} only (such as {_example(missing)}), not in {there}")
    shared = asked_a.keys() & asked_b.keys()
    for index, what in enumerate(("right answers", "prompts")):
        other = [key for key in shared if asked_a[key][index] != asked_b[key][index]]
        problems.check(not other, f"the {what} of {len(other)} questions differ (such as {_example(other)})")
    if problems.messages:
        problems.add(f"{a} and {b} did not ask the same: score both with the same exam, --subjects and --limit")
    problems.raise_if_any()


def _example(keys: Iterable[Key]) -> str:
    return " ".join(min(keys, default=("", "")))


def _right(order: Iterable[Prediction], rows: Rows | None = None) -> dict[str, list[bool]]:
    """Subject -> whether each question is right, in the order given, with the predictions of `rows`."""
    right: dict[str, list[bool]] = {}
    for row in order:
        found = row if rows is None else rows[row.subject, str(row.id)]
        right.setdefault(row.subject, []).append(bool(found.correct))
    return right


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Short names for the verdict: the run folder's where the result lies in one, else the folder's; more where equal."""
    left, right = (
        (folder.parts[:-2] if folder.parent.name == "evaluation" else folder.parts)
        for folder in (a.absolute(), b.absolute())
    )
    if left == right:
        left, right = a.absolute().parts, b.absolute().parts
    depth = next((d for d in range(1, min(len(left), len(right))) if left[-d] != right[-d]), 1)
    return "/".join(left[-depth:]), "/".join(right[-depth:])
