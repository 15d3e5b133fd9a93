"""The exact paired test of several runs at once: under no difference, every question's difference may change its sign.

With one run on each side it is the exact McNemar test. Plain Python and numpy; no random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, gcd, sqrt
from statistics import NormalDist

import numpy as np

from tuneval.evaluation.stats import LEVEL

MOST_ENUMERATED = 20
"""Real differences up to this many are tested by all their sign patterns, more by the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two sides, each of one or several runs, on the same questions."""

    questions: int
    runs: int
    """Pairs of runs that are averaged."""
    mean: float
    """Second side - first side: mean over questions and runs."""
    low: float
    """Lower end of its 95% interval over questions; the runs themselves are taken as given. It holds every true difference
    that the same test, by the normal distribution, would not reject: at zero it agrees with the p value."""
    high: float
    p_value: float
    """Exact, two-sided."""


def paired_difference(counts: Sequence[int], runs: int) -> Difference:
    """Test the questions' differences.

    Args:
        counts: of every question, in how many runs more the second side is right than the first: -runs to runs.
        runs: pairs of runs behind each count.

    Returns:
        The mean difference with its interval and exact p value.
    """
    assert counts and runs > 0 and max(map(abs, counts)) <= runs, (len(counts), runs)
    n = len(counts)
    mean, half = sum(counts) / (n * runs), _reach(counts) / (n * runs)
    return Difference(
        questions=n,
        runs=runs,
        mean=mean,
        low=max(-1.0, mean - half),
        high=min(1.0, mean + half),
        p_value=sign_flip_counts(counts),
    )


def _reach(counts: Sequence[int]) -> float:
    """How far from the sum of the counts a sum may lie that the test does not reject.

    A difference d of each question is tested on what is left, counts - d: with u = sum - n d it is not rejected while
    u - g <= z sqrt(sum (count - d)^2) = z sqrt(v + u^2 / n), where v = sum (count - mean)^2 and g is half a step of the sums
    that can occur (continuity); solved for the largest u.
    """
    n, z = len(counts), NormalDist().inv_cdf((1 + LEVEL) / 2)
    if n <= z * z:  # so few questions reject nothing
        return float("inf")
    g, v = gcd(*counts) or 1, sum(c * c for c in counts) - sum(counts) ** 2 / n
    rest = 1 - z * z / n
    return (g + sqrt(g * g - rest * (g * g - z * z * v))) / rest


def sign_flip_counts(counts: Sequence[int]) -> float:
    """P(|sum of randomly signed counts| >= |their sum|), exact by convolution.

    Args:
        counts: whole numbers.

    Source: Pitman (1937), Supplement to the JRSS 4: the randomization test for matched pairs.
    """
    sizes = [abs(c) for c in counts if c]
    total, observed = sum(sizes), abs(sum(counts))
    chances = np.zeros(2 * total + 1)  # of each sum from -total to total
    chances[total] = 1.0
    reach = 0
    for size in sizes:
        reach += size
        spread = np.zeros_like(chances)
        inner = slice(total - reach + size, total + reach - size + 1)
        spread[inner.start - size : inner.stop - size] += 0.5 * chances[inner]
        spread[inner.start + size : inner.stop + size] += 0.5 * chances[inner]
        chances = spread
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= observed].sum()))


def sign_flip(differences: Sequence[float]) -> float:
    """The same for real differences, such as those of losses.

    Args:
        differences: at least one.

    Returns:
        The two-sided p value: over all sign patterns, or beyond MOST_ENUMERATED differences by the normal distribution.
    """
    values = np.asarray(differences, dtype=float)
    observed = abs(float(values.sum()))
    if len(values) > MOST_ENUMERATED:
        spread = sqrt(float((values**2).sum()))
        return 1.0 if spread == 0 else erfc(observed / spread / sqrt(2))
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= observed * (1 - 1e-12)))
