"""LoRA by peft: put adapters into a transformers model, save and load them as PEFT folders, merge them.

peft is imported where it is used: it takes a quarter of a second.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from transformers import PretrainedConfig, PreTrainedModel

from tuneval.errors import Problems
from tuneval.files import atomic_file
from tuneval.model.adapter import ADAPTER, CONFIG_FILE, PEFT_PREFIX, WEIGHTS_FILE, Adapter
from tuneval.model.build import empty_model
from tuneval.model.weight_map import FAMILIES, fused_modules, hf_modules, megatron_targets

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class LoraSettings:
    """What `--lora-*` says."""

    r: int
    """Rank of A [r, in] and B [out, r]."""
    alpha: float
    """The adapter adds alpha / r * B A."""
    dropout: float = 0.0
    """Dropout before A, in training."""
    targets: tuple[str, ...] = ()
    """Hugging Face or Megatron names of linear modules; empty: all linear layers of the blocks."""
    shared_a: bool = False
    """One A for the modules of a fused Megatron layer: for q, k and v, and for gate and up."""


def hf_targets(names: Iterable[str], hf_config: PretrainedConfig) -> tuple[str, ...]:
    """Hugging Face names of `--lora-target-modules`, before the model is loaded.

    Args:
        names: Hugging Face or Megatron names, in any mix; none: all linear layers of the blocks.
        hf_config: of the model.

    Returns:
        Sorted: `linear_qkv` became k_proj, q_proj, v_proj.

    Raises:
        UserError: a name that no block of the model has.
    """
    problems = Problems()
    targets = _resolve(names, empty_model(hf_config, torch.float32), problems)
    problems.raise_if_any()
    return targets


def add_lora(
    model: PreTrainedModel,
    settings: LoraSettings,
    seed: int,
    dtype: torch.dtype | None = None,
    adapter: Adapter | None = None,
) -> PreTrainedModel:
    """Put adapters into `model` and freeze everything else.

    A is drawn from the seed and its layer's name, B is 0: the same adapter whatever else is random and however layers
    are spread over processes. The global random state is left as it was.

    Args:
        model: made by `build_model`; changed in place.
        settings: rank, scaling, dropout, targets.
        seed: of A.
        dtype: type of A and B. Default: of the layer they sit on.
        adapter: one trained before, of these settings, whose values are taken instead.

    Returns:
        `model`.

    Raises:
        UserError: rank below 1, a dropout outside [0, 1), or a target that no block of the model has.
    """
    inject_lora(model, settings)
    with torch.no_grad():
        for name, p in list(model.named_parameters()):
            value = initial_value(name, p.shape, seed, adapter)
            if value is not None:
                p.data = p.data.to(dtype or p.dtype)
                p.copy_(value)
    return model


def inject_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """`add_lora` without values: for a model on `meta`, which `initial_value` fills later."""
    targets = _check_settings(model, settings)
    _inject(model, _peft_config(settings, targets))
    if settings.shared_a:
        _share_a(model)


def initial_value(name: str, shape: torch.Size, seed: int, adapter: Adapter | None = None) -> torch.Tensor | None:
    """What `add_lora` gives a parameter, fp32; None for one that is no A or B.

    Args:
        name: of the parameter.
        shape: of the whole parameter.
        seed: of A.
        adapter: one trained before, whose values are taken instead.
    """
    module, half, kind = name.rpartition(".lora_")[0], name.rpartition(".lora_")[2][:1], f".{ADAPTER}.weight"
    if not name.endswith((f".lora_A{kind}", f".lora_B{kind}")):
        return None
    if adapter is not None:
        return adapter.factors[module]["AB".index(half)].read().float()
    return torch.zeros(shape) if half == "B" else _drawn(shape, f"{seed}:{module}")


def settings_of(adapter: Adapter, hf_config: PretrainedConfig) -> LoraSettings:
    """The settings that `add_lora` needs for an adapter that was trained before."""
    groups = fused_modules(hf_config) if hf_config.model_type in FAMILIES else []
    several = any(sum(module in adapter.factors for module in group) > 1 for group in groups)
    return LoraSettings(adapter.r, adapter.alpha, 0.0, adapter.targets, several and adapter.shares_a(groups))


def save_adapter(model: PreTrainedModel, settings: LoraSettings, folder: str | Path, base_model: str) -> None:
    """Write a PEFT folder (adapter_config.json, adapter_model.safetensors), each file whole or absent.

    Args:
        model: with adapters of `add_lora`.
        settings: those given to `add_lora`.
        folder: made if need be; other files in it are kept.
        base_model: path or hub id that the adapter belongs to.
    """
    tensors = {name: p.detach().cpu().clone() for name, p in _by_file_name(model).items()}  # no memory shared
    _write_folder(folder, tensors, _peft_config(settings, _check_settings(model, settings)), base_model)


def save_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], settings: LoraSettings, folder: str | Path, base_model: str
) -> None:
    """`save_adapter` from the adapter's parameters alone, wherever they come from.

    Args:
        tensors: (name of the parameter, whole tensor); a shared A under each of its names.
        settings: those given to `add_lora`; the targets are Hugging Face's names.
        folder: made if need be; other files in it are kept.
        base_model: path or hub id that the adapter belongs to.
    """
    named = {_file_name(name): tensor.detach().cpu().clone() for name, tensor in tensors}  # no memory shared
    _write_folder(folder, named, _peft_config(settings, settings.targets), base_model)


def is_adapter(name: str) -> bool:
    """Whether a parameter is an A or B of `add_lora`."""
    return f".{ADAPTER}." in name


def _file_name(name: str) -> str:
    return PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".")


def write_peft(adapter: Adapter, folder: str | Path, base_model: str) -> None:
    """Write an adapter of any format as a PEFT folder.

    Args:
        adapter: to write.
        folder: made if need be; other files in it are kept.
        base_model: path or hub id that the adapter belongs to.
    """
    config = _peft_config(LoraSettings(adapter.r, adapter.alpha), adapter.targets)
    _write_folder(folder, adapter.peft_tensors(), config, base_model)


def _write_folder(folder: str | Path, tensors: dict[str, torch.Tensor], config: LoraConfig, base_model: str) -> None:
    config.base_model_name_or_path, config.inference_mode = base_model, True
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS_FILE, "wb") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    _save_config(config, folder)


def _check_settings(model: PreTrainedModel, settings: LoraSettings) -> tuple[str, ...]:
    """The targets, resolved."""
    problems = Problems()
    problems.check(settings.r >= 1, f"--lora-r {settings.r}: must be at least 1; 8 to 64 is usual")
    problems.check(0 <= settings.dropout < 1, f"--lora-dropout {settings.dropout}: must be in [0, 1)")
    targets = _resolve(settings.targets, model, problems)
    problems.raise_if_any()
    return targets


def _resolve(names: Iterable[str], model: PreTrainedModel, problems: Problems) -> tuple[str, ...]:
    known, megatron = _block_linears(model), megatron_targets()
    found = {name for given in names for name in (hf_modules(given) if given in megatron else (given,))}
    choices = [*known, *megatron]
    if not known:
        problems.add(
            f"model type {model.config.model_type}: its blocks have no linear layers by the names that LoRA looks for; "
            "this architecture can be chatted with, not tuned"
        )
        return ()
    for name in sorted(found - set(known)):
        nearest = difflib.get_close_matches(name, choices, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        if "," in name:
            hint = "; put spaces between the names, not commas."
        problems.add(
            f"--lora-target-modules {name}: the blocks have no such linear layer{hint} Known: {', '.join(choices)}"
        )
    return tuple(sorted(found or known))


def _block_linears(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the blocks' linear layers, adapted or not, sorted."""
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name and ".lora_" not in name
    }
    return sorted(names)


