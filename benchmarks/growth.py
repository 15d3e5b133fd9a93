"""What grows with the size of the work: tokens/s over data sets and steps, memory over steps, step time over tokens.

    python benchmarks/growth.py [MODEL] [--method lora|full] [--dtype fp32|bf16] [--rows ROW ...] [--steps 1000] [--output JSON]

Without MODEL the embedded tiny one: there the arithmetic is little, so whatever else a step costs shows most. Samples are
random tokens of the lengths that instruction data have. Each row is a process of its own.

    data sets      tokens/s, and seconds until the first step, with 1,000, 10,000 and 100,000 samples
    steps          tokens/s and memory of the process's own (`RssAnon`) in each tenth of `--steps` steps
    tokens         seconds a step with 4 to 64 samples of 256 tokens: linear when the seconds per token stay
    segments       seconds per token of one micro-batch of 1,024 to 8,192 tokens: in samples of 256, and as one sample
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
from convert_memory import rss_anon
from side_by_side import alternate, setting, write

from tuneval import runtime
from tuneval.checkpoints.load import load_model
from tuneval.config.schema import BatchConfig, OptimConfig, PrecisionConfig
from tuneval.data.batches import SftDataset, global_batches, sample_order
from tuneval.data.indexed import SFT_COLUMNS, IndexedWriter, sft_prefix
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.training.loop import OneProcess, Progress, train
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import make_optimizer
from tuneval.training.schedule import Schedule

SIZES = (1_000, 10_000, 100_000)
BATCHES = (4, 8, 16, 32, 64)
LENGTHS = (1_024, 2_048, 4_096, 8_192)
SEGMENT = 256
SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        runtime.prepare()
        with (
            resources.as_file(resources.files("tuneval.assets") / "model") as tiny,
            tempfile.TemporaryDirectory() as data,
        ):
            options.model = options.model or tiny
            print(json.dumps(ROWS[options.run](options, Path(data) / "data")))
        return
    common = [__file__, *([options.model] if options.model else []), "--steps", options.steps]
    common += ["--method", options.method, "--dtype", options.dtype]
    commands = {}
    for row in options.rows:
        sizes = {f"{row} {n}": ("--size", n) for n in SIZES} if row == "data set" else {row: ()}
        commands |= {name: [*common, "--run", row, *size] for name, size in sizes.items()}
    runs = alternate(commands, 1)
    write(
        {
            "model": str(options.model or "embedded"),
            "method": options.method,
            **{n: r[0] for n, r in runs.items()},
            **setting(),
        },
        options.output,
    )


def run_data_set(options: argparse.Namespace, prefix: Path) -> dict:
    write_samples(prefix, usual_lengths(options.size))
    started = time.perf_counter()
    steps = run(options, prefix, 60, 16)
    first = next(steps)
    until_first = time.perf_counter() - started - first.seconds
    rest = list(steps)
    return {"seconds until the first step": until_first, "tokens_per_second": speed(rest), "rss_bytes": resident()}


def run_steps(options: argparse.Namespace, prefix: Path) -> dict:
    write_samples(prefix, usual_lengths(10_000))
    steps, tenth = run(options, prefix, options.steps, 16), options.steps // 10
    found = []
    while rows := list(islice(steps, tenth)):
        found.append({"tokens_per_second": speed(rows), "anonymous_bytes": rss_anon(os.getpid())})
    return {"tenths": found}


def run_tokens(options: argparse.Namespace, prefix: Path) -> dict:
    write_samples(prefix, np.full(1_000, SEGMENT))
    found = {}
    for batch in BATCHES:
        steps = list(run(options, prefix, 9, batch))[1:]
        found[batch * SEGMENT] = {"seconds per token": sum(s.seconds for s in steps) / sum(s.tokens for s in steps)}
    return found


def run_segments(options: argparse.Namespace, prefix: Path) -> dict:
    found = {}
    for length in LENGTHS:
        found[length] = {}
        for name, sample in (("in samples of 256", SEGMENT), ("as one sample", length)):
            own = prefix.with_name(f"{length}-{sample}")
            write_samples(own, np.full(length // sample * 4, sample))
            steps = list(run(options, own, 4, length // sample, micro_batch_tokens=length))[1:]
            found[length][name] = sum(s.seconds for s in steps) / sum(s.tokens for s in steps)
    return found


def run(options: argparse.Namespace, prefix: Path, steps: int, batch: int, micro_batch_tokens: int = 2048):
    """The steps of a tuning, one by one."""
    loaded = load_model(options.model, options.dtype)
    if options.method == "lora":
        add_lora(loaded.model, LoraSettings(r=8, alpha=16), SEED)
    decoder = Decoder(loaded.model)
    optim = OptimConfig(lr=1e-4, lr_decay_style="constant")
    sizes = BatchConfig(global_batch_size=batch, train_iters=steps, micro_batch_tokens=micro_batch_tokens)
    dataset = SftDataset(prefix)
    order = sample_order(len(dataset), steps * batch, SEED, shuffle=True)
    batches = global_batches(dataset, order, sizes, max(LENGTHS))
    optimizer = make_optimizer(decoder.named_parameters(), optim)
    scaler = LossScaler(PrecisionConfig(fp32=options.dtype == "fp32"))
    return train(OneProcess(decoder), batches, optimizer, Schedule(optim, steps, batch), scaler, Progress())


def usual_lengths(samples: int) -> np.ndarray:
    """As instruction data have them: a median of some 90 tokens and a long tail."""
    drawn = np.random.default_rng(SEED).lognormal(4.5, 0.7, samples)
    return drawn.astype(int).clip(8, 1_024)


def write_samples(prefix: Path, lengths: np.ndarray) -> None:
    """Random tokens; the second half of each sample is trained."""
    random = np.random.default_rng(SEED)
    columns = {}
    for column in SFT_COLUMNS:
        columns[column] = IndexedWriter(sft_prefix(prefix, column))
    for length in lengths.tolist():
        ids = random.integers(10, 500, length)
        labels = np.where(np.arange(length) < length // 2, -100, ids)
        for column, values in zip(SFT_COLUMNS, (ids, np.ones(length, int), labels)):
            columns[column].add(values)
    for writer in columns.values():
        writer.finish()
        writer.publish()


def speed(steps: list) -> float:
    return sum(s.tokens for s in steps) / sum(s.seconds for s in steps)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


ROWS = {"data set": run_data_set, "steps": run_steps, "tokens": run_tokens, "segments": run_segments}

if __name__ == "__main__":
    main()
