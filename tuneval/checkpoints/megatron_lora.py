"""LoRA checkpoints of MindSpeed-LLM: A and B of Megatron's fused layers <-> an adapter of Hugging Face's modules.

Under each adapted layer T of a rank file lie `T.base_layer.weight`, `T.lora_A.default.weight` and
`T.lora_B.default.weight`; `--lora-ckpt-filter` keeps the last two alone. A fused layer has one A for all its modules
and one B whose rows are cut like the layer's own. Sizes: r rank, in and out those of a module.

Source: reference, section 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from tuneval.checkpoints.layout import check_args
from tuneval.checkpoints.pickled import StoredTensor
from tuneval.checkpoints.rank_files import Chunk, MegatronFiles, places_of
from tuneval.checkpoints.streamed import Pending
from tuneval.config.schema import MegatronLoraConfig
from tuneval.errors import Problems, UserError
from tuneval.model.adapter import Adapter, Factor
from tuneval.model.weight_map import Row, megatron_targets, rows, whole


def is_adapted(row: Row) -> bool:
    """Whether LoRA can sit on a row: the weight of a linear layer in a block."""
    return row.layer is not None and row.tp_dim is not None and row.name.endswith(".weight")


def factor_rows(row: Row, r: int) -> tuple[Row, Row]:
    """A's and B's rows of the table: what is cut like the layer's rows (B) or columns (A), and what every rank holds.

    A is one tensor for all modules of the layer.
    """
    column, width = row.tp_dim == 0, row.hf_shapes[0][1]
    a = replace(row, hf_names=row.hf_names[:1], hf_shapes=((r, width),), tp_dim=None if column else 1, order=whole)
    b = replace(row, hf_shapes=tuple((shape[0], r) for shape in row.hf_shapes), tp_dim=0 if column else None)
    return a, b


# --- reading ---


def read_megatron_lora(files: MegatronFiles, hf_config: Any, stated: MegatronLoraConfig) -> Adapter:
    """The adapter in a checkpoint's rank files, of any layout; its tensors stay on disk.

    Args:
        files: with LoRA tensors.
        hf_config: of the model under the adapter.
        stated: what the command line says; held against the files. Its alpha counts where they name none.

    Raises:
        UserError: a tensor missing, left over or of a wrong shape; args that are not of this model or of these files; rank,
            alpha or targets other than stated; no alpha.
    """
    check_args(files.args, hf_config, files.tp, str(files.first))
    named = _named(files.lora)
    shapes = [t.shape for chunk in named for rank in chunk for name, t in rank.items() if name.endswith("lora_A")]
    if not shapes:
        raise UserError(f"{files.iteration_folder}: LoRA tensors, but no lora_A among them")
    r = shapes[0][0]
    scaling = _alpha(files, r, stated) / r
    factors = _factors(files, named, hf_config, r)
    adapter = Adapter(files.folder, r, scaling, factors)
    _check_targets(files, adapter, hf_config, stated)
    return adapter


def _named(chunks: list[Chunk]) -> list[Chunk]:
    """`decoder.layers.0.mlp.linear_fc1.lora_A.default.weight` -> `decoder.layers.0.mlp.linear_fc1.lora_A`."""
    return [
        [{re.sub(r"(\.lora_[AB])(\.\w+)?\.weight$", r"\1", n): t for n, t in rank.items()} for rank in c]
        for c in chunks
    ]


def _alpha(files: MegatronFiles, r: int, stated: MegatronLoraConfig) -> float:
    """The files' own (a trainer's args hold it), which must be the one stated; the rank must be too."""
    known, problems = vars(files.args) if hasattr(files.args, "__dict__") else {}, Problems()
    problems.check(
        stated.lora_r in (None, r), f"--lora-r {stated.lora_r}: {files.folder} holds an adapter of rank {r}. Give {r}"
    )
    own = known.get("lora_alpha")
    problems.check(
        own is None or stated.lora_alpha in (None, own),
        f"--lora-alpha {stated.lora_alpha}: {files.folder} was trained with {own}. Give that, or leave the flag out",
    )
    problems.check(
        own is not None or stated.lora_alpha is not None,
        f"{files.folder}: holds LoRA of rank {r} and does not say its alpha. Give the training's with --lora-alpha",
    )
    problems.raise_if_any()
    return float(own if own is not None else stated.lora_alpha)


def _factors(files: MegatronFiles, named: list[Chunk], hf_config: Any, r: int) -> dict[str, tuple[Factor, Factor]]:
    """A and B of each adapted Hugging Face module."""
    held, factors = _held(named, hf_config), {}
    _check_held(files, named, held, hf_config, r)
    for row, halves in held.items():
        a, b = factor_rows(row, r)
        for which, weight in enumerate(row.hf_names):
            of_module = _factor(a, halves[0].stored, 0), _factor(b, halves[1].stored, which)  # the modules share A
            factors[weight.removesuffix(".weight")] = of_module
    return factors


class _Half(NamedTuple):
    """A or B of one layer, as rank files hold it."""

    chunk: int
    name: str
    stored: list[StoredTensor | None]
    """On each rank; None: missing there."""


def _held(named: list[Chunk], hf_config: Any) -> dict[Row, tuple[_Half, _Half]]:
    """Row -> A and B, for the rows of which a rank holds any."""
    places, held = places_of(named), {}
    for row in filter(is_adapted, rows(hf_config)):
        if row.layer in places:
            chunk, local = places[row.layer]
            names = (row.megatron_name(local).removesuffix("weight") + half for half in ("lora_A", "lora_B"))
            halves = tuple(_Half(chunk, name, [rank.get(name) for rank in named[chunk]]) for name in names)
            if any(tensor is not None for half in halves for tensor in half.stored):
                held[row] = halves
    return held


def _check_held(
    files: MegatronFiles, named: list[Chunk], held: dict[Row, tuple[_Half, _Half]], hf_config: Any, r: int
) -> None:
    """Raise one UserError for layers without LoRA, factors missing or of a wrong shape, and tensors left over."""
    problems, where, layers = Problems(), files.iteration_folder, len(places_of(named))
    expected = hf_config.num_hidden_layers
    problems.check(layers == expected, f"{where}: LoRA in {layers} layers, the model has {expected}")
    for row, halves in held.items():
        for half, like in zip(halves, factor_rows(row, r)):
            shape = like.rank_shape(files.tp)
            problems.check(
                all(tensor is not None and tensor.shape == shape for tensor in half.stored),
                f"{where}: {half.name} of layer {row.layer}: missing on a rank, or not {list(shape)}",
            )
    used = {(half.chunk, half.name) for halves in held.values() for half in halves}
    there = {(number, name) for number, chunk in enumerate(named) for rank in chunk for name in rank}
    unused = [name for _, name in sorted(there - used)]
    problems.check(not unused, f"{where}: left over: {', '.join(unused[:4])}")
    problems.raise_if_any()


def _factor(like: Row, stored: list[StoredTensor], which: int) -> Factor:
    """One Hugging Face factor in the rank files' tensors of a row of `factor_rows`."""
    shape = like.hf_shapes[which]

    def read() -> torch.Tensor:
        def read_rank(rank: int, dim: int, start: int, stop: int) -> torch.Tensor:
            return stored[rank].read_slice(dim, start, stop)

        return like.split(read_rank, len(stored), which, 0, shape[like.tp_dim or 0])

    return Factor(shape, read)


