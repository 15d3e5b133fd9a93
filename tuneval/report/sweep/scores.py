"""Every setting's score against that of the model before tuning: over all questions and by category."""

from __future__ import annotations

import statistics

from tuneval.report import charts, plots
from tuneval.report import words as spell
from tuneval.report.document import Figure, Figures, Section, Table, Text, csv_text
from tuneval.report.findings import in_order
from tuneval.report.parts.summary import category_name
from tuneval.report.parts.trust import contamination_warning, trust_table, trust_warnings
from tuneval.report.sweep import spelling
from tuneval.report.sweep.findings import Against
from tuneval.report.sweep.gather import SweepResult
from tuneval.report.sweep.summary import Analysis
from tuneval.report.words import DASH, Words


def scores_section(sweep: SweepResult, analysis: Analysis, t: Words) -> Section | None:
    """None where nothing can be tested against a baseline."""
    found = analysis.against
    if not found:
        return None
    names = in_order({c for one in found for c in one.categories})
    figures = [_change_figure(sweep, found, t)]
    if len(names) > 1:
        figures.append(_category_figure(sweep, found, names, t))
    blocks = (
        Figures(figures=tuple(figures)),
        _test_table(sweep, found, t),
        _category_table(sweep, found, names, t),
        *_trust(sweep, t),
        Text(text=t("m_score"), style="note"),
    )
    return Section(id="scores", title=t("sweep_scores"), blocks=blocks)


def _change_figure(sweep: SweepResult, found: tuple[Against, ...], t: Words) -> Figure:
    rows = [
        (
            f"#{one.setting.number} {one.setting.short}",
            [plots.Dot(value=one.test.mean, low=one.test.low, high=one.test.high, colour=1)],
        )
        for one in found
    ]
    title = t("fig_against", exam=spelling.exam(sweep, t))
    parts = [f"{label} {spell.points(dots[0].value)}" for label, dots in rows]
    return Figure(
        id="figure-against",
        title=title,
        caption=t("fig_against_note"),
        alt=t("alt_scores", title=title, parts=t("semicolon").join(parts)),
        svg=plots.dots(
            rows,
            name="against",
            line=0.0,
            line_label=t("no_change"),
            x_format=spell.points_tick,
        ),
        data=csv_text(
            ("setting", "levels", "questions", "runs", "difference", "low", "high", "p_value", "significant"),
            [
                (a.setting.number, a.setting.label, a.test.questions, a.test.runs, a.test.mean, a.test.low, a.test.high, a.test.p_value, a.significant)
                for a in found
            ],
        ),
    )  # fmt: skip


def _category_figure(sweep: SweepResult, found: tuple[Against, ...], names: list[str], t: Words) -> Figure:
    values = [[one.categories[c].mean if c in one.categories else None for c in names] for one in found]
    texts = [
        [
            DASH if v is None else spell.points(v) + ("*" if c in one.significant_categories else "")
            for c, v in zip(names, row)
        ]
        for one, row in zip(found, values)
    ]
    rows = [f"#{one.setting.number} {one.setting.short}" for one in found]
    title = t("fig_categories", exam=spelling.exam(sweep, t))
    parts = [f"{row}{t('colon')}{t.listed(cells)}" for row, cells in zip(rows, texts)]
    return Figure(
        id="figure-categories",
        title=title,
        caption=t("fig_categories_note", n=sum(len(one.categories) for one in found)),
        alt=t("alt_scores", title=title, parts=t("semicolon").join(parts)),
        svg=charts.heat_map(
            rows, [category_name(c, t) for c in names], values, texts, name="categories", middle=0.0
        ),
        data=csv_text(
            ("setting", "levels", "category", "questions", "difference", "low", "high", "p_value", "significant"),
            [
                (a.setting.number, a.setting.label, c, d.questions, d.mean, d.low, d.high, d.p_value, c in a.significant_categories)
                for a in found
                for c, d in a.categories.items()
            ],
        ),
    )  # fmt: skip


def _test_table(sweep: SweepResult, found: tuple[Against, ...], t: Words) -> Table:
    rows = []
    for one in found:
        scores = [v for p in one.setting.done if (v := p.score(sweep.exam)) is not None]
        rows.append(
            (
                spelling.name(one.setting),
                str(one.test.runs),
                spell.percent(statistics.fmean(scores)),
                spell.difference_cell(one.test.mean, one.test.low, one.test.high),
                spell.p_cell(one.test.p_value),
                t("significant" if one.significant else "not_significant"),
            )
        )
    head = tuple(t(h) for h in ("setting", "runs", "score", "difference_interval", "p_value", "holm_mark"))
    return Table(title=t("tab_against", exam=spelling.exam(sweep, t)), head=head, rows=tuple(rows))


def _trust(sweep: SweepResult, t: Words) -> list[object]:
    """What the scores of the model before tuning and of the best setting say about themselves."""
    done = [(p, e) for s in sweep.ranked[:1] for p in s.done if (e := p.evaluation(sweep.exam)) is not None]
    columns = []
    for point, evaluation in done[:1]:
        before = point.baseline.get(sweep.exam) if sweep.exam is not None else None
        columns += [(t("baseline"), before.result)] if before is not None else []
        columns.append((f"#{sweep.ranked[0].number} {sweep.ranked[0].short}", evaluation.result))
    table = trust_table(spelling.exam(sweep, t), columns, t)
    called = [t("model_before"), columns[-1][0]] if len(columns) > 1 else [name for name, _ in columns]
    warned = [text for name, (_, result) in zip(called, columns) for text in trust_warnings(name, result, t)]
    warned += contamination_warning(columns[-1][1], t) if columns else []
    return [*([] if table is None else [table]), *(Text(text=text, style="warning") for text in warned)]


def _category_table(sweep: SweepResult, found: tuple[Against, ...], names: list[str], t: Words) -> Table:
    """Accuracy of each category, the seeds' mean, and its change."""
    rows = []
    for one in found:
        results = [e.result for p in one.setting.done if (e := p.evaluation(sweep.exam)) is not None]
        cells = []
        for category in names:
            shares = [r.categories[category]["accuracy"] for r in results if category in r.categories]
            change = one.categories.get(category)
            if not shares or change is None:
                cells.append(DASH)
                continue
            star = "*" if category in one.significant_categories else ""
            cells.append(f"{spell.percent(sum(shares) / len(shares))} ({spell.points(change.mean)}{star})")
        rows.append((spelling.name(one.setting), *cells))
    head = (t("setting"), *(category_name(c, t) for c in names))
    title = t("tab_categories", exam=spelling.exam(sweep, t))
    note = t("fig_categories_note", n=sum(len(one.categories) for one in found))
    return Table(title=title, head=head, rows=tuple(rows), note=note)
