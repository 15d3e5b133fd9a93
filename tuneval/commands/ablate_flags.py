"""What the flags of `ablate` and its sweep file show by themselves."""

from __future__ import annotations

from tuneval.config.schema import AblateConfig
from tuneval.errors import Problems
from tuneval.sweep.checks import check_sweep
from tuneval.sweep.spec import read_sweep


def check(config: AblateConfig) -> None:
    """Raise one UserError for all that is wrong."""
    problems = Problems()
    problems.check(config.jobs >= 1, f"--jobs {config.jobs}: must be at least 1")
    problems.check(config.measure_steps >= 0, f"--measure-steps {config.measure_steps}: must be at least 0")
    problems.attempt(lambda: check_sweep(read_sweep(config.sweep)))
    problems.raise_if_any()
