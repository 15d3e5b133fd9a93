"""Conversion beside `cp`: gigabytes a second and peak memory of hf -> mcore -> hf on a real model.

    python benchmarks/convert_speed.py MODEL [--rounds 5] [--tp 1] [--pp 1] [--folder DIR] [--output JSON]

Engines take turns, each in a new process, imports not counted, the input in the page cache: `cp` copies the weight files,
`to mcore` and `to hf` convert them. Neither waits for the disk: what is timed is work, as the system's cache takes it. A first
round is left out: memory that a virtual machine hands out for the first time costs several times as much.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from side_by_side import alternate, medians, setting, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; three times the model must fit")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(ENGINES[options.run](options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        common = (__file__, options.model, "--folder", folder, "--tp", options.tp, "--pp", options.pp)
        runs = alternate({name: (*common, "--run", name) for name in ENGINES}, options.rounds + 1)
        runs = {name: rows[1:] for name, rows in runs.items()}
    speed = medians(runs, "gb_per_second")
    report = {
        "work": f"{options.model.name}, {runs['cp'][0]['bytes'] / 1e9:.2f} GB, TP {options.tp} x PP {options.pp}",
        "GB/s": speed,
        "share of cp": {name: round(s["median"] / speed["cp"]["median"], 2) for name, s in speed.items()},
        "peak GB": {n: round(max(r["peak_bytes"] for r in rows) / 1e9, 2) for n, rows in runs.items() if n != "cp"},
        **setting(),
    }
    write(report, options.output)


def run_cp(options: argparse.Namespace) -> dict:
    target = options.folder / "cp"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    files = sorted(options.model.resolve().glob("*.safetensors"))
    warm(files)
    started = time.perf_counter()
    subprocess.run(["cp", *files, target], check=True)
    return figures(files, time.perf_counter() - started)


def run_conversion(options: argparse.Namespace, source: Path, to: str) -> dict:
    from tuneval import runtime
    from tuneval.checkpoints.convert import to_hf, to_mcore
    from tuneval.checkpoints.layout import plan_layout
    from tuneval.checkpoints.load import open_source

    runtime.prepare()
    target = options.folder / to
    shutil.rmtree(target, ignore_errors=True)
    warm([path for path in source.rglob("*") if path.is_file()])
    files = sorted(options.model.resolve().glob("*.safetensors"))
    open_source(options.model)  # brings transformers' lazy imports
    started = time.perf_counter()
    opened = open_source(source)
    if to == "mcore":
        to_mcore(opened, target, plan_layout(opened.config, options.tp, options.pp, None))
    else:
        to_hf(opened, target)
    return {**figures(files, time.perf_counter() - started), "peak_bytes": runtime.peak_memory_bytes()}


def warm(files: list[Path]) -> None:
    """Into the page cache."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def figures(files: list[Path], seconds: float) -> dict:
    size = sum(path.stat().st_size for path in files)
    return {"bytes": size, "seconds": seconds, "gb_per_second": size / 1e9 / seconds}


ENGINES = {
    "cp": run_cp,
    "to mcore": lambda options: run_conversion(options, options.model, "mcore"),
    "to hf": lambda options: run_conversion(options, options.folder / "mcore", "hf"),
}

if __name__ == "__main__":
    main()
