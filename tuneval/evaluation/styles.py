"""How a style turns questions into prompts. The styles themselves are data: `ceval_styles`, `further_styles`.

Plain text is `header`, with worked examples also `examples_header`, then for each of them `query + joint + reply +
separator` (`after_examples` behind the last), then `query` of the question itself. In a conversation every `query` is a user turn
and every `reply` an assistant turn; the headers begin the first user turn. The pieces' fields are {id}, {name_zh},
{name_en}, {question}, {passage}, {choices} (a line each), {options} (the same on one line), {last} (the last label), {answer}, {right}
(the text of the right choice) and {explanation}. Text of the exam goes in as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from tuneval.data.records import Message
from tuneval.errors import UserError
from tuneval.evaluation.decisions import Decision, Prompt
from tuneval.evaluation.exam import Exam, Question, Subject
from tuneval.files import sha256_json


@dataclass(frozen=True, kw_only=True)
class Style:
    """How questions become prompts, and what counts as the answer."""

    name: str
    task: str
    source: str
    """Where the recipe comes from."""
    form: Literal["plain", "turns", "one turn", "turns or plain", "one turn or plain"] = "plain"
    """Plain text, a conversation, or one user turn that holds everything. `or plain`: for a model without a chat template,
    and with --no-chat-template."""
    system: str = ""
    """System message; "": the chat template's own."""
    header: str = ""
    """Once, at the start."""
    examples_header: str = ""
    """Behind it, where there are worked examples."""
    query: str
    """A question up to where its answer begins."""
    query_in: Mapping[str, str] = field(default_factory=dict)
    """The same for the subjects of a category, where it differs."""
    example: str | None = None
    """The same for a worked example, where it differs."""
    joint: str = ""
    """Plain text: between a worked example's question and its answer."""
    reply: str = "{answer}"
    """The answer of a worked example."""
    separator: str = "\n\n"
    """Plain text: behind a worked example."""
    after_examples: str | None = None
    """The same behind the last one, where it differs."""
    choice: str = "{label}. {text}"
    """A line of {choices}."""
    strip: bool = False
    """Whether space around a question's text is taken off."""
    shots: int
    """Worked examples where the user names no number."""
    max_shots: int = 5
    shuffled: bool = False
    """Worked examples in a new order for every question, as LLaMA-Factory draws them with its default seed."""
    opens_answer: bool = True
    """Conversation: whether the chat template's generation prompt follows."""
    decision: Decision
    zero_shot_decision: Decision | None = None
    """Without worked examples, where it differs."""
    aggregation: Literal["micro", "macro"]
    """The mean the recipe reports; results hold both."""

    def describe(self) -> dict[str, object]:
        return asdict(self)

    def decision_for(self, shots: int) -> Decision:
        return self.decision if shots or self.zero_shot_decision is None else self.zero_shot_decision

    @property
    def needs_chat_template(self) -> bool:
        return self.form in ("turns", "one turn")


def check_shots(style: Style, shots: int, split: str) -> None:
    """Raise a UserError where this number of shots can't be had, or would show a question its own answer."""
    if not 0 <= shots <= style.max_shots:
        raise UserError(f"--shots {shots}: style {style.name} takes {'0 to ' * bool(style.max_shots)}{style.max_shots}")
    if shots and split in ("dev", "train"):
        raise UserError(
            f"--split {split} --shots {shots}: the shots are the {split} questions themselves; give --shots 0"
        )


def check_explained(style: Style, shots: int, exam: Exam) -> None:
    """Raise a UserError where a style shows the reasoning of worked examples that have none."""
    shown = [q for rows in exam.dev.values() for q in rows[:shots]] if "{explanation}" in style.reply else []
    bare = [q for q in shown if not q.explanation]
    if bare:
        raise UserError(
            f"--style {style.name}: shows the reasoning of worked examples, and {len(bare)} of {len(shown)} have none (such as "
            f"{bare[0].subject}, id {bare[0].id}); fill in their column explanation, give --shots 0, or choose another style"
        )


