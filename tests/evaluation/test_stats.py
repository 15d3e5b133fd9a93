"""Intervals and tests against scipy, published figures and simulation."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tuneval.evaluation.stats import (
    compare,
    detectable_difference,
    holm,
    macro,
    mcnemar,
    newcombe,
    paired,
    summary,
    verdict,
    wilson,
)


@pytest.mark.parametrize("correct,n", [(0, 1), (1, 1), (0, 19), (7, 19), (19, 19), (400, 1346), (3000, 12342)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(correct, n, level):
    expected = scipy_stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    assert wilson(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("a,b", [(0, 0), (5, 5), (0, 1), (0, 6), (3, 10), (40, 17), (300, 301), (2000, 1500)])
def test_mcnemar_equals_scipy(a, b):
    expected = scipy_stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_newcombe_equals_the_published_example():
    """Newcombe (1998), table III: e, f, g, h = 36, 12, 2, 0, method 10: 0.0569 to 0.3404."""
    assert newcombe(36, 2, 12, 50) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = newcombe(36, 12, 2, 50)
    assert (-high, -low) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_newcombe_agrees_with_a_bootstrap():
    rng = np.random.default_rng(1)
    a = rng.random(1300) < 0.5
    b = np.where(rng.random(1300) < 0.3, rng.random(1300) < 0.65, a)
    test = paired(a.tolist(), b.tolist())
    data = (b.astype(float) - a,)
    boot = scipy_stats.bootstrap(data, np.mean, n_resamples=4000, rng=2, method="percentile").confidence_interval
    assert (test.low, test.high) == pytest.approx((boot.low, boot.high), abs=0.004)
    assert test.difference == pytest.approx(data[0].mean())


def test_macro_of_one_subject_is_wilson():
    assert macro([(7, 19)]) == pytest.approx((7 / 19, *wilson(7, 19)))


def test_macro_agrees_with_the_normal_formula_on_many_questions():
    counts = [(700, 1000), (450, 2000), (1000, 1500)]
    mean, low, high = macro(counts)
    error = 1.959964 * sqrt(sum((c / n) * (1 - c / n) / n for c, n in counts)) / 3
    assert (low, high) == pytest.approx((mean - error, mean + error), abs=2e-4)


def test_macro_interval_covers_the_truth():
    """52 subjects of 12 to 55 questions, as C-Eval's: 95% intervals hold the truth about 95% of the time."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(12, 56, 52)
    truth = rng.uniform(0.2, 0.95, 52)
    hits = 0
    for _ in range(400):
        mean, low, high = macro([(int(c), int(n)) for c, n in zip(rng.binomial(sizes, truth), sizes)])
        hits += low <= truth.mean() <= high
        assert low < mean < high
    assert 0.92 <= hits / 400 <= 0.98


def test_macro_never_claims_certainty():
    mean, low, high = macro([(10, 10), (0, 10)])
    assert mean == 0.5 and low < 0.45 and high > 0.55


def test_summary_weighs_questions_and_subjects():
    results = {"a": [True, True, True, False], "b": [False, True]}
    found = summary(results, {"X": ["a"], "Hard": ["a", "b"], "Y": ["none"]})
    assert found["micro"]["accuracy"] == pytest.approx(4 / 6) and found["micro"]["correct"] == 4
    assert found["macro"]["accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert list(found["categories"]) == ["X", "Hard"]
    assert found["categories"]["X"]["accuracy"] == found["categories"]["X"]["macro"]["accuracy"] == 0.75
    assert found["subjects"]["b"]["n"] == 2


def test_compare_by_category_adds_up():
    a = {"s": [True, False, False], "t": [True, True]}
    b = {"t": [False, True], "s": [True, True, True]}
    test, within = compare(a, b, {"S": ["s"], "T": ["t"], "None": ["u"]})
    assert (test.a_only, test.b_only, test.n) == (1, 2, 5)
    assert within["S"]["b_only"] == 2 and within["T"]["difference"] == -0.5 and "None" not in within


def test_verdicts_say_what_was_shown():
    before = [False] * 30 + [True] * 30
    clear = [False] * 40, [True] * 15 + [False] * 25
    assert verdict(paired(*clear), "base", "tuned").startswith("tuned is better than base: +37.5 points (95% interval")
    assert "tuned is worse than base" in verdict(paired(*clear[::-1]), "base", "tuned")
    same = verdict(paired(before, before), "base", "tuned")
    assert same == "tuned and base are right on the same 30 of 60 questions: no difference."
    unsure = verdict(paired([True, False] * 50, [True, False] * 49 + [True, True]), "base", "tuned")
    assert "p = 1.00" in unsure and "finds a true difference of 7.8 points four times in five" in unsure


def test_detectable_difference_has_the_power_it_claims():
    n, disagreement = 1346, 0.3
    delta = detectable_difference(round(disagreement * n), n)
    rng = np.random.default_rng(4)
    chances = [(disagreement + delta) / 2, (disagreement - delta) / 2, 1 - disagreement]
    draws = rng.multinomial(n, chances, 600)
    assert np.mean([mcnemar(int(a), int(b)) <= 0.05 for a, b, _ in draws]) == pytest.approx(0.8, abs=0.06)
    assert detectable_difference(0, 10) > 0 and detectable_difference(10, 10) <= 1


def test_holm_equals_the_published_example():
    """Aickin and Gensler (1996), American Journal of Public Health 86: p 0.01, 0.02, 0.03, 0.04 of four tests."""
    assert holm({"a": 0.02, "b": 0.01, "c": 0.04, "d": 0.03}) == pytest.approx(
        {"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06}
    )
    assert holm({"x": 0.6, "y": 0.7}) == {"x": 1.0, "y": 1.0} and holm({}) == {}


def test_holm_keeps_its_promise():
    """No test out of twenty without any difference passes in 95% of trials."""
    rng = np.random.default_rng(9)
    passes = [min(holm(dict(enumerate(rng.random(20)))).values()) <= 0.05 for _ in range(2000)]
    assert 0.03 <= np.mean(passes) <= 0.07
