"""`tuneval convert`: Hugging Face <-> Megatron, Megatron -> Megatron at another layout, LoRA merged on the way."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tuneval import files, runtime
from tuneval.checkpoints.convert import to_hf, to_mcore
from tuneval.checkpoints.hf import Source, size_of
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.load import AdapterSource, open_adapter, open_source, stated_flags
from tuneval.checkpoints.megatron_lora import LoraForm
from tuneval.checkpoints.padding import padded_size
from tuneval.config import flags
from tuneval.config.schema import ConvertConfig, ExportConfig
from tuneval.console import note, out
from tuneval.errors import Problems, UserError
from tuneval.model.lora import write_peft


def main(parsed: flags.Parsed) -> int:
    config = parsed.config
    source = open_source(config.load, config.hf_cfg_dir, config.lora)
    if config.lora_load is not None:
        source = open_adapter(config.lora_load, source, config.lora)
    check_source(config, source)
    flags.check_model_facts(parsed.model_facts, source.config.to_dict())
    if config.to == "peft":
        write_adapter(source, config.save)
    else:
        convert(source, config)
    return 0


def check_source(config: ConvertConfig | ExportConfig, source: Source) -> None:
    """Raise one UserError for every flag that contradicts what is read."""
    problems = Problems()
    problems.check(
        config.hf_cfg_dir is None or _megatron_inside(source),
        f"--hf-cfg-dir {config.hf_cfg_dir}: gives a Megatron checkpoint its config.json; {config.load} is none and has its "
        "own. Leave it out",
    )
    if not isinstance(source, AdapterSource):
        given = stated_flags(config.lora)
        problems.check(
            not given, f"{', '.join(given)}: there is no adapter. Leave it out, or name one with --lora-load"
        )
    problems.raise_if_any()


def _megatron_inside(source: Any) -> bool:
    return source.kind == "mcore" or (getattr(source, "base", None) is not None and _megatron_inside(source.base))


def write_adapter(source: Source, save: Path) -> None:
    """Write the adapter of a source as a PEFT folder."""
    if not isinstance(source, AdapterSource):
        raise UserError(f"--to peft: {source.folder} holds no adapter. Name one with --lora-load")
    with files.atomic_folder(save) as folder:
        write_peft(source.factors, folder, str(_base_folder(source).resolve()))
        record = source.adapter / "tuneval.json"
        if record.is_file():
            shutil.copyfile(record, folder / record.name)
    out.print(f"adapter of rank {source.factors.r}, {source.adapter} -> {save}", markup=False)


def _base_folder(source: AdapterSource) -> Path:
    """The folder of the model under the adapter, as `open_source` takes it."""
    return getattr(source.base, "iteration_folder", source.base.folder)


def convert(source: Source, config: ConvertConfig, command: str = "convert") -> None:
    """Write `source` as `config` says, and report it."""
    started = time.monotonic()
    dtype = runtime.DTYPES[config.params_dtype] if config.params_dtype else None
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
            config.num_layers_per_virtual_pipeline_stage,
        )
        _warn_of_trainers(source.config, layout.tp)
        weights, lora = _lora_form(source, config)
        vocabulary = padded_size(source.config.vocab_size, config.make_vocab_size_divisible_by, layout.tp)
        if vocabulary > source.config.vocab_size:
            note(
                f"the vocabulary of {source.config.vocab_size} is padded with copies of its last row: Megatron's "
                f"--padded-vocab-size {vocabulary}"
            )
        to_mcore(
            weights,
            config.save,
            layout,
            dtype,
            record,
            lora,
            iteration=getattr(source, "iteration", None) or 1,
            vocabulary=vocabulary,
            transformer_impl=config.transformer_impl,
        )
        written = f"Megatron, {layout}"
    else:
        to_hf(source, config.save, dtype, int(config.max_shard_size_gib * 2**30), record)
        written = "Hugging Face"
    size, seconds = size_of(source) / 2**30, time.monotonic() - started
    out.print(
        f"{source.kind} {config.load} -> {written} {config.save}: {size:.2f} GiB in {seconds:.1f} s", markup=False
    )


def _lora_form(source: Source, config: ConvertConfig) -> tuple[Source, LoraForm | None]:
    """What to write: weights (an adapter merged into them), or the weights under the adapter and the adapter."""
    if not (config.keep_lora or config.lora_ckpt_filter):
        return source, None
    if not isinstance(source, AdapterSource):
        flag = "--keep-lora" if config.keep_lora else "--lora-ckpt-filter"
        raise UserError(f"{flag}: {config.load} holds no adapter. Leave the flag out, or name one with --lora-load")
    form = LoraForm(source.factors, source.config, config.lora_ckpt_filter)
    targets = " ".join(form.args["lora_target_modules"])
    note(f"Megatron's LoRA: --lora-r {form.r} --lora-alpha {form.args['lora_alpha']} --lora-target-modules {targets}")
    return source.base, form


def _warn_of_trainers(hf_config: Any, tp: int) -> None:
    heads, groups = hf_config.num_attention_heads, hf_config.num_key_value_heads
    if heads % tp or groups % tp:
        note(
            f"note: TP {tp} does not divide {heads} heads and {groups} KV heads. The shards are plain 1/{tp} chunks, "
            "which tuneval loads; Megatron's own trainer asks for a TP size that divides both."
        )
