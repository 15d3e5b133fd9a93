"""Rows -> encoded chunks, on one process or many; the chunks come out in the order they went in."""

from __future__ import annotations

import gc
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

from tuneval.cores import usable_cores
from tuneval.data.records import BadRow, Handler
from tuneval.data.rendering import Template
from tuneval.data.rows import parsed
from tuneval.data.truncation import kept_positions
from tuneval.errors import UserError

USUAL_MOST = 8
"""Processes that the reader of the input and the writer of the output, which is one, keeps busy."""
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


def usual_workers() -> int:
    """Processes where nobody names a number; 1 where they don't start as cheap forks."""
    return min(usable_cores(), USUAL_MOST) if sys.platform == "linux" else 1


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
    """One chunk of `read_unparsed`: handler, then template, in one batch."""
    conversations, bad = [], []
    for number, row in enumerate(map(parsed, rows), first_row):
        try:
            conversations.append(job.handler(row, number))
        except BadRow as error:
            bad.append((number, error.reason))
    batch = job.template.encode_batch(conversations)
    bad += [(conversations[i].row, error.reason) for i, error in batch.refused.items()]
    good = np.array([i not in batch.refused for i in range(len(conversations))], bool)
    samples = np.stack([batch.input_ids, batch.labels])  # [2, tokens]
    lengths, numbers = batch.lengths[good], np.array([c.row for c in conversations], np.int64)[good]
    if job.append_eod:
        samples = np.insert(samples, np.cumsum(lengths), job.template.eos_token_id, axis=1)
        lengths = lengths + 1
    cut = 0
    if job.cut_to is not None and lengths.max(initial=0) > job.cut_to:
        samples, lengths, cut = _cut(samples, lengths, job.cut_to)
    return Chunk(first_row, len(rows), samples[0], samples[1], lengths, numbers, cut, sorted(bad))


def _cut(samples: np.ndarray, lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Samples [2, tokens] and their lengths, none longer than `most` tokens, and how many had to be cut."""
    stays, ends, too_long = np.ones(samples.shape[1], bool), np.cumsum(lengths), np.flatnonzero(lengths > most)
    for i in too_long.tolist():
        sample = slice(ends[i] - lengths[i], ends[i])
        stays[sample] = False
        stays[sample][kept_positions(samples[1, sample], most)] = True
    kept = np.diff(np.concatenate([[0], np.cumsum(stays)])[np.concatenate([[0], ends])])
    return samples[:, stays], kept.astype(np.int32), len(too_long)


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
    gc.freeze()  # what the parent had loaded: no collection need look at it
    gc.set_threshold(50_000)  # a chunk makes some 10,000 objects, few of them in circles
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
