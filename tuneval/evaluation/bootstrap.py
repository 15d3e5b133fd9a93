"""The paired bootstrap of two answerers: intervals for the difference over questions and for the mean of subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuneval.evaluation.stats import LEVEL


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Differences when the questions of each subject are drawn anew, with replacement."""

    resamples: int
    seed: int
    micro: tuple[float, float]
    """95% interval (percentiles) of the difference over questions."""
    macro_difference: float
    """Mean over subjects of the difference in accuracy."""
    macro: tuple[float, float]
    """Its 95% interval."""


def paired_bootstrap(
    a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]], resamples: int = 10_000, seed: int = 1234
) -> Bootstrap:
    """Resample the questions within each subject; both answerers keep theirs.

    Args:
        a: subject -> whether the first has each question right.
        b: the same for the second, in the same order.
        resamples: drawn.
        seed: of numpy's generator.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13. A question counts -1, 0 or 1, so
        a drawn subject is one multinomial draw of how often each occurs.
    """
    generator, sums, means, observed = np.random.default_rng(seed), np.zeros(resamples), np.zeros(resamples), 0.0
    for subject, first in a.items():
        n = len(first)
        lost = sum(x and not y for x, y in zip(first, b[subject], strict=True))
        won = sum(y and not x for x, y in zip(first, b[subject], strict=True))
        drawn = generator.multinomial(n, [won / n, lost / n, 1 - (won + lost) / n], size=resamples)
        change = drawn[:, 0] - drawn[:, 1]
        sums += change
        means += change / n
        observed += (won - lost) / n
    questions, tails = sum(map(len, a.values())), [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    micro, macro_ends = np.percentile(sums / questions, tails), np.percentile(means / len(a), tails)
    return Bootstrap(
        resamples=resamples,
        seed=seed,
        micro=(float(micro[0]), float(micro[1])),
        macro_difference=observed / len(a),
        macro=(float(macro_ends[0]), float(macro_ends[1])),
    )
