"""Pieces of an exam, and what ranks know of each other."""

from __future__ import annotations

from dataclasses import replace

from tiny_exams import tiny_exam

from tuneval.evaluation.units import ALONE, Unit, units


def test_long_subjects_are_divided():
    exam = tiny_exam("ceval", questions=600)
    two = replace(exam, questions={**exam.questions, "law": exam.questions["logic"][:3]})
    assert units(two) == [
        Unit("logic", 0, 256),
        Unit("logic", 256, 512),
        Unit("logic", 512, 600),
        Unit("law", 0, 3),
    ]


def test_a_process_by_itself_hears_its_own_word():
    assert ALONE.gather("x") == ["x"] and ALONE.first("x") == "x" and ALONE.is_main
