"""Scores: for every exam a dot chart, the categories, the paired tests, the subjects."""

from __future__ import annotations

from itertools import combinations

from tuneval.report import plots
from tuneval.report import words as spell
from tuneval.report.document import Figure, Figures, Section, Table, Text, csv_text
from tuneval.report.findings import SIGNIFICANCE, holm, in_order, mean_of_subjects, pair, pair_subjects
from tuneval.report.gather import Evaluation, ExamKey, Gathered
from tuneval.report.legend import legend_key
from tuneval.report.parts.summary import EXAM_NAMES, category_name, exam_name
from tuneval.report.parts.trust import trust_table
from tuneval.report.words import DASH, Words


def scores_section(gathered: Gathered, t: Words) -> Section:
    """For every exam: a dot chart, the categories, the paired tests, what limits the trust, the subjects."""
    blocks: list[object] = []
    for number, key in enumerate(gathered.exams):
        blocks += _exam_blocks(key, number, gathered, t)
    if not blocks:
        blocks.append(Text(text=t("say_no_evaluation"), style="note"))
    else:
        blocks.append(Text(text=t("intervals_note"), style="note"))
    return Section(id="scores", title=t("scores"), blocks=tuple(blocks))


Column = tuple[int, str, Evaluation]
"""Colour, name, evaluation: the model before tuning and each run that took the exam."""


def _exam_blocks(key: ExamKey, number: int, gathered: Gathered, t: Words):
    name = exam_name(key, gathered.exams, t)
    columns: list[Column] = []
    if key in gathered.baseline:
        columns.append((0, t("baseline"), gathered.baseline[key]))
    several = len(gathered.runs) > 1
    for i, run in enumerate(gathered.runs, 1):
        if key in run.evaluations:
            columns.append((i, run.label if several else t("after"), run.evaluations[key]))
    yield Text(text=_conditions(columns, t))
    yield Figures(figures=(_score_figure(name, number, columns, t), *_change_figure(name, number, columns, t)))
    yield _category_table(name, columns, t)
    if len(columns) > 1:
        yield from _pair_table(columns, t)
    else:
        yield Text(text=t("note_runs_one"), style="note")
    trust = trust_table(name, [(label, e.result) for _, label, e in columns], t)
    if trust is not None:
        yield trust
    yield _subject_table(name, columns, t)


def _conditions(columns: list[Column], t: Words) -> str:
    result = columns[-1][2].result
    kind = "near_ties_unknown" if result.near_ties is None else "near_ties" if result.near_ties else "near_ties_none"
    ties = t(kind, n=result.near_ties)
    return t(
        "eval_conditions",
        task=EXAM_NAMES.get(result.task, result.task),
        split=t("split_missing") if result.split == "?" else result.split,
        style=result.style,
        shots=result.shots,
        dtype=result.dtype,
        n=result.questions,
        m=len(result.subjects),
        limit=t("eval_limit", n=result.config["limit"]) if result.config.get("limit") else "",
        seconds=t.seconds(result.seconds),
        ties=ties,
    )


def _rows(columns: list[Column], t: Words) -> list[tuple[str, list[dict | None]]]:
    """(label, score of each column) for all questions, all subjects, each category."""
    results = [e.result for _, _, e in columns]
    names = in_order({c for r in results for c in r.categories})
    rows: list[tuple[str, list[dict | None]]] = [(t("micro"), [r.micro for r in results])]
    rows.append((t("macro"), [r.macro for r in results]))
    return rows + [(category_name(c, t), [r.categories.get(c) for r in results]) for c in names]


def _score_figure(name: str, number: int, columns: list[Column], t: Words) -> Figure:
    rows = []
    for label, scores in _rows(columns, t):
        dots = [
            plots.Dot(value=s["accuracy"], low=s.get("low"), high=s.get("high"), colour=c) if s else None
            for (c, _, _), s in zip(columns, scores)
        ]
        rows.append((label, dots))
    chance = columns[0][2].result.chance
    title = t("fig_scores", exam=name)
    return Figure(
        id=f"figure-scores-{number}",
        title=title,
        caption="",
        alt=_alt(title, rows, columns, spell.percent, t),
        svg=plots.dots(rows, name=f"scores-{number}", line=chance, line_label=f"{t('chance')} {100 * chance:.0f}%"),
        legend=tuple(legend_key(label, c) for c, label, _ in columns),
        data=_csv("accuracy", rows, columns),
    )


def _change_figure(name: str, number: int, columns: list[Column], t: Words):
    """Paired differences to the model before tuning, where there are such tests."""
    if columns[0][0] != 0:
        return
    tests = [(column, pair(columns[0][2], column[2])) for column in columns[1:]]
    tests = [(column, tested) for column, tested in tests if tested.test is not None]
    if not tests:
        return
    rows = []
    for category in [None, *in_order({c for _, tested in tests for c in tested.categories or {}})]:
        found = [tested.test if category is None else (tested.categories or {}).get(category) for _, tested in tests]
        dots = [
            plots.Dot(value=f.difference, low=f.low, high=f.high, colour=column[0]) if f else None
            for (column, _), f in zip(tests, found)
        ]
        rows.append((t("micro") if category is None else category_name(category, t), dots))
    title = t("fig_changes", exam=name)
    shown = [column for column, _ in tests]
    yield Figure(
        id=f"figure-changes-{number}",
        title=title,
        caption=t("fig_changes_note"),
        alt=_alt(title, rows, shown, spell.points, t),
        svg=plots.dots(
            rows,
            name=f"changes-{number}",
            line=0.0,
            line_label=t("no_change"),
            x_format=spell.points_tick,
        ),
        legend=tuple(legend_key(label, c) for c, label, _ in shown),
        data=_csv("difference", rows, shown),
    )


