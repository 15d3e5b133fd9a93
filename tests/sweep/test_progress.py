"""What a running sweep says of the time that is left."""

from __future__ import annotations

import math
import time

import pytest
from sweep_runs import make_sweep

from tuneval.report.records import Validation, write_records
from tuneval.sweep.progress import SweepProgress
from tuneval.sweep.state import SweepState


@pytest.mark.parametrize("jobs, said", [(1, "about 5 min to go"), (2, "about 2 min to go"), (100, "about 60 s to go")])
def test_time_to_go_counts_the_jobs_at_a_time(tmp_path, capsys, monkeypatch, jobs, said):
    plan = make_sweep(tmp_path, axes={"lora_r": [4, 16], "lr": [1e-4, "1e-3", 3e-3]}, points=None)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with SweepProgress(plan, SweepState(plan.folder), jobs) as progress:
        first = plan.jobs[0]
        progress.started(first.steps[0], first)
        clock[0] += 60
        progress.ended(first, ok=True)
    text = " ".join(capsys.readouterr().err.split())
    assert "5 left, best so far lora_r=4, lr=1e-4: " in text and said in text


def test_what_is_no_number_is_not_the_best_so_far(tmp_path, capsys):
    plan = make_sweep(tmp_path, evaluate=None, points=None)
    first, second = plan.jobs[:2]
    write_records(first.run / "validation.jsonl", [Validation(step=40, loss=math.nan, perplexity=math.nan)])
    with SweepProgress(plan, SweepState(plan.folder)) as progress:
        for job in (first, second):
            progress.started(job.steps[0], job)
            progress.ended(job, ok=True)
    assert "4 left, best so far lora_r=4, lr=1e-3: " in " ".join(capsys.readouterr().err.split())
