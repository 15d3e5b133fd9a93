"""Errors a user can act on, collected so that one run shows them all."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


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

    def attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; None where it raised a UserError, which is added."""
        try:
            return action()
        except UserError as error:
            self.add(str(error))
            return None

    def raise_if_any(self) -> None:
        if len(self.messages) == 1:
            raise UserError(self.messages[0])
        if self.messages:
            numbered = "\n".join(f"  {i}. {m}" for i, m in enumerate(self.messages, 1))
            raise UserError(f"{len(self.messages)} problems:\n{numbered}")


_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some space, or choose a folder on another disk",
    errno.EFBIG: "choose a folder on a disk that takes larger files",
    errno.EACCES: "choose a path you have the right to use",
    errno.EPERM: "choose a path you have the right to use",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTDIR: "a part of this path is a file; choose another",
    errno.EISDIR: "give a file, not a folder",
    errno.EBUSY: "give the name of a new one",
    errno.EEXIST: "a file is in the way; choose another path, or remove it",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the links of this path go in a circle; mend them",
}


def tell(error: OSError) -> str:
    """What the operating system refused, as a user error is told: the path, the reason, what to do."""
    paths = " -> ".join(str(p) for p in (error.filename, error.filename2) if p is not None)
    reason = error.strerror or str(error) or type(error).__name__
    remedy = f": {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{paths}: {reason}{remedy}" if paths else f"{reason}{remedy}"


def tell_torchrun(message: str) -> None:
    """Let the summary with which torchrun ends say why, too: it stands last, some fifty lines below what was printed."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        error = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": error}), encoding="utf-8")
