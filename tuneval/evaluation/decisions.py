"""How an answer is read from a model: the three kinds of decision. What a model computes is asked from a `Scorer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

from tuneval.data.records import Message
from tuneval.evaluation.exam import Question
from tuneval.evaluation.extract import EXTRACTIONS
from tuneval.evaluation.margins import decide

Progress = Callable[[int], object]
"""Called with the number of questions just done."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked: plain text, or a conversation that the model's chat template renders."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    """Empty: `text` counts."""
    opens_answer: bool = True
    """Whether the chat template's generation prompt follows the conversation."""
    name: str = ""
    """What errors call it: subject and id of the question."""

    def as_json(self) -> object:
        """What its hash covers; the chat template has a fingerprint of its own."""
        if not self.messages:
            return self.text
        return [*([m.role, m.content] for m in self.messages), *([] if self.opens_answer else ["no generation prompt"])]


class Scorer(Protocol):
    """What an evaluation needs of a model; a few lines stand in for one in tests."""

    def letters(self, prompts: Sequence[Prompt], targets: Sequence[str], scored: Progress) -> list[list[float]]:
        """Next-token logits of the targets after each prompt; one token each."""
        ...

    def options(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], scored: Progress
    ) -> list[list[tuple[float, int]]]:
        """Log probability of each option's text after its prompt, in nats, and how many tokens that is."""
        ...

    def replies(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        stops: Sequence[str],
        settled: Callable[[str], bool],
        scored: Progress,
    ) -> list[str]:
        """The greedy continuation of each prompt, up to a stop text, the end of the turn, or where it is settled."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was decided on one question."""

    prediction: str | None
    """A label or a free answer; None: the reply could not be read."""
    scores: dict[str, float] = field(default_factory=dict)
    """Label -> score; empty where text is generated."""
    margin: float | None = None
    """Best score minus the second."""
    response: str | None = None
    """The generated text."""


@dataclass(frozen=True, kw_only=True)
class LetterLogits:
    """The label whose target token has the highest next-token logit; the first of equals."""

    target: str = "{answer}"
    """What each label is scored as, right after the prompt."""
    kind: str = "letter_logits"

    def answers(
        self, scorer: Scorer, prompts: Sequence[Prompt], questions: Sequence[Question], scored: Progress
    ) -> list[Answer]:
        labels = list(dict.fromkeys(label for q in questions for label in q.choices))
        logits = scorer.letters(prompts, [self.target.format(answer=label) for label in labels], scored)
        found = []
        for question, values in zip(questions, logits, strict=True):
            scores = {label: v for label, v in zip(labels, values, strict=True) if label in question.choices}
            prediction, margin = decide(scores)
            found.append(Answer(prediction=prediction, scores=scores, margin=margin))
        return found


@dataclass(frozen=True, kw_only=True)
class OptionLikelihood:
    """The option whose text is the likeliest continuation (the lowest perplexity); the first of equals."""

    target: str = "{answer}"
    """Text of an option right after the prompt; {answer} is its label, {option} its text."""
    per: Literal["text", "token", "character"] = "text"
    """What the log probability is divided by: nothing, the option's tokens, or the characters of {option}."""
    kind: str = "option_likelihood"

    def answers(
        self, scorer: Scorer, prompts: Sequence[Prompt], questions: Sequence[Question], scored: Progress
    ) -> list[Answer]:
        texts = [[self.target.format(answer=a, option=o) for a, o in q.choices.items()] for q in questions]
        found = []
        for question, values in zip(questions, scorer.options(prompts, texts, scored), strict=True):
            scores = {
                label: self._score(value, question.choices[label])
                for label, value in zip(question.choices, values, strict=True)
            }
            prediction, margin = decide(scores)
            found.append(Answer(prediction=prediction, scores=scores, margin=margin))
        return found

    def _score(self, value: tuple[float, int], option: str) -> float:
        log_probability, tokens = value
        return log_probability / {"text": 1, "token": tokens, "character": max(1, len(option))}[self.per]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an extraction finds in the greedily generated reply."""

    extraction: str
    """A key of EXTRACTIONS."""
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    """Texts that end the reply, besides the model's own end of turn."""
    kind: str = "reply"

    def answers(
        self, scorer: Scorer, prompts: Sequence[Prompt], questions: Sequence[Question], scored: Progress
    ) -> list[Answer]:
        extraction = EXTRACTIONS[self.extraction]
        texts = scorer.replies(prompts, self.max_new_tokens, self.stops, extraction.settled, scored)
        return [Answer(prediction=extraction.take(t, q), response=t) for t, q in zip(texts, questions, strict=True)]


Decision = LetterLogits | OptionLikelihood | Reply


METHODS = {
    "letter_logits": "the label with the highest next-token logit; the first of equals",
    "option_likelihood": "the option with the likeliest text after the prompt; the first of equals",
    "reply": "what the style's rule finds in the greedily generated reply; nothing found counts as wrong",
}
"""Kind of decision -> how a prediction comes about, for the record."""


def describe(decision: Decision) -> dict[str, object]:
    """A decision as JSON values."""
    return asdict(decision)