def all_prompts(style: Style, exam: Exam, shots: int, chat: bool) -> dict[str, list[Prompt]]:
    """Subject -> the prompts of its questions, in order; each ends where the answer begins.

    Args:
        style: the recipe.
        exam: the questions.
        shots: worked examples before each.
        chat: whether the model has a chat template that may be used.
    """
    orders = _lf_orders(exam) if style.shuffled else None
    conversation = style.form != "plain" and (chat or style.needs_chat_template)
    make = _conversation if conversation and "turns" in style.form else _one_text
    prompts: dict[str, list[Prompt]] = {}
    for subject, facts in exam.subjects.items():
        prompts[subject] = []
        for question in exam.questions[subject]:
            shown = exam.dev[subject][:shots]
            if orders is not None:
                shown = tuple(exam.dev[subject][i] for i in next(orders)[:shots])
            prompt = make(style, facts, shown, question, conversation)
            prompts[subject].append(replace(prompt, name=f"{subject}, question {question.id}"))
    return prompts


def prompts(style: Style, exam: Exam, subject: str, shots: int, chat: bool = True) -> list[Prompt]:
    """The prompts of one subject."""
    return all_prompts(style, exam, shots, chat)[subject]


def _one_text(
    style: Style, facts: Subject, shown: Sequence[Question], question: Question, conversation: bool
) -> Prompt:
    text = fill(style, style.header + (style.examples_header if shown else ""), facts)
    for number, example in enumerate(shown, 1):
        last = number == len(shown) and style.after_examples is not None
        end = style.after_examples if last else style.separator
        text += fill(style, (style.example or style.query) + style.joint + style.reply + end, facts, example)
    text += fill(style, _query(style, facts), facts, question)
    if not conversation:
        return Prompt(text=text)
    system = (Message("system", fill(style, style.system, facts)),) if style.system else ()
    return Prompt(messages=(*system, Message("user", text)), opens_answer=style.opens_answer)


def _conversation(
    style: Style, facts: Subject, shown: Sequence[Question], question: Question, conversation: bool
) -> Prompt:
    messages = [Message("system", fill(style, style.system, facts))] if style.system else []
    header = fill(style, style.header + (style.examples_header if shown else ""), facts)
    for example in shown:
        messages.append(Message("user", header + fill(style, style.example or style.query, facts, example)))
        messages.append(Message("assistant", fill(style, style.reply, facts, example)))
        header = ""
    messages.append(Message("user", header + fill(style, _query(style, facts), facts, question)))
    return Prompt(messages=tuple(messages), opens_answer=style.opens_answer)


def _query(style: Style, facts: Subject) -> str:
    return next((style.query_in[group] for group in facts.groups if group in style.query_in), style.query)


def fill(style: Style, piece: str, subject: Subject, question: Question | None = None) -> str:
    """A piece with its fields filled. Braces in the exam's own text (LaTeX) stay as they are."""
    values: dict[str, str | None] = {"id": subject.id, "name_zh": subject.name_zh, "name_en": subject.name_en}
    if question is not None:
        asked = question.question.strip() if style.strip else question.question
        values |= {"question": asked, "answer": question.answer, "explanation": question.explanation or ""}
        values |= {"passage": question.passage, "last": next(reversed(question.choices), "")}
        lines = (style.choice.format(label=label, text=text) for label, text in question.choices.items())
        values |= {"choices": "\n".join(lines), "options": " ".join(question.choices.values())}
        values |= {"right": question.choices.get(question.answer or "")}
    return piece.format_map(values)


def prompt_sha256(prompts: Sequence[Prompt]) -> list[str]:
    """Hash of each prompt: of its text (UTF-8), or of its messages as JSON."""
    plain = [p.as_json() for p in prompts]
    return [hashlib.sha256(p.encode()).hexdigest() if isinstance(p, str) else sha256_json(p) for p in plain]


def run_sha256(style: Style, shots: int, hashes: Mapping[str, Sequence[str]]) -> str:
    """Hash of everything that was asked: the style, the number of shots, and all prompts in order."""
    flat = [h for each in hashes.values() for h in each]
    return sha256_json({"style": style.describe(), "shots": shots, "prompts": flat})


def _lf_orders(exam: Exam) -> Iterator[list[int]]:
    """Orders of the worked examples, question by question through the exam, as LLaMA-Factory draws them with seed 42.

    It calls `datasets.shuffle()` without a seed for every question: that takes a word of numpy's global state as the
    seed of a new generator, and steps the state once.
    """
    state = np.random.RandomState(42)
    for subject, questions in exam.questions.items():
        for _ in questions:
            _, words, position, *_ = state.get_state()
            seed = words[position] if position < len(words) else words[0]
            state.random_sample()
            yield np.random.default_rng(seed).permutation(len(exam.dev[subject])).tolist()
