"""The terminal: one console, notices, and a progress bar for every long job."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
"""Results: tables, texts, paths."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Everything else: progress, notices, errors, so that standard output can be piped."""


def quiet(on: bool) -> None:
    """Print nothing from now on, or print again: of many processes one talks."""
    out.quiet = err.quiet = on


def note(message: str) -> None:
    """One line to the user on standard error, printed as it is (no markup)."""
    err.print(message, markup=False)


def warn(message: str) -> None:
    err.print(f"warning: {message}", style="yellow", markup=False)


class Bar:
    """A running progress bar: `advance(n)`, and `describe(text)` for what is under way."""

    def __init__(self, progress: Progress | None, task, label: str, total: int | None, every_seconds: float) -> None:
        self._progress, self._task, self._label, self._total = progress, task, label, total
        self._done, self._every, self._printed = 0, every_seconds, time.monotonic()

    def advance(self, n: int = 1) -> None:
        self._done += n
        if self._progress is not None:
            self._progress.advance(self._task, n)
        elif time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            note(f"{self._label}: {self._done}" + (f" of {self._total}" if self._total else ""))

    def describe(self, text: str) -> None:
        self._label = text
        if self._progress is not None:
            self._progress.update(self._task, description=text)


@contextmanager
def progress_bar(label: str, total: int | None = None, every_seconds: float = 15.0) -> Iterator[Bar]:
    """A bar on a terminal; a plain line every `every_seconds` where there is none (a log file, a pipe)."""
    if err.quiet or not sys.stderr.isatty():
        yield Bar(None, None, label, total, every_seconds)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # A piped standard output must not be drawn into the terminal with the bar.
    with Progress(*columns, console=err, redirect_stdout=sys.stdout.isatty()) as progress:
        yield Bar(progress, progress.add_task(label, total=total), label, total, every_seconds)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` under a progress bar."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress_bar(label, total) as bar:
        for item in items:
            yield item
            bar.advance()
