"""The choice between scores, and how close it was."""

from __future__ import annotations

from math import frexp


def decide(scores: dict[str, float]) -> tuple[str, float]:
    """The label with the highest score, the first of equals, and its lead over the second."""
    best = max(scores, key=scores.__getitem__)
    others = [value for label, value in scores.items() if label != best]
    return best, scores[best] - max(others) if others else float("inf")


def near_tie(scores: dict[str, float]) -> bool:
    """Whether the best two labels are closer than one step of bf16 at the size of the best score.

    Such a choice can turn with the order of additions; two engines are compared by margins there, not by letters.
    """
    best, margin = decide(scores)
    return margin < bf16_step(scores[best])


def bf16_step(value: float) -> float:
    """Distance between neighbouring bf16 numbers (8 significant bits) at the size of `value`."""
    return 2.0 ** (frexp(value)[1] - 8)
