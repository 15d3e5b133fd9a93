"""What must fail before an hour of scoring fails; what a weak model does is told apart."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from tiny_exams import tiny_exam

from tuneval import console
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import STYLES
from tuneval.evaluation.self_test import self_test, trivial_questions
from tuneval.evaluation.tasks import TASKS


class Reads:
    """Finds the answer where it stands; `leak` is added to every score of a batch of more than one."""

    def __init__(self, leak: float = 0.0, answer: int | None = None) -> None:
        self.leak, self.answer = leak, answer

    def letters(self, prompts, targets, scored):
        found = []
        for p in prompts:
            text = (p.text or p.messages[-1].content)[-120:]
            right = [20.0 * (f"是{t.strip()}（" in text or f"is {t.strip()} (" in text) for t in targets]
            found.append([v + (self.leak if len(prompts) > 1 else 0.0) for v in right])
        return (
            found if self.answer is None else [[float(i == self.answer) for i in range(len(targets))] for _ in prompts]
        )

    def options(self, prompts, options, scored):
        return [[(v, 1) for v in row] for row in self.letters(prompts, options[0], scored)]

    def replies(self, prompts, max_new_tokens, stops, settled, scored):
        rows = self.letters(prompts, list("ABCD"), scored)
        return ["ABCD"[row.index(max(row))] + " " * (self.leak > 0 and len(prompts) > 1) for row in rows]


def run(scorer, style: str = "official", dtype: str = "bf16"):
    return self_test(scorer, STYLES["ceval", style], tiny_exam("ceval"), 2, True, dtype)


def test_a_model_that_reads():
    found = run(Reads())
    assert (found.trivial, found.trivial_right, found.largest_batch_difference) == (4, 4, 0.0)
    assert run(Reads(), "oc_gen").largest_batch_difference is None


@pytest.mark.parametrize("style", ["official", "lm_eval", "oc_gen"])
def test_it_shows_progress(monkeypatch, style):
    """With a style of long replies it takes minutes."""
    shown, done = [], []

    @contextmanager
    def bar(label, total):
        shown.append((label, total))
        yield SimpleNamespace(advance=done.append)

    class Counts(Reads):
        def letters(self, prompts, targets, scored):
            scored(len(prompts))
            return super().letters(prompts, targets, scored)

    monkeypatch.setattr(console, "progress_bar", bar)
    run(Counts(), style)
    assert shown == [("self-test", 5)] and sum(done) == 5


def test_a_model_that_does_not():
    assert run(Reads(answer=2)).trivial_right == 1


@pytest.mark.parametrize("dtype, fine, broken", [("bf16", 0.5, 3.0), ("fp32", 0.001, 0.1)])
def test_a_batch_that_changes_scores_is_an_error(dtype, fine, broken):
    assert run(Reads(leak=fine), dtype=dtype).largest_batch_difference == pytest.approx(fine)
    with pytest.raises(
        UserError, match=r"self-test: the scores of one question alone and in a batch differ by .*mixes questions"
    ):
        run(Reads(leak=broken), dtype=dtype)
    with pytest.raises(UserError, match="differ by nan"):
        run(Reads(leak=float("nan")), dtype=dtype)


def test_a_reply_that_depends_on_its_batch_is_an_error_in_fp32():
    with pytest.raises(UserError, match="a reply in a batch"):
        run(Reads(leak=1.0), "oc_gen", "fp32")
    assert run(Reads(leak=1.0), "oc_gen", "bf16").trivial_right == 4


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_trivial_questions(task):
    exam = tiny_exam(task)
    questions = trivial_questions(exam, next(iter(exam.subjects)))
    first = next(iter(exam.questions.values()))[0]
    assert len(questions) == 4 and all(list(q.choices) == list(first.choices) for q in questions)
    assert all(q.answer in q.choices if q.choices else q.answer in q.question for q in questions)
    assert len({q.answer for q in questions}) == min(4, len(first.choices) or 4)
