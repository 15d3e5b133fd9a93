"""The named templates, as data: what stands around each message. Same names and same text as MindSpeed-LLM's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CONTENT = "{{content}}"
"""Stands for the message's text."""


class Special(str, Enum):
    """A token taken from the tokenizer instead of a text."""

    BOS = "bos_token"
    EOS = "eos_token"


Slots = tuple[str | Special, ...]
"""Texts, each encoded by itself, and special tokens."""


@dataclass(frozen=True, kw_only=True)
class PromptType:
    """Text around the messages. `user` ends where the answer begins; `assistant` is trained to its last token."""

    user: Slots
    assistant: Slots = (CONTENT, Special.EOS)
    system: Slots = (CONTENT,)
    prefix: Slots = ()
    """Before everything."""
    separator: Slots = ()
    """Before each question but the first."""
    default_system: str = ""
    """Used where a conversation has no system message; "": no system block then."""
    stop_words: tuple[str, ...] = ()
    """Tokens that end an answer; the first becomes the end-of-sequence token."""
    system_in_user: bool = False
    """The system block is a part of the first question's text."""
    empty_thought: str = ""
    """Masked text before an answer without a `<think>` block."""


_CHATML_USER = ("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n",)
_CHATML_SYSTEM = ("<|im_start|>system\n{{content}}<|im_end|>\n",)
_CHATML_ANSWER = ("{{content}}<|im_end|>\n",)
_LLAMA3_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

PROMPT_TYPES: dict[str, PromptType] = {
    "qwen": PromptType(
        user=_CHATML_USER,
        system=_CHATML_SYSTEM,
        separator=("\n",),
        default_system="You are a helpful assistant.",
        stop_words=("<|im_end|>",),
    ),
    "qwen_lf": PromptType(
        user=_CHATML_USER,
        assistant=_CHATML_ANSWER,
        system=_CHATML_SYSTEM,
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        stop_words=("<|im_end|>",),
    ),
    "qwen3": PromptType(
        user=_CHATML_USER,
        assistant=_CHATML_ANSWER,
        system=_CHATML_SYSTEM,
        stop_words=("<|im_end|>",),
        empty_thought="<think>\n\n</think>\n\n",
    ),
    "chatml": PromptType(
        user=_CHATML_USER, system=_CHATML_SYSTEM, separator=("\n",), stop_words=("<|im_end|>", "<|im_start|>")
    ),
    "llama2": PromptType(
        user=(Special.BOS, "[INST] {{content}} [/INST]"),
        system=("<<SYS>>\n{{content}}\n<</SYS>>\n\n",),
        system_in_user=True,
    ),
    "llama3": PromptType(
        user=(_LLAMA3_HEADER.format("user") + "{{content}}<|eot_id|>" + _LLAMA3_HEADER.format("assistant"),),
        system=(_LLAMA3_HEADER.format("system") + "{{content}}<|eot_id|>",),
        prefix=(Special.BOS,),
        stop_words=("<|eot_id|>",),
    ),
    "alpaca": PromptType(
        user=("### Instruction:\n{{content}}\n\n### Response:\n",),
        separator=("\n\n",),
        default_system=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        ),
    ),
    "default": PromptType(user=("Human: {{content}}\nAssistant:",), system=("{{content}}\n",), separator=("\n",)),
    "empty": PromptType(user=(CONTENT,), assistant=(CONTENT,)),
}
