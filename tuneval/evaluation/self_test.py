"""Before an hour of scoring: is the answer read where it stands, and does a batch give what a question gives alone?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuneval import console
from tuneval.errors import UserError
from tuneval.evaluation.decisions import Answer, Reply, Scorer
from tuneval.evaluation.exam import Exam, Question
from tuneval.evaluation.margins import bf16_step
from tuneval.evaluation.styles import Style, prompts

TOLERATED_STEPS = 16
"""Steps of the number type, at the size of the scores, by which a batch may differ: sums in another order make a few."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What the test found."""

    trivial: int
    """Questions whose answer stands in the question."""
    trivial_right: int
    """Of these, answered right; a weak model misses some, a wrong template most."""
    largest_batch_difference: float | None
    """Largest change of a score between a question alone and in a batch; None where text is generated."""


def self_test(scorer: Scorer, style: Style, exam: Exam, shots: int, chat: bool, dtype: str) -> SelfTest:
    """Ask four questions whose answers stand in them, together and one of them alone.

    Args:
        scorer: the model.
        style: the recipe, with its worked examples.
        exam: where the examples and the subject come from.
        shots: worked examples.
        chat: whether the model has a chat template.
        dtype: of the weights.

    Raises:
        UserError: answers that are no single tokens, or a batch whose scores are not those of the question alone.
    """
    subject = next(iter(exam.subjects))
    questions = trivial_questions(exam, subject)
    asked = prompts(style, replace(exam, questions={subject: tuple(questions)}, subjects={subject: exam.subjects[subject]}),
                    subject, shots, chat)  # fmt: skip
    decision = style.decision_for(shots)
    with console.progress_bar("self-test", len(questions) + 1) as bar:  # replies of 512 tokens take minutes
        together = decision.answers(scorer, asked, questions, bar.advance)
        alone = decision.answers(scorer, asked[2:3], questions[2:3], bar.advance)[0]
    difference = None if isinstance(decision, Reply) else _difference(together[2], alone, dtype)
    if isinstance(decision, Reply) and dtype == "fp32" and together[2].response != alone.response:
        raise UserError(
            f"self-test: a reply in a batch ({together[2].response!r}) is not the reply alone ({alone.response!r}): padding "
            "or attention on this device mixes questions. Nothing was scored; please report it with `tuneval doctor`"
        )
    right = sum(a.prediction == q.answer for a, q in zip(together, questions, strict=True))
    return SelfTest(trivial=len(questions), trivial_right=right, largest_batch_difference=difference)


def trivial_questions(exam: Exam, subject: str) -> list[Question]:
    """Four questions in the exam's form, whose answers stand in them."""
    first = next(q for rows in exam.questions.values() for q in rows)
    labels = list(first.choices) or ["7", "12", "30", "81"]
    chinese = any("\u4e00" <= c <= "\u9fff" for c in first.question)
    found = []
    for number, label in enumerate((labels * 4)[:4]):
        choices = dict(zip(first.choices, ("猫", "狗", "鸟", "鱼", "马", "牛", "羊"))) if chinese else None
        choices = choices or dict(zip(first.choices, ("cat", "dog", "bird", "fish", "horse", "cow", "sheep")))
        choices = {x: x for x in choices} if set(choices) == {"no", "yes"} else choices
        found.append(_trivial(subject, f"self-test-{number}", label, choices, chinese))
    return found


def _trivial(subject: str, id: str, label: str, choices: dict[str, str], chinese: bool) -> Question:
    meant = choices.get(label, label)
    if chinese:
        asked = f"本题的正确答案是{label}（{meant}）。本题应该选哪一项？"
    else:
        asked = f"The right answer to this question is {label} ({meant}). What is the right answer"
        asked += "" if set(choices) == {"no", "yes"} else "?"
    passage = f"The answer to the question below is {meant}." if set(choices) == {"no", "yes"} else ""
    return Question(subject=subject, id=id, question=asked, choices=choices, answer=label, passage=passage)


def _difference(together: Answer, alone: Answer, dtype: str) -> float:
    difference = max(abs(together.scores[x] - alone.scores[x]) for x in alone.scores)
    largest = max(abs(v) for v in alone.scores.values())
    allowed = 1e-3 * max(1.0, largest) if dtype == "fp32" else TOLERATED_STEPS * bf16_step(max(1.0, largest))
    if not difference <= allowed:
        raise UserError(
            f"self-test: the scores of one question alone and in a batch differ by {difference:.3g}; {dtype} explains "
            f"{allowed:.3g}: attention on this device mixes questions. Nothing was scored; please report it with "
            "`tuneval doctor`"
        )
    return difference
