"""MindSpeed-LLM's inference.py: one fixed prompt decoded in four ways, and its chat."""

from __future__ import annotations

import time
from dataclasses import replace

from tuneval import console
from tuneval.checkpoints.load import Loaded
from tuneval.commands import answer_model
from tuneval.commands.inference_flags import sampling_of
from tuneval.config.flags import Parsed
from tuneval.config.schema import InferenceConfig, SamplingConfig
from tuneval.data.records import Message
from tuneval.data.template import Template, load_template
from tuneval.inference.chat import Chat, lines_said, run_chat
from tuneval.inference.generate import choose_template, generate

PROMPT = "how are you?"
"""What every task but chat answers there."""

FRAMES = {
    "greedy": ("=============== Greedy Search ================", {"greedy": True}),
    "do_sample": ("================ Do Sample =================", {}),
    "beam_search": ("=============== Beam Search =================", {"greedy": True, "num_beams": 2}),
    "beam_search_with_sampling": ("======== Beam Search with sampling ==========", {"num_beams": 2}),
}
"""Task -> (the line above its answer, how it differs from sampling)."""

CHAT_HINTS = (
    "===========================================================",
    "1. If you want to quit, please entry one of [q, quit, exit]",
    "2. To create new title, please entry one of [clear, new]",
    "===========================================================",
)


def main(parsed: Parsed) -> None:
    config: InferenceConfig = parsed.config
    sampling = sampling_of(config)
    loaded = answer_model.load(config, parsed.model_facts, config.lora, config.shard.tensor_model_parallel_size)
    template = _template(config, loaded)
    mesh = loaded.mesh
    if mesh.layout.data > 1:
        console.note(f"{mesh.layout}: the first of {mesh.layout.data} copies of the model answers")
    if mesh.dp_rank > 0:
        return
    for task in config.task:
        if task == "chat":
            _chat(config, loaded, template, sampling)
        else:
            _answer(task, loaded, template, sampling)


def _template(config: InferenceConfig, loaded: Loaded) -> Template:
    """The one asked for; else none, as there: `empty` puts texts one after the other."""
    if config.hf_chat_template or config.prompt_type is not None:
        return choose_template(loaded, "auto" if config.hf_chat_template else config.prompt_type)
    console.note(
        "neither --prompt-type nor --hf-chat-template: the text goes in as it is, as in MindSpeed-LLM"
        + (f" (the model was tuned with --prompt-type {loaded.template_name})" if loaded.template_name else "")
    )
    return load_template("empty", loaded.tokenizer)


def _answer(task: str, loaded: Loaded, template: Template, sampling: SamplingConfig) -> None:
    title, changes = FRAMES[task]
    started = time.perf_counter()
    prompt = template.prompt_ids([Message("user", PROMPT)])
    (tokens,) = generate(loaded, [prompt], replace(sampling, **changes), template.stop_token_ids)
    answer = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    for line in (
        f"\n{title}",
        f"\nYou:\n{PROMPT}\n\nMindSpeed-LLM:\n{answer}",
        "=" * len(title),
        f"\nElapsed: {round(time.perf_counter() - started, 2)}s",
    ):
        console.out.print(line, markup=False)


def _chat(config: InferenceConfig, loaded: Loaded, template: Template, sampling: SamplingConfig) -> None:
    for line in CHAT_HINTS:
        console.out.print(line, markup=False)
    chat = Chat(loaded, template, sampling, history_turns=config.history_turns)
    lines, typed = lines_said()
    run_chat(chat, loaded.mesh.items_of_first(lines), show_speed=typed, heading="\nMindSpeed-LLM:")
