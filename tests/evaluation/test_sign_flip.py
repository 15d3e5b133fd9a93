"""The randomization test against scipy's and against McNemar's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tuneval.evaluation.sign_flip import paired_difference, sign_flip, sign_flip_counts
from tuneval.evaluation.stats import mcnemar


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


def test_the_interval_is_that_of_the_mean():
    counts = np.random.default_rng(1).integers(-2, 3, size=200).tolist()
    found = paired_difference(counts, runs=2)
    shares = np.asarray(counts) / 2
    half = 1.959963984540054 * np.sqrt((shares**2).mean() / 200) + 1 / (200 * 2)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (shares.mean(), shares.mean() - half, shares.mean() + half)
    )


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
