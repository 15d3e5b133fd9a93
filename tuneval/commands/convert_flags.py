"""Flags of convert and export held against the direction: each acts, or is an error that says where it would."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from tuneval.checkpoints.hf import Source
from tuneval.checkpoints.load import AdapterSource
from tuneval.errors import Problems

_ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "target_tensor_parallel_size": (("mcore",), "describes a Megatron checkpoint"),
    "target_pipeline_parallel_size": (("mcore",), "describes a Megatron checkpoint"),
    "num_layer_list": (("mcore",), "describes a Megatron checkpoint"),
    "num_layers_per_virtual_pipeline_stage": (("mcore",), "describes a Megatron checkpoint"),
    "make_vocab_size_divisible_by": (("mcore",), "describes a Megatron checkpoint"),
    "keep_lora": (("mcore",), "is Megatron's form; --to peft takes an adapter out alone"),
    "lora_ckpt_filter": (("mcore",), "is Megatron's form; --to peft takes an adapter out alone"),
    "max_shard_size_gib": (("hf",), "is the size of a safetensors file; a Megatron rank is one file"),
    "params_dtype": (("hf", "mcore"), "casts weights; an adapter keeps its type"),
}
"""Flag -> (the `--to` it acts for, why)."""


def check_flags(config: Any) -> None:
    """Raise one UserError for every flag out of range, or given for a direction in which it would do nothing.

    Args:
        config: ConvertConfig or ExportConfig, which has fewer flags.
    """
    problems = Problems()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _ONLY and value != field.default:
            targets, why = _ONLY[field.name]
            flag = f"--{field.name.replace('_', '-')}" + ("" if value is True else f" {value}")
            told = " or ".join(f"--to {t}" for t in targets)
            problems.check(config.to in targets, f"{flag}: {why}. Leave it out, or give {told}")
    size = getattr(config, "max_shard_size_gib", 1.0)
    problems.check(0 < size < math.inf, f"--max-shard-size-gib {size}: must be above 0")
    for name in ("make_vocab_size_divisible_by", "num_layers_per_virtual_pipeline_stage"):
        value = getattr(config, name, None)
        problems.check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
    problems.raise_if_any()


def check_source(config: Any, source: Source) -> None:
    """The same for flags about what is read."""
    problems, stated = Problems(), config.lora
    problems.check(
        config.hf_cfg_dir is None or _megatron_inside(source),
        f"--hf-cfg-dir {config.hf_cfg_dir}: gives a Megatron checkpoint its config.json; {config.load} is none and has its "
        "own. Leave it out",
    )
    given = {"--lora-r": stated.lora_r, "--lora-alpha": stated.lora_alpha}
    if not isinstance(source, AdapterSource):
        flags = [f"{flag} {value}" for flag, value in given.items() if value is not None]
        flags += ["--lora-target-modules"] if stated.lora_target_modules else []
        problems.check(
            not flags, f"{', '.join(flags)}: there is no adapter. Leave it out, or name one with --lora-load"
        )
    else:
        held = {"--lora-r": source.factors.r, "--lora-alpha": source.factors.alpha}
        for flag, value in given.items():
            told = f"{flag} {value}: the adapter in {source.adapter} has {held[flag]:g}. Leave it out, or give that"
            problems.check(value is None or math.isclose(value, held[flag]), told)
    problems.raise_if_any()


def _megatron_inside(source: Any) -> bool:
    return source.kind == "mcore" or (getattr(source, "base", None) is not None and _megatron_inside(source.base))
