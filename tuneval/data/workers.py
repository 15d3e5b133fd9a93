"""Rows -> encoded chunks, on one process or many; the chunks come out in the order they went in."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from tuneval.data.records import BadRow, Handler
from tuneval.data.rendering import Template
from tuneval.data.truncation import kept_positions
from tuneval.errors import UserError

CHUNK_ROWS = 256
"""Rows that travel together. Many enough for the tokenizer's batches, few enough for an even load and little memory."""


@dataclass(frozen=True)
class Job:
    """What every worker needs."""

    handler: Handler
    template: Template
    append_eod: bool = False
    cut_to: int | None = None
    """Cut longer samples to this many tokens, turn by turn."""


@dataclass
class Chunk:
    """Encoded rows, sample after sample."""

    first_row: int
    rows: int
    input_ids: np.ndarray
    """int32 [sum(lengths)]"""
    labels: np.ndarray
    """int32 [sum(lengths)], -100 where not trained."""
    lengths: np.ndarray
    """int32 [samples] tokens."""
    row_numbers: np.ndarray
    """int64 [samples] row each sample came from."""
    cut: int = 0
    """Samples that were cut."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(row, reason) of the others."""


def encode_chunks(rows: Iterable[Any], job: Job, workers: int) -> Iterator[Chunk]:
    """Encode `rows`, chunk by chunk, in order.

    With one worker two threads take turns: one renders while the tokenizer, whose own threads use all cores, encodes for
    the other. With more, each is a process on one core. The result is the same.

    Raises:
        UserError: a worker was killed (mostly for want of memory).
    """
    if workers == 1:
        pool, encode = ThreadPoolExecutor(2), partial(encode_rows, job=job)
    else:
        pool, encode = _pool(job, workers), _encode_in_worker
    with pool as executor:
        waiting: deque = deque()
        try:
            for first, chunk in _numbered_chunks(rows):
                waiting.append(executor.submit(encode, first, chunk))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"a worker process was killed, mostly for want of memory: try fewer than --workers {workers}"
            ) from None


def encode_rows(first_row: int, rows: list[Any], job: Job) -> Chunk:
    """One chunk: handler, then template, in one batch."""
    conversations, bad = [], []
    for number, row in enumerate(rows, first_row):
        try:
            conversations.append(job.handler(row, number))
        except BadRow as error:
            bad.append((number, error.reason))
    samples, numbers, cut = [], [], 0
    for conversation, encoded in zip(conversations, job.template.try_encode_batch(conversations)):
        if isinstance(encoded, BadRow):
            bad.append((conversation.row, encoded.reason))
            continue
        extra = [job.template.eos_token_id] if job.append_eod else []
        sample = np.array([encoded.input_ids + extra, encoded.labels + extra], np.int32)  # [2, tokens]
        if job.cut_to is not None and sample.shape[1] > job.cut_to:
            sample, cut = sample[:, kept_positions(sample[1], job.cut_to)], cut + 1
        samples.append(sample)
        numbers.append(conversation.row)
    flat = np.concatenate(samples, axis=1) if samples else np.empty((2, 0), np.int32)
    lengths = np.array([s.shape[1] for s in samples], np.int32)
    return Chunk(first_row, len(rows), flat[0], flat[1], lengths, np.array(numbers, np.int64), cut, sorted(bad))


def _numbered_chunks(rows: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    rows, first = iter(rows), 0
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield first, chunk
        first += len(chunk)


@contextmanager
def _pool(job: Job, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that hold the job. On Linux they are forks: they share what is loaded instead of loading it again."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))
    try:
        pool.submit(os.getpid).result()  # forks now, before the progress bar starts its thread
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_job: Job | None = None
"""In a worker process: what to do with rows."""


def _start_worker(job: Job) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each; threads don't survive a fork either
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent can't stop its workers: they leave by themselves."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(first_row: int, rows: list[Any]) -> Chunk:
    assert _job is not None
    return encode_rows(first_row, rows, _job)


def with_first(rows: Iterable[Any], count: int) -> tuple[list[Any], Iterator[Any]]:
    """The first rows to look at, and all rows, those included."""
    rows = iter(rows)
    first = list(islice(rows, count))
    return first, chain(first, rows)
