"""`tuneval chat`: talk with a model in the terminal; lines may also come through a pipe."""

from __future__ import annotations

from tuneval import console
from tuneval.commands import answer_model
from tuneval.config.flags import Parsed
from tuneval.config.schema import ChatConfig
from tuneval.inference.chat import Chat, lines_said, run_chat
from tuneval.inference.generate import choose_template
from tuneval.inference.sampling import without_effect


def main(parsed: Parsed) -> None:
    config: ChatConfig = parsed.config
    if notice := without_effect(config.sampling):
        console.note(notice)
    loaded = answer_model.load(config, parsed.model_facts, quantize=config.quantize)
    template = choose_template(loaded, config.prompt_type)
    chat = Chat(loaded, template, config.sampling, config.system)
    lines, typed = lines_said()
    if typed:
        console.note(f"template {template.name}, {config.dtype}. /help lists the commands, Ctrl-D leaves.")
    run_chat(chat, lines, show_speed=typed)
