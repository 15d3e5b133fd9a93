"""Gradients of a model that is spread over processes: summed once a step, each parameter once in the norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tuneval.parallel.mesh import Mesh

BUCKET = 1 << 24
"""Elements of one all-reduce at most, where tensors are put together: 64 MiB."""
PIECE = 1 << 20
"""Elements of a gradient that are widened at a time for its norm: 4 MiB."""


@dataclass
class Gradient:
    """What this process has of one parameter's gradient."""

    name: str
    parameter: torch.Tensor
    value: torch.Tensor
    """fp32, or bf16 under a lean optimizer, shaped as the process's part of the parameter."""
    summed_over_tp: bool
    """Whether the tensor-parallel processes' values are shares of a sum."""


class Gradients:
    """Sums and measures gradients over the processes of a mesh.

    Args:
        mesh: of the job.
        tied: name of a parameter that the first and the last stage both hold, None where no two stages do.
    """

    def __init__(self, mesh: Mesh, tied: str | None = None) -> None:
        self.mesh, self.tied = mesh, tied
        self.ends = _ends_group(mesh) if tied is not None else None
        """The processes that hold the same part of the tied parameter, on the first and the last stage."""

    @property
    def come_summed(self) -> bool:
        """Whether each parameter is given one gradient a step, already summed over micro-batches."""
        return self.mesh.layout.sharding == "optimizer"

    def reduce(self, gradients: list[Gradient]) -> None:
        """Sum in place what processes hold shares of. Every process calls it, with the same parameters in a stage."""
        layout = self.mesh.layout
        if layout.tensor > 1:
            _all_reduce([g.value for g in gradients if g.summed_over_tp], self.mesh.tp.get_group())
        if layout.data > 1 and layout.sharding == "none":
            _all_reduce([g.value for g in gradients], self.mesh.dp.get_group())
        if self.ends is not None:
            _all_reduce([g.value for g in gradients if g.name == self.tied], self.ends)

    def norm(self, gradients: Iterable[Gradient]) -> float:
        """Global L2 norm, the same number on every process."""
        squares = [norm**2 for norm in l2_norms([g.value for g in gradients if self._counts(g)])]
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
        dist.all_reduce(total)
        return float(total.sqrt())

    def _counts(self, gradient: Gradient) -> bool:
        """Whether this process is the one whose copy of a parameter is measured."""
        mesh, layout = self.mesh, self.mesh.layout
        if gradient.name == self.tied and not mesh.is_first:
            return False
        if layout.sharding == "none" and mesh.dp_rank > 0:
            return False
        return not (layout.tensor > 1 and mesh.tp_rank > 0 and _is_whole_on_tp(gradient.parameter))


def l2_norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of contiguous tensors, fp64 from sums in fp32; on the host, as some accelerators have no fp64, and HCCL sums none."""
    if tensors and tensors[0].device.type != "cpu":  # all in a few kernels, which widen as they read
        return list(torch.stack(torch._foreach_norm(tensors, dtype=torch.float32)).cpu().double())
    return [_l2_norm(tensor) for tensor in tensors]


def _l2_norm(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU would widen a bf16 tensor all at once: half a gigabyte for a vocabulary."""
    if tensor.dtype == torch.float32:
        return torch.linalg.vector_norm(tensor).double()
    wide = tensor.new_empty(min(PIECE, tensor.numel()), dtype=torch.float32)
    norms = [torch.linalg.vector_norm(wide[: len(p)].copy_(p)) for p in tensor.view(-1).split(PIECE)]
    return torch.linalg.vector_norm(torch.stack(norms).double())


def _is_whole_on_tp(parameter: torch.Tensor) -> bool:
    return not isinstance(parameter, DTensor) or parameter.placements[-1].is_replicate()


def _all_reduce(tensors: list[torch.Tensor], group: Any) -> None:
    """Sum each over the group, in place; small ones travel together."""
    small = [t for t in tensors if t.numel() < BUCKET]
    for tensor in tensors:
        if tensor.numel() >= BUCKET:
            dist.all_reduce(tensor, group=group)
    ends = torch.tensor([t.numel() for t in small]).cumsum(0).tolist()
    for _, bucket in groupby(zip(ends, small), lambda pair: (pair[0] - 1) // BUCKET):
        parts = [tensor for _, tensor in bucket]
        flat = torch.cat([p.reshape(-1) for p in parts])
        dist.all_reduce(flat, group=group)
        for part, summed in zip(parts, flat.split([p.numel() for p in parts])):
            part.copy_(summed.view_as(part))


def _ends_group(mesh: Mesh) -> Any:
    """The group of this process's grid column that holds its first and last stage; None for a middle stage."""
    mine = None
    grid = mesh.grid.mesh  # [pp, dp, tp] of process numbers
    for column in grid.flatten(1).T.tolist():
        ranks = [column[0], column[-1]]
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = group
    return mine
