"""What a check of a run folder found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tuneval.errors import UserError

OK, WRONG, OPEN = "ok", "wrong", "open"
"""Agrees; does not agree, or is missing; can't be told from here."""
MOST_NAMED = 3
"""Places named of one fault."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at."""

    what: str
    state: str
    detail: str = ""


@dataclass
class Findings:
    """Collects findings."""

    found: list[Finding] = field(default_factory=list)

    def add(self, what: str, state: str, detail: str = "") -> None:
        self.found.append(Finding(what=what, state=state, detail=detail))

    def check(self, what: str, right: object, wrong: str, detail: str = "") -> None:
        """`detail` where it is right, `wrong` where it is not."""
        self.add(what, OK if right else WRONG, detail if right else wrong)

    def none_of(self, what: str, faults: Iterable[str], detail: str = "") -> None:
        """Right where there is no fault; the first few are named."""
        faults = list(faults)
        named = "; ".join(faults[:MOST_NAMED]) + (
            f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        )
        self.add(what, WRONG if faults else OK, named if faults else detail)

    def attempt(self, what: str, action: Callable[[], object]) -> object | None:
        """What `action` gives; a UserError of it is a finding."""
        try:
            return action()
        except UserError as error:
            self.add(what, WRONG, str(error))
            return None

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return all(finding.state != WRONG for finding in self.found)
