"""The analysis in sentences: each says what a stored figure shows, and what it does not show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuneval.evaluation.stats import wilson
from tuneval.report import words as spell
from tuneval.report.document import Bullets, Section, Tile, Tiles
from tuneval.report.findings import SIGNIFICANCE
from tuneval.report.sweep import spelling
from tuneval.report.sweep.findings import (
    Against,
    Effect,
    Interaction,
    against_baseline,
    between,
    effects,
    interactions,
    pareto,
    spread_over_seeds,
)
from tuneval.report.sweep.gather import PointResult, Setting, SweepResult
from tuneval.report.words import Words


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that is computed of a sweep, once."""

    effects: tuple[Effect, ...]
    against: tuple[Against, ...]
    interactions: tuple[Interaction, ...]
    front: tuple[Setting, ...]
    """Settings that no other beats in both time and the objective."""
    spread: float | None
    """Over seeds, pooled over all settings."""


def analyse(sweep: SweepResult) -> Analysis:
    """All tests and means of the sweep."""
    timed = [
        (s, seconds(s), mean) for s in sweep.settings if (mean := sweep.mean(s)) is not None and seconds(s) is not None
    ]
    on_front = pareto([(cost, mean) for _, cost, mean in timed], lower_is_better=sweep.objective != "score")  # type: ignore[misc]
    return Analysis(
        effects=tuple(effects(sweep)),
        against=tuple(against_baseline(sweep)),
        interactions=tuple(interactions(sweep)),
        front=tuple(setting for (setting, _, _), best in zip(timed, on_front) if best),
        spread=spread_over_seeds(sweep, sweep.settings),
    )


def seconds(setting: Setting) -> float | None:
    """Mean time of the steps over the seeds that are done."""
    found = [p.curve.seconds for p in setting.done if p.curve is not None]
    mean = sum(found) / len(found) if found else None
    return mean if mean is not None and mean == mean else None  # NaN: not recorded


def summary_section(sweep: SweepResult, analysis: Analysis, t: Words) -> Section:
    """Headline figures and the analysis."""
    return Section(
        id="summary",
        title=t("sweep_summary"),
        blocks=(
            Tiles(title="", tiles=tuple(_tiles(sweep, analysis, t))),
            Bullets(title="", items=tuple(sentences(sweep, analysis, t))),
        ),
    )


def sentences(sweep: SweepResult, analysis: Analysis, t: Words) -> Iterator[str]:
    """The analysis, from the whole to the single axis."""
    points = sweep.points
    done = sum(p.status == "done" for p in points)
    yield t("s_overview", settings=len(sweep.settings), runs=len(points), done=done)
    yield from _say_before(sweep, t)
    if not sweep.ranked:
        yield t("s_nothing")
    else:
        yield _join(_say_best(sweep, analysis, t), t)
        if sweep.objective == "score" and len(sweep.ranked) > 1:
            yield from _say_second(sweep, analysis, t)
    apart = [spelling.name(s) for s in sweep.settings if sweep.came_apart(s)]
    if apart:
        yield t("s_not_finite", labels=t.listed(apart))
    yield from _say_against(analysis, t)
    for effect in analysis.effects:
        yield _join(_say_effect(sweep, analysis, effect, t), t)
    for interaction in analysis.interactions:
        yield from _say_interaction(sweep, interaction, t)
    yield from _say_spread(sweep, analysis, t)
    if len(analysis.front) and len(sweep.ranked) > 1:
        labels = t.listed([spelling.name(s) for s in analysis.front])
        yield t("s_front", what=spelling.what(sweep, t), labels=labels)
    yield from _say_losses(sweep, t)
    for setting in sweep.settings:
        yield from _say_failed(setting, t)


def _say_failed(setting: Setting, t: Words) -> Iterator[str]:
    """One sentence a setting and error."""
    groups: dict[tuple[str, str], list[PointResult]] = {}
    for point in setting.points:
        if point.status == "failed":
            last = (point.error.strip().splitlines() or [t("missing")])[-1]
            groups.setdefault((point.failed_step, last), []).append(point)
    for (step, last), points in groups.items():
        yield t("s_failed", label=failed_name(setting, points, t), step=step, error=last)


def failed_name(setting: Setting, points: Sequence[PointResult], t: Words) -> str:
    """The setting and the seeds of these runs."""
    seeds = [str(p.seed) for p in points if p.seed is not None]
    return spelling.name(setting) + (f"{t('semicolon')}{t('seed_in_text')} {t.listed(seeds)}" if seeds else "")


def _join(parts: Iterator[str], t: Words) -> str:
    return ("" if t.lang == "zh" else " ").join(parts)


