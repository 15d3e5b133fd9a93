"""Preprocessing beside the tokenizer alone: seconds for the same texts, and memory against the size of the input.

    python benchmarks/preprocess_speed.py TOKENIZER_FOLDER RECORDS.jsonl [--rounds 3] [--times 20] [--output JSON]

Engines take turns, each in a new process, imports and the loading of the tokenizer not counted:

    tuneval            reads, renders, encodes, marks what is trained, counts, writes, as `tuneval preprocess` does
    tuneval-workers    the same with a process for every core
    raw                `encode_batch_fast` of the same conversations, rendered before the clock starts; ids are thrown away

Then `tuneval preprocess` runs once on the records and once on a file that repeats them `--times` times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import alternate, medians, setting, write

from tuneval import runtime
from tuneval.config.schema import PreprocessConfig
from tuneval.data.preprocess import preprocess
from tuneval.data.records import make_handler, read_rows
from tuneval.data.rows import BadRow
from tuneval.data.tokenizer import load_tokenizer

MAP_KEYS = {"prompt": "zh_instruction", "query": "zh_input", "response": "zh_output"}
"""Of alpaca-chinese; other records say theirs with --map-keys."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--map-keys", default=json.dumps(MAP_KEYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=20, help="how much larger the second input is; 0: leave it out")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        runtime.prepare()
        print(json.dumps(ENGINES[options.run](options)))
        return
    common = (__file__, options.tokenizer, "--map-keys", options.map_keys)
    runs = alternate({name: (*common, options.records, "--run", name) for name in ENGINES}, options.rounds)
    seconds = medians(runs, "seconds")
    raw = seconds["raw"]["median"]
    report = {
        "work": f"{runs['tuneval'][0]['records']} records, {runs['tuneval'][0]['tokens']} tokens",
        "seconds": seconds,
        "ratio to raw": {name: round(s["median"] / raw, 2) for name, s in seconds.items()},
        "loading the tokenizer, s": medians(runs, "tokenizer_seconds"),
    }
    if options.times:
        report["memory"] = memory(options, common)
    write({**report, **setting()}, options.output)


def memory(options: argparse.Namespace, common: tuple) -> dict:
    """Peak of the records and of a file so many times as large."""
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.jsonl"
        lines = options.records.read_bytes()
        with large.open("wb") as file:
            for _ in range(options.times):
                file.write(lines)
        found = {}
        for name, records in (("records", options.records), (f"{options.times} times", large)):
            (run,) = alternate({name: (*common, records, "--run", "tuneval")}, 1)[name]
            found[name] = {k: run[k] for k in ("records", "seconds", "peak_bytes")} | {"bytes": records.stat().st_size}
    return found


def run_tuneval(options: argparse.Namespace, workers: int = 1) -> dict:
    from transformers import AutoTokenizer

    started = time.perf_counter()
    assert AutoTokenizer
    load_tokenizer(options.tokenizer)
    tokenizer_seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        config = PreprocessConfig(
            input=options.records,
            tokenizer_name_or_path=str(options.tokenizer),
            output_prefix=Path(folder) / "data",
            map_keys=options.map_keys,
            workers=workers,
            log_interval=sys.maxsize,
        )
        started = time.perf_counter()
        manifest = preprocess(config)
        seconds = time.perf_counter() - started - tokenizer_seconds
    return {
        "seconds": seconds,
        "tokenizer_seconds": tokenizer_seconds,
        "records": manifest["input"]["rows"],
        "tokens": manifest["tokens"],
        "peak_bytes": runtime.peak_memory_bytes(),
    }


def run_raw(options: argparse.Namespace) -> dict:
    started = time.perf_counter()
    tokenizer = load_tokenizer(options.tokenizer)
    tokenizer_seconds = time.perf_counter() - started
    texts = list(rendered(options, tokenizer))
    started = time.perf_counter()
    for at in range(0, len(texts), 1000):  # as datasets.map does it by default
        tokenizer.backend_tokenizer.encode_batch_fast(texts[at : at + 1000], add_special_tokens=False)
    return {
        "seconds": time.perf_counter() - started,
        "tokenizer_seconds": tokenizer_seconds,
        "records": len(texts),
        "peak_bytes": runtime.peak_memory_bytes(),
    }


def rendered(options: argparse.Namespace, tokenizer):
    """The text of each conversation, as tuneval renders it."""
    handler = None
    for number, row in enumerate(read_rows(options.records)):
        handler = handler or make_handler("auto", json.loads(options.map_keys), row)
        try:
            messages = handler(row, number).messages
        except BadRow:
            continue
        turns = [{"role": m.role, "content": m.content} for m in messages]
        yield tokenizer.apply_chat_template(turns, tokenize=False)


ENGINES = {
    "tuneval": run_tuneval,
    "tuneval-workers": lambda options: run_tuneval(options, workers=len(os.sched_getaffinity(0))),
    "raw": run_raw,
}

if __name__ == "__main__":
    main()
