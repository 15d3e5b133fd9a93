"""What a piece of torch code holds, sends and computes: every storage from birth to death, every collective, each FLOP.

Works the same on real and on fake tensors: a storage has the bytes of its shape either way.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, SEND = "all-reduce", "all-gather", "reduce-scatter", "send"
ALL_TO_ALL = "all-to-all"
_COLLECTIVES: dict[str, str] = {
    "allreduce_": ALL_REDUCE,
    "all_reduce": ALL_REDUCE,
    "all_reduce_": ALL_REDUCE,
    "all_gather_into_tensor": ALL_GATHER,
    "_allgather_base_": ALL_GATHER,
    "reduce_scatter_tensor": REDUCE_SCATTER,
    "_reduce_scatter_base_": REDUCE_SCATTER,
    "alltoall_base_": ALL_TO_ALL,
    "send": SEND,
}
"""Operator of `c10d` or `_c10d_functional` -> what it is called here. What is received is another process's send."""

_aten = torch.ops.aten
_LIKE = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""Operators that torch's table of FLOPs lacks -> ones that compute the same."""

OTHER = "activations"
"""Kind of the memory that `hold` does not name: activations, and what operators need for a moment."""


@dataclass
class _Memory:
    """One storage."""

    size: int
    """bytes"""
    kind: str
    born: int
    died: int | None = None


class Ledger(TorchDispatchMode):
    """Keeps account of the code that runs inside it.

    Args:
        axis_of: name of a process group -> what to call it in `sent`.
    """

    def __init__(self, axis_of: Callable[[str], str] = str) -> None:
        super().__init__()
        self.axis_of = axis_of
        self.live = self.peak = 0
        """Bytes now, and at most so far."""
        self.sent: Counter[tuple[str, str]] = Counter()
        """(axis, kind of collective) -> bytes that this process sends, by the ring algorithm where there is a choice."""
        self.calls: Counter[tuple[str, str]] = Counter()
        self.flops: Counter[str] = Counter()
        """Floating-point operations in the "forward" pass and in the "backward" pass, recomputation included."""
        self._clock = self._peak_at = 0
        self._open: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._all: list[_Memory] = []

    def __enter__(self) -> Ledger:
        ledger, self._resize = self, torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            done = ledger._resize(storage, size)
            ledger._change(storage, size)
            return done

        torch.UntypedStorage.resize_ = resize_  # how FSDP frees what it gathered; no operator that could be seen
        return super().__enter__()

    def __exit__(self, *failure: object) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*failure)

    def hold(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Enter tensors that are there already, and name what they are."""
        for tensor in tensors:
            self._enter(tensor, kind)
            self._open[_local(tensor).untyped_storage()].kind = kind

    def at_peak(self) -> dict[str, int]:
        """Kind -> bytes at the moment when most was held."""
        kinds: Counter[str] = Counter()
        for memory in self._all:
            if memory.born <= self._peak_at and (memory.died is None or memory.died > self._peak_at):
                kinds[memory.kind] += memory.size
        return dict(kinds)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # comes back with the local tensors
        self._clock += 1
        self._count_traffic(func, args)
        result = func(*args, **(kwargs or {}))
        self._count_flops(func, args, kwargs or {}, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor, OTHER)
        return result

    def _enter(self, tensor: torch.Tensor, kind: str) -> None:
        tensor = _local(tensor)
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        if device.type == "meta":
            return
        storage = tensor.untyped_storage()
        if storage not in self._open:
            self._begin(storage, storage.nbytes(), kind)

    def _begin(self, storage: torch.UntypedStorage, size: int, kind: str) -> None:
        memory = _Memory(size, kind, self._clock)
        self._open[storage] = memory
        self._all.append(memory)
        weakref.finalize(storage, self._end, memory).atexit = False
        self.live += size
        if self.live > self.peak:
            self.peak, self._peak_at = self.live, self._clock

    def _end(self, memory: _Memory) -> None:
        if memory.died is None:
            self._clock += 1
            memory.died = self._clock
            self.live -= memory.size

    def _change(self, storage: torch.UntypedStorage, size: int) -> None:
        """A storage gets another size in place: the old one ends, a new one begins."""
        if storage in self._open:
            memory = self._open[storage]
            self._end(memory)
            self._clock += 1
            self._begin(storage, size, memory.kind)

    def _count_flops(self, func, args, kwargs, result) -> None:
        packet = getattr(func, "overloadpacket", None)
        count = flop_registry.get(_LIKE.get(packet, packet))
        if count is not None:
            part = "forward" if torch._C._current_autograd_node() is None else "backward"
            self.flops[part] += count(*args, **kwargs, out_val=result)

    def _count_traffic(self, func, args) -> None:
        kind = _COLLECTIVES.get(func._schema.name.partition("::")[2])
        if kind is None or func.namespace not in ("c10d", "_c10d_functional"):
            return
        name, processes = _group(args)
        key = (self.axis_of(name), kind)
        ring = {ALL_REDUCE: 2 * (processes - 1) / processes, SEND: 1.0, ALL_TO_ALL: 1.0}.get(
            kind, (processes - 1) / processes
        )
        self.sent[key] += round(_whole_bytes(func, args, processes) * ring)
        self.calls[key] += 1


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _group(args: tuple) -> tuple[str, int]:
    """Name and size of a collective's process group: `c10d` hands over the group, `_c10d_functional` its name."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            group = dist.ProcessGroup.unbox(argument)
            return group.group_name, group.size()
    name = next(a for a in reversed(args) if isinstance(a, str))
    return name, dist.distributed_c10d._resolve_process_group(name).size()


def _whole_bytes(func, args: tuple, processes: int) -> int:
    """Bytes of what all processes of a collective have in the end together, or of what is sent."""
    name = func._schema.name.partition("::")[2]
    tensors = [
        t
        for t in tree_leaves(args[1] if name in ("_reduce_scatter_base_", "alltoall_base_") else args[0])
        if isinstance(t, torch.Tensor)
    ]
    size = sum(t.numel() * t.element_size() for t in tensors)
    return size * processes if name == "all_gather_into_tensor" else size
