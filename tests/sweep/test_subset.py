"""data_size and data_filter: the same records every time, a small part within a large one, only those that pass."""

from __future__ import annotations

import pytest

from tuneval.errors import UserError
from tuneval.files import read_jsonl, write_jsonl
from tuneval.sweep.records import Subset, write_subset

ROWS = [{"instruction": f"question {i}", "input": "", "output": "a" * i} for i in range(1, 41)]


def kept(tmp_path, data, rows=ROWS):
    write_jsonl(tmp_path / "in.jsonl", rows)
    write_subset(tmp_path / "in.jsonl", tmp_path / "out.jsonl", Subset.of(data), "auto", None)
    return read_jsonl(tmp_path / "out.jsonl")


def test_a_smaller_part_lies_within_a_larger_one_in_file_order(tmp_path):
    small, large = (kept(tmp_path, {"data_size": n}) for n in (5, 20))
    assert len(small) == 5 and len(large) == 20
    assert [r for r in large if r in small] == small and [r for r in ROWS if r in large] == large
    assert kept(tmp_path, {"data_size": 5}) == small
    assert kept(tmp_path, {"data_size": 100}) == ROWS


def test_filters(tmp_path):
    found = kept(tmp_path, {"data_filter": {"min_answer_characters": 10, "max_answer_characters": 12}})
    assert [len(r["output"]) for r in found] == [10, 11, 12]
    assert [r["instruction"] for r in kept(tmp_path, {"data_filter": {"contains": r"question 1\d?$"}})][:2] == [
        "question 1",
        "question 10",
    ]
    assert len(kept(tmp_path, {"data_filter": {"lacks": r"question [2-9]"}})) == 11


def test_bad_rows_are_left_out(tmp_path):
    assert kept(tmp_path, {"data_size": 3}, [{"instruction": "q", "output": ""}, *ROWS[:2]]) == ROWS[:2]


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no record passes"):
        kept(tmp_path, {"data_filter": {"contains": "xyz"}})


@pytest.mark.parametrize(
    "data, said",
    [
        ({"data_size": -1}, "data_size -1: must be a number of records, or all"),
        ({"data_filter": "short"}, "must hold conditions"),
        ({"data_filter": {"longest": 3}}, "longest: unknown; known are min_answer_characters"),
        ({"data_filter": {"lacks": "("}}, "no regular expression"),
        ({"data_filter": {"min_answer_characters": "3"}}, "must be a number"),
    ],
)
def test_mistakes(data, said):
    with pytest.raises(UserError, match=said):
        Subset.of(data)