def _check_targets(files: MegatronFiles, adapter: Adapter, hf_config: Any, stated: MegatronLoraConfig) -> None:
    if not stated.lora_target_modules:
        return
    found = set(adapted_layers(adapter, hf_config))
    if found != set(stated.lora_target_modules):
        raise UserError(
            f"--lora-target-modules {' '.join(stated.lora_target_modules)}: {files.folder} holds adapters of "
            f"{' '.join(sorted(found))}. Leave the flag out"
        )


def adapted_layers(adapter: Adapter, hf_config: Any) -> list[str]:
    """Megatron's names of the adapted linear layers, in the table's order."""
    modules = set(adapter.factors)
    used = {
        row.name.split(".")[-2]
        for row in filter(is_adapted, rows(hf_config))
        if any(name.removesuffix(".weight") in modules for name in row.hf_names)
    }
    return [target for target in megatron_targets() if target in used]


# --- writing ---


@dataclass(frozen=True)
class _Fused:
    """A and B of one fused layer."""

    a: torch.Tensor
    """[r, in]"""
    b: list[torch.Tensor]
    """[out, r] of each of its modules."""


class LoraForm:
    """An adapter as Megatron's LoRA layers hold it; gives what stands in a rank file in the place of a weight.

    Modules of one layer with the same A share it, as `--lora-shared-a` trains them. Others (peft's usual) are stacked:
    A = [A1; A2], B1 = [B1, 0], B2 = [0, B2], exactly the same function at a higher rank, the same in every layer; alpha
    rises with it.

    Args:
        adapter: of a model.
        hf_config: of the model.
        filtered: A and B alone (`--lora-ckpt-filter`).
    """

    def __init__(self, adapter: Adapter, hf_config: Any, filtered: bool) -> None:
        self.filtered = filtered
        self._fused = _fuse(adapter, hf_config)
        self.r = next(iter(self._fused.values())).a.shape[0]
        self.alpha = adapter.scaling * self.r
        self.args = {
            "lora_r": self.r,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_target_modules": adapted_layers(adapter, hf_config),
        }

    def entries(self, row: Row, name: str, tp: int, rank: int, weight: Pending) -> dict[str, Pending]:
        """Names and tensors of one row in a rank file.

        Args:
            row: of the table.
            name: of its tensor there without LoRA.
            tp: tensor-parallel size.
            rank: tensor-parallel rank.
            weight: the row's own tensor.
        """
        stem, kind = name.rpartition(".")[::2]
        key = (row.layer, stem.rpartition(".")[2])
        if row.layer is None or key not in self._fused:
            return {} if self.filtered else {name: weight}
        entries = {} if self.filtered else {f"{stem}.base_layer.{kind}": weight}
        if kind == "weight":
            fused = self._fused[key]
            for half, like, parts in zip("AB", factor_rows(row, self.r), ([fused.a] * len(fused.b), fused.b)):
                entries[f"{stem}.lora_{half}.default.weight"] = _pending(like, parts, tp, rank)
        return entries


