"""Decoding beside transformers' `generate`: tokens/s one at a time and in a batch, 8-bit weights, share of the memory's speed.

    python benchmarks/decode_speed.py MODEL [--dtype bf16] [--tokens 64] [--rounds 3] [--exam ceval-exam.zip] [--output JSON]

Engines take turns, each in a new process: the prompt of every engine is the same, answers are greedy and of exactly
`--tokens` tokens. The time of a first answer of 8 tokens is left out, so the prompt's own pass counts. The limit is reading the
layers' and the head's weights once a token, at the speed of summing 1 GB of numbers in this call. A further answer of each of
tuneval's engines, a clock around every linear layer, tells their share of a token's time.

Quality of 8 bits: perplexity of bf16, 8 bits and fp32 on the answers' own kind of text (with --text FILE), and letters on
C-Eval questions that change (with --exam).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from side_by_side import alternate, medians, setting, spread, write
from torch.nn.functional import cross_entropy

from tuneval import runtime
from tuneval.checkpoints.load import Loaded, load_model
from tuneval.config.schema import SamplingConfig
from tuneval.inference.generate import generate
from tuneval.inference.linear import Int8Linear, PackedLinear, speed_up

PROMPT = "请介绍一下如何保持健康的生活方式。\n\n"
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=tuple(ENGINES))
    parser.add_argument("--text", type=Path, default=None, help="UTF-8 text for the perplexity of 8 bits")
    parser.add_argument("--exam", type=Path, default=None, help="C-Eval folder or zip for the letters of 8 bits")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(ENGINES[options.run](options), ensure_ascii=False))
        return
    common = (__file__, options.model, "--dtype", options.dtype, "--tokens", options.tokens)
    runs = alternate({name: (*common, "--run", name) for name in options.engines}, options.rounds)
    report = summary(options, runs)
    if options.text or options.exam:
        report["quality"] = quality(options)
    write({**report, **setting()}, options.output)


def summary(options: argparse.Namespace, runs: dict[str, list[dict]]) -> dict:
    speed = medians(runs, "tokens_per_second")
    theirs = speed.get("transformers", {}).get("median")
    one = speed.get("tuneval", {}).get("median")
    read = reading_speed()
    limits = {name: read["median"] / rows[0]["bytes_per_token"] for name, rows in runs.items()}
    return {
        "work": f"{options.tokens} greedy tokens, {options.dtype}",
        "tokens/s": speed,
        "ratio to transformers": {n: round(s["median"] / theirs, 2) for n, s in speed.items() if theirs},
        "ratio to one at a time": {n: round(s["median"] / one, 2) for n, s in speed.items() if one},
        "memory read, GB/s": {k: round(v / 1e9, 1) for k, v in read.items()},
        "share of the limit": {
            n: round(s["median"] / limits[n], 2) for n, s in speed.items() if not n.endswith(f"x{BATCH}")
        },
        "same text as transformers": {
            n: rows[0]["text"] == runs["transformers"][0]["text"] for n, rows in runs.items() if "transformers" in runs
        },
        "linear layers of a step": {n: rows[0]["linear"] for n, rows in runs.items() if "linear" in rows[0]},
        "peak GB": {n: round(max(r["peak_bytes"] for r in rows) / 1e9, 2) for n, rows in runs.items()},
    }


def reading_speed() -> dict[str, float]:
    """Bytes a second of summing a tensor that no cache holds."""
    numbers = torch.ones(1 << 28)  # 1 GiB
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(numbers.nbytes / (time.perf_counter() - started))
    return spread(seconds[1:])


def bytes_per_token(model: torch.nn.Module, per_weight: float) -> float:
    """What one token reads: every linear layer, the head included."""
    return sum(m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear) * per_weight


def run_tuneval(options: argparse.Namespace, batch: int = 1, quantize: str | None = None) -> dict:
    runtime.prepare()  # its settings are tuneval's own: transformers runs as it is
    loaded = load_model(options.model, options.dtype)
    size = bytes_per_token(loaded.model, 1 if quantize else loaded.model.dtype.itemsize)
    speed_up(loaded, quantize)
    prompt = loaded.tokenizer(PROMPT)["input_ids"]

    def answer(tokens: int) -> list[list[int]]:
        return generate(loaded, [prompt] * batch, SamplingConfig(greedy=True, max_new_tokens=tokens), ())

    found = timed(answer, options.tokens, size, loaded.tokenizer)
    return {**found, "linear": in_linear_layers(loaded.model, answer, options.tokens, size)}


def in_linear_layers(model: torch.nn.Module, answer, tokens: int, size: float) -> dict[str, float]:
    """Milliseconds of a step within the linear layers and in all, the prompt's pass included; what those read a second."""
    seconds = 0.0

    def clocked(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        nonlocal seconds
        started = time.perf_counter()
        y = forward(x)
        seconds += time.perf_counter() - started
        return y

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | PackedLinear | Int8Linear):
            module.forward = partial(clocked, module.forward)
    started = time.perf_counter()
    answer(tokens)
    whole = time.perf_counter() - started
    return {
        "ms": round(1e3 * seconds / tokens, 1),
        "ms in all": round(1e3 * whole / tokens, 1),
        "GB/s": round(size * tokens / seconds / 1e9, 1),
    }


