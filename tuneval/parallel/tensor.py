"""Tensor parallelism: which part of each weight a process holds, and the few places where processes exchange.

The plan is Hugging Face's own (`base_model_tp_plan`): column layers are cut by rows, row layers by columns. Every
parameter becomes a DTensor; inside a block (attention or MLP) a process computes with plain tensors, its part of each.
Processes meet at the block's input and output alone, as in Megatron: two all-reduces a layer forward and two backward;
with sequence parallelism an all-gather and a reduce-scatter for each.

Shapes: T tokens, H hidden size, V vocabulary, D head size. "Local": of this process.
Source: Megatron-LM (arXiv:1909.08053), sequence parallelism (arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.nn.functional import embedding
from transformers import PretrainedConfig, PreTrainedModel

from tuneval.errors import UserError
from tuneval.model.loss import VocabularyShard
from tuneval.parallel.heads import Heads

_BASE, _EMBEDDING, _NORM, _HEAD = "model.", "model.embed_tokens", "model.norm", "lm_head"


def tensor_parallel(model: PreTrainedModel, mesh: DeviceMesh, sequence_parallel: bool = False) -> None:
    """Spread a model over the processes of a mesh, in place. No process exchanges anything.

    Args:
        model: on `meta`, whole or one slice of it, adapters inside.
        mesh: one-dimensional, of at most as many processes as there are query heads.
        sequence_parallel: keep what lies between blocks, [1, T, H], split by tokens; T must divide by the mesh's size.

    Raises:
        UserError: a parameter for which the plan has no place (all are named), or as in `make_plan`.
    """
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    embedding, head = model.get_input_embeddings(), model.lm_head
    tied = embedding is not None and head is not None and embedding.weight is head.weight
    plan = make_plan(model, mesh.size(), mesh.get_local_rank(), sequence_parallel)
    parallelize_module(model, mesh, plan)
    if tied:
        head._parameters["weight"] = model.get_input_embeddings().weight
    missed = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    if missed:
        raise UserError(
            f"model type {model.config.model_type}: tensor parallelism has no place for {', '.join(missed)}. "
            "Use --tensor-model-parallel-size 1"
        )
    for name, p in model.named_parameters():
        p.requires_grad_(trainable[name])


def make_plan(model: PreTrainedModel, size: int, rank: int, sequence_parallel: bool) -> dict[str, ParallelStyle]:
    """Module name -> how it is spread. Modules without an entry hold no parameter of their own, or are left over.

    Args:
        model: whole or a slice, adapters inside.
        size: processes.
        rank: this one.
        sequence_parallel: as in `tensor_parallel`.

    Raises:
        UserError: Hugging Face's plan asks for something else than column and row layers, or the embedding does more
            than look up.
    """
    outside: Placement = Shard(1) if sequence_parallel else Replicate()  # of hidden states [1, T, H] between blocks
    heads, kinds = Heads.of(model.config, size, rank), dict(_planned(model))
    blocks = {name.rpartition(".")[0] for name, kind in kinds.items() if kind == "colwise"}
    plan: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        if name == _EMBEDDING:
            _check_embedding(model.config, module)
            plan[name] = Embedding(outside)
        elif name == _HEAD:
            plan[name] = Head()
        elif name in blocks:
            plan[name] = Block(outside)
            if hasattr(module, "num_key_value_groups"):  # attention repeats each key head for so many query heads
                module.num_key_value_groups = heads.queries_of_a_key
        elif kinds.get(name) == "rowwise":
            plan[name] = Row(outside, heads if name.endswith(".o_proj") and not heads.are_shares else None)
        elif kinds.get(name) == "colwise":
            plan[name] = _column(name.rpartition(".")[2], heads)
        elif type(module).__name__.endswith("Norm"):
            inside = name.rpartition(".")[0] in blocks  # of query or key heads: each process sees its own only
            after = Block(outside) if name == _NORM else None
            plan[name] = Norm(inside or sequence_parallel, after)
    return plan


def _check_embedding(config: PretrainedConfig, module: torch.nn.Module) -> None:
    if type(module) is not torch.nn.Embedding:  # `_LocalEmbedding` would drop what it does besides
        raise UserError(
            f"model type {config.model_type}: its embedding is a {type(module).__name__}; only a plain Embedding can be "
            "spread. Use --tensor-model-parallel-size 1"
        )


def _planned(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """(module name, "colwise" or "rowwise") of every linear layer in Hugging Face's plan."""
    config = model.config
    patterns = {_BASE + pattern: kind for pattern, kind in (config.base_model_tp_plan or {}).items()}
    for name, module in model.named_modules():
        kind = next((kind for pattern, kind in patterns.items() if fnmatchcase(name, pattern)), None)
        if kind in ("colwise", "rowwise"):
            yield name, kind
        elif kind is not None and not type(module).__name__.endswith("Norm"):
            raise UserError(
                f'model type {config.model_type}: its tensor-parallel plan has "{kind}" for {name}; only "colwise" and '
                '"rowwise" layers can be spread. Use --tensor-model-parallel-size 1'
            )


