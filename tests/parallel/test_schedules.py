"""The timetable of a step against the papers' formulas; that torch takes these actions shows test_pipeline.py."""

from __future__ import annotations

import pytest

from tuneval.parallel.mesh import Layout
from tuneval.parallel.schedules import orders, timetable


def layout(stages: int, chunks: int = 1, schedule: str = "1f1b") -> Layout:
    return Layout(pipeline=stages, layers=tuple((i,) for i in range(stages * chunks)), schedule=schedule)


SIZES = [(2, 1, 2), (4, 1, 4), (4, 1, 32), (8, 1, 16), (2, 2, 4), (4, 2, 8), (4, 4, 16)]


@pytest.mark.parametrize(("stages", "chunks", "count"), SIZES)
def test_bubble_of_equal_stages(stages, chunks, count):
    """(p - 1) / (v m + p - 1) of the time: Narayanan et al. 2021, section 2.2."""
    table = timetable(layout(stages, chunks), count, forward=1 / chunks, backward=2 / chunks)
    assert table.bubble == pytest.approx((stages - 1) / (chunks * count + stages - 1))
    assert table.busy == pytest.approx([3 * count] * stages)


def test_gpipe_waits_as_long_and_holds_everything():
    ours, gpipe = timetable(layout(4), 12), timetable(layout(4, schedule="gpipe"), 12)
    assert gpipe.duration == pytest.approx(ours.duration)
    assert gpipe.in_flight == (12, 12, 12, 12) and ours.in_flight == (4, 3, 2, 1)


def test_interleaving_holds_more_chunks():
    """Megatron's 2 (p - 1 - r) + (v - 1) p passes ahead, and the one under way."""
    assert timetable(layout(4, 2), 8).in_flight == (11, 9, 7, 5)


def test_the_slowest_stage_sets_the_pace():
    even, uneven = timetable(layout(4), 40, 1.0, 2.0), timetable(layout(4), 40, [1, 1, 1, 2], [2, 2, 2, 4])
    assert uneven.duration == pytest.approx(3 * (1 + 1 + 1) + 40 * 6)
    assert uneven.bubble > even.bubble and uneven.busy == (120, 120, 120, 240)


def test_transfers_delay():
    assert timetable(layout(2), 2, 1, 2, transfer=0.5).duration > timetable(layout(2), 2, 1, 2).duration


@pytest.mark.parametrize(("stages", "chunks", "count"), SIZES)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_every_pass_happens_once(stages, chunks, count, schedule):
    for stage, actions in enumerate(orders(layout(stages, chunks, schedule), count)):
        expected = {(k, c * stages + stage, m) for k in "FB" for c in range(chunks) for m in range(count)}
        assert len(actions) == len(expected) and set(map(tuple, actions)) == expected
