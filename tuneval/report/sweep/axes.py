"""What each axis does: its levels as a chart and a table, its levels against each other, two axes together."""

from __future__ import annotations

from collections.abc import Iterator

from tuneval.report import charts
from tuneval.report import words as spell
from tuneval.report.document import Figure, Figures, Section, Table, Text, csv_text
from tuneval.report.sweep import spelling
from tuneval.report.sweep.findings import Effect, Interaction
from tuneval.report.sweep.gather import SweepResult
from tuneval.report.sweep.summary import Analysis, mean_of, verdict
from tuneval.report.words import DASH, Words

MOST_PAIRS = 15
"""Pairs of levels in a table; of more, the CSV and JSON hold them."""


def effects_section(sweep: SweepResult, analysis: Analysis, t: Words) -> Section | None:
    """None where no axis has two levels."""
    if not analysis.effects:
        return None
    figures = [_effect_figure(sweep, effect, i, t) for i, effect in enumerate(analysis.effects)]
    figures += [_heat_figure(sweep, one, i, t) for i, one in enumerate(analysis.interactions) if _mostly_filled(one)]
    blocks: list[object] = [Figures(figures=tuple(figures))]
    for effect in analysis.effects:
        blocks += _tables(sweep, effect, t)
    blocks.append(Text(text=t("m_balance"), style="note"))
    return Section(id="effects", title=t("sweep_effects"), blocks=tuple(blocks))


def _effect_figure(sweep: SweepResult, effect: Effect, number: int, t: Words) -> Figure:
    rows = [
        charts.LevelDots(
            label=r.level.label,
            mean=r.mean,
            values=[v for p in r.points if (v := sweep.figure(p)) is not None],
        )
        for r in effect.levels
    ]
    before = baseline_line(sweep)
    title = t("fig_effect", axis=effect.axis)
    parts = [f"{row.label} {spelling.value(sweep, row.mean, t)}" for row in rows]
    return Figure(
        id=f"figure-effect-{number}",
        title=title,
        caption=t("fig_effect_note", n=effect.combinations) if effect.balanced else t("fig_effect_unbalanced"),
        alt=t("alt_scores", title=title, parts=t("semicolon").join(parts)),
        svg=charts.levels(
            rows,
            name=f"effect-{number}",
            x_label=effect.axis,
            y_format=spelling.tick(sweep),
            line=before,
            line_label=t("w_before"),
        ),
        data=csv_text(
            (effect.axis, "mean", "run", sweep.objective),
            [(r.level.label, r.mean, p.id, sweep.figure(p)) for r in effect.levels for p in r.points],
        ),
    )


def baseline_line(sweep: SweepResult) -> float | None:
    """The score before tuning, where all points start from one model."""
    if sweep.objective != "score":
        return None
    found = {p.baseline[sweep.exam].result.micro["accuracy"] for p in sweep.points if sweep.exam in p.baseline}
    return found.pop() if len(found) == 1 else None


def _tables(sweep: SweepResult, effect: Effect, t: Words) -> Iterator[Table]:
    rows = []
    for result in effect.levels:
        done = result.points
        spread = DASH if result.spread is None else _spread(sweep, result.spread)
        losses = mean_of([p.validation_loss for p in done])
        last = mean_of([p.curve.last for p in done if p.curve is not None])
        time = mean_of([p.curve.seconds for p in done if p.curve is not None])
        score = mean_of([p.score(sweep.exam) for p in done])
        rows.append(
            (
                result.level.label,
                str(len(done)),
                DASH if score is None else spell.percent(score if sweep.objective != "score" else result.mean or score),
                spread,
                DASH if losses is None else f"{losses:.4f}",
                DASH if last is None else spell.loss(last),
                DASH if time is None else t.seconds(time),
            )
        )
    names = (
        "level",
        "runs",
        "mean_score",
        "seed_spread_points" if sweep.objective == "score" else "seed_spread",
        "mean_validation_loss",
        "mean_last_loss",
        "mean_time",
    )
    keep = [0, 1, *(i for i in range(2, len(names)) if any(row[i] != DASH for row in rows))]
    yield Table(
        title=t("tab_effect", axis=effect.axis),
        head=tuple(t(names[i]) for i in keep),
        rows=tuple(tuple(row[i] for i in keep) for row in rows),
    )
    if effect.balanced and 0 < len(effect.pairs) <= MOST_PAIRS:
        yield _pair_table(sweep, effect, t)


def _spread(sweep: SweepResult, spread: float) -> str:
    return f"{100 * spread:.1f}" if sweep.objective == "score" else f"{spread:.4f}"


def _pair_table(sweep: SweepResult, effect: Effect, t: Words) -> Table:
    rows = []
    for pair in effect.pairs:
        if pair.test is None:
            difference = f"{pair.difference:+.4f}".replace("-", "−")
        else:
            difference = spell.difference_cell(pair.difference, pair.test.low, pair.test.high)
        mark = (
            verdict(sweep, effect, pair.pairs, pair.significant, t)
            if pair.test is None
            else t("significant" if pair.significant else "not_significant")
        )
        name = t("pair_arrow", a=pair.first, b=pair.second)
        rows.append((name, str(pair.pairs), difference, spell.p_cell(pair.p_value), mark))
    head = tuple(t(h) for h in ("pair", "run_pairs", "difference_interval", "p_value", "holm_mark"))
    return Table(title=t("tab_effect_pairs", axis=effect.axis), head=head, rows=tuple(rows))


def _mostly_filled(found: Interaction) -> bool:
    """Of a random sample's axes nearly every cell is empty: such a map shows nothing that the effects don't."""
    cells = [value for row in found.cells for value in row]
    return 2 * sum(value is not None for value in cells) >= len(cells)


def _heat_figure(sweep: SweepResult, found: Interaction, number: int, t: Words) -> Figure:
    rows = [level.label for level in sweep.axes[found.rows]]
    columns = [level.label for level in sweep.axes[found.columns]]
    known = [v for row in found.cells for v in row if v is not None]
    middle = sum(known) / len(known) if known else 0.0
    texts = [[spelling.value(sweep, v, t) for v in row] for row in found.cells]
    title = t("fig_heat", a=found.rows, b=found.columns, what=spelling.what(sweep, t))
    parts = [f"{rows[i]} × {columns[j]} {texts[i][j]}" for i in range(len(rows)) for j in range(len(columns))]
    return Figure(
        id=f"figure-heat-{number}",
        title=title,
        caption=t("fig_heat_note" if sweep.objective == "score" else "fig_heat_note_loss"),
        alt=t("alt_scores", title=title, parts=t("semicolon").join(parts)),
        svg=charts.heat_map(
            rows,
            columns,
            found.cells,
            texts,
            name=f"heat-{number}",
            middle=middle,
            x_label=found.columns,
            y_label=found.rows,
        ),
        data=csv_text(
            (found.rows, found.columns, sweep.objective),
            [(rows[i], columns[j], v) for i, row in enumerate(found.cells) for j, v in enumerate(row)],
        ),
    )
