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


HARNESS_TASK = """
task: toy_ceval
dataset_path: json
dataset_kwargs: {{data_files: {{val: {folder}/val.jsonl, dev: {folder}/dev.jsonl}}}}
validation_split: val
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
description: "以下是中国关于逻辑学的单项选择题，请选出其中的正确答案。\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{A}}}}\\nB. {{{{B}}}}\\nC. {{{{C}}}}\\nD. {{{{D}}}}\\n答案："
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{{{['A', 'B', 'C', 'D'].index(answer)}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
"""C-Eval as lm_eval/tasks/ceval says it to lm-evaluation-harness, over val.jsonl and dev.jsonl of `folder`."""
