"""Loss curves laid over each other, the objective against its cost, and the table of every run."""

from __future__ import annotations

from collections.abc import Iterator

from tuneval.report import charts, plots
from tuneval.report import words as spell
from tuneval.report.document import Code, Figure, Figures, Section, Table, Text, csv_text
from tuneval.report.findings import smoothing, time_axis
from tuneval.report.legend import legend_key
from tuneval.report.sweep import spelling
from tuneval.report.sweep.axes import baseline_line
from tuneval.report.sweep.gather import PointResult, Setting, SweepResult
from tuneval.report.sweep.summary import Analysis, failed_name, seconds
from tuneval.report.words import DASH, Words
from tuneval.sweep.points import NAME


def cost_section(sweep: SweepResult, analysis: Analysis, t: Words) -> Section | None:
    """The objective against its cost, and for every axis the loss curves of all runs, coloured by its levels."""
    figures = [*_cost_figure(sweep, analysis, t), *_overlays(sweep, t)]
    if not figures:
        return None
    return Section(id="cost", title=t("sweep_cost"), blocks=(Figures(figures=tuple(figures)),))


def _overlays(sweep: SweepResult, t: Words) -> Iterator[Figure]:
    runs = [(s, p) for s in sweep.settings for p in s.points if p.run is not None and p.run.steps]
    if not runs:
        return
    axes = [axis for axis, levels in sweep.axes.items() if len(levels) > 1]
    apart = [s for s in sweep.settings if s.listed or not axes]
    others = [(s.label, [p for one, p in runs if one is s]) for s in apart]
    for i, axis in enumerate(axes):
        yield _overlay(f"axis-{i}", t("fig_overlay", axis=axis), [*_by_level(sweep, axis, runs), *others], t)
    if not axes:
        yield _overlay("settings", t("fig_overlay_settings"), others, t)


Group = tuple[str, list[PointResult]]


def _by_level(sweep: SweepResult, axis: str, runs: list[tuple[Setting, PointResult]]) -> list[Group]:
    return [(level.label, [p for s, p in runs if s.levels.get(axis) == level.label]) for level in sweep.axes[axis]]


def _overlay(name: str, title: str, groups: list[Group], t: Words) -> Figure:
    runs = [(i, label, p) for i, (label, points) in enumerate(groups, 1) for p in points]
    width = smoothing(max((len(p.run.steps) for _, _, p in runs if p.run is not None), default=0))
    series = [
        plots.Series(
            label=label,
            x=[s.step for s in p.run.steps],  # type: ignore[union-attr]
            y=plots.moving_mean([s.loss for s in p.run.steps], width).tolist(),  # type: ignore[union-attr]
            colour=i,
        )
        for i, label, p in runs
    ]
    ends = [f"{label} {one.y[-1]:.4g}" for (_, label, _), one in zip(runs, series)]
    return Figure(
        id=f"figure-overlay-{name}",
        title=title,
        caption=t("fig_overlay_note", w=width) if width > 1 else t("fig_overlay_raw"),
        alt=t("alt_scores", title=title, parts=t("semicolon").join(ends)),
        svg=plots.curves(series, name=f"overlay-{name}", x_label=t("step_axis")),
        legend=tuple(legend_key(label, i) for i, (label, _) in enumerate(groups, 1)),
        data=csv_text(
            ("run", "level", "step", "loss"),
            [(p.id, label, s.step, s.loss) for _, label, p in runs for s in p.run.steps],  # type: ignore[union-attr]
        ),
    )


