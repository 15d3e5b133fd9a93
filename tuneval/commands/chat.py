"""`tuneval chat`: talk with a model in the terminal; lines may also come through a pipe."""

from __future__ import annotations

from tuneval import console
from tuneval.checkpoints.load import load_model
from tuneval.config.flags import Parsed, check_model_facts
from tuneval.config.schema import ChatConfig
from tuneval.inference.chat import Chat, lines_said, run_chat
from tuneval.inference.generate import choose_template
from tuneval.inference.linear import speed_up
from tuneval.inference.sampling import without_effect


def main(parsed: Parsed) -> None:
    config: ChatConfig = parsed.config
    if notice := without_effect(config.sampling):
        console.note(notice)
    console.note(f"loading {config.load}")
    loaded = load_model(config.load, config.dtype, config.lora_load, config.tokenizer_name_or_path)
    check_model_facts(parsed.model_facts, loaded.config.to_dict())
    speed_up(loaded, config.quantize)
    template = choose_template(loaded, config.prompt_type)
    chat = Chat(loaded, template, config.sampling, config.system)
    lines, typed = lines_said()
    if typed:
        console.note(f"template {template.name}, {config.dtype}. /help lists the commands, Ctrl-D leaves.")
    run_chat(chat, lines, show_speed=typed)
