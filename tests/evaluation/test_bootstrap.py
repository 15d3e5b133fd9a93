"""The paired bootstrap against scipy's, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tuneval.evaluation.bootstrap import paired_bootstrap


def test_bootstrap_of_one_subject_equals_scipy():
    rng = np.random.default_rng(7)
    a, b = rng.random(300) < 0.5, rng.random(300) < 0.58
    found = paired_bootstrap({"s": a.tolist()}, {"s": b.tolist()}, resamples=20_000)
    theirs = scipy_stats.bootstrap((b * 1.0 - a,), np.mean, n_resamples=20_000, rng=8, method="percentile")
    assert found.micro == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)
    assert found.macro == found.micro and found.macro_difference == pytest.approx(b.mean() - a.mean())
    assert found == paired_bootstrap({"s": a.tolist()}, {"s": b.tolist()}, resamples=20_000)


def test_bootstrap_draws_within_subjects():
    """A subject that always changes and one that never does: nothing is left to chance."""
    found = paired_bootstrap({"s": [False] * 4, "t": [True] * 6}, {"s": [True] * 4, "t": [True] * 6})
    assert found.micro == (0.4, 0.4) and found.macro == (0.5, 0.5) and found.macro_difference == 0.5
