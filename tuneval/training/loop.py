"""The training loop as a generator of steps: whoever calls it logs, validates and saves between two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Protocol

import torch

from tuneval.data.batches import GlobalBatch
from tuneval.errors import UserError
from tuneval.model.decoder import Decoder
from tuneval.model.loss import sequence_loss
from tuneval.runtime import peak_memory_bytes
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import AdamW
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


class Runner(Protocol):
    """Runs global batches through a model, wherever its parts are. Every process of a job makes the same calls."""

    def accumulate(self, batch: GlobalBatch, scale: float) -> float:
        """Forward and backward of the whole global batch; the gradients, times `scale`, go to the optimizer's hooks.

        Returns:
            The global batch's loss, the same on every process.
        """

    def evaluate(self, batch: GlobalBatch) -> float:
        """The global batch's loss without dropout and gradients, the same on every process."""

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What this process holds, by Hugging Face's names."""

    def broken_parameters(self) -> list[str]:
        """Names of parameters that hold NaN or infinity, the same list on every process."""


class OneProcess:
    """The runner of a model that this process holds whole.

    Args:
        decoder: the model; it is put in training mode before each step.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def accumulate(self, batch: GlobalBatch, scale: float) -> float:
        self.decoder.train()
        device, total = self.decoder.head_weight.device, 0.0
        for micro_batch in batch.micro_batches:
            loss = sequence_loss(self.decoder, micro_batch.to(device))
            value = loss.item()
            if not math.isfinite(value):
                raise LossNotFinite(value, micro_batch.sample_ids)
            (loss * scale).backward()
            # what is left of its graph would lie scattered over the memory that the next forward pass needs whole
            del loss
            total += value
        return total

    @torch.no_grad()
    def evaluate(self, batch: GlobalBatch) -> float:
        training = self.decoder.training
        self.decoder.eval()
        device = self.decoder.head_weight.device
        loss = sum(float(sequence_loss(self.decoder, m.to(device))) for m in batch.micro_batches)
        self.decoder.train(training)
        return loss

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.decoder.named_parameters()

    def broken_parameters(self) -> list[str]:
        return [name for name, p in self.named_parameters() if not bool(torch.isfinite(p).all())]


class LossNotFinite(ArithmeticError):
    """A runner met a loss that is NaN or infinite before it changed anything; some know which samples it came from."""

    def __init__(self, value: float, sample_ids: tuple[int, ...]) -> None:
        super().__init__(value)
        self.value, self.sample_ids = value, sample_ids


class NotFinite(UserError):
    """A loss or gradient is NaN or infinite; the weights are still those of the step before."""


def train(
    runner: Runner,
    batches: Iterable[GlobalBatch],
    optimizer: AdamW,
    schedule: Schedule,
    scaler: LossScaler,
    progress: Progress,
) -> Iterator[Step]:
    """Train on every batch; yields after each step, when `progress`, the optimizer and the scaler stand behind it.

    Args:
        runner: of the model.
        batches: from sample `progress.samples` on.
        optimizer: of the runner's trainable parameters.
        schedule: learning rate by samples.
        scaler: fp16 loss scale, 1 otherwise.
        progress: updated in place.

    Raises:
        NotFinite: names the step and the samples, before anything is updated.
    """
    for batch in batches:
        started = time.perf_counter()
        lr, scale = schedule.lr_at(progress.scheduled_samples), scaler.scale
        optimizer.expect(max(len(batch.micro_batches), batch.most_micro_batches))
        try:
            loss = runner.accumulate(batch, scale)
            if not math.isfinite(loss):
                raise LossNotFinite(loss, batch.sample_ids)
        except LossNotFinite as error:
            raise _not_finite(runner, progress.step + 1, f"loss is {error.value}", error.sample_ids) from None
        optimizer.reduce_gradients()
        norm = optimizer.grad_norm(scale)
        overflow = not math.isfinite(norm)
        if overflow and not scaler.fp16:
            raise _not_finite(runner, progress.step + 1, f"gradient norm is {norm}", batch.sample_ids)
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


def _advance(progress: Progress, batch: GlobalBatch, skipped: bool) -> None:
    progress.step += 1
    progress.samples += len(batch.sample_ids)
    progress.scheduled_samples += 0 if skipped else len(batch.sample_ids)
    progress.skipped += skipped
    progress.untrainable += len(batch.untrainable)


def _not_finite(runner: Runner, step: int, what: str, sample_ids: tuple[int, ...]) -> NotFinite:
    """The error, with the cause where it is in the weights."""
    named = list(map(str, sample_ids[:32])) + (["..."] if len(sample_ids) > 32 else [])
    broken = runner.broken_parameters()
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        advice = f"The weights themselves are not finite: {', '.join(broken[:3])}{more}. Load a sound checkpoint."
    else:
        advice = "The weights are finite: look at these samples with `tuneval inspect`, or lower --lr."
    return NotFinite(f"step {step}: the {what}, in samples {', '.join(named)}. {advice}")
