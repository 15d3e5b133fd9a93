"""An exam: subjects, their questions, the worked examples that go with them; what is odd about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LETTERS = ("A", "B", "C", "D")
CATEGORIES = ("STEM", "Social Science", "Humanities", "Other")
HARD = frozenset(
    (
        "advanced_mathematics",
        "discrete_mathematics",
        "probability_and_statistics",
        "college_chemistry",
        "college_physics",
        "high_school_mathematics",
        "high_school_chemistry",
        "high_school_physics",
    )
)
"""C-Eval Hard: eight STEM subjects that are also counted as a category of their own."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject of an exam."""

    id: str
    """As in the file names, such as `computer_network`."""
    name_zh: str
    """As Chinese prompts name it."""
    name_en: str
    """As English prompts name it."""
    groups: tuple[str, ...]
    """Categories it counts in, its own first; none where the exam has no categories."""

    @property
    def category(self) -> str:
        """Its own category, "" where the exam has none."""
        return self.groups[0] if self.groups else ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a subject's file."""

    subject: str
    id: str
    """The row's `id`, unique in its file."""
    question: str
    choices: dict[str, str]
    """Label -> text, A to D as a rule; empty where the answer is free."""
    answer: str | None
    """The right label, or the free answer; None where the split's answers are secret."""
    explanation: str | None = None
    passage: str = ""
    """What the question is about, where the exam gives a text of its own."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions of one split, the worked examples that go with them, and the hash of the files they came from."""

    task: str
    split: str
    subjects: dict[str, Subject]
    """In the order of the task's table, then of the exam's own."""
    questions: dict[str, tuple[Question, ...]]
    """Subject -> its questions, in the order of the file."""
    dev: dict[str, tuple[Question, ...]]
    """Subject -> worked examples; empty where none are asked for."""
    data_sha256: str
    """Over the files read, by name and content: equal for a folder and a zip of it."""

    @property
    def answered(self) -> bool:
        """Whether every question's right answer is known."""
        return all(q.answer is not None for rows in self.questions.values() for q in rows)

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing: the mean of 1 / choices; 0 where answers are free."""
        shares = [1 / len(q.choices) if q.choices else 0.0 for rows in self.questions.values() for q in rows]
        return sum(shares) / len(shares)


def categories(groups_of: Mapping[str, str | Sequence[str]]) -> dict[str, list[str]]:
    """Category -> its subjects; in the usual order, overlapping ones such as `Hard` last.

    Args:
        groups_of: subject -> the categories it counts in, its own first. A single text, as results of earlier versions
            hold it, is the subject's category in C-Eval, where eight subjects are Hard too.

    Returns:
        Categories with at least one subject.
    """
    members: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    overlapping: dict[str, list[str]] = {}
    for subject, groups in groups_of.items():
        own, *also = groups_as_list(subject, groups) or [""]
        members.setdefault(own, []).append(subject)
        for name in also:
            overlapping.setdefault(name, []).append(subject)
    return {name: subjects for name, subjects in {**members, **overlapping}.items() if name and subjects}


def groups_as_list(subject: str, groups: str | Sequence[str]) -> list[str]:
    """The categories of a subject, from either form that results hold."""
    if isinstance(groups, str):
        return [groups, "Hard"] if subject in HARD else [groups]
    return list(groups)


def duplicates(exam: Exam) -> dict[str, int]:
    """Questions that stand more than once (same text, same choices), which a score counts more than once.

    Returns:
        `repeated`: questions that repeat an earlier one; `contradictory`: of these, those with another answer;
        `worked_examples`: questions that are also among the worked examples, answer included.
    """
    shown = {_content(q) for rows in exam.dev.values() for q in rows}
    seen: dict[tuple, str | None] = {}
    found = {"repeated": 0, "contradictory": 0, "worked_examples": 0}
    for question in (q for rows in exam.questions.values() for q in rows):
        content, right = _content(question), question.choices.get(question.answer or "", question.answer)
        found["worked_examples"] += content in shown
        if content in seen:
            found["repeated"] += 1
            found["contradictory"] += seen[content] != right
        seen.setdefault(content, right)
    return found


def _content(question: Question) -> tuple:
    return question.passage.strip(), question.question.strip(), tuple(sorted(question.choices.values()))
