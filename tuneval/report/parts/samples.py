"""Sample answers: every prompt once, the answer before tuning beside each run's, and figures over all of them."""

from __future__ import annotations

from collections.abc import Sequence

from tuneval.report import words as spell
from tuneval.report.answers import answer_figures
from tuneval.report.document import Answer, Sample, Section, Table, Text
from tuneval.report.gather import Gathered, Run
from tuneval.report.legend import legend_key
from tuneval.report.records import SampleAnswer
from tuneval.report.words import DASH, Words

LONGEST_ANSWER = 3000
"""Characters of a sample shown; the rest is counted."""


def samples_section(gathered: Gathered, t: Words) -> Section:
    """Settings and figures, then every prompt once: the answer before tuning, then each run's."""
    prompts: dict[tuple[str, str | None], list[Answer]] = {}
    several = len(gathered.runs) > 1
    for i, run in enumerate(gathered.runs, 1):
        for sample in run.samples:
            answers = prompts.setdefault((sample.prompt, sample.before), [])
            if sample.after is not None:
                label = run.label if several else t("after")
                answers.append(_answer(label, i, sample.after, t))
    blocks: list[object] = [Text(text=t("samples_note" if prompts else "note_no_samples"), style="note")]
    blocks += answer_tables(gathered.runs, t)
    for number, ((prompt, before), answers) in enumerate(prompts.items(), 1):
        first = () if before is None else (_answer(t("baseline"), 0, before, t),)
        title = t("sample_number", n=number)
        blocks.append(Sample(title=title, prompt=_cut(prompt, t), answers=(*first, *answers)))
    return Section(id="samples", title=t("samples"), blocks=tuple(blocks))


def answer_tables(runs: Sequence[Run], t: Words) -> list[object]:
    """The settings in a sentence, and how long, how repetitive and how well ended each model's answers are."""
    with_samples = [run for run in runs if run.samples]
    if not with_samples:
        return []
    settings = dict.fromkeys(_settings(s, t) for run in with_samples for s in run.samples if s.settings)
    blocks: list[object] = [Text(text=t("samples_settings", settings=one), style="note") for one in settings]
    rows, before = [], [s for s in with_samples[0].samples if s.before is not None]
    if before:
        rows.append((t("baseline"), *_figures([s.before or "" for s in before], [s.before_stopped for s in before], t)))
    for run in with_samples:
        after = [s for s in run.samples if s.after is not None]
        if after:
            label = run.label if len(runs) > 1 else t("after")
            rows.append((label, *_figures([s.after or "" for s in after], [s.after_stopped for s in after], t)))
    head = tuple(t(h) for h in ("model", "answers", "mean_characters", "repetition", "stopped", "empty_answers"))
    if rows:
        blocks.append(Table(title=t("tab_answers"), head=head, rows=tuple(rows), note=t("answers_note")))
    return blocks


def _settings(sample: SampleAnswer, t: Words) -> str:
    return t.listed([key if value is True else f"{key} {value}" for key, value in sample.settings.items()])


def _figures(texts: list[str], stopped: list[bool | None], t: Words) -> tuple[str, ...]:
    figures = answer_figures(texts, stopped)
    return (
        str(figures.answers),
        f"{figures.characters:.0f}",
        DASH if figures.repetition is None else spell.percent(figures.repetition),
        t("missing") if figures.stopped is None else f"{figures.stopped}\u00a0/\u00a0{figures.answers}",
        str(figures.empty),
    )


def _answer(label: str, i: int, text: str, t: Words) -> Answer:
    key = legend_key(label, i)
    return Answer(label=key.label, colour=key.colour, sign=key.sign, text=_cut(text, t))


def _cut(text: str, t: Words) -> str:
    if not text.strip():
        return t("empty_answer")
    rest = len(text) - LONGEST_ANSWER
    return text if rest <= 0 else text[:LONGEST_ANSWER] + t("cut", n=f"{rest:,}")
