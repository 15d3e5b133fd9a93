"""What a running sweep shows: what runs, what is left, the best so far, and about how long it still takes."""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from tuneval import console
from tuneval.files import read_json, read_jsonl
from tuneval.sweep.state import SweepState, best_point
from tuneval.sweep.steps import Job, Plan, Step


class SweepProgress:
    """A bar over the points on a terminal, a line at each event elsewhere; a context manager, used by several threads."""

    def __init__(self, plan: Plan, state: SweepState, jobs: int = 1) -> None:
        self.plan, self.state, self.jobs = plan, state, jobs
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Step, Job | None]] = {}
        self._scores: dict[str, float] = {}
        self._ended, self._failed = 0, 0
        self._seconds: list[float] = []
        self._started: dict[str, float] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SweepProgress:
        self._bar = self._stack.enter_context(console.progress_bar("sweep", len(self.plan.jobs), float("inf")))
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.__exit__(*failure)

    def started(self, step: Step, job: Job | None) -> None:
        """A step begins; `job` is None for shared ones."""
        with self._lock:
            self._running[step.id] = (step, job)
            if job is not None:
                self._started.setdefault(job.point.id, time.monotonic())
        where = "shared" if job is None else f"{self._number(job)}/{len(self.plan.jobs)} {job.point.label}"
        console.note(f"{where}: {step.kind}")

    def step_ended(self, step: Step) -> None:
        with self._lock:
            self._running.pop(step.id, None)

    def ended(self, job: Job, ok: bool, error: str = "") -> None:
        """A point is done, or failed."""
        with self._lock:
            self._ended += 1
            self._failed += not ok
            began = self._started.get(job.point.id)
            if began is not None:
                self._seconds.append(time.monotonic() - began)
            score = objective_of(job, self.plan.sweep.objective) if ok else None
            if score is not None and math.isfinite(score):  # no number can be the best
                self._scores[job.point.id] = score
            self._bar.advance()
            said = self._figure(score) if ok else "FAILED: " + (error.strip().splitlines() or ["?"])[-1]
            news = f"{self._number(job)}/{len(self.plan.jobs)} {job.point.label}: {said}"
            rest = self._rest()
        if began is not None or not ok:
            console.note(f"{news} ({rest})")

    def refresh(self) -> None:
        """Bring the bar's text up to date."""
        with self._lock:
            running = [
                f"{self._number(job)} {_at(step, job)}" for step, job in self._running.values() if job is not None
            ]
            self._bar.describe("; ".join([*running, self._rest()]))

    def _rest(self) -> str:
        parts = [f"{len(self.plan.jobs) - self._ended} left"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        best = best_point(self.plan.sweep, self._scores)
        if best is not None:
            label = next(job.point.label for job in self.plan.jobs if job.point.id == best)
            parts.append(f"best so far {label}: {self._figure(self._scores[best])}")
        if self._seconds and self._ended < len(self.plan.jobs):
            left = len(self.plan.jobs) - self._ended
            seconds = sum(self._seconds) / len(self._seconds) * left / min(self.jobs, left)
            parts.append(f"about {spell_seconds(seconds)} to go")
        return ", ".join(parts)

    def _figure(self, value: float | None) -> str:
        if value is None:
            return "done"
        return f"{value:.1%}" if self.plan.sweep.objective == "score" else f"validation loss {value:.4f}"

    def _number(self, job: Job) -> int:
        return self.plan.jobs.index(job) + 1


def objective_of(job: Job, objective: str) -> float | None:
    """The figure that a finished point is ranked by; None where it is not there."""
    if objective == "score":
        places = sorted((job.run / "evaluation").glob("*/results.json"))
        return read_json(places[0])["micro"]["accuracy"] if places else None
    path = job.run / "validation.jsonl"
    rows = read_jsonl(path) if path.is_file() else []
    return rows[-1]["loss"] if rows else None


def _at(step: Step, job: Job) -> str:
    """`tune step 12, loss 2.31`, from the run's own records."""
    if step.kind != "tune":
        return step.kind
    last = _last_line(job.run / "metrics.jsonl")
    return "tune" if last is None else f"tune step {last['step']}, loss {last['loss']:.3f}"


def _last_line(path: Path) -> dict | None:
    rows = read_jsonl(path) if path.is_file() else []
    return rows[-1] if rows else None


def spell_seconds(seconds: float) -> str:
    """Seconds in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
