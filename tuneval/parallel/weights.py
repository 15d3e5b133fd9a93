"""Weights of a model that is spread over processes: each reads only its own slices, together they write whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tuneval.errors import Problems
from tuneval.model.build import check_float, compute_buffers
from tuneval.parallel.mesh import Mesh

Range = tuple[int, int]


class Weights(Protocol):
    """A checkpoint in Hugging Face's names; `checkpoints.hf.Source` is one. KeyError where a name is not in it."""

    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> torch.Tensor: ...
    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor: ...


def local_ranges(parameter: torch.Tensor) -> list[Range]:
    """For each dim of a parameter the elements that this process holds: [start, stop).

    Args:
        parameter: a DTensor whose mesh ends in the tensor-parallel axis, or a plain tensor, which is held whole.
    """
    ranges = [(0, size) for size in parameter.shape]
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        for axis in reversed(range(mesh.ndim)):  # tensor parallelism cut first, FSDP what that left
            dim = getattr(parameter.placements[axis], "dim", None)
            if dim is not None:
                start, stop = ranges[dim]
                share = -(-(stop - start) // mesh.size(axis))
                first = min(start + share * mesh.get_local_rank(axis), stop)
                ranges[dim] = (first, min(first + share, stop))
    return ranges


def read_ranges(source: Weights, name: str, ranges: list[Range]) -> torch.Tensor:
    """The part of a stored tensor that `ranges` name; only its elements are read."""
    whole = source.shape(name)
    cuts = [(dim, *r) for dim, r in enumerate(ranges) if r != (0, whole[dim])]
    if not cuts:
        return source.read(name)
    if any(start == stop for _, start, stop in cuts):
        return torch.empty([stop - start for start, stop in ranges])
    (dim, start, stop), *others = cuts
    tensor = source.read_slice(name, dim, start, stop)
    for dim, start, stop in others:
        tensor = tensor.narrow(dim, start, stop - start)
    return tensor


def fill(
    model: torch.nn.Module,
    source: Weights,
    stored: Callable[[str], str],
    fresh: Callable[[str, torch.Size], torch.Tensor | None],
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give a model on `meta` its values: of every parameter this process's part.

    Args:
        model: its parameters are placed already, as plain tensors or DTensors.
        source: where the values come from.
        stored: parameter name -> name in `source`.
        fresh: (parameter name, whole shape) -> values that no checkpoint holds; None for a stored parameter.
        dtype: of the weights.
        device: where they go.

    Raises:
        UserError: tensors are missing or of another shape; all are named.
    """
    problems, owners = Problems(), _owners(model)
    for name, parameter in list(model.named_parameters()):
        ranges, values = local_ranges(parameter), fresh(name, parameter.shape)
        if values is not None:
            part = values[tuple(slice(*r) for r in ranges)]
        else:
            key = stored(name)
            try:
                shape = source.shape(key)
            except KeyError:
                problems.add(f"{key}: not in the checkpoint, though the config needs it")
                continue
            if tuple(shape) != tuple(parameter.shape):
                problems.add(f"{key}: {list(shape)} in the checkpoint, {list(parameter.shape)} by the config")
                continue
            part = read_ranges(source, key, ranges)
            check_float(key, part.dtype)
        filled = _like(parameter, part.to(device=device, dtype=dtype).contiguous())
        for module, leaf in owners[id(parameter)]:
            module._parameters[leaf] = filled
    problems.raise_if_any()
    compute_buffers(model, device)


def _owners(model: torch.nn.Module) -> dict[int, list[tuple[torch.nn.Module, str]]]:
    """Parameter (by id) -> every module that holds it: two for a tied embedding."""
    owners: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, leaf))
    return owners


def _like(parameter: torch.nn.Parameter, local: torch.Tensor) -> torch.nn.Parameter:
    """A parameter placed as another, of this process's values."""
    return torch.nn.Parameter(spread_like(parameter, local), requires_grad=parameter.requires_grad)


def spread_like(parameter: torch.Tensor, local: torch.Tensor, block: int = 1) -> torch.Tensor:
    """A local tensor as the DTensor that lies as `parameter` does; itself where that is no DTensor.

    Args:
        parameter: any tensor.
        local: an element for each of the process's part of `parameter`, or for each `block` of its last dimension.
        block: elements of the last dimension that share one.
    """
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size((*parameter.shape[:-1], parameter.shape[-1] // block)) if block > 1 else parameter.shape
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride() if block > 1 else parameter.stride(),
    )


def whole_tensors(
    named: dict[str, torch.Tensor], mesh: Mesh, order: Iterable[str] | None = None
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Put tensors together, one at a time. Every process of the job must run through it.

    Args:
        named: what this process holds, by a name that is the same on all; a name on two stages is taken from the first.
        mesh: of the job.
        order: names to give, in this order; those that no process holds are left out. Default: all, stage by stage.

    Yields:
        (name, the whole tensor in host memory on process 0, None on the others).
    """
    held = [list(named)]
    if mesh.grid is not None:
        held = [None] * mesh.layout.world_size
        dist.all_gather_object(held, list(named))
    stages = held[:: mesh.layout.tensor * mesh.layout.data]  # process 0 of each stage speaks for it
    stage_of = {name: stage for stage, names in reversed(list(enumerate(stages))) for name in names}
    if order is None:
        order = dict.fromkeys(name for names in stages for name in names)
    for name in order:
        if name in stage_of:
            yield name, _to_main(named.get(name), mesh, stage_of[name])


def _to_main(tensor: torch.Tensor | None, mesh: Mesh, stage: int) -> torch.Tensor | None:
    """One tensor of one stage, whole, on process 0."""
    whole = None
    if tensor is not None and mesh.stage == stage:
        whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()
    if stage == 0:
        return whole if not dist.is_initialized() or dist.get_rank() == 0 else None
    sender = stage * mesh.layout.tensor * mesh.layout.data
    if dist.get_rank() == sender:
        dist.send_object_list([whole.shape, whole.dtype], 0)
        dist.send(whole.contiguous(), 0)
    if dist.get_rank() != 0:
        return None
    facts = [None, None]
    dist.recv_object_list(facts, sender)
    whole = torch.empty(facts[0], dtype=facts[1])
    dist.recv(whole, sender)
    return whole
