"""Sizes -> who holds what: the layout of a model over processes, checked before a weight is read, and its device mesh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from math import gcd
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tuneval.config.schema import ParallelConfig
from tuneval.errors import Problems
from tuneval.parallel.sizes import TP_FLAG, check_sizes
from tuneval.parallel.stages import PP_FLAG, layers_of_chunks

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one model is spread over processes. Megatron's order of ranks: TP fastest, then DP, then PP."""

    tensor: int = 1
    """Processes that share each layer."""
    pipeline: int = 1
    """Stages."""
    data: int = 1
    """Copies of the model, each with its part of the global batch."""
    sequence_parallel: bool = False
    layers: tuple[tuple[int, ...], ...]
    """Layer numbers of each global chunk, in the model's order; chunk c runs on stage c % pipeline."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Interleaved where a stage has several chunks."""
    sharding: Literal["none", "optimizer", "full"] = "none"
    """What data-parallel processes split: nothing, the optimizer's state, or weights and gradients too."""

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def chunks_per_stage(self) -> int:
        """Above 1: virtual pipeline stages."""
        return len(self.layers) // self.pipeline

    def chunks_of(self, stage: int) -> list[int]:
        """Global chunks that a stage holds, in the order it runs them."""
        return list(range(stage, len(self.layers), self.pipeline))

    def __str__(self) -> str:
        words = [f"TP {self.tensor}{' with SP' if self.sequence_parallel else ''}", f"PP {self.pipeline}"]
        words.append(f"DP {self.data}" + (f" ({self.sharding} sharded)" if self.sharding != "none" else ""))
        if self.chunks_per_stage > 1:
            words[1] += f" with {self.chunks_per_stage} chunks a stage"
        return " x ".join(words)


class Mesh:
    """The processes as a grid ("pp", "dp", "tp"), and this process's place in it.

    Args:
        layout: sizes; their product is the world size.
        device_type: of the tensors, such as `runtime.device().type`.

    Without a process group (one process, layout of size 1) there is no grid: `grid`, `tp`, `dp` and `pp` are None.
    """

    def __init__(self, layout: Layout, device_type: str = "cpu") -> None:
        self.layout = layout
        self.grid: DeviceMesh | None = None
        if layout.world_size > 1:
            sizes = (layout.pipeline, layout.data, layout.tensor)
            self.grid = init_device_mesh(device_type, sizes, mesh_dim_names=("pp", "dp", "tp"))

    @property
    def tp(self) -> DeviceMesh | None:
        """The processes that share this one's layers (one-dimensional; of size 1 where only others are split)."""
        return self.grid["tp"] if self.grid is not None else None

    @property
    def dp(self) -> DeviceMesh | None:
        """The processes that hold the same weights and see other samples."""
        return self.grid["dp"] if self.grid is not None else None

    @property
    def pp(self) -> DeviceMesh | None:
        """The stages this process's samples pass through."""
        return self.grid["pp"] if self.grid is not None else None

    @property
    def tp_rank(self) -> int:
        return self._rank("tp")

    @property
    def dp_rank(self) -> int:
        return self._rank("dp")

    @property
    def stage(self) -> int:
        """Pipeline stage of this process, from 0."""
        return self._rank("pp")

    @property
    def is_first(self) -> bool:
        """Whether this process holds the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this process holds the final norm and the head, and computes the loss."""
        return self.stage == self.layout.pipeline - 1

    def largest(self, *numbers: int) -> list[int]:
        """For each number the largest of the processes'; every process must call it with as many."""
        if self.grid is None:
            return list(numbers)
        values = torch.tensor(numbers)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What each data-parallel process has of a value, in their order; every process must call it."""
        if self.grid is None or self.layout.data == 1:
            return [value]
        values = [None] * self.layout.data
        dist.all_gather_object(values, value, group=self.dp.get_group())
        return values

    def first(self, value: Any) -> Any:
        """Process 0's value; every process must call it."""
        values = [value]
        if self.grid is not None:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def items_of_first(self, items: Iterator[T]) -> Iterator[T]:
        """Items that the first of the processes which share a model has, on each of them, however long one takes."""
        if self.layout.tensor == 1:
            yield from items
            return
        ranks = self.tp.mesh.tolist()
        group = dist.new_group(ranks, timedelta(days=365), "gloo", use_local_synchronization=True)
        while True:
            said = [next(items, None) if self.tp_rank == 0 else None]
            dist.broadcast_object_list(said, ranks[0], group)
            if said[0] is None:
                return
            yield said[0]

    def wait(self) -> None:
        """Until every process has come here."""
        if self.grid is not None:
            dist.barrier()

    def _rank(self, axis: str) -> int:
        return self.grid.get_local_rank(axis) if self.grid is not None else 0


