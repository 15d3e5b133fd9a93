"""Pieces of an exam and their division among ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_exams import tiny_exam

from tuneval.evaluation.units import ALONE, Unit, share, units


def test_long_subjects_are_divided():
    exam = tiny_exam("ceval", questions=600)
    two = replace(exam, questions={**exam.questions, "law": exam.questions["logic"][:3]})
    assert units(two) == [
        Unit("logic", 0, 256),
        Unit("logic", 256, 512),
        Unit("logic", 512, 600),
        Unit("law", 0, 3),
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_piece_is_scored_once_and_loads_are_even(world):
    costs = [(i * 37) % 53 + 1.0 for i in range(52)]
    parts = [share(costs, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(52))
    loads = [sum(costs[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs)
    assert share(costs, 0, 1) == list(range(52)) and ALONE.gather("x") == ["x"]


def test_more_ranks_than_pieces():
    assert [share([5.0, 1.0], rank, 4) for rank in range(4)] == [[0], [1], [], []]
