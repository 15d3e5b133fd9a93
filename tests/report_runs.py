"""Run folders and evaluations as the real ones look, made on the spot: deterministic, no model needed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from tuneval.evaluation.stats import summary
from tuneval.files import write_json, write_jsonl
from tuneval.report.records import (
    EvalResult,
    Prediction,
    RunRecord,
    SampleAnswer,
    Step,
    Validation,
    to_dict,
    write_record,
    write_records,
)

SUBJECTS = {
    "advanced_mathematics": ("高等数学", "STEM", 19),
    "computer_network": ("计算机网络", "STEM", 19),
    "high_school_physics": ("高中物理", "STEM", 19),
    "operating_system": ("操作系统", "STEM", 19),
    "marxism": ("马克思主义基本原理", "Social Science", 19),
    "teacher_qualification": ("教师资格", "Social Science", 44),
    "law": ("法学", "Humanities", 24),
    "logic": ("逻辑学", "Humanities", 22),
    "accountant": ("注册会计师", "Other", 49),
    "civil_servant": ("公务员", "Other", 47),
}
CONTAMINATION = {
    "train_data": "data/alpaca", "files": {"data/alpaca.json": "ab" * 32}, "run": 13, "judged": 270, "touched": 9, "half": 4,
    "whole": 3, "clean": {"n": 261, "correct": 124, "accuracy": 124 / 261},
}  # fmt: skip
CATEGORIES = ("STEM", "Social Science", "Humanities", "Other")
HARD = ("advanced_mathematics", "high_school_physics")
MODEL = {"path": "models/qwen2.5-0.5b-instruct", "kind": "hf", "weights_sha256": "c3" * 32}


def make_run(folder: Path, method: str = "lora", steps: int = 100, validate: bool = True, samples: bool = True,
             baseline: Path | None = None, seed: int = 0, **changes) -> Path:  # fmt: skip
    """A run folder with its curves; `changes` replace fields of the record."""
    lora = method == "lora"
    config = {
        "load": MODEL["path"], "data_path": "data/alpaca", "split": "98,2,0", "seq_length": 1024, "save": str(folder),
        "global_batch_size": 16, "micro_batch_tokens": 2048, "loss_reduction": "token", "train_iters": steps,
        "lr": 1e-4 if lora else 1e-5, "min_lr": 0.0, "lr_decay_style": "cosine", "lr_warmup_fraction": 0.05,
        "weight_decay": 0.01, "clip_grad": 1.0, "bf16": True, "lora_r": 8 if lora else None,
        "lora_alpha": 16.0 if lora else None, "lora_dropout": 0.0, "lora_target_modules": [], "seed": 1234,
    }  # fmt: skip
    command = ["tuneval", "tune", "--load", MODEL["path"], "--data-path", "data/alpaca", "--save", str(folder)]
    record = {
        "command": [*command, *(["--lora-r", "8", "--lora-alpha", "16"] if lora else [])],
        "created": "2025-03-02T09:30:00+08:00",
        "config": config,
        "versions": {"python": "3.11.2", "tuneval": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"platform": "Linux-6.1-x86_64", "processor": "A processor with a long name @ 2.60GHz", "cores": 2,
                    "memory_bytes": 24 * 2**30, "device": "cpu", "threads": 2},
        "git": "1f" * 20,
        "method": method,
        "model": MODEL,
        "data": data_record(),
        "template_fingerprint": "7e" * 32,
        "parameters": {"total": 494_032_768, "trainable": 4_399_104 if lora else 494_032_768},
        "train_samples": 50_962,
        "train_iters": steps,
        "baseline_evaluation": None if baseline is None else str(baseline),
    }  # fmt: skip
    write_record(folder / "config.json", RunRecord(**{**record, **changes}))
    write_records(folder / "metrics.jsonl", make_steps(steps, lora, seed))
    if validate:
        write_records(folder / "validation.jsonl", make_validations(steps))
    if samples:
        write_records(folder / "samples.jsonl", SAMPLES)
    return folder


def data_record() -> dict:
    return {
        "samples": 52_002, "tokens": 7_200_345, "trained_tokens": 4_010_220,
        "lengths": {"p5": 48, "p50": 116, "p90": 262, "p95": 331, "p99": 468, "max": 1021},
        "input": {"path": "data/alpaca-chinese-52k.json.xz", "sha256": "ab" * 32, "rows": 52_049},
        "prompt_type": "qwen", "handler": "AlpacaStyleInstructionHandler", "skipped": {"empty answer": 32, "missing column": 3},
        "over_long": 12, "duplicates": 140, "packed": "no", "data_sha256": "cd" * 32,
    }  # fmt: skip


def make_steps(steps: int, lora: bool = True, seed: int = 0) -> list[Step]:
    random = np.random.default_rng(seed)
    peak, made = (1e-4 if lora else 1e-5), []
    for i in range(1, steps + 1):
        warm = max(1, steps // 20)
        lr = peak * i / warm if i <= warm else peak * 0.5 * (1 + math.cos(math.pi * (i - warm) / max(1, steps - warm)))
        tokens, seconds = int(2200 + 300 * random.standard_normal()), 9.0 + 0.4 * random.standard_normal()
        loss = 1.85 + 0.75 * math.exp(-i / 18) + 0.07 * random.standard_normal()
        norm = (1.1 if lora else 9.0) * (0.6 + math.exp(-i / 12)) * math.exp(0.12 * random.standard_normal())
        made.append(Step(
            step=i, loss=round(loss, 6), grad_norm=round(norm, 5), lr=lr, samples=16 * i, tokens=tokens,
            trained_tokens=tokens // 2, seconds=seconds, tokens_per_second=tokens / seconds,
            peak_memory_bytes=int((4.1 if lora else 12.4) * 2**30 + min(i, 20) * 2**24),
        ))  # fmt: skip
    return made


def make_validations(steps: int) -> list[Validation]:
    places = sorted({max(1, steps * k // 4) for k in range(1, 5)})
    losses = [1.87 + 0.5 * math.exp(-p / 18) for p in places]
    return [Validation(step=p, loss=v, perplexity=math.exp(v)) for p, v in zip(places, losses)]


def make_evaluation(folder: Path, skill: float, seed: int = 0, predictions: bool = True, **changes) -> Path:
    """A folder with results.json: every question has a difficulty, `skill` says how many are below it."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    right: dict[str, list[bool]] = {}
    rows = []
    for subject, (_, _, n) in SUBJECTS.items():
        for i in range(n):
            correct = bool(shared.random() * 0.8 + own.random() * 0.2 < skill)
            right.setdefault(subject, []).append(correct)
            rows.append(Prediction(subject=subject, id=str(i), answer="B", prediction="B" if correct else "C", correct=correct,
                                   scores={"A": 0.1, "B": 2.0, "C": 1.5, "D": 0.0}, margin=0.5,
                                   prompt_sha256=f"{i:064x}"))  # fmt: skip
    members = {c: [s for s, v in SUBJECTS.items() if v[1] == c] for c in CATEGORIES} | {"Hard": list(HARD)}
    figures = summary(right, members)
    for subject, values in figures["subjects"].items():
        values |= {"name_zh": SUBJECTS[subject][0], "category": SUBJECTS[subject][1]}
    values = {
        "task": "ceval", "style": "official", "shots": 5, "split": "val", "model": MODEL, "versions": {},
        "data_sha256": "e1" * 32, "prompt_sha256": "f2" * 32, "template_fingerprint": None, "dtype": "bf16",
        "seconds": 98.5, "questions": len(rows), "near_ties": 61, "config": {"load": MODEL["path"], "task": "ceval", "task_data_path": "data/ceval-exam.zip", "shots": 5, "dtype": "bf16", "output": str(folder), "compare": []},
        "chance": 0.25, "exact_ties": 22, "aggregation": "macro", "unparsed": 0, "at_chance": False,
        "decision": {"kind": "letter_logits"}, "answers": {x: sum(p.prediction == x for p in rows) for x in "ABCD"},
        "noise": {"questions": 16, "largest": 0.09375, "median": 0.0312, "changed": 2}, "within_noise": 37,
        "self_test": {"trivial": 4, "trivial_right": 4, "largest_batch_difference": 0.0625},
        "duplicates": {"repeated": 1, "contradictory": 0, "worked_examples": 2},
        **figures,
    }  # fmt: skip
    write_record(folder / "results.json", EvalResult(**{**values, **changes}))
    if predictions:
        write_records(folder / "predictions.jsonl", rows)
    return folder


