"""`tune --lora-load`: an adapter that was trained before goes on, with the settings that it was trained with."""

from __future__ import annotations

from dataclasses import replace

from tuneval.checkpoints.hf import Source
from tuneval.checkpoints.load import open_adapter
from tuneval.checkpoints.rank_files import is_megatron
from tuneval.config.schema import LoraConfig, MegatronLoraConfig
from tuneval.errors import Problems
from tuneval.model.adapter import Adapter
from tuneval.model.lora import hf_targets, settings_of


def open_earlier(lora: LoraConfig, source: Source) -> tuple[LoraConfig, Adapter | None]:
    """The settings with what the adapter of `--lora-load` says, and the adapter; as they are where none is named.

    Args:
        lora: as given.
        source: the model under the adapter.

    Raises:
        UserError: the adapter does not fit the model, or flags say something else than it was trained with.
    """
    if lora.lora_load is None:
        return lora, None
    of_megatron = is_megatron(lora.lora_load)  # which may not hold its alpha; the rest is compared here, all at once
    stated = MegatronLoraConfig(lora_alpha=lora.lora_alpha) if of_megatron else None
    adapter, problems = open_adapter(lora.lora_load, source, stated).factors, Problems()
    held = settings_of(adapter, source.config)
    for flag, given, own in (("lora-r", lora.lora_r, held.r), ("lora-alpha", lora.lora_alpha, held.alpha)):
        problems.check(
            given in (None, own),
            f"--{flag} {given}: {lora.lora_load} was trained with {own:g}. Leave it out, or give that",
        )
    problems.check(
        held.shared_a or not lora.lora_shared_a,
        f"--lora-shared-a: {lora.lora_load} was trained with an A for each module. Leave it out",
    )
    wanted = hf_targets(lora.lora_target_modules, source.config) if lora.lora_target_modules else held.targets
    problems.check(
        set(wanted) == set(held.targets),
        f"--lora-target-modules {' '.join(lora.lora_target_modules)}: {lora.lora_load} adapts "
        f"{' '.join(held.targets)}. Leave it out",
    )
    problems.raise_if_any()
    settled = replace(lora, lora_r=held.r, lora_alpha=held.alpha, lora_target_modules=held.targets)
    return replace(settled, lora_shared_a=held.shared_a), adapter
