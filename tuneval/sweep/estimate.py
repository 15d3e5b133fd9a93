"""What a sweep will take, before it runs: steps and tokens from the data, time from steps that were really run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tuneval.config import flags, schema
from tuneval.data.split import split_borders
from tuneval.files import read_json, read_jsonl
from tuneval.sweep.processes import own_session
from tuneval.sweep.steps import Job, Plan

MOST_SECONDS = 600.0
"""How long a measurement may take."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one point."""

    job: Job
    steps: int | None
    """Optimizer steps; None: the data is not there yet."""
    tokens: int | None
    """Tokens of all steps, by the data's mean length."""
    seconds: float | None
    """Of the steps, without start, validation, exam and answers; None: not measured."""


def estimate(plan: Plan, measure_steps: int) -> list[Estimate]:
    """Steps, tokens and time of every point.

    Args:
        plan: its shared data steps must be done.
        measure_steps: steps to run for each kind of point (model, method, precision); 0: no time is given.
    """
    speeds: dict[tuple, float | None] = {}
    found = []
    for job in plan.jobs:
        config = tune_config(job)
        steps, tokens = planned(config)
        kind = _kind(config)
        if measure_steps and kind not in speeds:
            speeds[kind] = measure(job, measure_steps)
        speed = speeds.get(kind)
        seconds = None if speed is None or tokens is None else tokens / speed
        found.append(Estimate(job=job, steps=steps, tokens=tokens, seconds=seconds))
    return found


def tune_config(job: Job) -> schema.TuneConfig:
    """The settings of the point's tuning."""
    return flags.parse(schema.TuneConfig, list(job.steps[0].words[1:]), "tuneval tune").config


def planned(config: schema.TuneConfig) -> tuple[int | None, int | None]:
    """Optimizer steps and tokens of a tuning."""
    manifest = Path(f"{config.data.data_path}_manifest.json")
    facts = read_json(manifest) if manifest.is_file() else {}
    samples, batch = facts.get("samples"), config.batch
    if not samples:
        return batch.train_iters, None
    steps = batch.steps(split_borders(samples, config.data.split)[1])
    limit = config.data.seq_length or float("inf")
    mean = min(facts["tokens"] / samples, limit)
    return steps, round(steps * batch.global_batch_size * mean)


def _kind(config: schema.TuneConfig) -> tuple:
    """What a step's time per token depends on most."""
    return str(config.model.load), config.lora.enabled, config.precision, config.batch.micro_batch_tokens


def measure(job: Job, steps: int) -> float | None:
    """Tokens per second of the point's first steps, run for real in a folder that is then removed.

    The process is killed before it would save: a checkpoint of a full tuning is larger than the model. The first step
    allocates and is left out where there is another.
    """
    with tempfile.TemporaryDirectory(prefix=".measure-", dir=_existing(job.run)) as place:
        words = without(list(job.steps[0].words), "--save", "--eval-iters")
        words += ["--save", str(Path(place) / "run"), "--eval-iters", "0"]
        command = [sys.executable, "-m", "tuneval", *words]
        with open(Path(place) / "log.txt", "wb") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **own_session()
            )
            rows = _wait_for(Path(place) / "run" / "metrics.jsonl", steps, child)
        rows = rows[1:] or rows
        return median(row["tokens_per_second"] for row in rows) if rows else None


def without(words: list[str], *names: str) -> list[str]:
    """The words without these flags and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word in names
        kept += [] if dropping else [word]
    return kept


def _wait_for(metrics: Path, steps: int, child: subprocess.Popen) -> list[dict]:
    """The first rows of a run; its processes are gone when this returns."""
    deadline = time.monotonic() + MOST_SECONDS
    try:
        while time.monotonic() < deadline:
            over = child.poll() is not None
            rows = read_jsonl(metrics) if metrics.is_file() else []
            if len(rows) >= steps or over:
                return rows[:steps]
            time.sleep(0.1)
        return []
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        shutil.rmtree(metrics.parent, ignore_errors=True)


def _existing(path: Path) -> Path:
    return next(p for p in path.absolute().parents if p.is_dir())
