"""THE table: which Megatron tensor holds which Hugging Face tensors, in what order, and how tensor parallelism cuts it.

Both directions of conversion, every layout, and what `linear_qkv` means to LoRA are read from `LAYER` and `ENDS`.
Sizes: h hidden, q query rows (heads x head_dim), k key rows (KV heads x head_dim), f feed-forward, d head_dim,
v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tuneval.errors import Problems, UserError


@dataclass(frozen=True)
class Part:
    """A run of one Hugging Face tensor inside a rank's Megatron tensor."""

    hf: int
    """Which tensor, an index into `Row.hf_names`."""
    start: int
    """First element along the row's tp_dim."""
    stop: int
    """One past the last."""


Order = Callable[[tuple[int, ...], int, int], list[list[Part]]]
"""(HF sizes along tp_dim, KV groups, TP size) -> for each rank the parts it holds, in order."""


def whole(sizes: tuple[int, ...], groups: int, tp: int) -> list[list[Part]]:
    """One tensor, cut into equal chunks."""
    return _cut([Part(0, 0, sizes[0])], tp)


def by_query_group(sizes: tuple[int, ...], groups: int, tp: int) -> list[list[Part]]:
    """q, k, v interleaved: for each KV head its query heads, then its key, then its value: q0 q1 k0 v0 q2 q3 k1 v1.

    Then plain equal chunks, so that TP may exceed the number of KV heads.
    """
    per_group = [size // groups for size in sizes]
    return _cut([Part(t, g * n, (g + 1) * n) for g in range(groups) for t, n in enumerate(per_group)], tp)


def gate_then_up(sizes: tuple[int, ...], groups: int, tp: int) -> list[list[Part]]:
    """Each rank holds its chunk of gate, then its chunk of up; so each half is cut for itself."""
    n = sizes[0] // tp
    return [[Part(0, r * n, (r + 1) * n), Part(1, r * n, (r + 1) * n)] for r in range(tp)]


def _cut(parts: list[Part], tp: int) -> list[list[Part]]:
    total = sum(p.stop - p.start for p in parts)
    assert total % tp == 0, f"{total} rows over {tp} ranks: check_tensor_parallel comes first"
    ranks: list[list[Part]] = [[] for _ in range(tp)]
    at = 0
    for part in parts:
        start = part.start
        while start < part.stop:
            rank, used = divmod(at, total // tp)
            stop = min(part.stop, start + total // tp - used)
            ranks[rank].append(Part(part.hf, start, stop))
            at, start = at + stop - start, stop
    return ranks


@dataclass(frozen=True)
class _Spec:
    megatron: str
    hf: tuple[str, ...]
    shapes: tuple[str, ...]
    """One letter a dim, for each HF tensor."""
    tp_dim: int | None = None
    order: Order = whole
    needs: str = ""
    """The model has this row only with this trait."""
    alias: str = ""
    """transformer_engine's name for the same tensor."""


LAYER = (
    _Spec("input_layernorm.weight", ("input_layernorm.weight",), ("h",),
          alias="self_attention.linear_qkv.layer_norm_weight"),
    _Spec("self_attention.linear_qkv.weight",
          ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"), ("qh", "kh", "kh"),
          0, by_query_group),
    _Spec("self_attention.linear_qkv.bias",
          ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"), ("q", "k", "k"),
          0, by_query_group, needs="qkv_bias"),
    _Spec("self_attention.q_layernorm.weight", ("self_attn.q_norm.weight",), ("d",), needs="qk_norm"),
    _Spec("self_attention.k_layernorm.weight", ("self_attn.k_norm.weight",), ("d",), needs="qk_norm"),
    _Spec("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), ("hq",), 1),
    _Spec("self_attention.linear_proj.bias", ("self_attn.o_proj.bias",), ("h",), needs="proj_bias"),
    _Spec("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), ("h",),
          alias="mlp.linear_fc1.layer_norm_weight"),
    _Spec("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), ("fh", "fh"), 0, gate_then_up),
    _Spec("mlp.linear_fc1.bias", ("mlp.gate_proj.bias", "mlp.up_proj.bias"), ("f", "f"), 0, gate_then_up,
          needs="mlp_bias"),
    _Spec("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), ("hf",), 1),
    _Spec("mlp.linear_fc2.bias", ("mlp.down_proj.bias",), ("h",), needs="mlp_bias"),
)  # fmt: skip
"""One layer; names go behind `decoder.layers.I.` and `model.layers.L.`."""

ENDS = {
    "embedding": (_Spec("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ("vh",), 0),),
    "head": (
        _Spec("decoder.final_layernorm.weight", ("model.norm.weight",), ("h",)),
        _Spec("output_layer.weight", ("lm_head.weight",), ("vh",), 0, needs="untied"),
        _Spec("output_layer.weight", ("model.embed_tokens.weight",), ("vh",), 0, needs="tied"),
    ),
}
"""What lies before and after the layers. A tied model's output_layer is a copy, kept only where PP > 1."""

FAMILIES: dict[str, Callable[[Any], set[str]]] = {
    "qwen2": lambda config: {"qkv_bias"},
    "qwen3": lambda config: {"qk_norm"} | ({"qkv_bias", "proj_bias"} if config.attention_bias else set()),
    "llama": lambda config: (
        ({"qkv_bias", "proj_bias"} if config.attention_bias else set()) | ({"mlp_bias"} if config.mlp_bias else set())
    ),
    "mistral": lambda config: set(),
}
"""transformers' model_type -> traits of the model."""


@dataclass(frozen=True)
class Row:
    """One Megatron tensor of a model and the Hugging Face tensors in it."""

    name: str
    """Megatron's name without `decoder.layers.I.`."""
    place: str
    """`embedding`, `layer` or `head`."""
    layer: int | None
    """Global layer number; None outside the layers."""
    hf_names: tuple[str, ...]
    hf_shapes: tuple[tuple[int, ...], ...]
    tp_dim: int | None
    """The dim that tensor parallelism cuts; None: every rank holds all of it."""
    order: Order
    groups: int
    alias: str
    is_copy: bool = False
    """A tied model's output_layer: its HF tensor belongs to another row."""

    def megatron_name(self, local_layer: int | None = None, alias: bool = False) -> str:
        """The key in a rank file; `local_layer` counts from 0 in each pipeline stage. `alias`: transformer_engine's."""
        name = (self.alias or self.name) if alias else self.name
        return name if self.layer is None else f"decoder.layers.{local_layer}.{name}"

    def parts(self, tp: int, rank: int) -> list[Part]:
        """What rank `rank` of `tp` holds, along tp_dim (dim 0 where every rank holds all)."""
        sizes = tuple(shape[self.tp_dim or 0] for shape in self.hf_shapes)
        tp, rank = (1, 0) if self.tp_dim is None else (tp, rank)
        return _parts(self.order, sizes, self.groups, tp)[rank]

    def rank_shape(self, tp: int) -> tuple[int, ...]:
        """Shape of the tensor in each rank file."""
        shape, dim = list(self.hf_shapes[0]), self.tp_dim or 0
        shape[dim] = sum(p.stop - p.start for p in self.parts(tp, 0))
        return tuple(shape)

    def fuse(self, read_slice: Callable[[str, int, int, int], torch.Tensor], tp: int, rank: int) -> torch.Tensor:
        """One rank's Megatron tensor [rank_shape(tp)]: `pieces` in one."""
        pieces = self.pieces(read_slice, tp, rank)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def pieces(
        self, read_slice: Callable[[str, int, int, int], torch.Tensor], tp: int, rank: int
    ) -> list[torch.Tensor]:
        """One rank's Megatron tensor in contiguous pieces along its first dim: where rows alone are cut, none is copied.

        Args:
            read_slice: (HF name, dim, start, stop) -> that slice.
            tp: tensor-parallel size.
            rank: tensor-parallel rank.

        Returns:
            Tensors that make one of `rank_shape(tp)`.
        """
        parts, dim = self.parts(tp, rank), self.tp_dim or 0
        found: dict[int, tuple[int, torch.Tensor]] = {}
        for t in {p.hf for p in parts}:  # one read a tensor: its parts on one rank lie side by side
            own = [p for p in parts if p.hf == t]
            found[t] = own[0].start, read_slice(self.hf_names[t], dim, own[0].start, own[-1].stop)
        cut = [found[p.hf][1].narrow(dim, p.start - found[p.hf][0], p.stop - p.start) for p in parts]
        if dim == 0 or len(cut) == 1:
            return [piece.contiguous() for piece in cut]
        return [torch.cat(cut, dim)]

    def split(
        self, read_rank: Callable[[int, int, int, int], torch.Tensor], tp: int, hf: int, start: int, stop: int
    ) -> torch.Tensor:
        """A slice of one Hugging Face tensor from the rank files: the way back of `fuse`.

        Args:
            read_rank: (rank, dim, start, stop) -> that slice of the rank's Megatron tensor.
            tp: tensor-parallel size of the files.
            hf: which tensor, an index into `hf_names`.
            start: first element along tp_dim (dim 0 where every rank holds all).
            stop: one past the last.
        """
        dim, shape, runs = self.tp_dim or 0, list(self.hf_shapes[hf]), self._runs(tp, hf, start, stop)
        block = _rows_of_a_block(shape) if dim == 0 and len(runs) > 1 else shape[dim]
        shape[dim], tensor = stop - start, None
        for rank, inside, at, size in runs:
            for done in range(0, size, block):
                count = min(block, size - done)
                piece = read_rank(rank, dim, inside + done, inside + done + count)
                if count == stop - start and piece.is_contiguous():  # nothing to put together
                    return piece
                tensor = torch.empty(shape, dtype=piece.dtype) if tensor is None else tensor
                tensor.narrow(dim, at + done, count).copy_(piece)
        return tensor

    def _runs(self, tp: int, hf: int, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """Where a slice of one Hugging Face tensor lies: (rank, first element there, first in the slice, elements)."""
        runs = []
        for rank in range(1 if self.tp_dim is None else tp):
            before = 0  # elements of the rank's tensor before the part
            for part in self.parts(tp, rank):
                low, high = max(part.start, start), min(part.stop, stop)
                if part.hf == hf and low < high:
                    runs.append((rank, before + low - part.start, low - start, high - low))
                before += part.stop - part.start
        return runs


def _rows_of_a_block(shape: list[int]) -> int:
    """Rows read at a time: some 32 million elements, so that little is in memory beside the result."""
    return max(1, (1 << 25) // max(1, torch.Size(shape[1:]).numel()))


@lru_cache(maxsize=4096)
def _parts(order: Order, sizes: tuple[int, ...], groups: int, tp: int) -> list[list[Part]]:
    return order(sizes, groups, tp)


def rows(hf_config: Any, vocabulary: int | None = None) -> list[Row]:
    """Every row of a model: embedding, each layer, head.

    Args:
        hf_config: transformers' config.
        vocabulary: rows of the embedding, where padded beyond the config's vocab_size.

    Raises:
        UserError: a model family that the table does not cover.
    """
    traits, sizes = traits_of(hf_config), sizes_of(hf_config)
    sizes["v"] = vocabulary or sizes["v"]
    groups = hf_config.num_key_value_heads

    def make(spec: _Spec, place: str, layer: int | None = None) -> Row:
        prefix = "" if layer is None else f"model.layers.{layer}."
        shapes = tuple(tuple(sizes[letter] for letter in shape) for shape in spec.shapes)
        names = tuple(prefix + name for name in spec.hf)
        copy = spec.needs == "tied"
        return Row(spec.megatron, place, layer, names, shapes, spec.tp_dim, spec.order, groups, spec.alias, copy)

    def present(specs: tuple[_Spec, ...]) -> list[_Spec]:
        return [s for s in specs if not s.needs or s.needs in traits]

    found = [make(s, "embedding") for s in present(ENDS["embedding"])]
    for layer in range(hf_config.num_hidden_layers):
        found += [make(s, "layer", layer) for s in present(LAYER)]
    return found + [make(s, "head") for s in present(ENDS["head"])]


def traits_of(hf_config: Any) -> set[str]:
    """What tells models of the supported families apart: qkv_bias, qk_norm, proj_bias, mlp_bias, tied or untied."""
    if hf_config.model_type not in FAMILIES:
        raise UserError(
            f"model_type {hf_config.model_type}: the Megatron layout is known for {', '.join(FAMILIES)}. "
            "Hugging Face folders of other models can be used without converting them."
        )
    return FAMILIES[hf_config.model_type](hf_config) | {"tied" if hf_config.tie_word_embeddings else "untied"}


def head_dim_of(hf_config: Any) -> int:
    return getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads


def sizes_of(hf_config: Any) -> dict[str, int]:
    """The letters of the table -> sizes."""
    d = head_dim_of(hf_config)
    return {
        "h": hf_config.hidden_size,
        "q": hf_config.num_attention_heads * d,
        "k": hf_config.num_key_value_heads * d,
        "f": hf_config.intermediate_size,
        "d": d,
        "v": hf_config.vocab_size,
    }


def check_tensor_parallel(hf_config: Any, tp: int, flag: str, problems: Problems) -> None:
    """Add every reason why `tp` ranks can't share this model, with the sizes that would work. A vocabulary is padded."""
    cut = _cut_sizes(hf_config)
    fitting = math.gcd(*cut.values())
    sizes = ", ".join(str(n) for n in range(1, min(fitting, 128) + 1) if fitting % n == 0)
    if tp < 1:
        problems.add(f"{flag} {tp}: must be at least 1. Choose {sizes}.")
        return
    for what, size in cut.items():
        problems.check(size % tp == 0, f"{flag} {tp}: {what}, {size} % {tp} = {size % tp}. Choose {sizes}.")


def _cut_sizes(hf_config: Any) -> dict[str, int]:
    s, d = sizes_of(hf_config), head_dim_of(hf_config)
    heads, groups, qkv = hf_config.num_attention_heads, hf_config.num_key_value_heads, s["q"] + 2 * s["k"]
    return {
        f"linear_qkv has {qkv} rows ({heads} heads and 2 x {groups} KV heads of {d})": qkv,
        f"linear_proj has {s['q']} columns ({heads} heads of {d})": s["q"],
        f"the feed-forward size is {s['f']}": s["f"],
    }


def hf_modules(target: str) -> tuple[str, ...]:
    """Hugging Face's linear modules inside a Megatron one: `linear_qkv` -> q_proj, k_proj, v_proj.

    Raises:
        KeyError: no such Megatron linear module; `megatron_targets()` lists them.
    """
    return _targets()[target]


def fused_modules(hf_config: Any) -> list[tuple[str, ...]]:
    """The Hugging Face modules of each linear layer that Megatron fuses: q, k, v and gate, up of every layer."""
    return [
        tuple(name.removesuffix(".weight") for name in row.hf_names)
        for row in rows(hf_config)
        if row.layer is not None and len(row.hf_names) > 1 and row.name.endswith(".weight")
    ]


def megatron_targets() -> tuple[str, ...]:
    """The linear modules of a layer, as Megatron names them."""
    return tuple(_targets())


def _targets() -> dict[str, tuple[str, ...]]:
    return {
        spec.megatron.split(".")[-2]: tuple(name.split(".")[-2] for name in spec.hf)
        for spec in LAYER
        if spec.tp_dim is not None and spec.megatron.endswith(".weight")
    }
