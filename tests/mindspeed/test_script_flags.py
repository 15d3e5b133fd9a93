"""Every flag of every generation of MindSpeed-LLM's Qwen2.5 scripts: acts, is held against the model, or is told.

`flags/<generation>-<script>.txt` holds an entry file's name and the words a script of that generation gives it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tuneval.config import compatibility, flags, schema
from tuneval.config.fields import flat_types
from tuneval.config.mindspeed import translate
from tuneval.errors import UserError

LISTS = sorted((Path(__file__).parent / "flags").glob("*.txt"))
SIZES = {
    "0point5b": (24, 896, 4864, 14, 2, 151936, True), "3b": (36, 2048, 11008, 16, 2, 151936, True),
    "7b": (28, 3584, 18944, 28, 4, 152064, False), "14b": (48, 5120, 13824, 40, 8, 152064, False),
    "32b": (64, 5120, 27648, 40, 8, 152064, False), "72b": (80, 8192, 29568, 64, 8, 152064, False),
}  # fmt: skip
"""Qwen2.5: layers, hidden, FFN, heads, KV heads, words, whether tied."""
TRANSLATED = set(
    "load-model-type save-model-type load-dir save-dir bf16 eval-language max-eval-samples variable-seq-lengths "
    "lora-target-models calculate-per-token-loss hf-chat-template prompt-type no-chat-template max-new-tokens "
    "tensor-model-parallel-size enable-thinking".split()
)
"""What `translate` puts into other flags of ours; tests/config/test_mindspeed.py holds each."""


def words_of(path: Path) -> tuple[str, list[str]]:
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    return first.removeprefix("# "), shlex.split(" ".join(rest))


def parse(path: Path) -> tuple[list[str], list[str], flags.Parsed, type]:
    """(the script's words, everything said, the parsed configuration, its class)."""
    entry, words = words_of(path)
    ours = translate(entry, words)
    config_type = getattr(schema, f"{ours.command.capitalize()}Config")
    parsed = flags.parse(config_type, ours.words, entry)
    return words, [*ours.notices, *parsed.notices], parsed, config_type


@pytest.mark.parametrize("path", LISTS, ids=lambda p: p.stem)
def test_every_flag_acts_is_checked_or_is_told(path):
    words, said, parsed, config_type = parse(path)
    told = re.findall(r"--[a-z0-9-]*[a-z0-9]", " ".join(said))
    known = {name.replace("_", "-") for name in flat_types(config_type)} | set(parsed.model_facts) | TRANSLATED
    lost = [w for w in words if w.startswith("--") and w[2:] not in known | set(compatibility.ONLY) and w not in told]
    assert not lost
    assert len(said) == len(set(said)), "something was said twice"


@pytest.mark.parametrize("path", LISTS, ids=lambda p: p.stem)
def test_the_script_describes_its_model_and_no_other(path):
    *_, parsed, _ = parse(path)
    facts = dict(parsed.model_facts)
    size = next((s for name, s in SIZES.items() if f"_{name}" in path.stem), None)
    if size is None or not facts:
        return
    facts.pop("norm-epsilon")  # MindSpeed-LLM's own scripts say 1e-5 for some models whose config says 1e-6
    flags.check_model_facts(facts, hf_config(*size))
    for other in SIZES.values():
        if other != size:
            with pytest.raises(UserError, match=r"--num-layers|--hidden-size"):
                flags.check_model_facts(facts, hf_config(*other))


def hf_config(layers, hidden, ffn, heads, groups, words, tied):
    from transformers import Qwen2Config

    return Qwen2Config(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads, vocab_size=words,
        num_key_value_heads=groups, tie_word_embeddings=tied, rope_theta=1e6, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ).to_dict()  # fmt: skip


def test_there_is_a_list_of_every_generation():
    assert {p.stem.partition("-")[0] for p in LISTS} == {"r2.0", "r2.1", "r2.2", "r2.3", "today"}