@contextmanager
def _hidden_bitsandbytes() -> Iterator[None]:
    """Within, peft finds no bitsandbytes, whose import takes a second and a half: it prepares to compile.

    peft would want it for layers of 4 and 8 bits, and those are refused before.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # how Python says that there is none
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        from peft import import_utils

        for remembered in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available):
            remembered.cache_clear()  # somebody else's peft in this process may want it


def _peft_config(settings: LoraSettings, targets: tuple[str, ...]) -> LoraConfig:
    with _hidden_bitsandbytes():
        from peft import LoraConfig

    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    return LoraConfig(
        r=settings.r,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )


def _inject(model: PreTrainedModel, config: LoraConfig) -> None:
    from peft import inject_adapter_in_model
    from peft.tuners.lora import Linear

    from tuneval.model.fused_linear import FusedLinear

    # peft draws; every value is replaced afterwards
    with _hidden_bitsandbytes(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft's own question
        inject_adapter_in_model(config, model, ADAPTER)
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLinear


def _share_a(model: PreTrainedModel) -> None:
    """Let the adapted modules of each fused layer use the first one's A: one parameter, one gradient sum."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for target in megatron_targets():
            members = [child for name in hf_modules(target) if (child := getattr(parent, name, None)) is not None]
            adapted = [child for child in members if isinstance(child, LoraLayer)]
            for child in adapted[1:]:
                child.lora_A[ADAPTER] = adapted[0].lora_A[ADAPTER]


def _by_file_name(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """A and B of every layer under the names of the file; a shared A under each of its names."""
    return {_file_name(name): p for name, p in model.named_parameters(remove_duplicate=False) if is_adapter(name)}


def _drawn(shape: torch.Size, key: str) -> torch.Tensor:
    """Uniform in +-1/sqrt(in), as peft's kaiming_uniform_(a=sqrt(5)) gives; fp32 on the CPU, from `key` alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _save_config(config: LoraConfig, folder: Path) -> None:
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    with atomic_file(folder / CONFIG_FILE) as file:
        json.dump(values, file, indent=2, sort_keys=True)
