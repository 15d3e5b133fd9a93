"""Repetition, length and stops of answers; and what the page says of them."""

from __future__ import annotations

import pytest
from report_runs import make_run, with_samples

from tuneval.report.answers import answer_figures, words_of
from tuneval.report.records import SampleAnswer
from tuneval.report.render import write_report


def test_words():
    assert words_of("西湖 is 2_km wide。") == ["西", "湖", "is", "2_km", "wide", "。"]


def test_repetition_counts_runs_of_four():
    # a b c d a b c d: runs abcd bcda cdab dabc abcd -> 1 of 5 came before
    assert answer_figures(["a b c d a b c d"], [True]).repetition == pytest.approx(1 / 5)
    assert answer_figures(["我们都知道我们都知道", "a b"], [True, True]).repetition == pytest.approx(2 / 7)
    assert answer_figures(["a b c"], [True]).repetition is None


def test_length_stops_and_empty_ones():
    found = answer_figures(["abcd", "", "  "], [True, False, True])
    assert (found.characters, found.empty, found.stopped) == (2.0, 2, 2)
    assert answer_figures(["a", "b"], [True, None]).stopped is None


def test_the_page_shows_settings_and_figures(tmp_path):
    samples = [
        SampleAnswer(prompt="p", before="a b c d a b c d", after="yes", before_stopped=False, after_stopped=True,
                     settings={"greedy": True, "max_new_tokens": 8}),
        SampleAnswer(prompt="q", before="", after="no", before_stopped=True, after_stopped=True),
    ]  # fmt: skip
    run = with_samples(make_run(tmp_path / "run", steps=3), samples)
    text = write_report((run,), tmp_path / "r.html", "en")[1].read_text(encoding="utf-8")
    assert r"Generated with: greedy, max\_new\_tokens 8." in text
    assert "| before | 2 | 8 | 20.0% | 1\u00a0/\u00a02 | 1 |" in text
    assert "| after | 2 | 2 | — | 2\u00a0/\u00a02 | 0 |" in text