def make_layout(
    parallel: ParallelConfig,
    hf_config: Any,
    world_size: int,
    problems: Problems,
    global_batch_size: int | None = None,
) -> Layout:
    """The layout that the flags ask for. Everything that does not fit is added to `problems`, with what would.

    Args:
        parallel: the flags.
        hf_config: the model's.
        world_size: processes.
        problems: where problems are collected; the returned layout is of use only where none was added.
        global_batch_size: samples of a step, where there are steps.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    before = len(problems.messages)
    check_sizes(parallel, problems)
    if len(problems.messages) > before:
        return Layout(layers=(tuple(range(hf_config.num_hidden_layers)),))
    _check_tensor(tp, hf_config, problems)
    layers = layers_of_chunks(parallel, hf_config.num_hidden_layers, problems)
    data = _data_parallel(tp, pp, world_size, problems)
    _check_batch(global_batch_size, data, problems)
    return Layout(
        tensor=tp,
        pipeline=pp,
        data=data,
        sequence_parallel=parallel.sequence_parallel and tp > 1,
        layers=layers,
        schedule=parallel.pipeline_schedule,
        sharding=parallel.sharding if data > 1 else "none",
    )


def without_effect(parallel: ParallelConfig, layout: Layout) -> list[str]:
    """One line for each flag given that changes nothing in this layout."""
    notices = []
    if parallel.sequence_parallel and layout.tensor == 1:
        notices.append(f"--sequence-parallel: no effect, {TP_FLAG} is 1")
    if parallel.pipeline_schedule != "1f1b" and layout.pipeline == 1:
        notices.append(f"--pipeline-schedule {parallel.pipeline_schedule}: no effect, {PP_FLAG} is 1")
    if parallel.sharding != "none" and layout.data == 1:
        flag = "--use-distributed-optimizer" if parallel.data_parallel_sharding is None else "--data-parallel-sharding"
        notices.append(f"{flag}: no effect, there is one data-parallel process")
    return notices


def _check_tensor(tp: int, hf_config: Any, problems: Problems) -> None:
    """Every process must hold a head, a row of the FFN and one of the vocabulary.

    Nothing has to divide: for heads see `parallel.heads`; of rows the last process holds fewer. A model that stays whole need
    not say its sizes: GPT-2 does not.
    """
    if tp == 1:
        return
    if not hasattr(hf_config, "intermediate_size"):
        problems.add(f"{TP_FLAG} {tp}: model type {hf_config.model_type} can't be cut so. Choose 1")
        return
    heads = hf_config.num_attention_heads
    problems.check(
        tp <= heads,
        f"{TP_FLAG} {tp}: the model has {heads} attention heads, so some processes would have none. "
        f"Choose {heads} or fewer",
    )
    for what, size in (("FFN rows", hf_config.intermediate_size), ("words", hf_config.vocab_size)):
        each = -(-size // tp)
        problems.check(
            each * (tp - 1) < size,
            f"{TP_FLAG} {tp}: the model has {size} {what}, {each} for each process, so the last would have none. "
            f"Choose a divisor of {size}",
        )


def _data_parallel(tp: int, pp: int, world_size: int, problems: Problems) -> int:
    model = tp * pp
    if world_size % model == 0:
        return world_size // model
    sizes = f"{TP_FLAG} {tp} x {PP_FLAG} {pp}"
    if world_size < model:
        remedy = f"Start {model}, 2 x {model}, ... of them with --nproc-per-node and --nnodes"
    else:
        remedy = f"Start {world_size // model * model} or {(world_size // model + 1) * model}"
        fitting = gcd(world_size, model)
        remedy += f", or choose sizes whose product divides {world_size}, such as {fitting}" if fitting > 1 else ""
    problems.add(f"{sizes}: needs {model} processes or a multiple; {_processes(world_size)}. {remedy}")
    return 1


def _check_batch(global_batch_size: int | None, data: int, problems: Problems) -> None:
    problems.check(
        global_batch_size is None or global_batch_size >= data,
        f"--global-batch-size {global_batch_size}: {data} data-parallel processes need a sample each. Give {data} or "
        f"more, or fewer processes",
    )


def _processes(count: int) -> str:
    return "there is one process" if count == 1 else f"there are {count} processes"
