"""What the flags of `verify` show by themselves."""

from __future__ import annotations

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import VerifyConfig
from tuneval.errors import Problems


def check(config: VerifyConfig) -> None:
    """Raise one UserError for paths where nothing is."""
    problems = Problems()
    for path in (config.a, config.b):
        problems.attempt(lambda path=path: check_there(path))
    problems.raise_if_any()
