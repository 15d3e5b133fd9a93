"""A Hugging Face config and a reader of named tensors -> a transformers model, filled tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneval.errors import Problems, UserError
from tuneval.model import attention
from tuneval.model.frugal import make_frugal


def build_model(
    hf_config: PretrainedConfig,
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Build the model on `meta` and fill it, so that no weight exists twice or is drawn at random.

    Args:
        hf_config: config of any decoder-only model of transformers.
        read: Hugging Face tensor name -> tensor, which the model takes over; KeyError where there is none. A tied
            weight is read once.
        dtype: type of every weight; buffers that are computed (rotary frequencies) keep fp32.
        device: where the weights go.

    Returns:
        The model in eval mode, with attention "tuneval".

    Raises:
        UserError: the architecture is unknown to transformers, or tensors are missing or of another shape (all named), or
            quantised.
    """
    model = empty_model(hf_config, dtype)
    problems = Problems()
    for name, kind in _stored(model).items():
        try:
            tensor = read(name)
        except KeyError:
            problems.add(f"{name}: not in the checkpoint, though the config needs it")
            continue
        if tensor.shape != kind.shape:
            problems.add(f"{name}: {list(tensor.shape)} in the checkpoint, {list(kind.shape)} by the config")
            continue
        if kind.is_floating_point():
            check_float(name, tensor.dtype)
        _place(model, name, tensor.to(device=device, dtype=dtype).contiguous())
    problems.raise_if_any()
    model.tie_weights()
    compute_buffers(model, device)
    return model.eval()


def check_float(name: str, dtype: torch.dtype) -> None:
    """Raise a UserError for a quantised weight: many have the shape of what they were made of, and would pass for it."""
    if not dtype.is_floating_point:
        raise UserError(
            f"{name}: {dtype}, so quantised, which can't be computed with here. Give the weights it was made of"
        )


def empty_model(hf_config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config on `meta`: names and shapes, no values.

    Raises:
        UserError: transformers has no causal language model of this type, one that chooses among its own attentions, or
            one with experts in one tensor.
    """
    config = copy.deepcopy(hf_config)  # transformers writes dtype and attention into it
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    except ValueError as error:
        kind = getattr(hf_config, "model_type", type(hf_config).__name__)
        raise UserError(
            f"model type {kind}: transformers can't build it as a causal language model ({error})"
        ) from None
    except KeyError as error:
        if error.args != (attention.NAME,):
            raise
        raise UserError(
            f"model type {hf_config.model_type}: transformers has no place for another attention in it; this architecture "
            "is not supported"
        ) from None
    if any(".experts." in name and p.dim() == 3 for name, p in model.named_parameters()):  # [expert, out, in]
        raise UserError(
            f"model type {hf_config.model_type}: a mixture of experts, which the model holds in one tensor and its "
            "checkpoints each apart; dense models can be read so far"
        )
    make_frugal(model)
    return model


def _stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Tensors a checkpoint holds: parameters, tied ones under their first name, and persistent buffers."""
    state = model.state_dict()
    persistent = {name: b for name, b in model.named_buffers() if name in state}
    return {**dict(model.named_parameters()), **persistent}


def stored_names(hf_config: PretrainedConfig) -> list[str]:
    """Names of the tensors that `build_model` reads for a config, in its order."""
    return list(_stored(empty_model(hf_config, torch.float32)))


def _place(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(tensor)
    else:
        module._buffers[leaf] = tensor


def compute_buffers(model: PreTrainedModel, device: torch.device | str) -> None:
    """Give buffers that no checkpoint holds their values: the modules that own them are made anew from the config."""
    for name, module in list(model.named_modules()):
        if not any(b is not None and b.is_meta for b in module._buffers.values()):
            continue
        if next(module.parameters(), None) is not None or not hasattr(module, "config"):
            raise UserError(
                f"model type {model.config.model_type}: {name} ({type(module).__name__}) holds values that are neither "
                "in the checkpoint nor computed from the config alone; this architecture is not supported"
            )
        model.set_submodule(name, type(module)(module.config).to(device))
