"""Micro-batches made alike: the samples of the step, each once, in rows of one length."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from parallel.pipeline_cases import micro_batch

from tuneval.parallel.mesh import Layout
from tuneval.parallel.micro_batches import PADDING_SEGMENT, alike, needed

LAYERS = tuple((i,) for i in range(8))


def samples(micro_batches) -> list[tuple]:
    """Every segment with something in it: its tokens, targets, weights and positions, sorted."""
    found = []
    for m in micro_batches:
        for a, b in pairwise(m.segments):
            columns = (m.input_ids, m.targets, m.weights, m.position_ids)
            values = tuple(tuple(column[0, a:b].tolist()) for column in columns)
            found += [values] if any(values[0]) else []
    return sorted(found)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_every_sample_is_there_once(count):
    before = [micro_batch(n, lengths) for n, lengths in enumerate([(30, 5, 9), (41,), (7, 7)])]
    after = alike(before, count)
    assert len(after) == count and samples(after) == samples(before)
    lengths = {m.input_ids.shape[1] for m in after}
    assert len(lengths) == 1 and lengths.pop() % 8 == 0
    for m in after:
        assert m.segments[0] == 0 and m.segments[-1] == m.input_ids.shape[1]
        assert all(a < b for a, b in pairwise(m.segments))
        starts = torch.tensor(m.segments[:-1])
        assert bool((m.position_ids[0, starts] == 0).all())


def test_rows_are_no_longer_than_they_were_and_shorter_where_they_can_be():
    full_and_rest = [micro_batch(1, (40, 30, 30)), micro_batch(2, (10,))]
    assert alike(full_and_rest, 2)[0].input_ids.shape[1] == 64  # 60 and 50 instead of 100 and 10
    best = [micro_batch(1, (6, 6)), micro_batch(2, (4, 4, 4))]  # dealing anew gives 14 and 10
    assert [m.segments for m in alike(best, 2, multiple=1)] == [(0, 6, 12), (0, 4, 8, 12)]


def test_padding_is_untrained_and_cheap():
    (row,) = alike([], 1, multiple=200)
    assert row.input_ids.shape == (1, 200) and row.sample_ids == ()
    assert not row.weights.any() and bool((row.targets == -100).all())
    assert max(b - a for a, b in pairwise(row.segments)) <= PADDING_SEGMENT
    assert int(row.position_ids.max()) < PADDING_SEGMENT


@pytest.mark.parametrize(
    ("stages", "chunks", "schedule", "train", "counts"),
    [
        (4, 1, "1f1b", True, {0: 4, 1: 4, 4: 4, 5: 5}),
        (4, 1, "1f1b", False, {0: 1, 1: 1, 5: 5}),
        (4, 1, "gpipe", True, {0: 1, 1: 1, 5: 5}),
        (4, 2, "1f1b", True, {0: 4, 1: 4, 4: 4, 5: 8}),
        (4, 2, "1f1b", False, {1: 4, 5: 8}),
    ],
)
def test_what_a_schedule_needs(stages, chunks, schedule, train, counts):
    layout = Layout(pipeline=stages, layers=LAYERS[: stages * chunks], schedule=schedule)
    assert {count: needed(count, layout, train) for count in counts} == counts
