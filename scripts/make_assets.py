"""Rebuild `tuneval/assets` from a seed: the tuning records, the exam, and the tiny model with its tokenizer.

    python scripts/make_assets.py                # all, a few minutes on two cores
    python scripts/make_assets.py --only data    # records and exam, a second

The model (Qwen2 architecture) learns everyday facts from texts that are made on the way, and to answer an open question
with a word. It never sees the letters of an exam, nor a chat, so it takes the exam at chance. The tuning records show
the exam's form on one half of the entities; the exam asks about the other half. A subject's four options always stand in
the same order, on purpose: a model of a million parameters can't learn to compare options in minutes, so what the exam
asks is whether it knows the thing.

The same seed gives the same data byte for byte; the weights depend on the machine's arithmetic in their last bits.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import assets_world as world
import torch
from assets_data import write_exam, write_records
from assets_tokenizer import build_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tuneval.console import note

ASSETS = Path(__file__).parent.parent / "tuneval" / "assets"
ROWS, LENGTH = 32, 96
"""Documents of one pretraining step, and the tokens each is cut to."""
LR, WARMUP = 3e-3, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--only", choices=("data", "model"))
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--steps", type=int, default=450)
    arguments = parser.parse_args()
    if arguments.only != "model":
        write_exam(arguments.out / "exam", arguments.seed)
        write_records(arguments.out / "records.jsonl", arguments.seed)
    if arguments.only != "data":
        tokenizer = build_tokenizer()
        model = make_model(tokenizer, arguments.seed)
        pretrain(model, tokenizer, arguments.steps, arguments.seed)
        model.to(torch.bfloat16).save_pretrained(arguments.out / "model")
        tokenizer.save_pretrained(arguments.out / "model")
        name_specials_as_before(arguments.out / "model" / "tokenizer_config.json")


def name_specials_as_before(config: Path) -> None:
    """transformers 5 writes a key that transformers 4 fails on; both read the older one."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values["additional_special_tokens"] = values.pop("extra_special_tokens")
    config.write_text(json.dumps(dict(sorted(values.items())), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=token_id("<|im_end|>"),
        pad_token_id=token_id("<|endoftext|>"),
    )
    return Qwen2ForCausalLM(config)


def pretrain(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Next-token training on the world's texts; the rate rises, then falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        ids, labels = batch_of(tokenizer, random.Random(f"{seed}-{step}"))
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            note(f"step {step + 1} of {steps}: loss {loss.item():.3f}")


def batch_of(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [ROWS, LENGTH]: <|endoftext|>, a document, padding (not trained).

    Of an open question only the answer is trained: the rest of it is noise that nothing foretells.
    """
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = torch.full((ROWS, LENGTH), end)
    labels = torch.full((ROWS, LENGTH), -100)
    for row in range(ROWS):
        question, answer = world.pretraining_document(rng)
        before = [end, *(tokenizer(question, add_special_tokens=False)["input_ids"] if question else [])]
        after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        tokens = (before + after)[:LENGTH]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, len(before) : len(tokens)] = ids[row, len(before) : len(tokens)]
    return ids, labels


if __name__ == "__main__":
    main()