def _cost_figure(sweep: SweepResult, analysis: Analysis, t: Words) -> Iterator[Figure]:
    """Nothing where no setting has both a figure and a time."""
    known = [
        (s, cost, mean)
        for s in sweep.ranked
        if (cost := seconds(s)) is not None and (mean := sweep.mean(s)) is not None
    ]
    if not known:
        return
    unit, divisor = time_axis(max(cost for _, cost, _ in known))
    against = {a.setting.number: a.test for a in analysis.against} if sweep.objective == "score" else {}
    dots = []
    for setting, cost, mean in sorted(known, key=lambda entry: entry[0].number):
        test = against.get(setting.number)
        base = mean - test.mean if test is not None else 0.0
        low, high = (None, None) if test is None else (max(0.0, base + test.low), min(1.0, base + test.high))
        best = setting in analysis.front
        dots.append(
            charts.CostDot(number=setting.number, cost=cost / divisor, value=mean, low=low, high=high, best=best)
        )
    title = t("fig_cost", what=spelling.what(sweep, t))
    title = title[:1].upper() + title[1:]
    parts = [f"{spelling.name(s)} {t.seconds(cost)} {spelling.value(sweep, mean, t)}" for s, cost, mean in known]
    notes = [t("fig_cost_note"), *([t("fig_cost_intervals")] if against else [])]
    yield Figure(
        id="figure-cost",
        title=title,
        caption=("" if t.lang == "zh" else " ").join(notes),
        alt=t("alt_scores", title=title, parts=t("semicolon").join(parts)),
        svg=charts.cost(
            dots,
            name="cost",
            x_label=t(unit),
            x_format="{:g}".format,
            y_format=spelling.tick(sweep),
            line=baseline_line(sweep),
            line_label=t("w_before"),
        ),
        data=csv_text(
            ("setting", "levels", "seconds", sweep.objective), [(s.number, s.label, c, m) for s, c, m in known]
        ),
    )


def points_section(sweep: SweepResult, t: Words) -> Section:
    """Every run with its main figures; a column for each axis."""
    seeded = any(p.seed is not None for p in sweep.points)
    axes = list(sweep.axes) or [NAME]
    rows = []
    for setting in sweep.settings:
        on_axes = [setting.levels.get(axis, DASH) for axis in axes]
        if set(on_axes) == {DASH}:
            on_axes[0] = setting.label
        for point in setting.points:
            seed = [str(point.seed)] if seeded else []
            rows.append((f"#{setting.number}", *on_axes, *seed, *_cells(sweep, point, t)))
    figures = ("score", "val_loss_last", "loss_last", "wall_time", "median_speed", "peak_memory")
    names = [t("setting") if axis == NAME else axis for axis in axes] + ([t("seed")] if seeded else [])
    head = ("#", *names, *(t(name) for name in ("state", *figures)))
    table = Table(title="", head=head, rows=tuple(rows), note=t("points_note"), tight=True)
    return Section(id="points", title=t("sweep_points"), blocks=(table,))


def _cells(sweep: SweepResult, point: PointResult, t: Words) -> Iterator[str]:
    yield t(f"state_{point.status}")
    score = point.score(sweep.exam)
    yield DASH if score is None else spell.percent(score)
    yield DASH if point.validation_loss is None else f"{point.validation_loss:.4f}"
    trained = point.curve
    if trained is None:
        yield from (DASH,) * 4
        return
    yield spell.loss(trained.last)
    yield t.seconds(trained.seconds)
    yield spell.number(float(trained.tokens_per_second))
    yield spell.gib(trained.peak_memory_bytes)


def failed_section(sweep: SweepResult, t: Words) -> Section | None:
    """The errors of the points that failed, in full, equal ones of a setting together; None where none did."""
    blocks = []
    for setting in sweep.settings:
        groups: dict[tuple[str, str], list[PointResult]] = {}
        for point in setting.points:
            if point.status == "failed":
                groups.setdefault((point.failed_step, point.error), []).append(point)
        for (step, error), points in groups.items():
            title = f"{failed_name(setting, points, t)}{t('colon')}{step}"
            blocks.append(Code(title=title, text=error.strip() or t("missing")))
    return Section(id="failed", title=t("sweep_failed"), blocks=tuple(blocks)) if blocks else None


def methods_section(sweep: SweepResult, t: Words) -> Section:
    """How the figures come about."""
    texts = [
        t("m_ranking", what=spelling.what(sweep, t)),
        t("m_score" if sweep.objective == "score" else "m_loss"),
        t("m_holm"),
    ]
    return Section(id="methods", title=t("sweep_methods"), blocks=tuple(Text(text=text) for text in texts))