def _column(name: str, heads: Heads) -> Column:
    """How a column layer is spread, by the last part of its name."""
    if name == "q_proj" and not heads.are_shares:
        return Column(queries=heads)
    if name in ("k_proj", "v_proj") and not heads.keys_are_shares:
        return Column(keys=heads)
    return Column()


class Embedding(ParallelStyle):
    """The embedding [V, H], cut by words: each process looks up its own, and 0 for the others.

    torch's own style for it hands back gradients of the whole vocabulary on every process.
    """

    def __init__(self, outside: Placement) -> None:
        self.outside = outside

    def _apply(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        _spread(module, mesh, weight=Shard(0))
        module.__class__ = _LocalEmbedding
        module.register_forward_hook(lambda module, args, rows: _leave(rows, mesh, self.outside))
        return module


class _LocalEmbedding(torch.nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[1, T] -> [1, T, H], whose sum over the processes is the embedding."""
        words = VocabularyShard.of(self.weight)
        mine, at = words.find(ids)
        padding = -1 if self.padding_idx is None else self.padding_idx - words.first  # its row has no gradient
        rows = embedding(at, _local(self.weight), padding if 0 <= padding < words.count else None)
        return torch.where(mine[..., None], rows, 0)


def _leave(share: torch.Tensor, mesh: DeviceMesh, outside: Placement) -> torch.Tensor:
    """Each process's share of a sum [1, T, H] -> the sum, whole or, split by tokens, [1, T / tp, H]."""
    summed = DTensor.from_local(share, mesh, [Partial()], run_check=False)
    return summed.redistribute(placements=[outside]).to_local()


class Block(ParallelStyle):
    """Hidden states enter attention, MLP or head: whole on every process, their gradient a sum over processes."""

    def __init__(self, outside: Placement) -> None:
        self.outside = outside

    def _apply(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        def enter(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (self.enter(args[0], mesh), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self.enter(kwargs["hidden_states"], mesh)}

        module.register_forward_pre_hook(enter, with_kwargs=True)
        return module

    def enter(self, hidden: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        """[1, T, H] or, split by tokens, [1, T / tp, H] -> [1, T, H]."""
        spread = DTensor.from_local(hidden, mesh, [self.outside], run_check=False)
        return spread.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


class Column(ParallelStyle):
    """A linear layer cut by rows: each process computes some of the outputs. LoRA: A whole, B cut by rows.

    Args:
        keys: given where key heads do not divide: all rows everywhere, some of them computed.
        queries: given where query heads do not divide: processes pass on the ends of heads.
    """

    def __init__(self, keys: Heads | None = None, queries: Heads | None = None) -> None:
        self.keys, self.queries = keys, queries

    def _apply(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        placement = Shard(0) if self.keys is None else Replicate()
        rows = None if self.keys is None else self.keys.key_rows
        for linear in (_base(module), *_adapters(module, "lora_B")):
            _spread(linear, mesh, weight=placement, bias=placement)
            _compute_locally(linear, partial(_local, summed=self.keys is not None, rows=rows))
        for linear in _adapters(module, "lora_A"):
            if not isinstance(linear.weight, DTensor):  # else several layers share it
                _spread(linear, mesh, weight=Replicate())
                _compute_locally(linear, partial(_local, summed=True))
        if self.keys is not None and self.keys.order is not None:
            module.register_forward_hook(self._pick)
        if self.queries is not None:
            module.register_forward_hook(lambda module, args, share: self.queries.whole(share, mesh.get_group()))
        return module

    def _pick(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """[1, T, key heads x D] -> [1, T, local query heads x D]: for each query head its key head."""
        order = torch.tensor(self.keys.order, device=output.device)
        return output.unflatten(-1, (-1, self.keys.dim)).index_select(-2, order).flatten(-2)


class Row(ParallelStyle):
    """A linear layer cut by columns: each process adds its share to all outputs. LoRA: A cut by columns, B whole.

    The base layer's share and the adapter's are added before processes exchange: once for both.

    Args:
        outside: how its output lies.
        heads: given where its input is query heads that do not divide: processes pass on the ends of heads.
    """

    def __init__(self, outside: Placement, heads: Heads | None = None) -> None:
        self.outside, self.heads = outside, heads

    def _apply(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        base, summed = _base(module), isinstance(self.outside, Shard)
        _spread(base, mesh, weight=Shard(1), bias=Replicate())
        _compute_locally(base, _local, without=("bias",))
        for linear in _adapters(module, "lora_A"):
            _spread(linear, mesh, weight=Shard(1))
            _compute_locally(linear, _local)
        for linear in _adapters(module, "lora_B"):
            _spread(linear, mesh, weight=Replicate())
            _compute_locally(linear, partial(_local, summed=True))

        def leave(module: torch.nn.Module, args: tuple, share: torch.Tensor) -> torch.Tensor:
            whole = _leave(share, mesh, self.outside)
            return whole if base.bias is None else whole + _local(base.bias, summed=summed)

        module.register_forward_hook(leave)
        if self.heads is not None:
            module.register_forward_pre_hook(
                lambda module, args: (self.heads.shared(args[0], mesh.get_group()), *args[1:])
            )
        return module


class Norm(ParallelStyle):
    """A norm, its weights whole on every process.

    Args:
        summed: whether a process sees some of the tokens or heads only, so that gradients are summed.
        after: where its output goes at once, for the last norm; None: a block of its own follows.
    """

    def __init__(self, summed: bool, after: Block | None = None) -> None:
        self.summed, self.after = summed, after

    def _apply(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        _spread(module, mesh, **dict.fromkeys(module._parameters, Replicate()))
        _compute_locally(module, partial(_local, summed=self.summed))
        if self.after is not None:
            module.register_forward_hook(lambda module, args, output: self.after.enter(output, mesh))
        return module


class Head(ParallelStyle):
    """The output head [V, H], cut by words. The loss works on the cut logits; where it is called, they are gathered."""

    def _apply(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        words = module.weight.shape[0]
        _spread(module, mesh, weight=Shard(0))
        _compute_locally(module, _local)

        def gather(module: torch.nn.Module, args: tuple, logits: torch.Tensor) -> torch.Tensor:
            shape = torch.Size((*logits.shape[:-1], words))
            stride = torch.empty(shape, device="meta").stride()
            last = [Shard(len(shape) - 1)]
            spread = DTensor.from_local(logits, mesh, last, run_check=False, shape=shape, stride=stride)
            return spread.redistribute(placements=[Replicate()]).to_local()

        module.register_forward_hook(gather)
        return module


def _base(module: torch.nn.Module) -> torch.nn.Module:
    """The linear layer itself, under the adapter where there is one."""
    return getattr(module, "base_layer", module)


def _adapters(module: torch.nn.Module, half: str) -> list[torch.nn.Module]:
    return list(getattr(module, half, {}).values()) if hasattr(module, "base_layer") else []


def _spread(module: torch.nn.Module, mesh: DeviceMesh, **placements: Placement) -> None:
    """Replace parameters by DTensors of this process's parts."""
    for name, placement in placements.items():
        whole = module._parameters.get(name)
        if whole is not None:
            spread = distribute_tensor(whole.detach(), mesh, [placement])
            module.register_parameter(name, torch.nn.Parameter(spread, requires_grad=whole.requires_grad))


def _local(parameter: torch.Tensor, summed: bool = False, rows: slice | None = None) -> torch.Tensor:
    """This process's part of a parameter, as a plain tensor with a way back for its gradient.

    Args:
        parameter: DTensor.
        summed: whether the parameter's gradient is the sum over the processes' gradients.
        rows: that are computed with; None: all.
    """
    part = parameter.to_local(grad_placements=[Partial()] if summed else None)
    return part if rows is None else part[rows]


def _compute_locally(
    module: torch.nn.Module, local: Callable[[torch.Tensor], torch.Tensor], without: tuple[str, ...] = ()
) -> None:
    """Let a module's forward see plain local tensors in place of its DTensor parameters.

    Args:
        module: with parameters of its own.
        local: parameter -> what the forward sees.
        without: parameters that the forward sees as None.
    """
    kind = type(module)

    class Local(kind):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            held = dict(self._parameters)
            seen = {n: None if p is None or n in without else local(p) for n, p in held.items()}
            self._parameters.update(seen)
            try:
                return super().forward(*args, **kwargs)
            finally:
                self._parameters.update(held)

    Local.__name__ = Local.__qualname__ = f"Local{kind.__name__}"
    module.__class__ = Local
