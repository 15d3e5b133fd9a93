"""A tiny exam of every task, in memory."""

from __future__ import annotations

from tuneval.evaluation.exam import Exam, Question, Subject
from tuneval.evaluation.tasks import built_in_subjects, find_task

SUBJECTS = {
    "ceval": "logic",
    "cmmlu": "college_law",
    "mmlu": "abstract_algebra",
    "gsm8k": "gsm8k",
    "boolq": "boolq",
    "hellaswag": "hellaswag",
    "agieval": "gaokao-chinese",
}
"""Task -> the subject of its exam."""


def question(task: str, number: int, answer: str) -> Question:
    """A question with braces of LaTeX, a space before a choice and one behind the question."""
    subject, facts = SUBJECTS[task], {"id": str(number), "question": f"第{number}题$\\frac{{1}}{{{number}}}$____ "}
    choices = {"A": f"{number}", "B": "1.0", "C": " 丙", "D": "{丁}"}
    explanation = f"1. 因为{number}。"
    if task == "gsm8k":
        worked = f"So {number}+1={number + 1}.\n#### {number + 1}"
        return Question(
            subject=subject,
            id=str(number),
            question=f"{number}+1?",
            choices={},
            answer=str(number + 1),
            explanation=worked,
        )
    if task == "boolq":
        choices, answer = {"no": "no", "yes": "yes"}, "yes" if answer in "AC" else "no"
        facts |= {"question": f"is {number} odd", "passage": f"Passage {number}."}
        explanation = None
    if task == "agieval":
        choices = {x: f"({x}){text}" for x, text in choices.items()}
        facts |= {"passage": f"材料{number}。\n"}
    return Question(subject=subject, **facts, choices=choices, answer=answer, explanation=explanation)


def tiny_exam(task: str, questions: int = 2) -> Exam:
    """One subject of a task, with five worked examples."""
    subject: Subject = built_in_subjects(find_task(task))[SUBJECTS[task]]
    return Exam(
        task=task,
        split="val",
        subjects={subject.id: subject},
        questions={subject.id: tuple(question(task, i, "BADC"[i % 4]) for i in range(1, questions + 1))},
        dev={subject.id: tuple(question(task, 10 + i, "ABCDA"[i]) for i in range(5))},
        data_sha256="0",
    )
