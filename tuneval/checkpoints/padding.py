"""A source whose vocabulary is longer than the model's, as Megatron's version 1 converter pads it."""

from __future__ import annotations

from typing import Any

import torch

from tuneval.checkpoints.hf import Source
from tuneval.model.weight_map import ENDS

PADDED = frozenset(name for specs in ENDS.values() for spec in specs if spec.shapes == ("vh",) for name in spec.hf)
"""Tensors with one row a word."""


def padded_size(words: int, divisible_by: int, tp: int) -> int:
    """Rows of a vocabulary that `tp` ranks share in multiples of `divisible_by`.

    >>> padded_size(151936, 128, 8)
    152576

    Source: reference 1.5.
    """
    multiple = divisible_by * tp
    return -(-words // multiple) * multiple


class PaddedVocabulary:
    """The same checkpoint with the last row of its embedding and head repeated up to `size` rows.

    Args:
        base: the checkpoint.
        size: rows, at least the model's.
    """

    def __init__(self, base: Source, size: int) -> None:
        self.base, self.size = base, size
        self.folder, self.kind, self.config = base.folder, base.kind, base.config
        self.names, self.dtype = base.names, base.dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.base.shape(name))
        return (self.size, *shape[1:]) if name in PADDED else shape

    def read(self, name: str) -> torch.Tensor:
        return self.read_slice(name, 0, 0, self.shape(name)[0])

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        words = self.base.shape(name)[0]
        if name not in PADDED or dim or stop <= words:
            return self.base.read_slice(name, dim, start, stop)
        kept = self.base.read_slice(name, 0, start, words) if start < words else None
        last = self.base.read_slice(name, 0, words - 1, words)
        rows = last.expand(stop - max(start, words), -1)
        return rows if kept is None else torch.cat([kept, rows])
