"""Named prompt styles, as data: the pieces of the text, and how an answer is read. The scorer knows none of them.

A prompt is `header`, then for each shot `query + target + separator`, then `query` of the question itself; the pieces'
fields are {name_zh}, {name_en}, {question}, {A} to {D}, {answer} and {explanation}. Text of the exam goes in as it is.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuneval.errors import UserError
from tuneval.evaluation.tasks import Exam, Question, Subject
from tuneval.files import sha256_json


@dataclass(frozen=True, kw_only=True)
class Style:
    """How questions become prompts, and what counts as the answer."""

    name: str
    source: str
    """Where the recipe comes from."""
    header: str
    """Once, at the start."""
    query: str
    """A question up to where its answer begins."""
    target: str
    """What follows `query`: the answer of a shot, and what each letter is scored as."""
    separator: str
    """Between a shot and what follows it."""
    max_shots: int
    """Worked examples the exam's dev files hold."""
    decision: str
    """How the answer is read. `letter_logits`: the letter whose `target` token has the highest next-token logit, the
    first of equals."""

    def describe(self) -> dict[str, object]:
        return asdict(self)


_ABCD = "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}"

STYLES = {
    style.name: style
    for style in (
        Style(
            name="official",
            source="README and tutorial of the benchmark's authors (hkust-nlp/ceval), answer-only, completion",
            header="以下是中国关于{name_zh}考试的单项选择题，请选出其中的正确答案。\n\n",
            query=_ABCD + "\n答案：",
            target="{answer}",
            separator="\n\n",
            max_shots=5,
            decision="letter_logits",
        ),
    )
}


def find_style(name: str) -> Style:
    """The style of that name.

    Raises:
        UserError: unknown; names the nearest and all known ones.
    """
    if name not in STYLES:
        nearest = difflib.get_close_matches(name, STYLES, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"--style {name}: unknown; {hint}known are {', '.join(STYLES)}")
    return STYLES[name]


def check_shots(style: Style, shots: int, split: str) -> None:
    """Raise a UserError where this number of shots can't be had, or would show a question its own answer."""
    if not 0 <= shots <= style.max_shots:
        raise UserError(f"--shots {shots}: style {style.name} takes 0 to {style.max_shots}")
    if shots and split == "dev":
        raise UserError(f"--split dev --shots {shots}: the shots are the dev questions themselves; give --shots 0")


def prompts(style: Style, exam: Exam, subject: str, shots: int) -> list[str]:
    """The prompts of one subject's questions, in order; each ends where the answer begins."""
    facts = exam.subjects[subject]
    head = fill(style.header, facts)
    for example in exam.dev[subject][:shots]:
        head += fill(style.query + style.target + style.separator, facts, example)
    return [head + fill(style.query, facts, question) for question in exam.questions[subject]]


def target(style: Style, letter: str) -> str:
    """The text that is scored for a letter."""
    return style.target.format(answer=letter)


def fill(piece: str, subject: Subject, question: Question | None = None) -> str:
    """A piece with its fields filled. Braces in the exam's own text (LaTeX) stay as they are."""
    values: dict[str, str | None] = {"name_zh": subject.name_zh, "name_en": subject.name_en}
    if question is not None:
        values |= {"question": question.question, "answer": question.answer, "explanation": question.explanation}
        values |= question.choices
    return piece.format(**values)


def prompt_sha256(texts: Sequence[str]) -> list[str]:
    """Hash of each prompt's text (UTF-8)."""
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def run_sha256(style: Style, shots: int, hashes: Sequence[str]) -> str:
    """Hash of everything that was asked: the style, the number of shots, and all prompts in order."""
    return sha256_json({"style": style.describe(), "shots": shots, "prompts": list(hashes)})
