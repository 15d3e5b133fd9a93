"""A sweep's figures against plain computations over its files, scipy and simulation."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from report_runs import make_evaluation, rewrite
from scipy import stats as scipy_stats
from sweep_runs import make_sweep

from tuneval.evaluation.stats import paired
from tuneval.files import read_jsonl, write_jsonl
from tuneval.report.sweep.findings import (
    against_baseline,
    between,
    effects,
    interactions,
    pareto,
    spread_over_seeds,
)
from tuneval.report.sweep.gather import SweepResult, gather_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    make_sweep(folder, seeds=[1, 2])
    return folder / "out"


@pytest.fixture(scope="module")
def sweep(folder) -> SweepResult:
    return gather_sweep(folder)


def right(folder, point: str | None) -> np.ndarray:
    """[questions] whether each is right: of a point, or of the model before tuning."""
    place = (
        f"points/{point}/evaluation/ceval-official" if point else next(p.name for p in (folder / "shared").iterdir())
    )
    path = folder / place if point else folder / "shared" / place
    rows = sorted(read_jsonl(path / "predictions.jsonl"), key=lambda r: (r["subject"], r["id"]))
    return np.array([row["correct"] for row in rows], float)


def test_settings_hold_their_seeds(sweep):
    assert [s.label for s in sweep.settings][:2] == ["lora_r=4, lr=1e-4", "lora_r=4, lr=1e-3"]
    assert [len(s.done) for s in sweep.settings] == [2] * 7
    assert sweep.ranked[0].label == "lora_r=16, lr=1e-3" and sweep.ranked[0].number == 5


def test_the_effect_of_an_axis_is_the_mean_over_the_others(sweep, folder):
    effect = effects(sweep)[0]
    assert effect.axis == "lora_r" and effect.balanced and effect.combinations == 6
    for result in effect.levels:
        runs = [f"lora_r-{result.level.label}.lr-{lr}.seed-{s}" for lr in ("1e-4", "1e-3", "3e-3") for s in (1, 2)]
        assert result.mean == pytest.approx(np.mean([right(folder, r) for r in runs]))
    assert [r.level.label for r in effect.ranked] == ["16", "4"]


def test_two_levels_are_tested_question_by_question(sweep, folder):
    pair = effects(sweep)[0].pairs[0]
    difference = sum(
        right(folder, f"lora_r-16.lr-{lr}.seed-{s}") - right(folder, f"lora_r-4.lr-{lr}.seed-{s}")
        for lr in ("1e-4", "1e-3", "3e-3")
        for s in (1, 2)
    )
    assert pair.pairs == 6 and pair.test.questions == len(difference)
    assert pair.difference == pytest.approx(difference.sum() / len(difference) / 6)
    found = scipy_stats.permutation_test((difference,), np.sum, permutation_type="samples", n_resamples=9999)
    assert pair.p_value == pytest.approx(found.pvalue, abs=0.01)


def test_one_run_against_the_model_before_is_mcnemar(tmp_path):
    make_sweep(tmp_path)
    sweep = gather_sweep(tmp_path / "out")
    for one in against_baseline(sweep):
        before, after = right(tmp_path / "out", None), right(tmp_path / "out", one.setting.points[0].id)
        test = paired(before.astype(bool).tolist(), after.astype(bool).tolist())
        assert (one.test.mean, one.test.p_value) == pytest.approx((test.difference, test.p_value))


def test_categories_are_those_of_their_questions(sweep):
    for one in against_baseline(sweep):
        whole = sum(d.mean * d.questions for c, d in one.categories.items() if c != "Hard")
        assert whole == pytest.approx(one.test.mean * one.test.questions)


def test_holm_is_over_all_settings(sweep):
    found = against_baseline(sweep)
    order = sorted(found, key=lambda one: one.test.p_value)
    expected = set()
    for rank, one in enumerate(order):
        if one.test.p_value > 0.05 / (len(order) - rank):
            break
        expected.add(one.setting.number)
    assert {one.setting.number for one in found if one.significant} == expected


def test_nothing_is_significant_where_nothing_differs(tmp_path):
    """Points with the baseline's own answers: no effect, no change, no interaction."""
    plan = make_sweep(tmp_path)
    rows = read_jsonl(plan.jobs[0].baseline / "predictions.jsonl")
    for job in plan.jobs:
        write_jsonl(job.run / "evaluation/ceval-official/predictions.jsonl", rows)
    sweep = gather_sweep(tmp_path / "out")
    assert all(pair.p_value == 1 and not pair.significant for effect in effects(sweep) for pair in effect.pairs)
    assert all(
        one.test.mean == 0 and not one.significant and not one.significant_categories for one in against_baseline(sweep)
    )


