"""The embedded model's tokenizer: byte-level BPE of Qwen's kind, with Qwen's chat tokens."""

from __future__ import annotations

import json
import re

import assets_text
import assets_world as world
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\n" + world.SYSTEM + "<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if not (loop.first and message['role'] == 'system') %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PUNCTUATION = "，。？！：；、“”"


def build_tokenizer() -> Qwen2Tokenizer:
    """Deterministic: every entity and value is one token. Byte-level and of Qwen's kind, as transformers reads it back."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_words(), trainer)
    learned = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=_numbered(learned["vocab"]),
        merges=_pairs(learned["merges"]),
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _words() -> list[str]:
    """What may become one token: entities, values, and the fixed parts of the texts between punctuation."""
    texts = assets_text.everything_said()
    for relation in world.RELATIONS:
        texts += [word for pair in relation.pairs for word in pair]
        texts += [*relation.statements, relation.ask_value, relation.answer]
    texts += [text for turn in world.SMALL_TALK for text in turn]
    for facts in world.SUBJECTS.values():
        texts += [facts[1], *world.official_header("{e}").split("{e}")]
    parts = (part for text in texts for part in re.split(r"\{[ev]\}|[，。？！：；、“”\n]", text))
    return [*PUNCTUATION, *(part for part in parts if part)]


def _numbered(vocabulary: dict[str, int]) -> dict[str, int]:
    """Qwen's special tokens first, then bytes and learned pieces in their order."""
    names = [*SPECIAL, *sorted(vocabulary, key=vocabulary.__getitem__)]
    return {name: number for number, name in enumerate(names)}


def _pairs(merges: list) -> list[tuple[str, str]]:
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in merges]
