"""Samples -> bins of exactly `--seq-length` tokens, as MindSpeed-LLM packs them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from tuneval.data.indexed import IndexedDataset
from tuneval.data.rendering import MASKED


def knapsack_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill one bin after the other, each time with the largest sample that still fits.

    Of samples equally long the last one comes first.

    >>> lengths = [2, 3, 4, 5]
    >>> [[lengths[i] for i in one] for one in knapsack_bins(lengths, 7)]
    [[5, 2], [4, 3]]

    Args:
        lengths: tokens of each sample, none above `capacity`.
        capacity: tokens of a bin.

    Returns:
        Indices into `lengths`, bin by bin.
    """
    waiting: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        waiting.setdefault(int(length), []).append(index)
    sizes, bins = sorted(waiting), []
    while sizes:
        room, members = capacity, []
        while at := bisect_right(sizes, room):
            size = sizes[at - 1]
            members.append(waiting[size].pop())
            room -= size
            if not waiting[size]:
                del sizes[at - 1]
        bins.append(members)
    return bins


def packed_rows(
    input_ids: IndexedDataset, labels: IndexedDataset, seq_length: int, pad_token_id: int, number_samples: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The rows of a packed data set.

    Args:
        input_ids, labels: the samples, none of `seq_length` tokens or more.
        seq_length: tokens of each row; one at least is padding.
        pad_token_id: fills the rows.
        number_samples: the attention mask counts the samples of a row 1, 2, 3, ... and is 0 on padding
            (`--neat-pack`); else it is 1 everywhere.

    Yields:
        int32 [seq_length] input ids, attention mask, labels.
    """
    for members in knapsack_bins(input_ids.lengths, seq_length - 1):
        ids = np.full(seq_length, pad_token_id, np.int32)
        mask = np.full(seq_length, 0 if number_samples else 1, np.int32)
        targets = np.full(seq_length, MASKED, np.int32)
        at = 0
        for number, index in enumerate(members, 1):
            part = slice(at, at + int(input_ids.lengths[index]))
            ids[part], targets[part], at = input_ids[index], labels[index], part.stop
            if number_samples:
                mask[part] = number
        yield ids, mask, targets
