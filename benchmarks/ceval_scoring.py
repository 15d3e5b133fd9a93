"""C-Eval scoring: tuneval's shared prefix against a plain one-question-at-a-time transformers loop. Time and letters.

    python benchmarks/ceval_scoring.py MODEL_FOLDER CEVAL_ZIP [--limit N] [--dtypes fp32 bf16] [--output FILE.json]

Both run the `official` style, 5 shots, in one process, one after the other. Letters are compared in each dtype; where
they differ, the margins say why: bf16 results turn with the order of additions, and bf16 logits (the plain loop's) have
steps of 0.06 to 0.125 at their usual size, so its best two letters are often equal.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneval import runtime
from tuneval.checkpoints.load import load_model
from tuneval.evaluation import score
from tuneval.evaluation.catalogue import STYLES
from tuneval.evaluation.exam import LETTERS, Exam
from tuneval.evaluation.margins import decide, near_tie
from tuneval.evaluation.styles import all_prompts
from tuneval.evaluation.tasks import TASKS, load_exam
from tuneval.model.decoder import Decoder

SUBJECTS = ("law", "logic", "art_studies", "high_school_biology", "computer_network", "physician")
STYLE = STYLES["ceval", "official"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("exam", type=Path)
    parser.add_argument("--limit", type=int, default=None, help="questions a subject; default all")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    runtime.prepare()
    exam = load_exam(TASKS["ceval"], options.exam, "val", SUBJECTS, options.limit, shots=5)
    prompts = {subject: [p.text for p in rows] for subject, rows in all_prompts(STYLE, exam, 5, chat=False).items()}
    report: dict = {"versions": runtime.versions(), "machine": runtime.machine(), "subjects": SUBJECTS}
    found: dict[str, dict[str, list[list[float]]]] = {}
    for dtype in options.dtypes:
        found[dtype], report[dtype] = measure(options.model, exam, prompts, dtype, options.batch_tokens)
        print(json.dumps({dtype: report[dtype]}, ensure_ascii=False, indent=2), flush=True)
    if {"fp32", "bf16"} <= set(found):
        report["bf16 against fp32"] = {
            engine: differences(found["bf16"][engine], found["fp32"][engine]) for engine in ("plain", "tuneval")
        }
        print(json.dumps(report["bf16 against fp32"], indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def measure(
    folder: Path, exam: Exam, prompts: dict[str, list[str]], dtype: str, batch_tokens: int
) -> tuple[dict[str, list[list[float]]], dict]:
    """Logits of both engines, and times and differences."""
    answers = [q.answer for subject in exam.subjects for q in exam.questions[subject]]
    plain, plain_seconds, plain_tokens = plain_loop(folder, prompts, dtype)
    shared, shared_seconds, shared_tokens = shared_prefix(folder, prompts, dtype, batch_tokens)
    figures = {
        "questions": len(answers),
        "plain": {"seconds": round(plain_seconds, 1), "tokens": plain_tokens, **describe(plain, answers)},
        "tuneval": {"seconds": round(shared_seconds, 1), "tokens": shared_tokens, **describe(shared, answers)},
        "times faster": round(plain_seconds / shared_seconds, 2),
        "tuneval against plain": differences(shared, plain),
    }
    return {"plain": plain, "tuneval": shared}, figures


@torch.no_grad()
def plain_loop(folder: Path, prompts: dict[str, list[str]], dtype: str) -> tuple[list[list[float]], float, int]:
    """One whole prompt at a time; the letters' logits as the model's own head gives them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=runtime.DTYPES[dtype]).to(runtime.device()).eval()
    ids = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in LETTERS]
    logits, tokens, started = [], 0, time.monotonic()
    for text in [text for texts in prompts.values() for text in texts]:
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        tokens += inputs["input_ids"].shape[1]
        logits.append(model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1, ids].float().tolist())
    return logits, time.monotonic() - started, tokens


def shared_prefix(
    folder: Path, prompts: dict[str, list[str]], dtype: str, batch_tokens: int
) -> tuple[list[list[float]], float, int]:
    loaded = load_model(folder, dtype)
    decoder, logits, tokens = Decoder(loaded.model).eval(), [], 0
    decoder.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].shape[1]))
    counted: list[int] = []
    started = time.monotonic()
    letters = [loaded.tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in LETTERS]
    for subject, texts in prompts.items():
        encoded = [loaded.tokenizer(text)["input_ids"] for text in texts]
        logits += score.letter_logits(decoder, encoded, letters, batch_tokens, [subject] * len(texts))
    tokens = sum(counted)
    return logits, time.monotonic() - started, tokens


def describe(logits: list[list[float]], answers: list[str | None]) -> dict:
    scores = [dict(zip(LETTERS, row)) for row in logits]
    letters = [decide(s)[0] for s in scores]
    return {
        "accuracy": round(sum(a == b for a, b in zip(letters, answers)) / len(answers), 4),
        "exact ties": sum(decide(s)[1] == 0 for s in scores),
        "near ties": sum(near_tie(s) for s in scores),
    }


def differences(one: list[list[float]], other: list[list[float]]) -> dict:
    """Letters that differ, and how far the second engine's margin was from a tie in each of them."""
    pairs = [(dict(zip(LETTERS, a)), dict(zip(LETTERS, b))) for a, b in zip(one, other)]
    moved = [(a, b) for a, b in pairs if decide(a)[0] != decide(b)[0]]
    margins = [max(decide(a)[1], decide(b)[1]) for a, b in moved]
    return {
        "largest logit difference": max(abs(a[x] - b[x]) for a, b in pairs for x in LETTERS),
        "letters that differ": len(moved),
        "of these, a near or exact tie for at least one": sum(near_tie(a) or near_tie(b) for a, b in moved),
        "largest margin among them": max(margins, default=0.0),
    }


if __name__ == "__main__":
    main()
