"""Flags of convert held against the direction: each acts, or is an error that says where it would."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import ConvertConfig
from tuneval.errors import Problems, UserError

_ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "target_tensor_parallel_size": (("mcore",), "describes a Megatron checkpoint"),
    "target_pipeline_parallel_size": (("mcore",), "describes a Megatron checkpoint"),
    "num_layer_list": (("mcore",), "describes a Megatron checkpoint"),
    "num_layers_per_virtual_pipeline_stage": (("mcore",), "describes a Megatron checkpoint"),
    "make_vocab_size_divisible_by": (("mcore",), "describes a Megatron checkpoint"),
    "transformer_impl": (("mcore",), "describes a Megatron checkpoint"),
    "keep_lora": (("mcore",), "is Megatron's form; --to peft takes an adapter out alone"),
    "lora_ckpt_filter": (("mcore",), "is Megatron's form; --to peft takes an adapter out alone"),
    "max_shard_size_gib": (("hf",), "is the size of a safetensors file; a Megatron rank is one file"),
    "params_dtype": (("hf", "mcore"), "casts weights; an adapter keeps its type"),
}
"""Flag -> (the `--to` it acts for, why)."""


def check(config: ConvertConfig) -> None:
    """Raise one UserError for every flag out of range, or given for a direction in which it would do nothing."""
    problems = Problems()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _ONLY and value != field.default:
            targets, why = _ONLY[field.name]
            flag = f"--{field.name.replace('_', '-')}" + ("" if value is True else f" {value}")
            told = " or ".join(f"--to {t}" for t in targets)
            problems.check(config.to in targets, f"{flag}: {why}. Leave it out, or give {told}")
    size = config.max_shard_size_gib
    problems.check(0 < size < math.inf, f"--max-shard-size-gib {size}: must be above 0")
    for name in ("make_vocab_size_divisible_by", "num_layers_per_virtual_pipeline_stage"):
        value = getattr(config, name)
        problems.check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
    problems.attempt(lambda: check_there(config.load, config.lora_load))
    if config.to == "peft":
        problems.attempt(lambda: refuse_existing(config.save))
    problems.raise_if_any()


def refuse_existing(save: Path) -> None:
    if save.exists() and not (save.is_dir() and not any(save.iterdir())):
        raise UserError(f"--save {save}: is there already. Choose another folder, or remove it.")
