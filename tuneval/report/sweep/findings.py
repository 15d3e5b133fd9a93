"""What a sweep shows: effects of the axes, settings against the model before tuning, and each with its uncertainty.

Scores are compared question by question (evaluation.sign_flip): two sides, each of one or several runs, on the same
questions. The runs are taken as given; what another seed would do shows in the spread over seeds, where there are some.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuneval.evaluation.exam import categories
from tuneval.evaluation.sign_flip import Difference, paired_difference, sign_flip
from tuneval.report.checks import groups_of
from tuneval.report.findings import holm
from tuneval.report.gather import Evaluation
from tuneval.report.sweep.gather import PointResult, Setting, SweepResult
from tuneval.sweep.points import Level

Question = tuple[str, str]
"""Subject and id."""


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """One level of an axis."""

    level: Level
    points: tuple[PointResult, ...]
    """Every run of this level that is done."""
    mean: float | None
    """Of the sweep's figure over the balanced runs; over all runs where none are balanced."""
    spread: float | None
    """Standard deviation over seeds, pooled over settings; None: no setting has two."""


@dataclass(frozen=True, kw_only=True)
class LevelPair:
    """Two levels of an axis against each other, on the runs that differ in nothing else: those of the levels' means."""

    first: str
    second: str
    pairs: int
    """Pairs of runs."""
    difference: float
    """Mean of the sweep's figure, second - first."""
    p_value: float
    test: Difference | None = None
    """Of scores; None: losses are compared run by run."""
    significant: bool = False
    """After Holm's correction over the axis's pairs."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One axis."""

    axis: str
    levels: tuple[LevelResult, ...]
    pairs: tuple[LevelPair, ...]
    balanced: bool
    """The levels' means are over the same combinations of the other axes."""
    combinations: int
    """Of the other axes and seeds, in each mean."""
    ranked: tuple[LevelResult, ...]
    """Levels with a mean, the best first."""

    def pair(self, a: str, b: str) -> LevelPair | None:
        """Two levels against each other, in either order."""
        return next((p for p in self.pairs if {p.first, p.second} == {a, b}), None)


@dataclass(frozen=True, kw_only=True)
class Against:
    """A setting against the model before tuning, all its seeds together."""

    setting: Setting
    test: Difference
    significant: bool
    """After Holm's correction over all settings."""
    categories: dict[str, Difference]
    significant_categories: frozenset[str]
    """After Holm's correction over all settings and categories."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two axes together: the mean of the sweep's figure in each combination."""

    rows: str
    columns: str
    cells: tuple[tuple[float | None, ...], ...]
    """[levels of rows][levels of columns]."""
    largest: float | None
    """Largest distance of a cell from the sum of its row's and column's effects; None: a cell is empty."""
    test: Difference | None
    """Of two axes with two levels each: does one's effect depend on the other?"""


def effects(sweep: SweepResult) -> list[Effect]:
    """The effect of every axis, from the runs of the grid (and listed points that lie on it)."""
    return [_effect(sweep, axis) for axis, levels in sweep.axes.items() if len(levels) > 1]


def against_baseline(sweep: SweepResult) -> list[Against]:
    """Every setting's score against that of the model it started from; settings that share no question are left out."""
    tests, within = {}, {}
    for setting in sweep.settings:
        pairs = [
            (p.baseline[sweep.exam], evaluation)
            for p in setting.done
            if (evaluation := p.evaluation(sweep.exam)) is not None and sweep.exam in p.baseline
        ]
        counts = _counts(pairs)
        if counts:
            tests[setting.number] = paired_difference(list(counts.values()), len(pairs))
            within[setting.number] = _by_category(counts, pairs[0][1], len(pairs))
    passed = holm({number: test.p_value for number, test in tests.items()})
    all_within = {(n, c): test.p_value for n, found in within.items() for c, test in found.items()}
    passed_within = holm(all_within)
    return [
        Against(
            setting=setting,
            test=tests[setting.number],
            significant=setting.number in passed,
            categories=within[setting.number],
            significant_categories=frozenset(c for n, c in passed_within if n == setting.number),
        )
        for setting in sweep.settings
        if setting.number in tests
    ]


