"""Figures of a report that are computed, not read: ends of curves, paired tests, bootstrap, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median

from tuneval.evaluation import stats
from tuneval.evaluation.bootstrap import Bootstrap, paired_bootstrap
from tuneval.evaluation.exam import CATEGORIES, categories
from tuneval.evaluation.stats import Name, Paired, compare
from tuneval.report.checks import groups_of
from tuneval.report.gather import Evaluation
from tuneval.report.records import Prediction, Step

SIGNIFICANCE = 0.05
Right = dict[str, list[bool]]
"""Subject -> whether each of its questions is right."""
CATEGORY_ORDER = (*CATEGORIES, "Hard")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a run's steps come to."""

    steps: int
    first: float
    """Mean loss of the first `window` steps."""
    last: float
    window: int
    """Steps averaged at each end."""
    not_finite: tuple[int, ...]
    """Steps whose loss is NaN or infinite."""
    samples: int
    tokens: int
    trained_tokens: int
    seconds: float
    """NaN where a step's time is not recorded."""
    tokens_per_second: float
    """Of the median step; NaN where none is recorded."""
    peak_memory_bytes: int
    max_grad_norm: float | None


def curve(steps: tuple[Step, ...]) -> Curve | None:
    """Summary of the steps; None where there are none. The ends are means of a tenth of the steps, 10 at most."""
    if not steps:
        return None
    window = max(1, min(10, len(steps) // 10))
    losses = [s.loss for s in steps]
    speeds = [s.tokens_per_second for s in steps if math.isfinite(s.tokens_per_second)]
    norms = [s.grad_norm for s in steps if s.grad_norm is not None and math.isfinite(s.grad_norm)]
    return Curve(
        steps=steps[-1].step,
        first=mean(losses[:window]),
        last=mean(losses[-window:]),
        window=window,
        not_finite=tuple(s.step for s in steps if not math.isfinite(s.loss)),
        samples=steps[-1].samples,
        tokens=sum(s.tokens for s in steps),
        trained_tokens=sum(s.trained_tokens for s in steps),
        seconds=sum(s.seconds for s in steps),
        tokens_per_second=median(speeds) if speeds else math.nan,
        peak_memory_bytes=max(s.peak_memory_bytes for s in steps),
        max_grad_norm=max(norms, default=None),
    )


def smoothing(steps: int) -> int:
    """Width of the moving mean: odd, a twentieth of the steps, none under 20 steps."""
    return 1 if steps < 20 else max(5, steps // 20 // 2 * 2 + 1)


def time_axis(longest: float) -> tuple[str, int]:
    """Key of the unit of an axis that ends at `longest` seconds, and seconds in that unit."""
    return ("minute_axis", 60) if longest >= 180 else ("second_axis", 1)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A paired test of two evaluations, or why there is none."""

    test: Paired | None = None
    categories: dict[str, Paired] | None = None
    """Category -> the test within it; Hard overlaps with STEM."""
    reason: str | None = None
    """Key of words.WORDS where there is no test."""
    reason_values: dict[str, object] | None = None
    other_prompts: bool = False
    """The same questions were put differently."""


def pair(a: Evaluation, b: Evaluation) -> Pair:
    """Test two evaluations of one exam on the questions that both answered.

    Args:
        a: before.
        b: after.

    Returns:
        The test, unless the question files differ, the predictions are not there, or the answers are secret.
    """
    right = _matched(a, b)
    if isinstance(right, Pair):
        return right
    groups = categories(groups_of({name: facts for name, facts in b.result.subjects.items() if name in right[0]}))
    test, within = compare(*right, groups)
    first, second = _by_question(a.predictions or ()), _by_question(b.predictions or ())
    return Pair(
        test=test,
        categories={name: Paired(**figures) for name, figures in within.items()},
        other_prompts=any(first[k].prompt_sha256 != second[k].prompt_sha256 for k in first),
    )


def pair_subjects(a: Evaluation, b: Evaluation) -> dict[str, Paired]:
    """The same test within each subject; {} where there is none."""
    right = _matched(a, b)
    if isinstance(right, Pair):
        return {}
    _, within = compare(*right, {subject: [subject] for subject in right[0]})
    return {name: Paired(**figures) for name, figures in within.items()}


def mean_of_subjects(a: Evaluation, b: Evaluation) -> Bootstrap | None:
    """The difference where every subject weighs the same, with its bootstrap interval; None where there is no test."""
    right = _matched(a, b)
    return None if isinstance(right, Pair) else paired_bootstrap(*right)


def _matched(a: Evaluation, b: Evaluation) -> tuple[Right, Right] | Pair:
    """Subject -> whether each shared question is right, for both in one order; or why there is no test."""
    for one in (a, b):
        if not one.predictions:
            reason = "why_no_predictions" if one.predictions is None else "why_empty_predictions"
            return Pair(reason=reason, reason_values={"where": str(one.folder)})
    if a.result.data_sha256 != b.result.data_sha256:
        return Pair(reason="why_other_data", reason_values={})
    first, second = _by_question(a.predictions or ()), _by_question(b.predictions or ())
    if not first or not second:
        return Pair(reason="why_no_answers", reason_values={})
    if first.keys() != second.keys():
        return Pair(reason="why_other_questions", reason_values={"n": len(first.keys() & second.keys())})
    return _by_subject(first, first), _by_subject(second, first)


def holm(p_values: Mapping[Name, float]) -> set[Name]:
    """Names whose test is significant after Holm's correction."""
    return {name for name, p in stats.holm(p_values).items() if p <= SIGNIFICANCE}


def in_order(categories) -> list[str]:
    """Category names in the usual order, unknown ones at the end."""
    known = [c for c in CATEGORY_ORDER if c in categories]
    return known + sorted(c for c in categories if c not in CATEGORY_ORDER)


def _by_question(predictions: tuple[Prediction, ...]) -> dict[tuple[str, str], Prediction]:
    return {(p.subject, str(p.id)): p for p in predictions if p.correct is not None}


def _by_subject(predictions: dict[tuple[str, str], Prediction], order) -> Right:
    right: Right = {}
    for key in order:
        right.setdefault(key[0], []).append(bool(predictions[key].correct))
    return right