def run_transformers(options: argparse.Namespace, batch: int = 1) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=runtime.DTYPES[options.dtype])
    inputs = tokenizer([PROMPT] * batch, return_tensors="pt")

    def answer(tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            output = model.generate(
                **inputs, do_sample=False, max_new_tokens=tokens, eos_token_id=None, repetition_penalty=1.0
            )
        return output[:, inputs["input_ids"].shape[1] :].tolist()

    return timed(answer, options.tokens, bytes_per_token(model, model.dtype.itemsize), tokenizer)


def timed(answer, tokens: int, size: float, tokenizer) -> dict:
    answer(8)
    started = time.perf_counter()
    answers = answer(tokens)
    seconds = time.perf_counter() - started
    assert all(len(a) == tokens for a in answers)
    return {
        "tokens_per_second": tokens * len(answers) / seconds,
        "bytes_per_token": size,
        "peak_bytes": runtime.peak_memory_bytes(),
        "text": tokenizer.decode(answers[0]),
    }


def quality(options: argparse.Namespace) -> dict:
    """What 8 bits change: the model in its own type, the same with 8-bit weights, and fp32."""
    found = {}
    for name, dtype, quantize in (
        (options.dtype, options.dtype, None),
        ("int8", options.dtype, "int8"),
        ("fp32", "fp32", None),
    ):
        loaded = load_model(options.model, dtype)
        speed_up(loaded, quantize)
        found[name] = {}
        if options.text:
            found[name]["perplexity"] = round(perplexity(loaded, options.text.read_text(encoding="utf-8")), 4)
        if options.exam:
            found[name]["letters"] = letters(loaded, options.exam, options.questions)
    if options.exam:
        right, reference = found["fp32"]["letters"]["answers"], found["fp32"]["letters"]["chosen"]
        for one in found.values():
            chosen = one["letters"]["chosen"]
            one["letters"] = {
                "questions": len(chosen),
                "right": sum(a == b for a, b in zip(chosen, right)),
                "other letter than fp32": sum(a != b for a, b in zip(chosen, reference)),
            }
    return found


def perplexity(loaded: Loaded, text: str, window: int = 512, windows: int = 16) -> float:
    """Over the first windows of a text, each begun afresh."""
    ids = torch.tensor(loaded.tokenizer(text)["input_ids"][: window * windows])
    total, count = 0.0, 0
    with torch.inference_mode():
        for part in ids.split(window):
            logits = loaded.model(part[None, :]).logits[0, :-1].float()
            total += cross_entropy(logits, part[1:], reduction="sum").item()
            count += len(part) - 1
    return math.exp(total / count)


def letters(loaded: Loaded, exam: Path, questions: int) -> dict:
    """The letter that the model finds likeliest behind each zero-shot question."""
    from tuneval.evaluation.tasks import find_task, load_exam

    held = load_exam(find_task("ceval"), exam, "val", (), 2, 0).questions
    rows = [row for subject in held.values() for row in subject][:questions]
    ids = [loaded.tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in "ABCD"]
    chosen = []
    with torch.inference_mode():
        for row in rows:
            choices = "\n".join(f"{letter}. {text}" for letter, text in row.choices.items())
            prompt = loaded.tokenizer(f"{row.question}\n{choices}\n答案：", return_tensors="pt")["input_ids"]
            logits = loaded.model(prompt, logits_to_keep=1).logits[0, -1].float()
            chosen.append("ABCD"[int(logits[ids].argmax())])
    return {"chosen": chosen, "answers": [row.answer for row in rows]}


ENGINES = {
    "transformers": run_transformers,
    "tuneval": run_tuneval,
    "tuneval int8": lambda options: run_tuneval(options, quantize="int8"),
    f"transformers x{BATCH}": lambda options: run_transformers(options, BATCH),
    f"tuneval x{BATCH}": lambda options: run_tuneval(options, BATCH),
}

if __name__ == "__main__":
    main()
