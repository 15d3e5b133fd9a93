"""`tuneval chat`: talk with a model in the terminal; lines may also come through a pipe."""

from __future__ import annotations

import sys

from tuneval import console
from tuneval.checkpoints.load import load_model
from tuneval.config.flags import Parsed, check_model_facts
from tuneval.config.schema import ChatConfig
from tuneval.inference.chat import Chat, run_chat, typed_lines
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
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text become a mark, not the end of the talk
    if terminal:
        console.note(f"template {template.name}, {config.dtype}. /help lists the commands, Ctrl-D leaves.")
    run_chat(chat, typed_lines() if terminal else iter(sys.stdin or ()), show_speed=terminal)