def _tiles(sweep: SweepResult, analysis: Analysis, t: Words) -> Iterator[Tile]:
    points = sweep.points
    failed, unfinished = (sum(p.status == status for p in points) for status in ("failed", "unfinished"))
    notes = [t(f"w_{name}", n=n) for name, n in (("failed", failed), ("unfinished", unfinished)) if n]
    done = len(points) - failed - unfinished
    yield Tile(label=t("w_settings"), value=f"{done} / {len(points)}", note=t.listed(notes))
    before = _baseline_micro(sweep)
    if before is not None:
        interval = f"[{100 * before['low']:.1f}, {100 * before['high']:.1f}]" if before.get("low") is not None else ""
        yield Tile(label=t("w_before"), value=spell.percent(before["accuracy"]), note=interval)
    if sweep.ranked:
        best = sweep.ranked[0]
        yield Tile(label=t("w_best"), value=spelling.value(sweep, sweep.mean(best), t), note=spelling.name(best))
        against = next((a for a in analysis.against if a.setting is best), None)
        if against is not None:
            mark = t("significant" if against.significant else "not_significant")
            interval = f"[{spell.points(against.test.low)}, {spell.points(against.test.high)}]"
            yield Tile(label=t("w_change"), value=spell.points(against.test.mean), note=f"{interval}\n{mark}")
    if analysis.spread is not None:
        yield Tile(label=t("w_seeds"), value=spelling.size(sweep, analysis.spread, t))
    total = sum(p.curve.seconds for p in points if p.curve is not None)
    yield Tile(label=t("w_time"), value=t.seconds(total))


def _baseline_micro(sweep: SweepResult) -> dict | None:
    """The one baseline's score; None where there is none, or where several models are compared."""
    found = {id(p.baseline[sweep.exam]): p.baseline[sweep.exam] for p in sweep.points if sweep.exam in p.baseline}
    return next(iter(found.values())).result.micro if len(found) == 1 else None


def _say_before(sweep: SweepResult, t: Words) -> Iterator[str]:
    micro = _baseline_micro(sweep)
    if micro is None:
        return
    result = next(p.baseline[sweep.exam].result for p in sweep.points if sweep.exam in p.baseline)
    facts = {"exam": spelling.exam(sweep, t), "n": result.questions, "chance": spell.percent(result.chance)}
    said = [t("s_before", before=spell.percent(micro["accuracy"]), **facts)]
    low, high = wilson(micro["correct"], micro["n"]) if "correct" in micro and "n" in micro else (0.0, 0.0)
    if low <= result.chance <= high:
        said.append(t("s_before_chance", low=spell.percent(low), high=spell.percent(high)))
    yield _join(iter(said), t)


def _say_best(sweep: SweepResult, analysis: Analysis, t: Words) -> Iterator[str]:
    best = sweep.ranked[0]
    runs = len(best.done)
    seeds = t("s_seeds", n=runs) if runs > 1 else ""
    figure = spelling.value(sweep, sweep.mean(best), t)
    yield t("s_best", what=spelling.what(sweep, t), label=spelling.name(best), value=figure, seeds=seeds)
    tied = [spelling.name(s) for s in sweep.ranked[1:] if sweep.mean(s) == sweep.mean(best)]
    if tied:
        yield t("s_best_tied", labels=t.listed(tied))
    against = next((a for a in analysis.against if a.setting is best), None)
    if sweep.objective == "score" and against is not None:
        kind = "unclear" if not against.significant else "better" if against.test.mean > 0 else "worse"
        facts = (
            {"size": f"{100 * abs(against.test.mean):.1f}"}
            if against.significant
            else {"difference": spell.points(against.test.mean)}
        )
        yield t(f"s_best_{kind}", n=len(analysis.against), figures=spelling.figures(against.test, t), **facts)
        if against.significant:
            yield from _say_seeds(sweep, analysis, against.test.mean, 1 / runs, t)
    if len(sweep.ranked) > 1:
        yield t("s_of_best" if sweep.objective == "score" else "s_of_best_loss", n=len(sweep.ranked))


def _say_seeds(sweep: SweepResult, analysis: Analysis, difference: float, shares: float, t: Words) -> Iterator[str]:
    """A difference that other seeds alone could make is called so; `shares`: sum of 1 / runs over the sides tuned."""
    if analysis.spread is not None:
        reach = 1.96 * analysis.spread * math.sqrt(shares)
        if abs(difference) < reach:
            yield t("s_within_seeds", size=spelling.size(sweep, reach, t))


def _say_second(sweep: SweepResult, analysis: Analysis, t: Words) -> Iterator[str]:
    best, second = sweep.ranked[:2]
    test = between(sweep, second, best)
    if test is None:
        return
    clear = test.p_value <= SIGNIFICANCE
    said = t(
        "s_second",
        label=spelling.name(second),
        value=spelling.value(sweep, sweep.mean(second), t),
        difference=f"{100 * abs(test.mean):.1f}",
        figures=spelling.figures(test, t),
        verdict=t("s_second_clear" if clear else "s_second_unclear"),
    )
    caution = _say_seeds(sweep, analysis, test.mean, 1 / len(best.done) + 1 / len(second.done), t) if clear else ()
    yield _join(iter([said, *caution]), t)


