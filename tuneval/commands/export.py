"""`tuneval export`: a tuned model out of its run folder, as a merged Hugging Face folder, an adapter, or shards."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuneval import files
from tuneval.checkpoints.load import open_source
from tuneval.commands.convert import convert
from tuneval.config import flags
from tuneval.console import out
from tuneval.errors import UserError


def main(parsed: flags.Parsed) -> int:
    config = parsed.config
    if config.to == "peft":
        copy_adapter(config.load, config.save)
        out.print(f"adapter of {config.load} -> {config.save}", markup=False)
    else:
        convert(open_source(config.load), config, command="export")
    return 0


def copy_adapter(load: Path, save: Path) -> None:
    """Copy the PEFT adapter of a run folder, or an adapter folder."""
    found = [f for f in (load / "adapter", load) if (f / "adapter_config.json").is_file()]
    if not found:
        raise UserError(
            f"{load}: no adapter/adapter_config.json in it, so it was not tuned with LoRA. Use --to hf or --to mcore."
        )
    if save.exists() and any(save.iterdir()):
        raise UserError(f"--save {save}: is there already. Choose another folder, or remove it.")
    with files.atomic_folder(save) as folder:
        for file in sorted(found[0].iterdir()):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
