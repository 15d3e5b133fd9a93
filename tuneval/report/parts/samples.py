"""Sample answers: every prompt once, the answer before tuning beside each run's."""

from __future__ import annotations

from tuneval.report.document import Answer, Sample, Section, Text
from tuneval.report.gather import Gathered
from tuneval.report.legend import legend_key
from tuneval.report.words import Words

LONGEST_ANSWER = 3000
"""Characters of a sample shown; the rest is counted."""


def samples_section(gathered: Gathered, t: Words) -> Section:
    """Every prompt once, the answer before tuning, then each run's."""
    prompts: dict[tuple[str, str | None], list[Answer]] = {}
    several = len(gathered.runs) > 1
    for i, run in enumerate(gathered.runs, 1):
        for sample in run.samples:
            answers = prompts.setdefault((sample.prompt, sample.before), [])
            if sample.after is not None:
                label = run.label if several else t("after")
                answers.append(_answer(label, i, sample.after, t))
    blocks = []
    for number, ((prompt, before), answers) in enumerate(prompts.items(), 1):
        first = () if before is None else (_answer(t("baseline"), 0, before, t),)
        title = t("sample_number", n=number)
        blocks.append(Sample(title=title, prompt=_cut(prompt, t), answers=(*first, *answers)))
    start = Text(text=t("samples_note" if blocks else "note_no_samples"), style="note")
    return Section(id="samples", title=t("samples"), blocks=(start, *blocks))


def _answer(label: str, i: int, text: str, t: Words) -> Answer:
    key = legend_key(label, i)
    return Answer(label=key.label, colour=key.colour, sign=key.sign, text=_cut(text, t))


def _cut(text: str, t: Words) -> str:
    if not text.strip():
        return t("empty_answer")
    rest = len(text) - LONGEST_ANSWER
    return text if rest <= 0 else text[:LONGEST_ANSWER] + t("cut", n=f"{rest:,}")