def make_all(root: Path) -> tuple[Path, Path, Path]:
    """A scored base model, a LoRA run and a full run, both scored: (lora, full, baseline)."""
    baseline = make_evaluation(root / "base-evaluation", 0.45)
    lora = make_run(root / "run-lora", baseline=baseline)
    full = make_run(root / "run-full", method="full", steps=30, baseline=baseline, seed=3)
    make_evaluation(lora / "evaluation" / "ceval-official", 0.49, seed=1, contamination=CONTAMINATION)
    make_evaluation(full / "evaluation" / "ceval-official", 0.55, seed=2)
    return lora, full, baseline


def rewrite(path: Path, **changes) -> None:
    """Change fields of a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def with_samples(run: Path, samples: list[SampleAnswer]) -> Path:
    write_jsonl(run / "samples.jsonl", [to_dict(s) for s in samples])
    return run


SAMPLES = [
    SampleAnswer(
        prompt="请用三句话介绍杭州西湖。",
        before="西湖位于浙江省杭州市。\n\n它是一个湖。",
        after="西湖位于浙江省杭州市西部，是中国著名的风景名胜区。\n它以“西湖十景”闻名，四季景色各异。\n2011 年，西湖文化景观被列入《世界遗产名录》。",
    ),
    SampleAnswer(
        prompt="Write a Python function that reverses a string.",
        before="def reverse(s):\n    return s[::-1]",
        after="```python\ndef reverse(text: str) -> str:\n    return text[::-1]\n```\nIt takes a text and returns it reversed.",
    ),
    SampleAnswer(prompt="把下面的句子翻译成英文：学而时习之，不亦说乎？", before="", after="Is it not a pleasure to learn and to practise in due time?"),
]  # fmt: skip
