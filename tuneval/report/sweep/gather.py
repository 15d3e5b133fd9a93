"""A sweep's folder -> its settings and runs, done, failed and unfinished ones alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneval.errors import UserError
from tuneval.files import read_object
from tuneval.report.findings import Curve, curve
from tuneval.report.gather import Evaluation, ExamKey, Run, read_evaluations, read_run_folder
from tuneval.sweep.points import Level, spell_levels
from tuneval.sweep.state import DONE, FAILED, RECORD, SCHEMA_VERSION, SKIPPED


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """One tuning of the sweep and what came of it."""

    id: str
    seed: int | None
    status: str
    """`done`, `failed`, or `unfinished`."""
    failed_step: str = ""
    """`tune`, `evaluate`, ...; empty where none failed."""
    error: str = ""
    run: Run | None = None
    """None: it left no record."""
    curve: Curve | None = None
    baseline: dict[ExamKey, Evaluation]
    """Of the model it starts from."""

    def score(self, exam: ExamKey | None) -> float | None:
        """Accuracy over all questions."""
        evaluation = self.evaluation(exam)
        return None if evaluation is None else evaluation.result.micro["accuracy"]

    def evaluation(self, exam: ExamKey | None) -> Evaluation | None:
        return None if exam is None or self.run is None else self.run.evaluations.get(exam)

    @property
    def validation_loss(self) -> float | None:
        """The last one."""
        return self.run.validations[-1].loss if self.run is not None and self.run.validations else None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The points that differ in their seed alone."""

    number: int
    """From 1, in the order of the sweep; how figures and tables name it."""
    levels: dict[str, str]
    """Axis -> label."""
    listed: bool
    flags: dict[str, Any]
    points: tuple[PointResult, ...]

    @property
    def label(self) -> str:
        return spell_levels(self.levels)

    @property
    def short(self) -> str:
        """Levels alone, for figures."""
        return " / ".join(self.levels.values()) or "base"

    @property
    def done(self) -> tuple[PointResult, ...]:
        """Runs whose tuning and exam came to an end; missing sample answers don't count against them."""
        return tuple(p for p in self.points if p.status == DONE or p.failed_step == "answers")


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Everything a comparison needs."""

    folder: Path
    name: str
    objective: str
    """`score` or `validation_loss`."""
    axes: dict[str, tuple[Level, ...]]
    settings: tuple[Setting, ...]
    exam: ExamKey | None
    """The exam the sweep is judged by; None: none was taken."""
    file: dict[str, Any]
    """The sweep file as read."""

    @property
    def points(self) -> tuple[PointResult, ...]:
        return tuple(p for s in self.settings for p in s.points)

    def figure(self, point: PointResult) -> float | None:
        """What a point is judged by; None where there is none, or where it is no number."""
        value = self._judged_by(point)
        return None if value is None or not math.isfinite(value) else value

    def came_apart(self, setting: Setting) -> bool:
        """Whether what some run of the setting is judged by is no number."""
        return any((v := self._judged_by(p)) is not None and not math.isfinite(v) for p in setting.done)

    def _judged_by(self, point: PointResult) -> float | None:
        return point.score(self.exam) if self.objective == "score" else point.validation_loss

    def mean(self, setting: Setting) -> float | None:
        """The same of a setting: the mean over its seeds that are done. None where one of them came apart: the mean of the
        others would look better than the setting is."""
        if self.came_apart(setting):
            return None
        values = [v for p in setting.done if (v := self.figure(p)) is not None]
        return statistics.fmean(values) if values else None

    @property
    def ranked(self) -> list[Setting]:
        """Settings with a figure, the best first; of equals the earlier."""
        sign = -1 if self.objective == "score" else 1
        known = [(sign * mean, s.number, s) for s in self.settings if (mean := self.mean(s)) is not None]
        return [setting for _, _, setting in sorted(known, key=lambda entry: entry[:2])]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is the one of a `tuneval ablate`."""
    return (folder / RECORD).is_file() and not (folder / "config.json").is_file()


def gather_sweep(folder: Path) -> SweepResult:
    """Read a sweep's folder.

    Raises:
        UserError: it is none, or of a newer tuneval, or a record in it does not fit.
    """
    if not is_sweep(folder):
        raise UserError(f"{folder}: holds no {RECORD}, so it is not the folder of a `tuneval ablate`")
    record = read_object(folder / RECORD)
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{folder / RECORD}: schema_version {version}, this tuneval reads {SCHEMA_VERSION}")
    baselines: dict[str, dict[ExamKey, Evaluation]] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in record["points"]:
        groups.setdefault(repr(point["levels"]), []).append(point)
    settings = tuple(
        Setting(
            number=number,
            levels=group[0]["levels"],
            listed=group[0]["listed"],
            flags={k: v for k, v in group[0]["flags"].items() if k != "seed"},
            points=tuple(_read_point(folder, point, baselines) for point in group),
        )
        for number, group in enumerate(groups.values(), 1)
    )
    axes = {axis: tuple(Level(**level) for level in levels) for axis, levels in record["axes"].items()}
    exam = _exam([p for s in settings for p in s.points])
    return SweepResult(
        folder=folder,
        name=record["name"],
        objective=record["objective"],
        axes=axes,
        settings=settings,
        exam=exam,
        file=record["file"],
    )


def _read_point(folder: Path, point: dict[str, Any], baselines: dict[str, dict[ExamKey, Evaluation]]) -> PointResult:
    place, run = point["baseline"], folder / point["run"]
    if place is not None and place not in baselines:
        baselines[place] = read_evaluations(folder / place)
    status, step, error = _status(folder, point["steps"])
    found = read_run_folder(run, lambda record: point["id"]) if (run / "config.json").is_file() else None
    return PointResult(
        id=point["id"],
        seed=point["seed"],
        status=status,
        failed_step=step,
        error=error,
        run=found,
        curve=curve(found.steps) if found is not None else None,
        baseline=baselines.get(place, {}) if place is not None else {},
    )


def _status(folder: Path, steps: Sequence[str]) -> tuple[str, str, str]:
    """(status, step that failed, its error) from the state files."""
    for step in steps:
        path = folder / "state" / f"{step.replace('/', '.')}.json"
        outcome = read_object(path) if path.is_file() else {}
        if outcome.get("status") in (FAILED, SKIPPED):
            return FAILED, step.rsplit("/", 1)[-1], str(outcome.get("error", ""))
        if outcome.get("status") != DONE:
            return "unfinished", "", ""
    return DONE, "", ""


def _exam(points: Sequence[PointResult]) -> ExamKey | None:
    """The first exam that any point or baseline took."""
    for point in points:
        taken = [*(point.run.evaluations if point.run is not None else ()), *point.baseline]
        if taken:
            return taken[0]
    return None
