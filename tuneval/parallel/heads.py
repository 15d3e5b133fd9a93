"""The attention heads that a tensor-parallel process computes, also where their number does not divide.

Weights are always cut evenly: of q_proj a process holds an equal share of the rows, of o_proj of the columns, as of any
other layer. Where a share is no whole number of heads (28 heads on 8 processes: 3.5), it computes its rows as they are,
and processes pass each other the ends of a head: it arrives whole at one of them, and leaves in shares again.

Shapes: T tokens, D head size. "Local": of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tuneval.model.weight_map import head_dim_of


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Who computes which heads.

    Query heads go to the processes in their order, to each as many as to any other, or one more; a key or value head to
    every process with queries for it.
    """

    queries: int
    """Query heads of the model."""
    keys: int
    """Key heads of the model, and as many value heads."""
    dim: int
    """Elements of a head."""
    size: int
    """Processes."""
    rank: int
    """This one."""

    @classmethod
    def of(cls, config: Any, size: int, rank: int) -> Heads:
        """For a model's config."""
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        return cls(queries=queries, keys=keys, dim=head_dim_of(config), size=size, rank=rank)

    @property
    def are_shares(self) -> bool:
        """Whether an even share of q_proj is a whole number of heads, so that nothing is passed on."""
        return self.queries % self.size == 0

    @property
    def keys_are_shares(self) -> bool:
        """Whether an even share of k_proj and v_proj is what a process needs; else each has them whole, and uses rows."""
        return self.keys % self.size == 0

    @property
    def key_rows(self) -> slice:
        """Rows of k_proj and v_proj that this process computes where it has them whole."""
        wanted = self._key_of_each_query()
        return slice(wanted[0] * self.dim, (wanted[-1] + 1) * self.dim)

    @property
    def order(self) -> tuple[int, ...] | None:
        """For each local query head its key head among the local ones; None: they are shared evenly, in order."""
        wanted = self._key_of_each_query()
        first, last = wanted[0], wanted[-1]
        even = all(wanted.count(key) * (last - first + 1) == len(wanted) for key in range(first, last + 1))
        return None if even else tuple(key - first for key in wanted)

    @property
    def queries_of_a_key(self) -> int:
        """Local query heads of each key head that attention sees."""
        wanted = self._key_of_each_query()
        return 1 if self.order else len(wanted) // (wanted[-1] - wanted[0] + 1)

    def whole(self, share: torch.Tensor, group: Any) -> torch.Tensor:
        """[..., columns of this process's share] -> [..., local query heads x D]; every process of the group calls it."""
        return _passed_on(share, self._shares(), self._heads(), self.rank, group)

    def shared(self, heads: torch.Tensor, group: Any) -> torch.Tensor:
        """Back: [..., local query heads x D] -> [..., columns of this process's share]."""
        return _passed_on(heads, self._heads(), self._shares(), self.rank, group)

    def _key_of_each_query(self) -> list[int]:
        """Key head, of the model, of each local query head."""
        each = self.queries // self.keys
        return [query // each for query in range(self._first(self.rank), self._first(self.rank + 1))]

    def _first(self, rank: int) -> int:
        """First query head of a process: the share's begin, rounded."""
        return (2 * self.queries * rank + self.size) // (2 * self.size)

    def _heads(self) -> list[range]:
        """Columns of each process's query heads."""
        return [range(self._first(r) * self.dim, self._first(r + 1) * self.dim) for r in range(self.size)]

    def _shares(self) -> list[range]:
        """Columns that each process holds, as torch cuts: equal, the last ones shorter."""
        columns = self.queries * self.dim
        each = -(-columns // self.size)
        return [range(min(r * each, columns), min((r + 1) * each, columns)) for r in range(self.size)]


def _passed_on(
    columns: torch.Tensor, held: Sequence[range], wanted: Sequence[range], rank: int, group: Any
) -> torch.Tensor:
    """[..., columns that this process has] -> [..., columns that it wants]; only what changes hands is sent.

    Args:
        columns: of this process.
        held: columns of each process, consecutive.
        wanted: the same columns, cut at other places.
        rank: this process.
        group: all of them.
    """
    out = [_common(held[rank], want) for want in wanted]
    into = [_common(have, wanted[rank]) for have in held]
    pieces = list(columns.split(out, -1))
    out[rank] = into[rank] = 0
    kept = pieces.pop(rank)
    arrived = _AllToAll.apply(torch.cat([p.movedim(-1, 0) for p in pieces]), out, into, group)  # [columns, ...]
    parts = list(arrived.movedim(0, -1).split(into, -1))
    parts[rank] = kept
    return torch.cat(parts, -1)


def _common(a: range, b: range) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


class _AllToAll(torch.autograd.Function):
    """Rows to other processes, `out` of them to each, for `into` from each; their gradients go the way back."""

    @staticmethod
    def forward(ctx, rows, out, into, group):
        ctx.way = out, into, group
        arrived = rows.new_empty(sum(into), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), into, out, group)
        return arrived

    @staticmethod
    def backward(ctx, grad):
        out, into, group = ctx.way
        return _AllToAll.apply(grad, into, out, group), None, None, None
