"""Folders of sweeps as `tuneval ablate` leaves them, made on the spot: deterministic, nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from report_runs import make_evaluation, make_run

from tuneval.report.records import Validation, write_records
from tuneval.sweep.spec import Sweep, read_sweep
from tuneval.sweep.state import DONE, FAILED, SweepState, open_sweep
from tuneval.sweep.steps import Plan, make_plan

SWEEP: dict[str, Any] = {
    "name": "rank and rate",
    "base": {"load": "models/qwen", "data_path": "data/zh", "train_iters": 40, "global_batch_size": 16},
    "axes": {"lora_r": [4, 16], "lr": [1e-4, "1e-3", 3e-3]},
    "points": [{"name": "full", "lora_r": None, "lr": 1e-5}],
    "evaluate": {"task_data_path": "data/ceval-exam.zip"},
}
SKILL = {"4": 0.46, "16": 0.56, "1e-4": 0.0, "1e-3": 0.12, "3e-3": -0.05, "full": 0.5, "none": 0.0, "1e-5": 0.0}
"""Level -> what it adds to a point's share of right answers."""


def sweep_file(folder: Path, **changes: Any) -> Path:
    """A sweep's YAML file: SWEEP with some keys replaced; None leaves one out."""
    values = {k: v for k, v in {**SWEEP, **changes}.items() if v is not None}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def read(folder: Path, **changes: Any) -> Sweep:
    return read_sweep(sweep_file(folder, **changes))


def make_sweep(folder: Path, failing: str | None = None, unfinished: str | None = None, **changes: Any) -> Plan:
    """A sweep's folder, `folder/out`, whose points are done, but for one that failed and one that was not begun.

    Args:
        folder: for the file and the sweep.
        failing: label of the setting whose tuning failed.
        unfinished: label of the setting that did not run.
        changes: to the sweep file.
    """
    sweep = read(folder, **changes)
    plan = make_plan(sweep, folder / "out")
    open_sweep(plan)
    state = SweepState(plan.folder)
    for number, job in enumerate(plan.jobs):
        if job.baseline is not None and not job.baseline.exists():
            make_evaluation(job.baseline, 0.45)
        if job.point.settings == unfinished:
            continue
        if job.point.settings == failing:
            state.record(job.steps[0], FAILED, 1.0, "loading\nValueError: <b>no</b> such rank", "logs/x.txt")
            continue
        skill = sum(SKILL[label] for label in job.point.levels.values())
        method = "full" if "full" in job.point.levels.values() else "lora"
        make_run(job.run, method=method, steps=40, seed=number, train_iters=40)
        last = 2.0 - skill + 0.01 * number
        write_records(
            job.run / "validation.jsonl", [Validation(step=s, loss=last + 0.5 / s, perplexity=9.0) for s in (1, 40)]
        )
        for step in job.steps:
            if step.kind == "evaluate":
                make_evaluation(step.output.parent, skill, seed=number + 1)
            state.record(step, DONE, 1.0)
    return plan
