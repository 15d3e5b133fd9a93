"""Micro-batches of a step made alike: as many as a pipeline schedule needs, all of one length.

The samples are only dealt out anew and padded; weights, positions and targets stay, so the loss does too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from tuneval.data.batches import MicroBatch, deal
from tuneval.data.rendering import MASKED
from tuneval.parallel.mesh import Layout

PADDING_SEGMENT = 64
"""Tokens of a segment of padding: short ones, so that attention over padding costs next to nothing."""


def needed(count: int, layout: Layout, train: bool = True) -> int:
    """The smallest number of micro-batches, `count` or more, that the layout's schedule runs.

    Interleaved stages pass them on in rounds of one for each stage; 1F1B fills every stage; GPipe, and any evaluation
    without interleaving, takes what there is.
    """
    if layout.chunks_per_stage > 1:
        return max(1, -(-count // layout.pipeline)) * layout.pipeline
    return max(count, layout.pipeline if train and layout.schedule == "1f1b" else 1)


def alike(micro_batches: Sequence[MicroBatch], count: int, multiple: int = 8) -> list[MicroBatch]:
    """The same samples in `count` micro-batches of one length.

    Args:
        micro_batches: of one step, at most `count`; none: all are padding.
        count: how many to make.
        multiple: the length is a multiple of it.

    Returns:
        Dealt out so that the longest is short; as they came where that is no better.
    """
    assert len(micro_batches) <= count, "more micro-batches than asked for"
    rows = [[(m, a, b) for a, b in pairwise(m.segments)] for m in micro_batches]
    rows += [[] for _ in range(count - len(rows))]
    pieces = [piece for row in rows for piece in row]
    dealt = [[pieces[i] for i in row] for row in deal([b - a for _, a, b in pieces], count)]
    if max(map(_tokens, dealt)) < max(map(_tokens, rows)):
        rows = dealt
    length = max(1, -(-max(map(_tokens, rows)) // multiple)) * multiple
    return [_join(row, length) for row in rows]


_Piece = tuple[MicroBatch, int, int]
"""A segment of a micro-batch, from token to token."""


def _tokens(row: list[_Piece]) -> int:
    return sum(b - a for _, a, b in row)


def _join(row: list[_Piece], length: int) -> MicroBatch:
    used, bounds = _tokens(row), [0]
    for _, a, b in row:
        bounds.append(bounds[-1] + b - a)
    bounds += [*range(used + PADDING_SEGMENT, length, PADDING_SEGMENT), length] if used < length else []
    padding = torch.arange(length - used)[None]

    def column(name: str, filler: torch.Tensor) -> torch.Tensor:
        return torch.cat([*(getattr(m, name)[:, a:b] for m, a, b in row), filler], 1)

    return MicroBatch(
        input_ids=column("input_ids", torch.zeros_like(padding)),
        targets=column("targets", torch.full_like(padding, MASKED)),
        weights=column("weights", torch.zeros(1, length - used)),
        position_ids=column("position_ids", padding % PADDING_SEGMENT),
        segments=tuple(bounds),
        sample_ids=tuple(dict.fromkeys(i for m, *_ in row for i in m.sample_ids)),
    )
