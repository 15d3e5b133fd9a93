"""How the runner starts its commands."""

from __future__ import annotations

import pytest

from tuneval.sweep import runner


@pytest.mark.parametrize("jobs, threads", [(1, None), (2, "3"), (9, "1")])
def test_points_at_once_share_the_cores(monkeypatch, jobs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "usable_cores", lambda: 7)
    assert runner._environment(jobs, 0).get("OMP_NUM_THREADS") == threads
