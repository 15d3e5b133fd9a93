"""What the number type changes: the same questions scored by the same weights, computed in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tuneval.evaluation.margins import decide


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Choices of one number type held against fp32."""

    questions: int
    """Compared."""
    largest: float
    """Largest change of a margin."""
    median: float
    changed: int
    """Questions with another answer in fp32."""


@contextmanager
def in_fp32(decoder: torch.nn.Module) -> Iterator[None]:
    """Within: the decoder computes in fp32 with its own weights. One layer at a time is widened, so it needs no more memory."""
    base, dtype = decoder.model, decoder.head_weight.dtype

    def widen(module: torch.nn.Module, *_: object) -> None:
        module.to(torch.float32)

    def narrow(module: torch.nn.Module, *_: object) -> None:
        module.to(dtype)  # exact: every value came from that type

    parts = [*base.layers, base.norm]
    hooks = [part.register_forward_pre_hook(widen) for part in parts]
    hooks += [part.register_forward_hook(narrow) for part in parts]
    hooks.append(base.embed_tokens.register_forward_hook(lambda module, inputs, output: output.float()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in parts:
            part.to(dtype)


def noise(scores: Sequence[dict[str, float]], exact: Sequence[dict[str, float]]) -> Noise:
    """Compare choices.

    Args:
        scores: of some questions, in the type that is used.
        exact: of the same, in fp32.
    """
    changes, changed = [], 0
    for here, there in zip(scores, exact, strict=True):
        best, margin = decide(here)
        other = max((value for label, value in there.items() if label != best), default=there[best])
        changes.append(abs(margin - (there[best] - other)))
        changed += decide(there)[0] != best
    ordered = sorted(changes)
    return Noise(questions=len(ordered), largest=ordered[-1], median=ordered[len(ordered) // 2], changed=changed)
