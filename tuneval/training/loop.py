"""The training loop as a generator of steps: whoever calls it logs, validates and saves between two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields

import torch

from tuneval.data.batches import GlobalBatch
from tuneval.errors import UserError
from tuneval.model.decoder import Decoder
from tuneval.model.loss import sequence_loss
from tuneval.runtime import peak_memory_bytes
from tuneval.training.optim import AdamW, LossScaler
from tuneval.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, done."""

    step: int
    """From 1."""
    loss: float
    """Of the global batch, before the update."""
    grad_norm: float | None
    """Global, before clipping; None where fp16 overflowed."""
    lr: float
    """The rate used."""
    next_lr: float
    """The rate of the next step, which Megatron's line prints."""
    samples: int
    """Consumed since the start of the run."""
    tokens: int
    """That passed the model in this step."""
    trained_tokens: int
    """That the loss counted in this step."""
    lengths: tuple[int, ...]
    """Of every sample that passed the model, tokens."""
    loss_scale: float
    skipped: bool
    """No update: the gradients overflowed fp16, or no sample had a trainable token."""
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass
class Progress:
    """How far a run is; with the optimizer, the scaler and the random generators all that the next step depends on."""

    step: int = 0
    samples: int = 0
    """Consumed."""
    scheduled_samples: int = 0
    """That advanced the learning rate: those of skipped steps did not."""
    skipped: int = 0
    untrainable: int = 0
    """Samples consumed that had no trainable token."""

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> Progress:
        return cls(**{f.name: values[f.name] for f in fields(cls)})


class NotFinite(UserError):
    """A loss or gradient is NaN or infinite; the weights are still those of the step before."""


def train(
    decoder: Decoder,
    batches: Iterable[GlobalBatch],
    optimizer: AdamW,
    schedule: Schedule,
    scaler: LossScaler,
    progress: Progress,
) -> Iterator[Step]:
    """Train on every batch; yields after each step, when `progress`, the optimizer and the scaler stand behind it.

    Args:
        decoder: the model; it is put in training mode before each step.
        batches: from sample `progress.samples` on.
        optimizer: of the decoder's trainable parameters.
        schedule: learning rate by samples.
        scaler: fp16 loss scale, 1 otherwise.
        progress: updated in place.

    Raises:
        NotFinite: names the step and the samples, before anything is updated.
    """
    for batch in batches:
        started = time.perf_counter()
        decoder.train()
        lr, scale = schedule.lr_at(progress.scheduled_samples), scaler.scale
        loss = _accumulate(decoder, batch, scale, progress.step + 1)
        norm = optimizer.grad_norm(scale)
        overflow = not math.isfinite(norm)
        if overflow and not scaler.fp16:
            raise _not_finite(decoder, progress.step + 1, f"gradient norm is {norm}", batch.sample_ids)
        skipped = overflow or not batch.trained_tokens
        if skipped:
            optimizer.zero_grad()
        else:
            optimizer.step(lr, norm, scale)
        scaler.update(overflow)
        _advance(progress, batch, skipped)
        seconds = time.perf_counter() - started
        yield Step(
            step=progress.step,
            loss=loss,
            grad_norm=None if overflow else norm,
            lr=lr,
            next_lr=schedule.lr_at(progress.scheduled_samples),
            samples=progress.samples,
            tokens=batch.tokens,
            trained_tokens=batch.trained_tokens,
            lengths=batch.lengths,
            loss_scale=scale,
            skipped=skipped,
            seconds=seconds,
            tokens_per_second=batch.tokens / seconds,
            peak_memory_bytes=peak_memory_bytes(),
        )


@torch.no_grad()
def evaluate(decoder: Decoder, batches: Iterable[GlobalBatch]) -> float:
    """Mean loss of the batches' trained tokens (weights as in the batches), without dropout. NaN without batches."""
    training = decoder.training
    decoder.eval()
    device = decoder.head_weight.device
    losses = [sum(float(sequence_loss(decoder, m.to(device))) for m in batch.micro_batches) for batch in batches]
    decoder.train(training)
    return sum(losses) / len(losses) if losses else math.nan


def _accumulate(decoder: Decoder, batch: GlobalBatch, scale: float, step: int) -> float:
    """Forward and backward of every micro-batch; returns the global batch's loss."""
    device, total = decoder.head_weight.device, 0.0
    for micro_batch in batch.micro_batches:
        loss = sequence_loss(decoder, micro_batch.to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise _not_finite(decoder, step, f"loss is {value}", micro_batch.sample_ids)
        (loss * scale).backward()
        total += value
    return total


def _advance(progress: Progress, batch: GlobalBatch, skipped: bool) -> None:
    progress.step += 1
    progress.samples += len(batch.sample_ids)
    progress.scheduled_samples += 0 if skipped else len(batch.sample_ids)
    progress.skipped += skipped
    progress.untrainable += len(batch.untrainable)


def _not_finite(decoder: Decoder, step: int, what: str, sample_ids: tuple[int, ...]) -> NotFinite:
    """The error, with the cause where it is in the weights."""
    named = list(map(str, sample_ids[:32])) + (["..."] if len(sample_ids) > 32 else [])
    broken = [name for name, p in decoder.named_parameters() if not bool(torch.isfinite(p).all())]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        advice = f"The weights themselves are not finite: {', '.join(broken[:3])}{more}. Load a sound checkpoint."
    else:
        advice = "The weights are finite: look at these samples with `tuneval inspect`, or lower --lr."
    return NotFinite(f"step {step}: the {what}, in samples {', '.join(named)}. {advice}")
