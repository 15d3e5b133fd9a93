"""How the runner starts its commands, and which of them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneval.sweep import runner
from tuneval.sweep.points import Point
from tuneval.sweep.runner import Runner
from tuneval.sweep.spec import Sweep
from tuneval.sweep.steps import Job, Plan, Step


@pytest.mark.parametrize("jobs, threads", [(1, None), (2, "3"), (9, "1")])
def test_points_at_once_share_the_cores(monkeypatch, jobs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "usable_cores", lambda: 7)
    assert runner._environment(jobs, 0).get("OMP_NUM_THREADS") == threads


def run_point(folder: Path, tuned_for: str, dies: bool = False) -> list[str]:
    """Run a sweep of one point, of two steps that write a file each; returns those that were run."""
    ran, point = [], Point(id="mine", levels={}, flags={})

    def step(name: str, *words: str) -> Step:
        def act() -> None:
            if dies and name == "evaluate":
                raise KeyboardInterrupt
            ran.append(name)
            (folder / name).write_text("")

        return Step(id=f"mine/{name}", words=(name, *words), output=folder / name, action=act)

    sweep = Sweep(name="s", output=None, base={}, axes={}, points=(point,), objective="validation_loss")
    job = Job(point=point, run=folder, steps=(step("tune", tuned_for), step("evaluate")), baseline=None)
    plan = Plan(sweep=sweep, folder=folder, shared=(), jobs=(job,))
    Runner(plan, jobs=1, keep="all", skip_failed=False, lock=0).run()
    return ran


def test_what_follows_a_changed_step_is_run_again(tmp_path):
    """A point whose name stayed and whose flags changed: the earlier tuning's score is not this one's."""
    assert run_point(tmp_path, "2 steps") == ["tune", "evaluate"]
    assert run_point(tmp_path, "2 steps") == []
    with pytest.raises(KeyboardInterrupt):
        run_point(tmp_path, "4 steps", dies=True)
    assert run_point(tmp_path, "4 steps") == ["evaluate"]
