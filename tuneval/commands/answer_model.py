"""The model of a command that answers, read and laid out for answers."""

from __future__ import annotations

from tuneval import console
from tuneval.checkpoints.load import Loaded, load_model
from tuneval.config.flags import check_model_facts
from tuneval.config.schema import ChatConfig, GenerateConfig, InferenceConfig, MegatronLoraConfig
from tuneval.inference.linear import speed_up


def load(
    config: ChatConfig | GenerateConfig | InferenceConfig,
    model_facts: dict[str, str],
    stated: MegatronLoraConfig | None = None,
    tensor_parallel_size: int = 1,
    quantize: str | None = None,
) -> Loaded:
    """The model that the flags name, or this process's part of it.

    Args:
        config: of the command.
        model_facts: what the command line says of the model.
        stated: what it says of a Megatron LoRA.
        tensor_parallel_size: processes that share the model.
        quantize: `int8` for 8-bit weights.

    Raises:
        UserError: nothing there that can be loaded, or it is not what the flags say.
    """
    console.note(f"loading {config.load}")
    folder = config.tokenizer_name_or_path
    loaded = load_model(config.load, config.dtype, config.lora_load, folder, stated, tensor_parallel_size)
    check_model_facts(model_facts, loaded.config.to_dict())
    speed_up(loaded, quantize)
    return loaded