def _csv(name: str, rows: list, columns: list[Column]) -> str:
    """The dots with their intervals."""
    body = [
        (label, column[1], dot.value, dot.low, dot.high)
        for label, dots in rows
        for column, dot in zip(columns, dots)
        if dot is not None
    ]
    return csv_text(("category", "model", name, "low", "high"), body)


def _alt(title: str, rows: list, columns: list[Column], spelled, t: Words) -> str:
    parts = []
    for label, dots in rows:
        values = [f"{c[1]} {spelled(dot.value)}" for c, dot in zip(columns, dots) if dot is not None]
        parts.append(f"{label}{t('colon')}{t.listed(values)}")
    return t("alt_scores", title=title, parts=t("semicolon").join(parts))


def _category_table(name: str, columns: list[Column], t: Words) -> Table:
    compared = columns[0][0] == 0 and len(columns) > 1
    tests = [_category_tests(columns[0][2], e) if compared and i else set() for i, (_, _, e) in enumerate(columns)]
    names = ["", "", *in_order({c for _, _, e in columns for c in e.result.categories})]
    rows = []
    for category, (label, scores) in zip(names, _rows(columns, t)):
        count = next((str(s["n"]) for s in scores if s and "n" in s), "")
        cells = []
        for i, (score, significant) in enumerate(zip(scores, tests)):
            earlier = scores[0] if compared and i else None
            cells.append(_score_cell(score, earlier, star="*" if category in significant else ""))
        rows.append((label, count, *cells))
    head = (t("category"), t("questions"), *(c[1] for c in columns))
    title = f"{name}{t('colon')}{t('tab_scores')}"
    return Table(title=title, head=head, rows=tuple(rows), note=t("significant_mark") if compared else "")


def _category_tests(before: Evaluation, after: Evaluation) -> set[str]:
    categories = pair(before, after).categories or {}
    return holm({name: test.p_value for name, test in categories.items()})


def _score_cell(score: dict | None, earlier: dict | None = None, star: str = "", interval: bool = True) -> str:
    """Accuracy, its change in round brackets where there is an earlier one, its interval in square ones below."""
    if not score:
        return DASH
    text = spell.percent(score["accuracy"])
    if earlier:
        text += f" ({spell.points(score['accuracy'] - earlier['accuracy'])}{star})"
    if interval and score.get("low") is not None:
        text += f"\n[{100 * score['low']:.1f},\u00a0{100 * score['high']:.1f}]"
    return text


def _pair_table(columns: list[Column], t: Words):
    rows, reasons, drawn = [], [], None
    for (_, a, first), (_, b, second) in combinations(columns, 2):
        tested, bootstrap = pair(first, second), mean_of_subjects(first, second)
        name = t("pair_arrow", a=a, b=b)
        if tested.test is None or bootstrap is None:
            reasons.append(
                f"{name}{t('colon')}" + t("no_pairs", why=t(tested.reason or "", **(tested.reason_values or {})))
            )
            continue
        test, drawn = tested.test, bootstrap
        mark = t("significant" if test.p_value <= SIGNIFICANCE else "not_significant")
        rows.append(
            (
                name,
                str(test.n),
                spell.difference_cell(test.difference, test.low, test.high),
                f"{test.a_only}\u00a0/\u00a0{test.b_only}",
                f"{spell.p_cell(test.p_value)}\n{mark}",
                f"{100 * test.detectable:.1f}",
                spell.difference_cell(bootstrap.macro_difference, *bootstrap.macro),
            )
        )
    head = ("pair", "questions", "difference_interval", "one_right", "p_value", "detectable", "mean_of_subjects")
    if drawn is not None:
        note = t("pairs_note", resamples=f"{drawn.resamples:,}", seed=drawn.seed)
        yield Table(title=t("tab_pairs"), head=tuple(t(h) for h in head), rows=tuple(rows), note=note)
    yield from (Text(text=reason, style="warning") for reason in reasons)


def _subject_table(name: str, columns: list[Column], t: Words) -> Table:
    """Subjects in groups of their category; after tuning with the change in brackets."""
    results = [e.result for _, _, e in columns]
    compared = columns[0][0] == 0 and len(columns) > 1
    tests = [_subject_tests(columns[0][2], e) if compared and i else set() for i, (_, _, e) in enumerate(columns)]
    known = {s: values for r in reversed(results) for s, values in r.subjects.items()}
    categories = in_order({v.get("category") or "Other" for v in known.values()})
    rows, groups = [], []
    for category in categories:
        members = sorted(s for s, v in known.items() if (v.get("category") or "Other") == category)
        groups.append((len(rows), category_name(category, t)))
        for subject in members:
            label = known[subject].get("name_zh") if t.lang == "zh" else None
            scores = [r.subjects.get(subject) for r in results]
            earlier = [scores[0] if columns[0][0] == 0 and i else None for i in range(len(scores))]
            stars = ["*" if subject in significant else "" for significant in tests]
            cells = [_score_cell(*entry, interval=False) for entry in zip(scores, earlier, stars)]
            rows.append((label or subject.replace("_", " "), str(known[subject].get("n", "")), *cells))
    head = (t("subject"), t("questions"), *(label for _, label, _ in columns))
    title = f"{name}{t('colon')}{t('tab_subjects')}"
    note = t("subjects_mark", k=len(rows)) if compared else ""
    return Table(title=title, head=head, rows=tuple(rows), groups=tuple(groups), note=note)


def _subject_tests(before: Evaluation, after: Evaluation) -> set[str]:
    return holm({name: test.p_value for name, test in pair_subjects(before, after).items()})
