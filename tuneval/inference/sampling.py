"""The sampling flags held against their ranges, and which of them act, without torch."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from tuneval.config.schema import SamplingConfig
from tuneval.errors import Problems

_DRAWING = ("temperature", "top_k", "top_p", "seed")
"""What only draws: no effect with `--greedy`."""
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0}
"""Values that change nothing."""


def check_sampling(sampling: SamplingConfig) -> None:
    """Raise one UserError with every flag out of range."""
    problems = Problems()
    add_problems(sampling, problems)
    problems.raise_if_any()


def add_problems(sampling: SamplingConfig, problems: Problems) -> None:
    """Add every flag out of range."""
    s = sampling
    problems.check(s.max_new_tokens >= 1, f"--max-new-tokens {s.max_new_tokens}: must be at least 1")
    problems.check(
        s.temperature > 0,
        f"--temperature {s.temperature}: must be positive; greedy decoding takes the likeliest (--greedy, in inference.py "
        "--task greedy)",
    )
    problems.check(s.top_k >= 0, f"--top-k {s.top_k}: must be at least 0 (0: all tokens)")
    problems.check(0 < s.top_p <= 1, f"--top-p {s.top_p}: must be above 0 and at most 1")
    problems.check(0 <= s.seed < 2**63, f"--seed {s.seed}: must be from 0 to below 2**63")
    problems.check(s.num_beams >= 1, f"--num-beams {s.num_beams}: must be at least 1")
    problems.check(
        s.repetition_penalty > 0, f"--repetition-penalty {s.repetition_penalty}: must be positive (1: no penalty)"
    )


def without_effect(sampling: SamplingConfig) -> str | None:
    """A notice of the flags given (another value than the default) that `--greedy` has no use for; None: there are none."""
    given = [f.name for f in fields(sampling) if f.name in _DRAWING and getattr(sampling, f.name) != f.default]
    if not (sampling.greedy and given):
        return None
    flags = ", ".join(f"--{name.replace('_', '-')} {getattr(sampling, name)}" for name in given)
    return f"{flags}: no effect, --greedy takes the likeliest"


def acting(sampling: SamplingConfig) -> dict[str, Any]:
    """The flags that the answers depend on; all of them where tokens are drawn."""
    values = asdict(sampling)
    if not sampling.greedy:
        return values
    return {k: v for k, v in values.items() if k not in _DRAWING and v != _NEUTRAL.get(k)}
