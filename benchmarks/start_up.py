"""How soon an answer comes: help, a slip in the flags, a model ready for its first token, its first training step.

    python benchmarks/start_up.py MODEL [--rounds 5] [--output JSON]

The first table is the wall time of whole processes; `python` alone and `import transformers` (with torch) are what nobody can beat
and what a command that imports everything first must pay. The second is the time within a process, imports done, from the
path to the loaded model and on to the first token of a short prompt; `read` reads the same weight files into memory it
already has. `cold` drops the files from the page cache before each run, so that the disk is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from side_by_side import alternate, medians, setting, spread, write

PROMPT = "The capital of France is"
SLIPS = {
    "tuneval --help": ["--help"],
    "tuneval tune --help": ["tune", "--help"],
    "unknown flag": ["tune", "--load", "x", "--data-path", "x", "--save", "x", "--learning-rate", "1"],
    "value out of range": ["tune", "--load", "x", "--data-path", "x", "--save", "x", "--lr", "-1"],
    "no such model": ["generate", "--load", "nothing", "--prompt", "x"],
    "no such exam": ["evaluate", "--load", ".", "--task", "cevall", "--output", "x"],
    "no such run": ["report", "nothing"],
}
"""What is timed -> the words behind `tuneval`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(ENGINES[options.run](options)))
        return
    processes = whole_processes(options.rounds)
    loading = {}
    for state in ("warm", "cold"):
        common = (__file__, options.model, "--dtype", options.dtype, *(["--cold"] if state == "cold" else []))
        runs = alternate({name: (*common, "--run", name) for name in ENGINES}, options.rounds)
        loading[state] = summary(runs)
    write({"whole processes, s": processes, "weights": options.model.name, **loading, **setting()}, options.output)


def whole_processes(rounds: int) -> dict[str, dict[str, float]]:
    """Name -> wall seconds of the process."""
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import transformers": [sys.executable, "-c", "import torch, transformers; transformers.AutoModelForCausalLM"],
        **{name: [sys.executable, "-m", "tuneval", *words] for name, words in SLIPS.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            started = time.perf_counter()
            subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            seconds[name].append(time.perf_counter() - started)
    return {name: spread(values) for name, values in seconds.items()}


def summary(runs: dict[str, list[dict]]) -> dict:
    total = medians(runs, "seconds")
    read = total["read"]["median"]
    return {
        "to the first token, s": total,
        "of it loading, s": medians({n: r for n, r in runs.items() if n != "read"}, "load_seconds"),
        "ratio to reading the files": {n: round(s["median"] / read, 2) for n, s in total.items() if n != "read"},
        "read GB/s": round(runs["read"][0]["bytes"] / 1e9 / read, 2),
    }


def weight_files(folder: Path, cold: bool) -> list[Path]:
    """The weight files; dropped from the page cache where `cold`."""
    files = sorted(folder.resolve().glob("*.safetensors"))
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        if cold:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.read(descriptor, 1 << 24):
                pass
        os.close(descriptor)
    return files


def run_read(options: argparse.Namespace) -> dict:
    files = weight_files(options.model, options.cold)
    size = sum(path.stat().st_size for path in files)
    buffer = bytearray(size)  # zeroed, so its pages are there already
    started, at = time.perf_counter(), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(memoryview(buffer)[at:]):
                at += count
    return {"seconds": time.perf_counter() - started, "bytes": size}


def run_tuneval(options: argparse.Namespace) -> dict:
    from tuneval import runtime

    runtime.prepare()
    from tuneval.checkpoints.load import load_model
    from tuneval.config.schema import SamplingConfig
    from tuneval.inference.generate import generate

    warm_imports()
    weight_files(options.model, options.cold)
    started = time.perf_counter()
    loaded = load_model(options.model, options.dtype)
    load = time.perf_counter() - started
    prompt = loaded.tokenizer(PROMPT)["input_ids"]
    generate(loaded, [prompt], SamplingConfig(greedy=True, max_new_tokens=1), ())
    return {"seconds": time.perf_counter() - started, "load_seconds": load}


def run_transformers(options: argparse.Namespace) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tuneval import runtime

    warm_imports()
    weight_files(options.model, options.cold)
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=runtime.DTYPES[options.dtype])
    load = time.perf_counter() - started
    model.generate(**tokenizer(PROMPT, return_tensors="pt"), do_sample=False, max_new_tokens=1)
    return {"seconds": time.perf_counter() - started, "load_seconds": load}


def warm_imports() -> None:
    """What both import lazily, so that neither pays for it in the time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2ForCausalLM, generation

    assert all((AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2ForCausalLM, generation))


ENGINES = {"read": run_read, "tuneval": run_tuneval, "transformers": run_transformers}

if __name__ == "__main__":
    main()
