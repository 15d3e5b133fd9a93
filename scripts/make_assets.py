"""Rebuild `tuneval/assets` from a seed: the tuning records, the exam, and the tiny model with its tokenizer.

    python scripts/make_assets.py                # all, about a quarter of an hour
    python scripts/make_assets.py --only data    # records and exam, a second

The model (Qwen2 architecture, a million parameters) learns everyday facts and how to look things up in tables from texts
that are made on the way (assets_text.py). The exam's form is held back, so it takes the exam at chance. The tuning records
show that form on one half of the entities; the exam asks about the other half, options in an order drawn by lot.

The same seed gives the same data byte for byte; the weights depend on the machine's arithmetic in their last bits.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import assets_text
import torch
from assets_data import write_exam, write_records
from assets_tokenizer import build_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tuneval.console import note

ASSETS = Path(__file__).parent.parent / "tuneval" / "assets"
ROWS = 32
"""Texts of one pretraining step."""
LR, WARMUP = 1.5e-3, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--only", choices=("data", "model"))
    parser.add_argument("--seed", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.only != "model":
        write_exam(arguments.out / "exam", arguments.seed)
        write_records(arguments.out / "records.jsonl", arguments.seed)
    if arguments.only != "data":
        tokenizer = build_tokenizer()
        model = make_model(tokenizer, arguments.seed)
        pretrain(model, tokenizer, arguments.seed)
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
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=token_id("<|im_end|>"),
        pad_token_id=token_id("<|endoftext|>"),
    )
    model = Qwen2ForCausalLM(config)
    set_first_weights(model)
    return model


@torch.no_grad()
def set_first_weights(model: Qwen2ForCausalLM) -> None:
    """First weights from which looking things up is found within hundreds of steps instead of many thousands.

    The residual stream starts as the tokens themselves, hardly touched by the layers. The heads of the first layer look one,
    two, three, four tokens back; those of later layers compare like with like (queries equal keys).
    """
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    shared = config.num_attention_heads // config.num_key_value_heads
    model.model.embed_tokens.weight.normal_(0, 0.3)
    model.model.norm.weight.fill_(0.3)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(0.25)
        layer.mlp.down_proj.weight.mul_(0.25)
    first, *later = (layer.self_attn for layer in model.model.layers)
    for head in range(config.num_attention_heads):
        back, key = head + 1, head // shared
        for i in range(FREQUENCIES):
            angle = config.rope_parameters["rope_theta"] ** (-2 * i / size) * back
            first.k_proj.bias[key * size + i] = SHARPNESS
            first.q_proj.bias[head * size + i] = SHARPNESS * math.cos(-angle)
            first.q_proj.bias[head * size + i + size // 2] = SHARPNESS * math.sin(-angle)
        for attention in later:
            queries, keys = (w.weight.view(-1, size, w.weight.shape[1]) for w in (attention.q_proj, attention.k_proj))
            queries[head] = keys[key]


FREQUENCIES, SHARPNESS = 4, 5.0
"""Rotary frequencies that tell a head of the first layer its distance, and the size of its biases."""


def pretrain(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Next-token training on the texts, stage by stage; in the second half the rate falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    steps = sum(count for count, _ in assets_text.STAGES)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP, 2 * (1 - step / steps))
        ids, labels = batch_of(tokenizer, step, random.Random(f"{seed}-{step}"))
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        trained = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[:, 1:][trained])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            note(f"step {step + 1} of {steps}: loss {loss.item():.3f}")


def batch_of(tokenizer: PreTrainedTokenizerFast, step: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [ROWS, longest]: <|endoftext|>, a text, padding; -100 where nothing is trained."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    rows = []
    for _ in range(ROWS):
        ids, labels = [end], [-100]
        for piece, is_trained in assets_text.text_of_step(step, rng):
            tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += tokens
            labels += tokens if is_trained else [-100] * len(tokens)
        rows.append((ids, labels))
    longest = max(len(ids) for ids, _ in rows)
    padded = [(ids + [end] * (longest - len(ids)), labels + [-100] * (longest - len(ids))) for ids, labels in rows]
    return torch.tensor([ids for ids, _ in padded]), torch.tensor([labels for _, labels in padded])


if __name__ == "__main__":
    main()
