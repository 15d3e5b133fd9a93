"""How a Megatron checkpoint is spread over ranks: the grid, the layers of each stage, the `args` that say so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from tuneval.errors import Problems, UserError
from tuneval.model.weight_map import Row, check_tensor_parallel, head_dim_of, traits_of
from tuneval.parallel.stages import VPP_FLAG, divisors, even_list, listed_stages

TP_FLAG, PP_FLAG = "--target-tensor-parallel-size", "--target-pipeline-parallel-size"
Piece = list[tuple[Row, int | None]]
"""Rows that lie together in a rank file, with their layer number inside it; None outside the layers."""


@dataclass(frozen=True)
class ShardLayout:
    """How rank files divide a model between them; how processes do is `parallel.mesh.Layout`'s to say."""

    tp: int
    """Tensor-parallel ranks."""
    layers: tuple[int, ...]
    """Layers of each pipeline stage."""
    chunk_layers: int | None = None
    """Layers of one virtual stage; a stage then holds several, dealt out in turn. None: a stage is one piece."""

    @property
    def pp(self) -> int:
        """Pipeline stages."""
        return len(self.layers)

    @property
    def uneven(self) -> bool:
        return len(set(self.layers)) > 1

    @property
    def chunks(self) -> int:
        """Pieces of one stage."""
        return 1 if self.chunk_layers is None else self.layers[0] // self.chunk_layers

    def stage_rows(self, rows: list[Row], stage: int) -> list[Piece]:
        """The pieces of one stage."""
        return [self._piece(rows, stage, chunk) for chunk in range(self.chunks)]

    def _piece(self, rows: list[Row], stage: int, chunk: int) -> Piece:
        first, count = sum(self.layers[:stage]), self.layers[stage]
        if self.chunk_layers is not None:
            first, count = (chunk * self.pp + stage) * self.chunk_layers, self.chunk_layers
        inside = range(first, first + count)
        begins, ends = stage == chunk == 0, (stage, chunk) == (self.pp - 1, self.chunks - 1)
        before = [(r, None) for r in rows if r.place == "embedding" and begins]
        layers = [(r, r.layer - first) for r in rows if r.layer is not None and r.layer in inside]
        after = [(r, None) for r in rows if r.place == "head" and ends]
        return [(r, local) for r, local in before + layers + after if not (r.is_copy and self.pp == 1)]

    def __str__(self) -> str:
        spread = f" (layers {','.join(map(str, self.layers))})" if self.uneven else ""
        pieces = f", {self.chunks} virtual stages each" if self.chunks > 1 else ""
        return f"TP {self.tp} x PP {self.pp}{spread}{pieces}"


def plan_layout(
    hf_config: Any, tp: int, pp: int, num_layer_list: str | None, chunk_layers: int | None = None
) -> ShardLayout:
    """The layout that the flags ask for.

    Raises:
        UserError: every reason why the model can't be cut so, with the values that would work.
    """
    problems, layers = Problems(), hf_config.num_hidden_layers
    traits_of(hf_config)
    check_tensor_parallel(hf_config, tp, TP_FLAG, problems)
    stages: tuple[int, ...] = ()
    if pp < 1 or pp > layers:
        problems.add(f"{PP_FLAG} {pp}: the model has {layers} layers. Choose 1 to {layers}.")
    elif num_layer_list is not None:
        stages = listed_stages(num_layer_list, pp, layers, PP_FLAG, problems)
    elif layers % pp:
        problems.add(
            f"{PP_FLAG} {pp}: {layers} layers, {layers} % {pp} = {layers % pp}. "
            f"Choose {', '.join(map(str, divisors(layers)))}, or add --num-layer-list {even_list(layers, pp)}."
        )
    else:
        stages = (layers // pp,) * pp
    if chunk_layers is not None and stages:
        _check_chunks(chunk_layers, stages, num_layer_list, problems)
    problems.raise_if_any()
    return ShardLayout(tp, stages, chunk_layers)


def _check_chunks(each: int, stages: tuple[int, ...], num_layer_list: str | None, problems: Problems) -> None:
    if num_layer_list is not None:
        problems.add(f"{VPP_FLAG} and --num-layer-list: give one of them")
    elif len(stages) == 1:
        problems.add(f"{VPP_FLAG} {each}: goes with {PP_FLAG} above 1")
    elif each < 1 or stages[0] % each or each == stages[0]:
        fitting = ", ".join(map(str, divisors(stages[0])[:-1])) or "none"
        problems.add(
            f"{VPP_FLAG} {each}: a stage has {stages[0]} layers, to be cut into two or more. Choose {fitting}."
        )


def rank_name(tp_rank: int, stage: int, pp: int) -> str:
    """Folder of one rank file; the stage is written only where there are several."""
    return f"mp_rank_{tp_rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")


