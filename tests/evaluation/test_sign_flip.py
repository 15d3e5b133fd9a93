"""The randomization test against scipy's and against McNemar's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tuneval.evaluation.sign_flip import paired_difference, sign_flip, sign_flip_counts
from tuneval.evaluation.stats import mcnemar, newcombe


def scipy_p(values) -> float:
    """scipy's permutation test of paired samples with every sign pattern."""
    found = scipy_stats.permutation_test(
        (np.asarray(values, float),), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    return float(found.pvalue)


@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_scipy(seed):
    counts = np.random.default_rng(seed).integers(-3, 5, size=11).tolist()
    assert sign_flip_counts(counts) == pytest.approx(scipy_p(counts), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_real_differences_equal_scipy(seed):
    values = (np.random.default_rng(seed).standard_normal(9) + 0.4).tolist()
    assert sign_flip(values) == pytest.approx(scipy_p(values), rel=1e-12)


@pytest.mark.parametrize("a, b", [(0, 0), (3, 9), (40, 61), (300, 250)])
def test_one_run_a_side_is_mcnemar(a, b):
    counts = [-1] * a + [1] * b + [0] * 17
    assert sign_flip_counts(counts) == pytest.approx(mcnemar(a, b), rel=1e-9)


def test_many_real_differences_are_near_scipy():
    values = np.random.default_rng(3).standard_normal(60) + 0.2
    found = scipy_stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=20_000, alternative="two-sided"
    )
    assert sign_flip(values.tolist()) == pytest.approx(float(found.pvalue), abs=0.02)


def test_the_interval_holds_what_the_test_does_not_reject():
    """Each end is a difference whose remainder is 1.96 standard errors about zero away, after half a step."""
    counts = np.random.default_rng(1).integers(-2, 4, size=200)
    found = paired_difference(counts.tolist(), runs=3)
    for end in (found.low, found.high):
        left = counts - 3 * end
        assert (abs(left.sum()) - 1) / np.sqrt((left**2).sum()) == pytest.approx(1.959963984540054)
    assert found.mean == pytest.approx(counts.mean() / 3) == pytest.approx((found.low + found.high) / 2)


@pytest.mark.parametrize("lost, won, both", [(0, 120, 43), (20, 45, 60), (3, 5, 100)])
def test_one_run_a_side_is_near_newcombe(lost, won, both):
    n = 163
    found = paired_difference([-1] * lost + [1] * won + [0] * (n - lost - won), runs=1)
    assert (found.low, found.high) == pytest.approx(newcombe(both, lost, won, n), abs=0.02)


@pytest.mark.parametrize("win, lose", [(0.7, 0.0), (0.1, 0.05)])
def test_intervals_hold_the_truth_19_times_in_20(win, lose):
    generator, hits = np.random.default_rng(2), 0
    for _ in range(400):
        won, lost, same = generator.multinomial(150, [win, lose, 1 - win - lose])
        found = paired_difference([1] * won + [-1] * lost + [0] * same, runs=1)
        hits += found.low <= win - lose <= found.high
    assert 0.93 < hits / 400 < 0.99


def test_so_few_questions_exclude_nothing():
    found = paired_difference([1, 1, 1], runs=1)
    assert (found.low, found.high) == (-1.0, 1.0)


@pytest.mark.parametrize("b", range(60, 110, 2))
def test_interval_and_test_agree(b):
    """Zero lies outside the interval where p is clearly below 0.05, inside where it is clearly above."""
    found = paired_difference([1] * b + [-1] * 60 + [0] * 300, runs=1)
    if abs(found.p_value - 0.05) > 0.02:
        assert (found.low > 0) == (found.p_value < 0.05)


@pytest.mark.parametrize("n", range(1, 12))
def test_few_disagreements_agree_too(n):
    """Five questions against none can't be significant (p = 0.0625), six can (0.031)."""
    found = paired_difference([1] * n + [0] * 103, runs=1)
    assert (found.low > 0) == (found.p_value < 0.05) == (n >= 6)


def test_no_difference_and_full_agreement():
    assert sign_flip_counts([0, 0, 0]) == 1.0 and sign_flip([0.0]) == 1.0
    assert sign_flip_counts([1] * 10) == pytest.approx(2 / 2**10)