def between(sweep: SweepResult, first: Setting, second: Setting) -> Difference | None:
    """Two settings' scores against each other, paired by seed; None where they share no seed or no question."""
    seeds = {p.seed: p for p in first.done}
    pairs = [
        (a, b)
        for p in second.done
        if p.seed in seeds
        and (a := seeds[p.seed].evaluation(sweep.exam)) is not None
        and (b := p.evaluation(sweep.exam)) is not None
    ]
    counts = _counts(pairs)
    return paired_difference(list(counts.values()), len(pairs)) if counts else None


def interactions(sweep: SweepResult) -> list[Interaction]:
    """Every two axes with several levels."""
    axes = [axis for axis, levels in sweep.axes.items() if len(levels) > 1]
    return [_interaction(sweep, a, b) for a, b in itertools.combinations(axes, 2)]


def pareto(entries: Sequence[tuple[float, float]], lower_is_better: bool) -> list[bool]:
    """Whether no other entry is at least as cheap and as good, and better in one.

    Args:
        entries: (cost, value).
        lower_is_better: of the values.
    """
    sign = 1 if lower_is_better else -1
    keys = [(cost, sign * value) for cost, value in entries]
    return [not any(k[0] <= c and k[1] <= v and k != (c, v) for k in keys) for c, v in keys]


def spread_over_seeds(sweep: SweepResult, settings: Iterable[Setting]) -> float | None:
    """Standard deviation of the sweep's figure over seeds, pooled over the settings; None: no setting has two."""
    squares, degrees = 0.0, 0
    for setting in settings:
        values = [v for p in setting.done if (v := sweep.figure(p)) is not None]
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            degrees += len(values) - 1
    return math.sqrt(squares / degrees) if degrees else None


def _effect(sweep: SweepResult, axis: str) -> Effect:
    levels = sweep.axes[axis]
    found = {level.label: _contexts(sweep, axis, level.label) for level in levels}
    shared = set.intersection(*(set(contexts) for contexts in found.values()))
    compared = {label: {c: p for c, p in runs.items() if c in shared or not shared} for label, runs in found.items()}
    results = []
    for level in levels:
        figures = [sweep.figure(p) for p in compared[level.label].values()]
        results.append(
            LevelResult(
                level=level,
                points=tuple(found[level.label].values()),
                mean=statistics.fmean(figures) if figures else None,
                spread=spread_over_seeds(sweep, (s for s in sweep.settings if s.levels.get(axis) == level.label)),
            )
        )
    pairs = [
        pair
        for a, b in itertools.combinations([level.label for level in levels], 2)
        if (pair := _level_pair(sweep, a, compared[a], b, compared[b])) is not None
    ]
    passed = holm({(pair.first, pair.second): pair.p_value for pair in pairs})
    known = sorted((r for r in results if r.mean is not None), key=lambda r: r.mean, reverse=sweep.objective == "score")
    return Effect(
        axis=axis,
        levels=tuple(results),
        pairs=tuple(LevelPair(**{**vars(pair), "significant": (pair.first, pair.second) in passed}) for pair in pairs),
        balanced=bool(shared),
        combinations=len(shared),
        ranked=tuple(known),
    )


Context = tuple
"""The levels of the other axes, and the seed."""


def _contexts(sweep: SweepResult, axis: str, label: str) -> dict[Context, PointResult]:
    """Done runs of a level by what else they are; listed points count where they name a level of every axis."""
    found = {}
    for setting in sweep.settings:
        if setting.levels.get(axis) != label or set(setting.levels) != set(sweep.axes):
            continue
        for point in setting.done:
            if sweep.figure(point) is not None:
                found[tuple(setting.levels[a] for a in sweep.axes if a != axis), point.seed] = point
    return found


def _level_pair(
    sweep: SweepResult, a: str, first: dict[Context, PointResult], b: str, second: dict[Context, PointResult]
) -> LevelPair | None:
    shared = [context for context in first if context in second]
    if not shared:
        return None
    figures = [(sweep.figure(first[c]), sweep.figure(second[c])) for c in shared]
    differences = [y - x for x, y in figures if x is not None and y is not None]
    if sweep.objective != "score":
        return LevelPair(
            first=a,
            second=b,
            pairs=len(shared),
            difference=statistics.fmean(differences),
            p_value=sign_flip(differences),
        )
    evaluations = [(first[c].evaluation(sweep.exam), second[c].evaluation(sweep.exam)) for c in shared]
    counts = _counts([(x, y) for x, y in evaluations if x is not None and y is not None])
    if not counts:
        return None
    test = paired_difference(list(counts.values()), len(shared))
    return LevelPair(first=a, second=b, pairs=len(shared), difference=test.mean, p_value=test.p_value, test=test)


