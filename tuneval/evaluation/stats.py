"""Scores with their uncertainty: accuracies by question and by subject, 95% intervals, paired tests.

- A share of questions (micro, one subject, one category): the Wilson score interval.
- A mean of subject accuracies (macro): the MOVER interval over the subjects' Wilson intervals. Subjects are strata; the
  distances of their limits add up in squares. It needs no random numbers and stays honest where a subject is all right
  or all wrong, where both the normal formula and a bootstrap claim certainty.
- A before/after difference: Newcombe's hybrid score interval for paired shares, and the exact McNemar test. Of many
  subjects at once: Holm's correction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import TypeVar

Name = TypeVar("Name")
LEVEL = 0.95
POWER = 0.8
"""Probability that a test finds a difference of the size called detectable."""
METHODS = {
    "micro": "every question weighs the same; Wilson score interval, 95%",
    "macro": "every subject weighs the same; MOVER interval over the subjects' Wilson intervals, 95%",
}
"""How the figures of a result come about, for its record."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two answerers on the same questions."""

    n: int
    a_accuracy: float
    b_accuracy: float
    difference: float
    """b_accuracy - a_accuracy."""
    low: float
    """Lower end of the difference's 95% interval."""
    high: float
    a_only: int
    """Questions only the first has right."""
    b_only: int
    p_value: float
    """Exact McNemar test, two-sided."""
    detectable: float
    """Smallest difference that a test of this size finds with 80% power, given how often the two disagree."""


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The Wilson score interval of a share.

    Args:
        correct: successes, 0 to n.
        n: trials, at least 1.
        level: confidence.

    Returns:
        Lower and upper end, within [0, 1].

    Source: Wilson (1927), JASA 22.
    """
    assert 0 <= correct <= n and n > 0, (correct, n)
    z, p = _z(level), correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


def macro(counts: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """The mean of the subjects' accuracies and its 95% MOVER interval.

    Args:
        counts: (correct, n) of each subject; n at least 1.

    Returns:
        Mean, lower and upper end.

    Source: Zou, Huang and Zhang (2009), Computational Statistics & Data Analysis 53: intervals for a linear function of
        binomial proportions.
    """
    accuracies = [correct / n for correct, n in counts]
    limits = [wilson(correct, n) for correct, n in counts]
    mean = sum(accuracies) / len(counts)
    below = sqrt(sum((p - low) ** 2 for p, (low, _) in zip(accuracies, limits))) / len(counts)
    above = sqrt(sum((high - p) ** 2 for p, (_, high) in zip(accuracies, limits))) / len(counts)
    return mean, mean - below, mean + above


def mcnemar(a_only: int, b_only: int) -> float:
    """Exact two-sided McNemar test: are the questions only one of two has right split like tosses of a fair coin?

    Args:
        a_only: questions only the first has right.
        b_only: questions only the second has right.

    Returns:
        The p value; 1 where the two never disagree.
    """
    n, fewer = a_only + b_only, min(a_only, b_only)
    if a_only == b_only:
        return 1.0
    tail, term = 0, 1  # whole numbers of any size: exact for thousands of questions
    for k in range(fewer + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return 2 * tail / 2**n


def paired(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """Test two answerers on the same questions.

    Args:
        a: whether the first has each question right.
        b: the same for the second, in the same order.

    Returns:
        Accuracies, their difference with its interval, the exact test, and what the test could have found.
    """
    assert len(a) == len(b) > 0
    n, a_only, b_only = len(a), sum(x and not y for x, y in zip(a, b)), sum(y and not x for x, y in zip(a, b))
    low, high = newcombe(sum(x and y for x, y in zip(a, b)), a_only, b_only, n)
    return Paired(
        n=n,
        a_accuracy=sum(a) / n,
        b_accuracy=sum(b) / n,
        difference=(b_only - a_only) / n,
        low=low,
        high=high,
        a_only=a_only,
        b_only=b_only,
        p_value=mcnemar(a_only, b_only),
        detectable=detectable_difference(a_only + b_only, n),
    )


def newcombe(both: int, a_only: int, b_only: int, n: int) -> tuple[float, float]:
    """95% interval of the difference (second - first) of two shares over the same questions.

    Args:
        both: questions both have right.
        a_only: questions only the first has right.
        b_only: questions only the second has right.
        n: questions.

    Returns:
        Lower and upper end, within [-1, 1].

    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10 (Wilson limits, corrected correlation).
    """
    p, q, neither = (both + b_only) / n, (both + a_only) / n, n - both - a_only - b_only
    (p_low, p_high), (q_low, q_high) = wilson(both + b_only, n), wilson(both + a_only, n)
    phi = _correlation(both, a_only, b_only, neither)
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    difference = (b_only - a_only) / n
    return difference - sqrt(max(below, 0.0)), difference + sqrt(max(above, 0.0))


def detectable_difference(disagreements: int, n: int) -> float:
    """Smallest true difference that a paired test at the 5% level finds with `POWER`, by the normal approximation.

    Args:
        disagreements: questions only one of the two has right. A difference needs as many in its favour, so at least
            (1.96 + 0.84)^2, about 8, are assumed.
        n: questions.

    Returns:
        A share of the questions, at most 1.

    Source: Connor (1987), Biometrics 43, to first order.
    """
    z = _z(LEVEL) + NormalDist().inv_cdf(POWER)
    return min(1.0, z * sqrt(max(disagreements, z * z)) / n)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down correction: p values that may be held against one level though many were looked at.

    Args:
        p_values: name -> p value of its own test.

    Returns:
        Name -> corrected p value, in the order given.

    Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def verdict(test: Paired, a: str, b: str) -> str:
    """The outcome of a paired test in plain words.

    Args:
        test: the figures.
        a: what the first is called.
        b: what the second is called.
    """
    if test.a_only + test.b_only == 0:
        return (
            f"{b} and {a} are right on the same {round(test.a_accuracy * test.n)} of {test.n} questions: no difference."
        )
    figures = (
        f"{100 * test.difference:+.1f} points (95% interval {100 * test.low:+.1f} to {100 * test.high:+.1f}; "
        f"{test.n} questions, {test.b_only} right only for {b}, {test.a_only} only for {a}; "
        f"exact McNemar {_p(test.p_value)})"
    )
    if test.p_value <= 1 - LEVEL:
        return f"{b} is {'better' if test.difference > 0 else 'worse'} than {a}: {figures}."
    return (
        f"No difference shown between {b} and {a}: {figures}. "
        f"A test of this size finds a true difference of {100 * test.detectable:.1f} points four times in five; "
        "smaller ones need more questions."
    )


def summary(results: Mapping[str, Sequence[bool]], categories: Mapping[str, Iterable[str]]) -> dict[str, dict]:
    """Every figure of a result, with intervals.

    Args:
        results: subject -> whether each of its questions is right; no subject is empty.
        categories: category -> its subjects; those without subjects in `results` are left out.

    Returns:
        `micro` {accuracy, low, high, correct, n}, `macro` {accuracy, low, high}, `subjects` {subject: as micro},
        `categories` {category: as micro, and macro}.
    """
    counts = {subject: (sum(right), len(right)) for subject, right in results.items()}
    groups = {name: [counts[s] for s in members if s in counts] for name, members in categories.items()}
    return {
        "micro": _share(counts.values()),
        "macro": _mean(list(counts.values())),
        "categories": {name: {**_share(g), "macro": _mean(g)} for name, g in groups.items() if g},
        "subjects": {subject: _share([count]) for subject, count in counts.items()},
    }


def at_chance(micro: Mapping[str, float], chance: float) -> bool | None:
    """Whether guessing would explain an accuracy: its interval does not lie above `chance`. None without accuracy."""
    return micro["low"] <= chance if micro and chance else None


def compare(
    a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]], categories: Mapping[str, Iterable[str]]
) -> tuple[Paired, dict[str, dict]]:
    """Paired tests over all questions and within each category (not corrected for their number).

    Args:
        a: subject -> whether each of its questions is right for the first.
        b: the same questions for the second.
        categories: category -> its subjects.

    Returns:
        The test over all questions, and category -> the same figures.
    """
    groups = {name: [s for s in members if s in a] for name, members in categories.items()}
    within = {name: asdict(paired(_flat(a, members), _flat(b, members))) for name, members in groups.items() if members}
    return paired(_flat(a, a), _flat(b, a)), within


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}" if value < 0.1 else f"p = {value:.2f}"


def _correlation(both: int, a_only: int, b_only: int, neither: int) -> float:
    rows = (both + b_only) * (a_only + neither) * (both + a_only) * (b_only + neither)
    if rows == 0:
        return 0.0
    cross, half = both * neither - a_only * b_only, (both + a_only + b_only + neither) / 2
    return (max(cross - half, 0.0) if cross > 0 else cross) / sqrt(rows)


def _share(counts: Iterable[tuple[int, int]]) -> dict[str, float]:
    counts = list(counts)
    correct, n = sum(c for c, _ in counts), sum(n for _, n in counts)
    low, high = wilson(correct, n)
    return {"accuracy": correct / n, "low": low, "high": high, "correct": correct, "n": n}


def _mean(counts: Sequence[tuple[int, int]]) -> dict[str, float]:
    mean, low, high = macro(counts)
    return {"accuracy": mean, "low": low, "high": high}


def _flat(results: Mapping[str, Sequence[bool]], subjects: Iterable[str]) -> list[bool]:
    return [right for subject in subjects for right in results[subject]]
