"""Two processes on two cores beside one process with both: LoRA tokens/s of TP 2, PP 2 and DP 2.

    python benchmarks/two_processes.py MODEL DATA_PREFIX [--dtype bf16|fp32] [--rounds 3] [--steps 2] [--output JSON]

Layouts take turns, each by `tuneval tune` in new processes with one thread each; `one` has two threads. A step is 64
samples of at most 1024 tokens; the first of each run is left out of the time.

A pipeline of 2 stands still for 1 of m + 1 turns, m the micro-batches of a step: its passes are half as long, so that there are more.
Its last stage has the head as well, which costs as much as 9 of a 0.5B model's 24 layers: `--layers` gives it fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import alternate, medians, setting, write

from tuneval.files import read_jsonl

LAYOUTS: dict[str, tuple[str, ...]] = {
    "one": (),
    "dp 2": ("--nproc-per-node", "2"),
    "pp 2": ("--nproc-per-node", "2", "--pipeline-model-parallel-size", "2", "--num-layer-list", "LAYERS"),
    "tp 2": ("--nproc-per-node", "2", "--tensor-model-parallel-size", "2"),
    "tp 2, sp": ("--nproc-per-node", "2", "--tensor-model-parallel-size", "2", "--sequence-parallel"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a run")
    parser.add_argument("--global-batch-size", type=int, default=64)
    parser.add_argument("--layers", default="15,9", help="of the two stages of a pipeline")
    parser.add_argument("--micro-batch-tokens", type=int, default=1024)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=tuple(LAYOUTS))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(LAYOUTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(tune(options)))
        return
    common = (__file__, options.model, options.data, "--dtype", options.dtype, "--steps", options.steps)
    common = (*common, "--micro-batch-tokens", options.micro_batch_tokens, "--layers", options.layers)
    common = (*common, "--global-batch-size", options.global_batch_size)
    runs = alternate({name: (*common, "--run", name) for name in options.layouts}, options.rounds)
    speed = medians(runs, "tokens_per_second")
    report = {
        "work": f"LoRA, {options.dtype}, {options.steps} steps of {options.global_batch_size} samples, "
        f"{options.micro_batch_tokens} tokens a pass, half of that in a pipeline of {options.layers} layers",
        "tokens/s": speed,
        "ratio to one process": {n: round(s["median"] / speed["one"]["median"], 3) for n, s in speed.items()},
        "first loss": {name: rows[0]["first_loss"] for name, rows in runs.items()},
        **setting(),
    }
    write(report, options.output)


def tune(options: argparse.Namespace) -> dict:
    threads = "2" if options.run == "one" else "1"
    tokens = options.micro_batch_tokens // (2 if options.run.startswith("pp") else 1)
    layout = [options.layers if word == "LAYERS" else word for word in LAYOUTS[options.run]]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--load", options.model, "--data-path", options.data, "--save", f"{folder}/run", "--lora-r", "8"]
        words += [
            "--seq-length",
            "1024",
            "--global-batch-size",
            options.global_batch_size,
            "--train-iters",
            options.steps + 1,
        ]
        words += ["--micro-batch-tokens", tokens, "--split", "100,0,0", "--no-save-optim"]
        words += ["--fp32"] if options.dtype == "fp32" else []
        subprocess.run(
            [sys.executable, "-m", "tuneval", "tune", *map(str, words), *layout],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=sys.stderr,
            check=True,
        )
        first, *timed = read_jsonl(Path(folder) / "run" / "metrics.jsonl")
    return {
        "tokens_per_second": statistics.median(step["tokens_per_second"] for step in timed),
        "first_loss": round(first["loss"], 4),
    }


if __name__ == "__main__":
    main()