def _counts(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> dict[Question, int]:
    """Of every question, in how many pairs more the second is right than the first; {} where they differ in questions."""
    counts: dict[Question, int] = {}
    for number, (a, b) in enumerate(pairs):
        first, second = _right(a), _right(b)
        if not first or first.keys() != second.keys() or a.result.data_sha256 != b.result.data_sha256:
            return {}
        if number and first.keys() != counts.keys():
            return {}
        for question in first:
            counts[question] = counts.get(question, 0) + second[question] - first[question]
    return counts


def _right(evaluation: Evaluation) -> dict[Question, bool]:
    return {(p.subject, str(p.id)): p.correct for p in evaluation.predictions or () if p.correct is not None}


def _by_category(counts: dict[Question, int], evaluation: Evaluation, runs: int) -> dict[str, Difference]:
    found = {}
    for category, members in categories(groups_of(evaluation.result.subjects)).items():
        chosen = [n for (subject, _), n in counts.items() if subject in set(members)]
        if chosen:
            found[category] = paired_difference(chosen, runs)
    return found


def _interaction(sweep: SweepResult, rows: str, columns: str) -> Interaction:
    cells = [[_cell(sweep, {rows: r.label, columns: c.label}) for c in sweep.axes[columns]] for r in sweep.axes[rows]]
    means = tuple(tuple(None if not cell else statistics.fmean(cell.values()) for cell in row) for row in cells)
    test = _interaction_test(sweep, rows, columns) if sweep.objective == "score" else None
    return Interaction(rows=rows, columns=columns, cells=means, largest=_residual(means), test=test)


def _cell(sweep: SweepResult, levels: dict[str, str]) -> dict[str, float]:
    """Point -> figure of the runs with these levels, on the grid."""
    return {
        point.id: figure
        for setting in sweep.settings
        if set(setting.levels) == set(sweep.axes) and all(setting.levels[a] == label for a, label in levels.items())
        for point in setting.done
        if (figure := sweep.figure(point)) is not None
    }


def _residual(cells: Sequence[Sequence[float | None]]) -> float | None:
    """Largest distance from additivity: |cell - row mean - column mean + mean|."""
    if any(value is None for row in cells for value in row):
        return None
    rows = [statistics.fmean(row) for row in cells]
    columns = [statistics.fmean(column) for column in zip(*cells)]
    mean = statistics.fmean(rows)
    return max(abs(v - rows[i] - columns[j] + mean) for i, row in enumerate(cells) for j, v in enumerate(row))


def _interaction_test(sweep: SweepResult, rows: str, columns: str) -> Difference | None:
    """Two levels each: the question-wise difference of differences, over the other axes and seeds that have all four."""
    if len(sweep.axes[rows]) != 2 or len(sweep.axes[columns]) != 2:
        return None
    corners: dict[Context, dict[tuple[int, int], Evaluation]] = {}
    for setting in sweep.settings:
        if set(setting.levels) != set(sweep.axes):
            continue
        place = tuple([level.label for level in sweep.axes[a]].index(setting.levels[a]) for a in (rows, columns))
        others = tuple(label for a, label in setting.levels.items() if a not in (rows, columns))
        for point in setting.done:
            evaluation = point.evaluation(sweep.exam)
            if evaluation is not None:
                corners.setdefault((others, point.seed), {})[place] = evaluation  # type: ignore[index]
    counts: dict[Question, int] = {}
    whole = [found for found in corners.values() if len(found) == 4]
    for found in whole:
        one = _counts([(found[0, 0], found[0, 1])])
        other = _counts([(found[1, 0], found[1, 1])])
        if not one or one.keys() != other.keys() or (counts and counts.keys() != one.keys()):
            return None
        counts = {q: counts.get(q, 0) + other[q] - one[q] for q in one}
    # each question's count lies between -2 and 2 a set of four runs: twice as many pairs as sets
    return paired_difference(list(counts.values()), 2 * len(whole)) if counts else None
