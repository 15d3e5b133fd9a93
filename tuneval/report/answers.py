"""Figures of sample answers: how long they are, how much they repeat themselves, whether they end by themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

N = 4
"""Length of the runs of words that count as repeated."""


@dataclass(frozen=True, kw_only=True)
class AnswerFigures:
    """Over several answers of one model."""

    answers: int
    empty: int
    characters: float
    """Mean length."""
    repetition: float | None
    """Share of runs of four words that came before in the same answer; None: no answer has four words."""
    stopped: int | None
    """Answers that ended by themselves, not at the longest length allowed; None: not recorded."""


def answer_figures(texts: Sequence[str], stopped: Sequence[bool | None]) -> AnswerFigures:
    """The figures of a model's answers.

    Args:
        texts: the answers, at least one.
        stopped: for each, whether it ended by itself; None where that is not recorded.

    Source of the repetition: seq-rep-4 of Welleck et al. (2020), Neural Text Generation with Unlikelihood Training,
        over all answers together; a Chinese character counts as a word.
    """
    repeated = total = 0
    for text in texts:
        words = words_of(text)
        runs = [tuple(words[i : i + N]) for i in range(len(words) - N + 1)]
        total += len(runs)
        repeated += len(runs) - len(set(runs))
    known = [s for s in stopped if s is not None]
    return AnswerFigures(
        answers=len(texts),
        empty=sum(not text.strip() for text in texts),
        characters=sum(map(len, texts)) / len(texts),
        repetition=repeated / total if total else None,
        stopped=sum(known) if len(known) == len(texts) else None,
    )


def words_of(text: str) -> list[str]:
    """Words of Latin letters and digits; every other character that is no space by itself."""
    return re.findall(r"[A-Za-z0-9_]+|[^\sA-Za-z0-9_]", text)
