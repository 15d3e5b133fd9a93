"""Runs that are cut off and go on at another layout, for test_resume.py: `torchrun ... resume_cases.py FOLDER`.

One torchrun of four processes makes the unbroken runs of four processes and continues copies of all, one after the other,
by the command that users call.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from tuneval import console, runtime
from tuneval.checkpoints import resume
from tuneval.commands import tune
from tuneval.config import flags
from tuneval.config.schema import TuneConfig
from tuneval.parallel.peers import joined

STEPS, CUT = 8, 5
SETTINGS = (
    f"--train-iters {STEPS} --save-interval {CUT} --keep-checkpoints 9 --eval-interval 100 --split 90,10,0 "
    "--global-batch-size 5 --micro-batch-tokens 64 --lr 1e-3 --lr-decay-style cosine --lr-warmup-iters 4 --clip-grad 0.5"
)
KINDS = {"full": "--fp32", "lora": "--fp32 --lora-r 4", "bf16": "--bf16", "lean": "--bf16 --optimizer adam8bit"}
TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
LAYOUTS = {
    "one": "",
    "tp2 pp2": f"{TP} 2 {PP} 2",
    "tp4": f"{TP} 4 --sequence-parallel",
    "dp4": "",
    "dp4 full": "--data-parallel-sharding full",
    "tp2 dp2 full": f"{TP} 2 --data-parallel-sharding full",
    "pp2 vpp dp2 optimizer": f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1 --use-distributed-optimizer",
}
CASES: list[tuple[str, str, str]] = [
    ("full", "tp2 pp2", "tp2 pp2"),
    ("full", "tp2 pp2", "tp4"),
    ("full", "tp2 pp2", "dp4 full"),
    ("full", "tp2 pp2", "one"),
    ("full", "tp2 dp2 full", "tp2 dp2 full"),
    ("full", "tp2 dp2 full", "pp2 vpp dp2 optimizer"),
    ("full", "one", "tp2 pp2"),
    ("full", "one", "tp2 dp2 full"),
    ("lora", "tp2 pp2", "tp2 pp2"),
    ("lora", "tp2 pp2", "dp4"),
    ("lora", "tp2 pp2", "one"),
    ("lora", "one", "tp2 dp2 full"),
    ("bf16", "tp2 pp2", "tp2 pp2"),
    ("bf16", "dp4 full", "dp4 full"),
    ("lean", "tp2 pp2", "tp2 pp2"),
    ("lean", "tp2 pp2", "one"),
    ("lean", "dp4 full", "dp4 full"),
    ("lean", "dp4 full", "tp2 pp2"),
]
"""(what is trained, layout until the cut, layout from there on)."""


def words(folder: Path, kind: str, layout: str, run: Path) -> list[str]:
    """The command line of a run."""
    model = folder / ("wide" if kind == "lean" else "model")
    paths = ["--load", str(model), "--data-path", str(folder / "data"), "--save", str(run)]
    return [*paths, *f"{SETTINGS} {KINDS[kind]} {LAYOUTS[layout]}".split()]


def unbroken(folder: Path, kind: str, layout: str) -> Path:
    return folder / f"{kind} {layout}"


def continued(folder: Path, kind: str, before: str, after: str) -> Path:
    return folder / f"{kind} {before} then {after}"


def cut(run: Path, copy: Path) -> None:
    """What a kill after step CUT leaves of a run."""
    later = [f"step_{step:07d}" for step in resume.steps(run) if step > CUT]
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "adapter", *later))
    (copy / "checkpoints" / "latest").write_text(f"step_{CUT:07d}\n")


def cut_by_first(run: Path, copy: Path) -> None:
    if dist.get_rank() == 0:
        cut(run, copy)
    dist.barrier()


def run_here(command: Sequence[str]) -> None:
    assert tune.main(flags.parse(TuneConfig, list(command), "tuneval tune")) == 0


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    runtime.prepare()
    console.quiet(not runtime.is_main())
    with joined(5):
        for kind, layout in dict.fromkeys(case[:2] for case in CASES if case[1] != "one"):
            run_here(words(folder, kind, layout, unbroken(folder, kind, layout)))
        for kind, before, after in CASES:
            if after != "one":
                copy = continued(folder, kind, before, after)
                cut_by_first(unbroken(folder, kind, before), copy)
                run_here(words(folder, kind, after, copy))
