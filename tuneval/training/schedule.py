"""Megatron's learning-rate schedule, counted in samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneval.config.schema import OptimConfig
from tuneval.errors import Problems


@dataclass(frozen=True)
class Schedule:
    """A resolved schedule. `optim.lr` must be set.

    Step k (from 1) uses the rate at (k - 1) * global batch size samples; Megatron's log line of step k prints the
    one at k * global batch size. A step skipped by the loss scaler does not advance it.

    Source: reference 4.3, with the golden values of its section 9.
    """

    optim: OptimConfig
    train_iters: int
    global_batch_size: int

    @property
    def decay_samples(self) -> int:
        """D: samples until the rate is `min_lr`."""
        return (self.optim.lr_decay_iters or self.train_iters) * self.global_batch_size

    @property
    def warmup_samples(self) -> float:
        """W: samples in which the rate rises."""
        if self.optim.lr_warmup_fraction is not None:
            return self.optim.lr_warmup_fraction * self.decay_samples
        return self.optim.lr_warmup_iters * self.global_batch_size

    @property
    def wsd_samples(self) -> int:
        """Samples of WSD's final part."""
        return (self.optim.lr_wsd_decay_iters or 0) * self.global_batch_size

    def check(self, problems: Problems) -> None:
        """Add what makes the schedule impossible."""
        o, size = self.optim, self.global_batch_size
        steps = self.decay_samples // size
        problems.check(
            self.warmup_samples < self.decay_samples,
            f"warmup of {self.warmup_samples / size:g} steps: must be below the decay's {steps} (--lr-decay-iters, "
            "default --train-iters). Warm up for less.",
        )
        if o.lr_decay_style == "WSD":
            problems.check(
                o.lr_wsd_decay_iters is not None and 0 < self.wsd_samples <= self.decay_samples,
                f"--lr-decay-style WSD: give --lr-wsd-decay-iters, from 1 to {steps}",
            )

    def lr_at(self, samples: int) -> float:
        """Learning rate after `samples` samples."""
        o, decay, warmup = self.optim, self.decay_samples, self.warmup_samples
        if warmup > 0 and samples <= warmup:
            return o.lr_warmup_init + (o.lr - o.lr_warmup_init) * samples / warmup
        if o.lr_decay_style == "constant":
            return o.lr
        if samples > decay:
            return o.min_lr
        if o.lr_decay_style == "inverse-square-root":
            return max(o.min_lr, o.lr * max(warmup, 1) ** 0.5 / max(samples, 1) ** 0.5)
        return o.min_lr + (o.lr - o.min_lr) * self._share(samples)

    def _share(self, samples: int) -> float:
        """What is left of the way from `lr` down to `min_lr`: 1 at first, 0 at last."""
        style = self.optim.lr_decay_style
        done = (samples - self.warmup_samples) / (self.decay_samples - self.warmup_samples)
        if style == "WSD":
            done = (samples - (self.decay_samples - self.wsd_samples)) / self.wsd_samples
            if done <= 0:
                return 1.0
            style = self.optim.lr_wsd_decay_style
        if style == "linear":
            return 1.0 - done
        if style == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 2.0 * 0.5**done - 1.0  # Megatron's exponential: halves over the part, then shifted to end at 0