def _say_against(analysis: Analysis, t: Words) -> Iterator[str]:
    if not analysis.against:
        return
    better = [spelling.name(a.setting) for a in analysis.against if a.significant and a.test.mean > 0]
    worse = [spelling.name(a.setting) for a in analysis.against if a.significant and a.test.mean < 0]
    n = len(analysis.against)
    yield t(
        "s_against",
        n=n,
        better=t.listed(better) or t("none"),
        worse=t.listed(worse) or t("none"),
        rest=n - len(better) - len(worse),
    )


def _say_effect(sweep: SweepResult, analysis: Analysis, effect: Effect, t: Words) -> Iterator[str]:
    if len(effect.ranked) < 2:
        yield t("s_one_level", axis=effect.axis)
        return
    if not effect.balanced:
        yield t("s_unbalanced", axis=effect.axis)
        return
    best, worst = effect.ranked[0], effect.ranked[-1]
    pair = effect.pair(best.level.label, worst.level.label)
    if pair is None:
        yield t("s_unbalanced", axis=effect.axis)
        return
    yield t(
        "s_effect",
        axis=effect.axis,
        best=best.level.label,
        best_value=spelling.value(sweep, best.mean, t),
        worst=worst.level.label,
        worst_value=spelling.value(sweep, worst.mean, t),
        difference=spelling.size(sweep, pair.difference, t),
        figures=spell.p_value(pair.p_value) if pair.test is None else _sizes(pair.test, t),
        verdict=verdict(sweep, effect, pair.pairs, pair.significant, t),
    )
    if pair.significant:
        yield from _say_seeds(sweep, analysis, pair.difference, 2 / pair.pairs, t)


def _sizes(test, t: Words) -> str:
    """Interval of the size: the test may stand the other way round."""
    low, high = sorted((test.low, test.high)) if test.mean >= 0 else sorted((-test.low, -test.high))
    return t("s_figures", low=spell.points(low), high=spell.points(high), p=spell.p_value(test.p_value))


def verdict(sweep: SweepResult, effect: Effect, pairs: int, significant: bool, t: Words) -> str:
    """Significant or not, or that so few comparisons can't show anything."""
    if sweep.objective != "score" and 2.0 ** (1 - pairs) > SIGNIFICANCE / max(1, len(effect.pairs)):
        return t("s_effect_few", n=pairs)
    mark = t("significant" if significant else "not_significant")
    return t("s_effect_level", mark=mark, n=len(effect.pairs)) if len(effect.pairs) > 1 else mark


def _say_interaction(sweep: SweepResult, found: Interaction, t: Words) -> Iterator[str]:
    axes = {"a": found.rows, "b": found.columns}
    if found.test is not None:
        kind = "s_interaction_yes" if found.test.p_value <= SIGNIFICANCE else "s_interaction_no"
        low, high = sorted((2 * found.test.low, 2 * found.test.high))
        p = spell.p_value(found.test.p_value)
        figures = t("s_figures", low=spell.points(low), high=spell.points(high), p=p)
        yield t(kind, **axes, size=f"{200 * abs(found.test.mean):.1f}", figures=figures)
    elif found.largest is not None:
        yield t("s_interaction_untested", **axes, size=spelling.size(sweep, found.largest, t))


def _say_spread(sweep: SweepResult, analysis: Analysis, t: Words) -> Iterator[str]:
    repeated = [s for s in sweep.settings if len(s.done) > 1]
    if analysis.spread is not None:
        spread = spelling.size(sweep, analysis.spread, t)
        yield t("s_spread", what=spelling.what(sweep, t), spread=spread, n=len(repeated))
    elif sweep.ranked:
        yield t("s_one_seed")


def _say_losses(sweep: SweepResult, t: Words) -> Iterator[str]:
    """Whether the lowest validation loss and the highest score are of the same setting."""
    if sweep.objective != "score":
        return
    means = [(mean, s) for s in sweep.ranked if (mean := mean_validation(s)) is not None and math.isfinite(mean)]
    if len(means) < 2:
        return
    loss, lowest = min(means, key=lambda entry: entry[0])
    best = sweep.ranked[0]
    if sweep.mean(lowest) == sweep.mean(best):
        yield t("s_loss_agrees", label=spelling.name(lowest))
    else:
        yield t("s_loss_differs", label=spelling.name(lowest), loss=f"{loss:.4f}", best=spelling.name(best))


def mean_validation(setting: Setting) -> float | None:
    """Mean of the last validation losses over the seeds that are done."""
    return mean_of([p.validation_loss for p in setting.done])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the known ones; None where there are none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
