"""Results in the terminal, whatever its width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tuneval import console
from tuneval.report.records import Comparison
from tuneval.report.tables import print_comparison

FIGURES = {
    "n": 1346,
    "a_accuracy": 0.27,
    "b_accuracy": 1.0,
    "difference": 0.73,
    "low": 0.654,
    "high": 0.792,
    "a_only": 0,
    "b_only": 983,
    "p_value": 0.0,
}


@pytest.mark.parametrize("width", [60, 80])
def test_no_figure_is_cut_off(width, tmp_path, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=written, width=width, soft_wrap=True))
    comparison = Comparison(a="a", b="b", **FIGURES, verdict="", categories={"Social Science": FIGURES})
    print_comparison(comparison, tmp_path)
    assert "…" not in written.getvalue()
    assert "Social Science  1346   27.0%  100.0%   +73.0  +65.4 to +79.2     0  983  <0.0001" in written.getvalue()
