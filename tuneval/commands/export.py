"""`tuneval export`: a tuned model out of its run folder, as a merged Hugging Face folder, an adapter, or shards."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuneval import files
from tuneval.checkpoints.load import AdapterSource, open_source, stated_flags
from tuneval.commands.convert import check_source, convert, write_adapter
from tuneval.commands.export_flags import as_conversion
from tuneval.config import flags
from tuneval.console import out
from tuneval.errors import UserError
from tuneval.model.adapter import is_peft


def main(parsed: flags.Parsed) -> int:
    config = parsed.config
    folder = next((f for f in (config.load / "adapter", config.load) if is_peft(f)), None)
    copied = config.to == "peft" and folder is not None
    stated = stated_flags(config.lora) or config.hf_cfg_dir or parsed.model_facts
    if not copied or stated:  # else the model under the adapter need not be here
        source = open_source(config.load, config.hf_cfg_dir, config.lora)
        check_source(config, source)
        flags.check_model_facts(parsed.model_facts, source.config.to_dict())
    if copied:
        _copy(folder, config.save)
        out.print(f"adapter of {config.load} -> {config.save}", markup=False)
    elif config.to == "peft":
        if not isinstance(source, AdapterSource):
            raise UserError(
                f"{config.load}: no adapter/adapter_config.json and no Megatron LoRA in it, so it was not tuned with "
                "LoRA. Use --to hf or --to mcore."
            )
        write_adapter(source, config.save)
    else:
        convert(source, as_conversion(config), command="export")
    return 0


def _copy(adapter: Path, save: Path) -> None:
    with files.atomic_folder(save) as folder:
        for file in sorted(adapter.iterdir()):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