def test_levels_that_differ_in_more_are_not_compared(tmp_path):
    """Each level of lora_r is left with another lr: their means say nothing about lora_r."""
    make_sweep(tmp_path, axes={"lora_r": [4, 16], "lr": [1e-4, 1e-3]}, points=None)
    out = tmp_path / "out"
    for name in ("lora_r-4.lr-1e-4", "lora_r-16.lr-1e-3"):
        rewrite(out / "state" / f"{name}.tune.json", status="failed", error="x")
    effect = effects(gather_sweep(out))[0]
    assert not effect.balanced and effect.pairs == ()


def test_an_axis_is_tested_on_the_runs_of_its_means(tmp_path):
    """With rank 4 the first rate is the better one, with rank 16 the last; the second failed there. A sentence that names the
    means of rank 4 must not tell a difference over both ranks."""
    plan = make_sweep(tmp_path, failing="lora_r=16, lr=1e-3", points=None)
    skills = {"4": {"1e-4": 0.6, "1e-3": 0.55, "3e-3": 0.5}, "16": {"1e-4": 0.3, "3e-3": 0.7}}
    for job in plan.jobs:
        rank, rate = job.point.levels.values()
        if rate in skills[rank]:
            make_evaluation(job.run / "evaluation" / "ceval-official", skills[rank][rate], seed=3)
    effect = effects(gather_sweep(tmp_path / "out"))[1]
    best, worst = effect.ranked[0], effect.ranked[-1]
    assert (best.level.label, worst.level.label, effect.combinations) == ("1e-4", "3e-3", 1)
    pair = effect.pair("1e-4", "3e-3")
    assert pair.pairs == 1 and pair.difference == pytest.approx(worst.mean - best.mean)


def test_spread_over_seeds_is_pooled(sweep):
    groups = [[sweep.figure(p) for p in s.done] for s in sweep.settings]
    pooled = np.sqrt(np.mean([statistics.variance(g) for g in groups]))
    assert spread_over_seeds(sweep, sweep.settings) == pytest.approx(pooled)


def test_interaction_of_two_by_two(tmp_path):
    make_sweep(tmp_path, axes={"lora_r": [4, 16], "lr": [1e-4, 1e-3]}, points=None)
    out = tmp_path / "out"
    found = interactions(gather_sweep(out))[0]
    a, b, c, d = (right(out, f"lora_r-{r}.lr-{lr}") for r in (4, 16) for lr in ("1e-4", "1e-3"))
    assert 2 * found.test.mean == pytest.approx(((d - c) - (b - a)).mean())
    assert found.largest == pytest.approx(abs(((d - c) - (b - a)).mean()) / 4)
    expected = scipy_stats.permutation_test(((d - c) - (b - a),), np.sum, permutation_type="samples", n_resamples=9999)
    assert found.test.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert [[round(v, 6) for v in row] for row in found.cells] == [
        [round(x.mean(), 6) for x in pair] for pair in ((a, b), (c, d))
    ]


def test_two_settings_are_paired_by_seed(sweep, folder):
    first, second = sweep.settings[0], sweep.settings[4]
    found = between(sweep, first, second)
    difference = sum(right(folder, f"{second.points[i].id}") - right(folder, f"{first.points[i].id}") for i in (0, 1))
    assert found.runs == 2 and found.mean == pytest.approx(difference.mean() / 2)


def test_pareto():
    entries = [(1.0, 0.3), (2.0, 0.5), (3.0, 0.4), (2.0, 0.5), (0.5, 0.1)]
    assert pareto(entries, lower_is_better=False) == [True, True, False, True, True]
    assert pareto([(1.0, 2.0), (2.0, 1.0), (3.0, 1.5)], lower_is_better=True) == [True, True, False]


def test_losses_are_paired_run_by_run(tmp_path):
    make_sweep(tmp_path, evaluate=None, axes={"lora_r": [4, 16], "lr": [1e-4, 1e-3, 3e-3]}, points=None, seeds=[1, 2])
    sweep = gather_sweep(tmp_path / "out")
    pair = effects(sweep)[0].pairs[0]
    losses = {s.label: [p.validation_loss for p in s.done] for s in sweep.settings}
    differences = [
        b - a
        for lr in ("1e-4", "1e-3", "3e-3")
        for a, b in zip(losses[f"lora_r=4, lr={lr}"], losses[f"lora_r=16, lr={lr}"])
    ]
    assert pair.test is None and pair.difference == pytest.approx(statistics.fmean(differences))
    expected = scipy_stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert pair.p_value == pytest.approx(expected.pvalue)


def test_false_alarms_are_rare():
    """Of sweeps without any difference, at most about 5% claim one for some setting."""
    generator = np.random.default_rng(5)
    from tuneval.evaluation.sign_flip import paired_difference
    from tuneval.report.findings import holm

    alarms = 0
    for _ in range(200):
        base = generator.random(120) < 0.5
        tests = {}
        for setting in range(6):
            flipped = np.where(generator.random(120) < 0.2, generator.random(120) < 0.5, base)
            tests[str(setting)] = paired_difference((flipped.astype(int) - base.astype(int)).tolist(), 1).p_value
        alarms += bool(holm(tests))
    assert alarms <= 18
