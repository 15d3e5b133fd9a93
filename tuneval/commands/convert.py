"""`tuneval convert`: Hugging Face <-> Megatron, Megatron -> Megatron at another layout, LoRA merged on the way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tuneval import runtime
from tuneval.checkpoints.convert import to_hf, to_mcore
from tuneval.checkpoints.hf import Source, size_of
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.load import open_adapter, open_source
from tuneval.config import flags
from tuneval.console import note, out
from tuneval.errors import UserError


def main(parsed: flags.Parsed) -> int:
    config = parsed.config
    source = open_source(config.load, config.hf_cfg_dir)
    if config.lora_load is not None:
        source = open_adapter(config.lora_load, base=source)
    flags.check_model_facts(parsed.model_facts, source.config.to_dict())
    convert(source, config)
    return 0


def convert(source: Source, config: Any, command: str = "convert") -> None:
    """Write `source` as `config` says (ConvertConfig, or ExportConfig, which lacks some fields), and report it."""
    started = time.monotonic()
    dtype_name = getattr(config, "params_dtype", None)
    dtype = runtime.DTYPES[dtype_name] if dtype_name else None
    record = {
        "command": command,
        "config": flags.to_dict(config),
        "source": {"path": str(Path(config.load).absolute()), "kind": source.kind},
        "versions": runtime.versions(),
    }
    if config.to == "mcore":
        layout = plan_layout(
            source.config,
            config.target_tensor_parallel_size,
            config.target_pipeline_parallel_size,
            config.num_layer_list,
        )
        _warn_of_trainers(source.config, layout.tp)
        to_mcore(source, config.save, layout, dtype, record)
        written = f"Megatron, {layout}"
    else:
        _check_no_layout(config)
        to_hf(source, config.save, dtype, int(getattr(config, "max_shard_size_gib", 4.0) * 2**30), record)
        written = "Hugging Face"
    size, seconds = size_of(source) / 2**30, time.monotonic() - started
    out.print(
        f"{source.kind} {config.load} -> {written} {config.save}: {size:.2f} GiB in {seconds:.1f} s", markup=False
    )


def _check_no_layout(config: Any) -> None:
    sizes = (config.target_tensor_parallel_size, config.target_pipeline_parallel_size)
    if sizes != (1, 1) or config.num_layer_list is not None:
        raise UserError(
            f"--to {config.to} with a layout: --target-tensor-parallel-size, --target-pipeline-parallel-size and "
            "--num-layer-list describe a Megatron checkpoint. Leave them out, or give --to mcore."
        )


def _warn_of_trainers(hf_config: Any, tp: int) -> None:
    heads, groups = hf_config.num_attention_heads, hf_config.num_key_value_heads
    if heads % tp or groups % tp:
        note(
            f"note: TP {tp} does not divide {heads} heads and {groups} KV heads. The shards are plain 1/{tp} chunks, "
            "which tuneval loads; Megatron's own trainer asks for a TP size that divides both."
        )
