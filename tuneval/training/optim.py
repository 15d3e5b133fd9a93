"""AdamW with fp32 state over weights of any type, gradients accumulated in fp32, Megatron's loss scaler."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from tuneval.config.schema import OptimConfig, PrecisionConfig
from tuneval.parallel.gradients import Gradient, Gradients
from tuneval.parallel.weights import spread_like
from tuneval.runtime import has_fused_optimizer

CHUNK = 1 << 20
"""Elements of a bf16 weight that are widened to fp32 at a time, 4 MiB: they stay in a CPU's cache from one pass to the next, and
threads do not meet too often."""


def make_optimizer(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimConfig, gradients: Gradients | None = None
) -> AdamW:
    """The optimizer of every parameter that wants a gradient."""
    return AdamW([(name, p) for name, p in named_parameters if p.requires_grad], config, gradients)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay acts on a parameter: not on biases and one-dimensional weights (reference 4.2)."""
    return parameter.dim() > 1 and not name.endswith(".bias")


class AdamW:
    """AdamW with decoupled decay: fp32 master weights and moments, fp32 gradients summed over micro-batches.

    A hook moves each gradient into its fp32 sum as soon as the backward pass has it, so that no second set of
    gradients stands; the gradient of a step's only micro-batch stays as it is, half as large and just as exact. A bf16 weight and 16 more bits (`low`) together are its fp32 master: half of a copy's memory.

    Of a DTensor each process keeps and updates its own part alone.

    Args:
        named_parameters: (name, parameter), each wanting a gradient.
        config: betas, eps, weight decay, clip.
        gradients: sums gradients over processes; None: there is one process.
    """

    def __init__(
        self,
        named_parameters: list[tuple[str, torch.nn.Parameter]],
        config: OptimConfig,
        gradients: Gradients | None = None,
    ) -> None:
        self.config, self.gradients = config, gradients
        self.slots = {name: _Slot(name, p) for name, p in named_parameters}
        self.step_count = 0
        self._hooks = [p.register_post_accumulate_grad_hook(self.slots[n].take_gradient) for n, p in named_parameters]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()

    def zero_grad(self) -> None:
        """Forget the gradients: their memory serves the next activations, which make room for new ones in turn."""
        for slot in self.slots.values():
            slot.gradient = None

    def reduce_gradients(self) -> None:
        """Sum what other processes have of this step's gradients; before `grad_norm`. With one process: nothing."""
        if self.gradients is not None:
            self.gradients.reduce([slot.whole_gradient() for slot in self.slots.values()])

    def grad_norm(self, loss_scale: float = 1.0) -> float:
        """Global L2 norm of the summed gradients, each parameter once. Not finite after an overflow."""
        if self.gradients is not None:
            return self.gradients.norm(slot.whole_gradient() for slot in self.slots.values()) / loss_scale
        gradients = [slot.gradient for slot in self.slots.values() if slot.gradient is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return float(torch.linalg.vector_norm(torch.stack(norms).double())) / loss_scale if norms else 0.0

    @torch.no_grad()
    def step(self, lr: float, grad_norm: float, loss_scale: float = 1.0) -> None:
        """Clip, update, and forget the gradients.

        Args:
            lr: learning rate of this step.
            grad_norm: what `grad_norm` returned, finite.
            loss_scale: factor that is still in the gradients.
        """
        clip = self.config.clip_grad
        factor = min(1.0, clip / (grad_norm + 1e-6)) if clip > 0 else 1.0
        self.step_count += 1
        for slot in self.slots.values():
            if slot.gradient is not None:
                slot.update(self.config, lr, self.step_count, factor / loss_scale)
        self.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that the next step depends on, by name: weights, moments, master bits. Views, not copies.

        Those of a DTensor are DTensors, so that a checkpoint fits any other layout.
        """
        return {
            f"{kind}.{name}": spread_like(slot.parameter, tensor)
            for name, slot in self.slots.items()
            for kind, tensor in slot.tensors().items()
        }


class _Slot:
    """One parameter: its gradient sum, its moments and its master bits."""

    def __init__(self, name: str, parameter: torch.nn.Parameter) -> None:
        value = _local(parameter)
        self.name, self.parameter = name, parameter
        self.decays = decays(name, parameter)
        self.gradient: torch.Tensor | None = None
        self.summed_over_tp = False
        # All state now: allocated between activations later, it would leave holes that nothing else fits.
        self.exp_avg = torch.zeros_like(value, dtype=torch.float32)
        self.exp_avg_sq = torch.zeros_like(value, dtype=torch.float32)
        self.low = torch.zeros_like(value, dtype=torch.int16) if value.dtype == torch.bfloat16 else None
        self.master = value.float() if value.dtype not in (torch.bfloat16, torch.float32) else None

    def take_gradient(self, parameter: torch.nn.Parameter) -> None:
        """Move p.grad into the sum; the first of a step becomes it, in fp32 once a second one comes."""
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            self.summed_over_tp = gradient.placements[-1].is_partial()
            gradient = gradient.to_local()
            assert gradient.shape == self.exp_avg.shape, f"{self.name}: a gradient {gradient.shape}"
        self.gradient = gradient if self.gradient is None else self.gradient.float().add_(gradient)
        parameter.grad = None

    def whole_gradient(self) -> Gradient:
        """The sum with what other processes must know of it; zeros where this one saw no sample."""
        self.gradient = torch.zeros_like(self.exp_avg) if self.gradient is None else self.gradient.float()
        return Gradient(self.name, self.parameter, self.gradient, self.summed_over_tp)

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {
            "weight": _local(self.parameter),
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "low": self.low,
            "master": self.master,
        }
        return {kind: tensor for kind, tensor in named.items() if tensor is not None}

    def update(self, config: OptimConfig, lr: float, step: int, factor: float) -> None:
        value = _local(self.parameter)
        if value.dtype == torch.bfloat16:
            flat = [t.view(-1) for t in (value, self.low, self.gradient, self.exp_avg, self.exp_avg_sq)]
            scratch = value.new_empty(min(CHUNK, value.numel()), dtype=torch.float32)
            for weight, low, gradient, *moments in zip(*(t.split(CHUNK) for t in flat), strict=True):
                wide = join(weight, low, scratch[: len(weight)])
                self._adamw(wide, gradient.float(), *moments, config, lr, step, factor)
                split(wide, weight, low)
        elif value.dtype == torch.float32:
            self._adamw(value, self.gradient, self.exp_avg, self.exp_avg_sq, config, lr, step, factor)
        else:
            self._adamw(self.master, self.gradient.float(), self.exp_avg, self.exp_avg_sq, config, lr, step, factor)
            value.copy_(self.master)

    def _adamw(self, weight, gradient, exp_avg, exp_avg_sq, config: OptimConfig, lr: float, step: int, factor: float):
        """torch's own update, in one pass over memory where it has the kernel; `factor` multiplies the gradient."""
        fused = has_fused_optimizer(weight.device)
        if not fused:
            gradient.mul_(factor)
        adamw(
            [weight],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [torch.tensor(float(step - 1), device=weight.device)],
            fused=fused,
            grad_scale=torch.tensor(1.0 / factor, device=weight.device) if fused and factor != 1.0 else None,
            amsgrad=False,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            lr=lr,
            weight_decay=config.weight_decay if self.decays else 0.0,
            eps=config.adam_eps,
            maximize=False,
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, without a gradient; a plain tensor itself is all of it."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def join(weight: torch.Tensor, low: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The fp32 number whose upper half is a bf16 weight and whose lower 16 bits, signed, are `low`.

    Args:
        weight: [n] bf16.
        low: [n] int16.
        out: [n] fp32, overwritten.

    Returns:
        `out`.
    """
    bits = out.view(torch.int32)
    bits.copy_(weight.view(torch.int16)).bitwise_left_shift_(16).add_(low)
    return out


def split(wide: torch.Tensor, weight: torch.Tensor, low: torch.Tensor) -> None:
    """Write fp32 `wide` into `weight` (nearest bf16; a tie goes away from zero) and `low`, so that `join` is exact.

    `wide` is overwritten.
    """
    bits = wide.view(torch.int32)
    upper = (bits + 0x8000).bitwise_right_shift_(16)
    weight.view(torch.int16).copy_(upper)
    low.copy_(bits.sub_(upper.bitwise_left_shift_(16)))


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
