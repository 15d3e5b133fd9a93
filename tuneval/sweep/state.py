"""What is done of a sweep: one small file a step, and the settings that must not change while it goes on."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneval import console
from tuneval.errors import Problems, UserError
from tuneval.files import read_json, write_json
from tuneval.sweep.spec import Sweep
from tuneval.sweep.steps import Plan, Step

RECORD = "sweep.json"
SCHEMA_VERSION = 1
DONE, FAILED, STOPPED, SKIPPED = "done", "failed", "stopped", "skipped"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended."""

    status: str
    """`done`, `failed`, `stopped` (by a signal to the sweep), or `skipped` (something it needs failed)."""
    command: list[str]
    seconds: float
    ended: str
    """ISO 8601 with the time zone."""
    error: str = ""
    log: str = ""
    """File of what it printed, relative to the sweep's folder."""


class SweepState:
    """Reads and writes the outcomes below one sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def outcome(self, step: Step) -> Outcome | None:
        """The recorded outcome, if it is of this very command and its output is still there."""
        path = self._file(step.id)
        if not path.is_file():
            return None
        found = Outcome(**read_json(path))
        same = found.command == list(step.words)
        return found if same and (found.status != DONE or step.output.exists()) else None

    def record(self, step: Step, status: str, seconds: float, error: str = "", log: str = "") -> Outcome:
        """Write how a step ended."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        found = Outcome(status=status, command=list(step.words), seconds=seconds, ended=now, error=error, log=log)
        write_json(self._file(step.id), asdict(found))
        return found

    def forget(self, steps: Iterable[Step]) -> None:
        """Let steps be run again."""
        for step in steps:
            self._file(step.id).unlink(missing_ok=True)

    def log_file(self, step: Step) -> Path:
        return self.folder / "logs" / f"{step.id.replace('/', '.')}.txt"

    def _file(self, step_id: str) -> Path:
        return self.folder / "state" / f"{step_id.replace('/', '.')}.json"


@contextmanager
def sweep_lock(folder: Path) -> Iterator[int]:
    """Only one process works on a sweep's folder; a second one waits.

    Yields:
        The lock's descriptor, to be passed to every child: the lock ends with the last of them, so that a sweep that
        was killed is not continued beside a child of it that still saves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.note(f"{folder}: something of this sweep is still running; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def open_sweep(plan: Plan) -> None:
    """Write OUT/sweep.json, or hold the sweep against the one that the folder holds: points may come and go.

    Raises:
        UserError: the folder holds something else, or what the points share has changed.
    """
    path, sweep = plan.folder / RECORD, plan.sweep
    shared = {name: getattr(sweep, name) for name in ("base", "preprocess", "convert", "evaluate", "answers")}
    shared = json.loads(json.dumps(shared, default=str))
    if path.is_file():
        _check_same(path, read_json(path), shared)
    elif plan.folder.is_dir() and any(p for p in plan.folder.iterdir() if p.name != ".lock"):
        raise UserError(f"--output {plan.folder}: holds other files. Choose another folder, or remove it")
    write_json(path, _record(plan, shared))


def _check_same(path: Path, earlier: dict[str, Any], shared: dict[str, Any]) -> None:
    problems = Problems()
    for name, now in shared.items():
        before = earlier["shared"][name]
        if now == before:
            continue
        keys = sorted(k for k in {**(before or {}), **(now or {})} if (before or {}).get(k) != (now or {}).get(k))
        told = "; ".join(f"{k} was {(before or {}).get(k)}, is {(now or {}).get(k)}" for k in keys) or "came or went"
        problems.add(f"{name} ({told})")
    if problems.messages:
        raise UserError(
            f"{path}: this sweep was begun with other shared settings: {', '.join(problems.messages)}. "
            "Points may come and go, what they share may not: choose another --output"
        )


def _record(plan: Plan, shared: dict[str, Any]) -> dict[str, Any]:
    """sweep.json: the points and where everything of theirs lies, for the report; paths relative to the folder."""
    sweep = plan.sweep
    return {
        "schema_version": SCHEMA_VERSION,
        "name": sweep.name,
        "objective": sweep.objective,
        "shared": shared,
        "axes": {axis: [asdict(level) for level in levels] for axis, levels in sweep.axes.items()},
        "points": [
            {
                "id": job.point.id,
                "levels": job.point.levels,
                "flags": json.loads(json.dumps(job.point.flags, default=str)),
                "seed": job.point.seed,
                "listed": job.point.listed,
                "run": str(job.run.relative_to(plan.folder)),
                "baseline": None if job.baseline is None else str(job.baseline.relative_to(plan.folder)),
                "steps": [step.id for step in job.steps],
            }
            for job in plan.jobs
        ],
        "file": json.loads(json.dumps(sweep.source, default=str)),
    }


def best_point(sweep: Sweep, found: dict[str, float]) -> str | None:
    """The id with the best figure of the sweep's objective."""
    if not found:
        return None
    return (max if sweep.objective == "score" else min)(found, key=found.__getitem__)
