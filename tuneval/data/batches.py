"""Token files -> global batches of samples, packed into micro-batches whose weighted sum is the step's loss.

A step is `global_batch_size` samples. How they are packed changes speed and memory only: the loss is
`sum(weights * cross entropy)`, and the weights are set over the whole global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tuneval.config.schema import BatchConfig
from tuneval.data.indexed import IndexedDataset, sft_prefix
from tuneval.data.manifest import manifest_path, read_manifest
from tuneval.data.rendering import MASKED
from tuneval.data.truncation import kept_positions
from tuneval.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One document of the token files."""

    input_ids: np.ndarray
    """[length] int32"""
    labels: np.ndarray
    """[length] int32, -100 on prompt tokens; not shifted."""
    bounds: tuple[int, ...]
    """Cumulative bounds of the conversations in it: (0, length), more in a bin of `preprocess --neat-pack`."""


class SftDataset:
    """Samples behind a prefix that `preprocess` (ours or MindSpeed-LLM's) wrote.

    Args:
        prefix: what was given as `--output-prefix`.

    Raises:
        UserError: the files are missing or do not belong together.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self._input_ids = IndexedDataset(sft_prefix(prefix, "input_ids"))
        self._labels = IndexedDataset(sft_prefix(prefix, "labels"))
        self.manifest: dict | None = read_manifest(prefix)
        self.lengths: np.ndarray = np.asarray(self._input_ids.lengths)
        if not np.array_equal(self.lengths, self._labels.lengths):
            raise UserError(f"--data-path {prefix}: input_ids and labels differ in their lengths; preprocess again")
        if self.manifest is not None and self.manifest["samples"] != len(self.lengths):
            told = self.manifest["samples"]
            raise UserError(
                f"{manifest_path(prefix)}: tells of {told} samples, the files hold {len(self.lengths)}: it belongs to other "
                "files. Preprocess the data again, or remove it"
            )
        self._numbers = self._sample_numbers()

    def _sample_numbers(self) -> IndexedDataset | None:
        """The attention masks, which number the conversations of a packed bin 1, 2, ... and its padding 0.

        None where the manifest says that nothing is packed; without a manifest (MindSpeed-LLM's files) they decide.
        """
        mask = sft_prefix(self.prefix, "attention_mask")
        if self.manifest is None:
            return IndexedDataset(mask) if Path(f"{mask}.idx").exists() else None
        return IndexedDataset(mask) if self.manifest.get("packed", "no") != "no" else None

    def trained_counts(self) -> np.ndarray:
        """[N] int64: trainable tokens of each sample before any truncation; its first token is never trained."""
        counts = np.zeros(len(self), np.int64)
        for first, lengths, tokens in _blocks(self._labels):
            trained = tokens != MASKED
            starts = np.cumsum(lengths) - lengths
            filled = lengths > 0
            trained[starts[filled]] = False
            counts[first : first + len(lengths)][filled] = np.add.reduceat(trained, starts[filled], dtype=np.int64)
        return counts

    def token_range(self) -> tuple[int, int]:
        """Smallest and largest token id in the file; (0, 0) where it is empty."""
        ends = [(int(tokens.min()), int(tokens.max())) for *_, tokens in _blocks(self._input_ids) if len(tokens)]
        return min((a for a, _ in ends), default=0), max((b for _, b in ends), default=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        input_ids, labels = self._input_ids[index], self._labels[index]
        if self._numbers is None:
            return Sample(input_ids, labels, (0, len(input_ids)))
        return _without_padding(input_ids, labels, np.asarray(self._numbers[index]))


def _blocks(column: IndexedDataset, size: int = 1 << 16) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """A column in runs of sequences: (number of the first, their lengths, their tokens back to back)."""
    starts = np.asarray(column.offsets) // column.dtype.itemsize
    for first in range(0, len(column), size):
        lengths = np.asarray(column.lengths[first : first + size], np.int64)
        begin = int(starts[first])
        yield first, lengths, column.tokens[begin : begin + int(lengths.sum())]


def _without_padding(input_ids: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Sample:
    """A packed bin cut where its padding starts. `--pack` alone numbers its padding 1: that stays, untrained."""
    end = int((numbers != 0).sum())
    starts = np.flatnonzero(np.diff(numbers[:end])) + 1
    return Sample(input_ids[:end], labels[:end], (0, *starts.tolist(), end))


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass, one after the other."""

    input_ids: torch.Tensor
    """[1, T] int64"""
    targets: torch.Tensor
    """[1, T] int64: the token that follows, -100 where it is not trained and at the end of each segment."""
    weights: torch.Tensor
    """[1, T] float32: loss = sum(weights * cross entropy); 0 where the target is -100."""
    position_ids: torch.Tensor
    """[1, T] int64, from 0 in each segment."""
    segments: tuple[int, ...]
    """Cumulative bounds, 0 ... T; attention stays inside a segment."""
    sample_ids: tuple[int, ...]

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        names = ("input_ids", "targets", "weights", "position_ids")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return MicroBatch(**moved, segments=self.segments, sample_ids=self.sample_ids)


@dataclass(frozen=True)
class GlobalBatch:
    """Samples of one optimizer step. With data parallelism each process has its share of them; all facts are global."""

    micro_batches: tuple[MicroBatch, ...]
    """This process's share."""
    sample_ids: tuple[int, ...]
    tokens: int
    """Tokens that pass the model."""
    trained_tokens: int
    """Tokens that the loss counts."""
    lengths: tuple[int, ...]
    """Length of every segment that passes the model, tokens."""
    untrainable: tuple[int, ...] = ()
    """Ids of samples without a trainable token: they pass no model and weigh nothing."""
    most_micro_batches: int = 0
    """Of any process's share."""


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a process takes."""

    rank: int = 0
    """Among the data-parallel processes."""
    ranks: int = 1


def sample_order(num_documents: int, num_samples: int, seed: int, shuffle: bool, multiple_of: int = 1) -> np.ndarray:
    """Document of every sample, epoch after epoch; a longer order starts with a shorter one.

    Args:
        num_documents: documents of the split.
        num_samples: samples to draw, train_iters * global batch size.
        seed: of one generator that is carried across the epochs.
        shuffle: False: file order.
        multiple_of: fill each epoch up to a multiple of this with its first documents (`--padded-samples`).

    Returns:
        [num_samples] int64, each below num_documents.

    Source: reference 4.4.
    """
    generator = np.random.RandomState(seed)
    epochs = []
    length = -(-num_documents // multiple_of) * multiple_of
    for _ in range(-(-num_samples // length)):
        epoch = np.arange(length, dtype=np.int64) % num_documents
        if shuffle:
            generator.shuffle(epoch)
        epochs.append(epoch)
    return np.concatenate(epochs)[:num_samples] if epochs else np.empty(0, np.int64)


def truncate(sample: Sample, seq_length: int) -> Sample:
    """The sample with every conversation longer than `seq_length` cut turn by turn; the labels show the turns."""
    if max(np.diff(sample.bounds), default=0) <= seq_length:
        return sample
    kept = [
        a + kept_positions(sample.labels[a:b], seq_length)
        for a, b in zip(sample.bounds[:-1], sample.bounds[1:], strict=True)
    ]
    positions = np.concatenate(kept)
    bounds = (0, *np.cumsum([len(k) for k in kept]).tolist())
    return Sample(sample.input_ids[positions], sample.labels[positions], bounds)


def pack(lengths: list[int], capacity: int, most: int | None) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` in as few bins of `capacity` tokens as that finds, deterministic.

    Args:
        lengths: tokens of each item; one above the capacity goes alone.
        capacity: tokens of a bin.
        most: items of a bin at most; None: no limit.

    Returns:
        bins of indices, in the order of their first items; inside a bin in rising order.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [b for b in range(len(bins)) if lengths[index] <= room[b] and (most is None or len(bins[b]) < most)]
        if fits:
            best = min(fits, key=lambda b: (room[b], b))
        else:
            best = len(bins)
            bins.append([])
            room.append(capacity)
        bins[best].append(index)
        room[best] -= lengths[index]
    return sorted(sorted(b) for b in bins)


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Items for each of `ranks` processes, of nearly the same size in all: the largest first, each to the one with least.

    Returns:
        For each process indices of `sizes`, rising; every item once.

    Source: Graham (1969), SIAM Journal on Applied Mathematics 17: longest processing time first.
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        dealt[rank].append(index)
        loads[rank] += sizes[index]
    return [sorted(items) for items in dealt]


def global_batches(
    dataset: SftDataset,
    order: np.ndarray,
    batch: BatchConfig,
    seq_length: int,
    start: int = 0,
    share: Share = Share(),
) -> Iterator[GlobalBatch]:
    """The global batches from sample `start` of `order` on, whole ones only.

    Args:
        dataset: samples.
        order: [num_samples] indices into `dataset`.
        batch: sizes and the loss's reduction.
        seq_length: longest conversation, tokens; longer ones are cut.
        start: samples consumed before.
        share: whose micro-batches are made.
    """
    size = batch.global_batch_size
    for first in range(start, len(order) - size + 1, size):
        yield make_global_batch(dataset, [int(i) for i in order[first : first + size]], batch, seq_length, share)


def make_global_batch(
    dataset: SftDataset,
    sample_ids: list[int],
    batch: BatchConfig,
    seq_length: int,
    share: Share = Share(),
) -> GlobalBatch:
    """One global batch of the named samples, packed: the share of one process."""
    samples = [truncate(dataset[i], seq_length) for i in sample_ids]
    targets = [_next_tokens(sample) for sample in samples]
    counts = [int((t != MASKED).sum()) for t in targets]
    used = [i for i, count in enumerate(counts) if count]
    token_weight = _token_weights(counts, batch)
    most = None if batch.loss_reduction == "micro-batch" else batch.micro_batch_size
    lengths = [len(samples[i].input_ids) for i in used]
    packed = [
        [[items[k] for k in b] for b in pack([lengths[i] for i in items], batch.micro_batch_tokens, most)]
        for items in deal(lengths, share.ranks)
    ]
    return GlobalBatch(
        micro_batches=tuple(
            _micro_batch([(samples[i], targets[i], token_weight[i], sample_ids[i]) for i in (used[k] for k in b)])
            for b in packed[share.rank]
        ),
        sample_ids=tuple(sample_ids),
        tokens=sum(lengths),
        trained_tokens=sum(counts),
        lengths=tuple(int(n) for i in used for n in np.diff(samples[i].bounds)),
        untrainable=tuple(s for s, count in zip(sample_ids, counts, strict=True) if not count),
        most_micro_batches=max(map(len, packed)),
    )


def _token_weights(counts: list[int], batch: BatchConfig) -> list[float]:
    """Weight of each trained token of each sample: equal means of equal groups, a group's tokens sharing its mean.

    A group is the whole step, a sample, or `micro_batch_size` samples in a row, as Megatron deals them to the
    data-parallel ranks' micro-batches. Groups without a trained token weigh nothing.
    """
    sizes = {"token": len(counts), "sample": 1, "micro-batch": batch.micro_batch_size or 1}
    size = sizes[batch.loss_reduction]
    trained = [sum(counts[first : first + size]) for first in range(0, len(counts), size)]
    groups = sum(1 for tokens in trained if tokens)
    return [1.0 / (groups * trained[i // size]) if trained[i // size] else 0.0 for i in range(len(counts))]


def _next_tokens(sample: Sample) -> np.ndarray:
    """Labels moved by one inside each conversation; nothing follows its last token."""
    targets = np.full(len(sample.labels), MASKED, np.int64)
    targets[:-1] = sample.labels[1:]
    targets[[bound - 1 for bound in sample.bounds[1:] if bound]] = MASKED
    return targets


def _micro_batch(parts: list[tuple[Sample, np.ndarray, float, int]]) -> MicroBatch:
    input_ids = np.concatenate([sample.input_ids for sample, *_ in parts]).astype(np.int64)
    targets = np.concatenate([t for _, t, *_ in parts])
    weights = np.concatenate([np.where(t != MASKED, weight, 0.0) for _, t, weight, _ in parts]).astype(np.float32)
    lengths = [int(n) for sample, *_ in parts for n in np.diff(sample.bounds)]
    positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids)[None],
        targets=torch.from_numpy(targets)[None],
        weights=torch.from_numpy(weights)[None],
        position_ids=torch.from_numpy(positions)[None],
        segments=(0, *np.cumsum(lengths).tolist()),
        sample_ids=tuple(i for *_, i in parts),
    )
