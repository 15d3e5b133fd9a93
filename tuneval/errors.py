"""Errors a user can act on, collected so that one run shows them all."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave can't be used. The text says what was given, the limit, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Problems:
    """Collects every problem of a check, then raises once.

    >>> problems = Problems()
    >>> problems.add("--lr -1: must be positive; 1e-5 is usual for full tuning")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    tuneval.errors.UserError: --lr -1: must be positive; 1e-5 is usual for full tuning
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        self.messages.append(message)

    def check(self, condition: object, message: str) -> None:
        """Add `message` unless `condition` holds."""
        if not condition:
            self.add(message)

    def raise_if_any(self) -> None:
        if len(self.messages) == 1:
            raise UserError(self.messages[0])
        if self.messages:
            numbered = "\n".join(f"  {i}. {m}" for i, m in enumerate(self.messages, 1))
            raise UserError(f"{len(self.messages)} problems:\n{numbered}")