def _pending(like: Row, parts: list[torch.Tensor], tp: int, rank: int) -> Pending:
    """A rank's piece of A or B. A is the same for every module, so one of them is all."""
    if like.tp_dim is None:
        return Pending(tuple(parts[0].shape), parts[0].dtype, lambda: [parts[0]])
    if like.tp_dim == 1:
        return Pending(like.rank_shape(tp), parts[0].dtype, lambda: [parts[0].chunk(tp, 1)[rank]])
    of_name = dict(zip(like.hf_names, parts))

    def read_slice(name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        return of_name[name].narrow(dim, start, stop - start)

    return Pending(like.rank_shape(tp), parts[0].dtype, lambda: like.pieces(read_slice, tp, rank))


def _fuse(adapter: Adapter, hf_config: Any) -> dict[tuple[int, str], _Fused]:
    """(layer, Megatron's linear layer) -> its A and B, all of one rank."""
    fused = {}
    for row in filter(is_adapted, rows(hf_config)):
        pairs = [adapter.factors.get(name.removesuffix(".weight")) for name in row.hf_names]
        if any(pairs):
            fused[row.layer, row.name.split(".")[-2]] = _stack(row, [p and (p[0].read(), p[1].read()) for p in pairs])
    missing = set(adapter.factors) - {n.removesuffix(".weight") for row in rows(hf_config) for n in row.hf_names}
    if missing or not fused:
        raise UserError(f"{adapter.folder}: adapts {', '.join(sorted(missing)[:3]) or 'nothing'}, which has no place")
    rank = max(one.a.shape[0] for one in fused.values())
    pad = torch.nn.functional.pad
    return {
        key: _Fused(pad(one.a, (0, 0, 0, rank - one.a.shape[0])), [pad(b, (0, rank - b.shape[1])) for b in one.b])
        for key, one in fused.items()
    }


def _stack(row: Row, pairs: list[tuple[torch.Tensor, torch.Tensor] | None]) -> _Fused:
    """One A for the modules of a layer: theirs where it is the same, else all of them stacked."""
    given = [pair for pair in pairs if pair is not None]
    distinct: list[torch.Tensor] = []
    for a, _ in given:
        if not any(torch.equal(a, other) for other in distinct):
            distinct.append(a)
    r, kind = given[0][0].shape[0], given[0][1].dtype
    b = []
    for pair, shape in zip(pairs, row.hf_shapes):
        columns = torch.zeros(shape[0], r * len(distinct), dtype=kind)
        if pair is not None:
            at = next(i for i, a in enumerate(distinct) if torch.equal(a, pair[0]))
            columns[:, at * r : (at + 1) * r] = pair[1]
        b.append(columns)
    return _Fused(torch.cat(distinct), b)
