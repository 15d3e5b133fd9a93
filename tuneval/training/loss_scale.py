"""Megatron's loss scaler."""

from __future__ import annotations

from tuneval.config.schema import PrecisionConfig


class LossScaler:
    """Megatron's loss scale: a constant, or for fp16 one that halves after overflows and doubles after a good spell.

    Args:
        config: `loss_scale` fixes it; outside fp16 it is 1.
    """

    def __init__(self, config: PrecisionConfig) -> None:
        self.config = config
        self.fp16 = config.dtype == "fp16"
        self.dynamic = self.fp16 and config.loss_scale is None
        self.scale = 1.0
        if self.fp16:
            self.scale = config.initial_loss_scale if self.dynamic else config.loss_scale
        self.good_steps = 0
        self.patience = config.hysteresis

    def update(self, overflow: bool) -> None:
        """Take note of a step: overflowed (and skipped), or good."""
        if not self.dynamic:
            return
        if overflow:
            self.good_steps = 0
            self.patience -= 1
            if self.patience <= 0:
                self.scale = max(self.scale / 2, self.config.min_loss_scale)
        else:
            self.good_steps += 1
            if self.good_steps == self.config.loss_scale_window:
                self.good_steps, self.patience = 0, self.config.hysteresis
                self.scale *= 2

    def state(self) -> dict[str, float | int]:
        return {"scale": self.scale, "good_steps": self.good_steps, "patience": self.patience}

    def load_state(self, state: dict[str, float | int]) -> None:
        self.scale, self.good_steps, self.patience = state["scale"], state["good_steps"], state["patience"]