def make_args(hf_config: Any, layout: ShardLayout, dtype: torch.dtype) -> argparse.Namespace:
    """The `args` of a rank file: plain values under the names that Megatron's trainer and both converters read."""
    traits, heads = traits_of(hf_config), hf_config.num_attention_heads
    values = {k: v for k, v in hf_config.to_dict().items() if _is_plain(v) and k != "model_type"}  # an enum of theirs
    values.update(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=hf_config.num_key_value_heads,
        num_key_value_heads=hf_config.num_key_value_heads,  # newer converters read this name alone
        group_query_attention=hf_config.num_key_value_heads != heads,
        kv_channels=head_dim_of(hf_config),
        max_position_embeddings=hf_config.max_position_embeddings,
        seq_length=hf_config.max_position_embeddings,
        position_embedding_type="rope",
        use_rotary_position_embeddings=True,
        add_position_embedding=True,
        rotary_percent=1.0,
        rotary_interleaved=False,
        rotary_base=rope_theta_of(hf_config),
        add_bias_linear=bool(traits & {"proj_bias", "mlp_bias"}),
        add_qkv_bias="qkv_bias" in traits,
        qk_layernorm="qk_norm" in traits,
        swiglu=True,
        normalization="RMSNorm",
        norm_epsilon=hf_config.rms_norm_eps,
        untie_embeddings_and_output_weights="untied" in traits,
        tokenizer_type="PretrainedFromHF",
        padded_vocab_size=hf_config.vocab_size,
        make_vocab_size_divisible_by=1,
        use_mcore_models=True,
        transformer_impl="local",
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        num_layer_list=",".join(map(str, layout.layers)) if layout.uneven else None,
        virtual_pipeline_model_parallel_size=layout.chunks if layout.chunks > 1 else None,
        num_layers_per_virtual_pipeline_stage=layout.chunk_layers,
        noop_layers=None,
        expert_model_parallel_size=1,
        context_parallel_size=1,
        sequence_parallel=False,
        num_experts=None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        params_dtype={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32"),
        iteration=1,
        consumed_train_samples=0,
        consumed_valid_samples=0,
    )
    return argparse.Namespace(**values)


def rope_theta_of(hf_config: Any) -> float:
    parameters = getattr(hf_config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(hf_config, "rope_theta", 10000.0))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or type(value) in (int, float, str, bool)


def check_args(args: Any, hf_config: Any, tp: int, where: str) -> None:
    """Raise one UserError for every fact in a file's `args` that the config, or the folder's own grid, contradicts."""
    found = vars(args) if isinstance(args, argparse.Namespace) else {}
    expected = {
        "num_layers": hf_config.num_hidden_layers + _noop_count(found),
        "hidden_size": hf_config.hidden_size,
        "ffn_hidden_size": hf_config.intermediate_size,
        "num_attention_heads": hf_config.num_attention_heads,
        "kv_channels": head_dim_of(hf_config),
        "num_key_value_heads": hf_config.num_key_value_heads,
        "tensor_model_parallel_size": tp,
    }
    if found.get("group_query_attention"):  # a trainer without it leaves 1 in num_query_groups
        expected["num_query_groups"] = hf_config.num_key_value_heads
    problems = Problems()
    for name, value in expected.items():
        stated = found.get(name)
        problems.check(
            stated is None or stated == value,
            f"{where}: its args say {name} = {stated}, config.json and the folder say {value}. "
            "Is this the right config.json?",
        )
    if found.get("expert_model_parallel_size") not in (None, 0, 1) or found.get("num_experts"):
        raise UserError(f"{where}: a mixture of experts; dense models can be read so far")
    problems.raise_if_any()


def _noop_count(found: dict[str, Any]) -> int:
    noop = found.get("noop_layers")
    if not noop:
        return 0
    return len(noop.split(",")) if isinstance(noop, str) else len(noop) if isinstance(noop, list | tuple | set) else 0
