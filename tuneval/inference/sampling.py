"""The sampling flags held against their ranges, without torch."""

from __future__ import annotations

from tuneval.config.schema import SamplingConfig
from tuneval.errors import Problems


def check_sampling(sampling: SamplingConfig) -> None:
    """Raise one UserError with every flag out of range."""
    problems = Problems()
    add_problems(sampling, problems)
    problems.raise_if_any()


def add_problems(sampling: SamplingConfig, problems: Problems) -> None:
    """Add every flag out of range."""
    s = sampling
    problems.check(s.max_new_tokens >= 1, f"--max-new-tokens {s.max_new_tokens}: must be at least 1")
    problems.check(s.temperature > 0, f"--temperature {s.temperature}: must be positive; --greedy takes the likeliest")
    problems.check(s.top_k >= 0, f"--top-k {s.top_k}: must be at least 0 (0: all tokens)")
    problems.check(0 < s.top_p <= 1, f"--top-p {s.top_p}: must be above 0 and at most 1")
    problems.check(0 <= s.seed < 2**63, f"--seed {s.seed}: must be from 0 to below 2**63")
    problems.check(s.num_beams >= 1, f"--num-beams {s.num_beams}: must be at least 1")
    problems.check(
        s.repetition_penalty > 0, f"--repetition-penalty {s.repetition_penalty}: must be positive (1: no penalty)"
    )
