"""Tiny real models and a tiny real tokenizer, made on the spot: deterministic, offline, every dimension different."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tuneval.wide_products import widen_products

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
widen_products()  # as every command does, so that transformers' own models in bf16 take minutes on any processor, too

LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 4, 6, 2, 8, 40, 352
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else -%}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for m in messages -%}{%- if not (loop.first and m['role'] == 'system') -%}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
SPECIAL = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's tokenizer cuts a text before BPE."""
CORPUS = [
    "You are a helpful assistant. You are kind.",
    "Translate the word. What is two plus two? The answer is four.",
    "以下是中国关于考试的单项选择题，请选出其中的正确答案。\n\n",
    "A. 猫 B. 狗 C. 鸟 D. 鱼\n答案：A B C D",
    "你好，请回答问题。问题：答案是什么？system user assistant\n",
]


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of Qwen's kind: its special tokens, its way of cutting text, a chat template like its own.

    transformers reads the folder of a Qwen model back as its own `Qwen2Tokenizer`, whatever the files say: only such a
    tokenizer is the same before and after.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"), byte_level])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return _with_chat(raw)


@pytest.fixture(scope="session")
def metaspace_tokenizer():
    """A tokenizer of SentencePiece's kind: characters instead of bytes, some joined across words, spaces as `▁`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    raw.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False))
    return _with_chat(raw)


def _with_chat(raw):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=["<|im_start|>"],
    )


def tiny_config(family: str = "qwen2", **changes):
    """Config of a supported family with pairwise different dimensions: hidden 48, 6 heads of 8, 2 KV heads, FFN 40."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    kind = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig, "mistral": MistralConfig}[family]
    values = {
        "vocab_size": VOCAB,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "head_dim": HEAD_DIM,
        "bos_token_id": None,
        "eos_token_id": 3,
        "pad_token_id": 1,
        "dtype": "float32",
    }
    if family == "mistral":
        values["sliding_window"] = None
    return kind(**{**values, **changes})


def fill(model: torch.nn.Module, scale: float = 0.05) -> None:
    """Weights without a random generator: sines of the position, another phase for each tensor; norms near one."""
    with torch.no_grad():
        for number, (name, p) in enumerate(sorted(dict(model.named_parameters()).items())):
            values = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + (number + 1) * 1.3)
            values = values + torch.sin(torch.arange(p.numel(), dtype=torch.float64) ** 1.5 * 0.11)
            p.copy_((values * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)).view_as(p))


def tiny_model(family: str = "qwen2", **changes):
    """A transformers model of `tiny_config`, filled, in fp32, in eval mode."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    fill(model)
    return model.eval()


@pytest.fixture
def tiny_folder(tmp_path, tokenizer):
    """Function (family, **config changes) -> Hugging Face folder with weights, config and tokenizer."""

    def make(family: str = "qwen2", name: str | None = None, **changes) -> Path:
        folder = tmp_path / (name or f"hf-{family}-{len(list(tmp_path.iterdir()))}")
        tiny_model(family, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The real 0.5B model's folder; tests that ask for it carry the mark `real`."""
    return _real("TUNEVAL_REAL_MODEL")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with alpaca-chinese-52k.json.xz and ceval-exam.zip."""
    return _real("TUNEVAL_REAL_DATA")


def _real(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)
