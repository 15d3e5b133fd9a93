"""AdamW with fp32 state over weights of any type, or with moments in 8 bits over bf16 ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from tuneval.config.schema import OptimConfig
from tuneval.parallel.gradients import Gradient, Gradients, l2_norms
from tuneval.parallel.weights import spread_like
from tuneval.runtime import fused_optimizer_scales, has_fused_optimizer
from tuneval.training.eight_bit import BLOCK, EightBit, has_blocks
from tuneval.training.halves import join, round_at_random, split

CHUNK = 1 << 20
"""Elements that a CPU widens to fp32 at a time, 4 MiB: they stay in its cache from one pass to the next, and threads do not meet
too often."""
ACCELERATOR_CHUNK = 1 << 26
"""The same on an accelerator, 256 MiB: there each of a chunk's dozen kernels costs microseconds to start, however small."""


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

    A hook adds each gradient to its fp32 sum as soon as the backward pass has it, so that no second set of gradients
    stands. The sums are made once and kept: new ones each step would lie between the activations and scatter them. The
    gradient of a step's only micro-batch stays as it is, half as large and just as exact. A bf16 weight and 16 more
    bits (`low`) together are its fp32 master: half of a copy's memory.

    With `--optimizer adam8bit` the bf16 matrices have no master: their moments take 8 bits, and their weights are
    rounded at random, so that small updates count on average.

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
        self.slots = {name: _slot(name, p, config) for name, p in named_parameters}
        self.step_count = 0
        self._hooks = [p.register_post_accumulate_grad_hook(self.slots[n].take_gradient) for n, p in named_parameters]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()

    def expect(self, micro_batches: int) -> None:
        """Make room for the sums where the coming step needs any; before its first forward pass.

        Args:
            micro_batches: of the step on this process, or on the one that has most.
        """
        if micro_batches > 1 and not (self.gradients is not None and self.gradients.come_summed):
            for slot in self.slots.values():
                slot.make_sum()

    def zero_grad(self) -> None:
        """Forget the gradients."""
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
        norms = l2_norms([slot.gradient for slot in self.slots.values() if slot.gradient is not None])
        return float(torch.linalg.vector_norm(torch.stack(norms))) / loss_scale if norms else 0.0

    @torch.no_grad()
    def step(self, lr: float, grad_norm: float, loss_scale: float = 1.0) -> None:
        """Clip, update, and forget the gradients.

        Args:
            lr: learning rate of this step.
            grad_norm: what `grad_norm` returned, finite.
            loss_scale: factor that is still in the gradients.
        """
        clip = self.config.clip_grad
        factor = (min(1.0, clip / (grad_norm + 1e-6)) if clip > 0 else 1.0) / loss_scale
        self.step_count += 1
        alike: dict[tuple, list[_Slot]] = {}
        for slot in self.slots.values():
            if slot.gradient is not None:
                alike.setdefault((type(slot), slot.decays, slot.parameter.dtype), []).append(slot)
        for (kind, decays, _), slots in alike.items():
            kind.update(slots, _Update(self.config, lr, self.step_count, factor, decays))
        self.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that the next step depends on, by name: weights, moments, master bits. Views, not copies.

        Those of a DTensor are DTensors, so that a checkpoint fits any other layout.
        """
        return {
            f"{kind}.{name}": spread_like(slot.parameter, tensor, BLOCK if kind.endswith("scales") else 1)
            for name, slot in self.slots.items()
            for kind, tensor in slot.tensors().items()
        }


def _slot(name: str, parameter: torch.nn.Parameter, config: OptimConfig) -> _Slot:
    half = parameter.dtype == torch.bfloat16
    lean = half and config.optimizer == "adam8bit" and has_blocks(_local(parameter))
    return (_LeanSlot if lean else _Slot)(
        name, parameter, torch.bfloat16 if half and config.sums_in_bf16 else torch.float32
    )


class _Slot:
    """One parameter: its gradient sum, its moments and its master bits."""

    def __init__(self, name: str, parameter: torch.nn.Parameter, sum_dtype: torch.dtype) -> None:
        self.name, self.parameter, self.sum_dtype = name, parameter, sum_dtype
        self.decays = decays(name, parameter)
        self.gradient: torch.Tensor | None = None
        """Of this step so far: `sum`, or what the backward pass gave where there is no sum."""
        self.sum: torch.Tensor | None = None
        self.summed_over_tp = False
        # All state now: allocated between activations later, it would leave holes that nothing else fits.
        self.make_state(_local(parameter))

    def make_state(self, value: torch.Tensor) -> None:
        self.exp_avg = torch.zeros_like(value, dtype=torch.float32)
        self.exp_avg_sq = torch.zeros_like(value, dtype=torch.float32)
        self.low = torch.zeros_like(value, dtype=torch.int16) if value.dtype == torch.bfloat16 else None
        self.master = value.float() if value.dtype not in (torch.bfloat16, torch.float32) else None

    @property
    def elements(self) -> int:
        """Of this process's part."""
        return _local(self.parameter).numel()

    def take_gradient(self, parameter: torch.nn.Parameter) -> None:
        """Add p.grad to the sum, or keep it where it is the only one."""
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            self.summed_over_tp = gradient.placements[-1].is_partial()
            gradient = gradient.to_local()
            assert gradient.shape == _local(parameter).shape, f"{self.name}: a gradient {gradient.shape}"
        if self.sum is None and self.gradient is None:
            self.gradient = gradient
        else:
            self.gradient = self.add(gradient)
        parameter.grad = None

    def add(self, gradient: torch.Tensor) -> torch.Tensor:
        """The sum with another gradient; a first one that was thought to be the only is in it then."""
        self.make_sum()
        if self.gradient is None:
            return self.sum.copy_(gradient)
        if self.gradient is not self.sum:
            self.sum.copy_(self.gradient)
        return self.sum.add_(gradient)

    def make_sum(self) -> None:
        """Make room for the sum of several gradients, once."""
        if self.sum is None:
            self.sum = torch.empty_like(_local(self.parameter), dtype=self.sum_dtype)

    def whole_gradient(self) -> Gradient:
        """The sum with what other processes must know of it; zeros where this one saw no sample."""
        if self.gradient is None:
            self.gradient = torch.zeros_like(_local(self.parameter), dtype=self.sum_dtype)
        self.gradient = self.gradient.to(self.sum_dtype)
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

    @staticmethod
    def update(slots: list[_Slot], adamw: _Update) -> None:
        """Update parameters of one type."""
        value = _local(slots[0].parameter)
        if value.dtype == torch.bfloat16:
            for batch in _batches(slots, CHUNK if value.device.type == "cpu" else ACCELERATOR_CHUNK):
                _update_halves(batch, adamw)
            return
        if value.dtype == torch.float32:
            adamw(*zip(*((_local(s.parameter), s.gradient, s.exp_avg, s.exp_avg_sq) for s in slots)))
            return
        for slot in slots:
            adamw([slot.master], [slot.gradient.float()], [slot.exp_avg], [slot.exp_avg_sq])
            _local(slot.parameter).copy_(slot.master)


Piece = tuple[torch.Tensor, ...]
"""A stretch of a bf16 parameter, flat: weight, `low`, gradient, first and second moment."""


def _batches(slots: list[_Slot], size: int) -> Iterator[list[Piece]]:
    """Large parameters piece by piece, small ones together: `size` elements at most a batch."""
    batch: list[Piece] = []
    room = size
    for slot in slots:
        flat = [t.view(-1) for t in (_local(slot.parameter), slot.low, slot.gradient, slot.exp_avg, slot.exp_avg_sq)]
        for piece in zip(*(t.split(size) for t in flat), strict=True):
            if batch and len(piece[0]) > room:
                yield batch
                batch, room = [], size
            batch.append(piece)
            room -= len(piece[0])
    if batch:
        yield batch


def _update_halves(batch: list[Piece], adamw: _Update) -> None:
    weights, lows, gradients, *moments = map(list, zip(*batch))
    sizes = [len(weight) for weight in weights]
    wide = join(_together(weights), _together(lows), torch.empty(sum(sizes), device=weights[0].device))
    adamw(wide.split(sizes), _together(gradients).float().split(sizes), *moments)
    for part, weight, low in zip(wide.split(sizes), weights, lows):
        split(part, weight, low)


def _together(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


@dataclass(frozen=True)
class _Update:
    """One step of torch's AdamW for tensors of the same decay."""

    config: OptimConfig
    lr: float
    step: int
    factor: float
    """Multiplies the gradients."""
    decays: bool

    def __call__(
        self,
        weights: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        exp_avgs: Sequence[torch.Tensor],
        exp_avg_sqs: Sequence[torch.Tensor],
    ) -> None:
        """Update fp32 weights and moments in place, in one pass over memory where torch has the kernel."""
        device = weights[0].device
        scale = None
        if self.factor != 1.0 and fused_optimizer_scales(device):
            scale = torch.tensor(1.0 / self.factor, device=device)
        elif self.factor != 1.0:
            torch._foreach_mul_(list(gradients), self.factor)
        adamw(
            list(weights),
            list(gradients),
            list(exp_avgs),
            list(exp_avg_sqs),
            [],
            list(torch.full((len(weights),), float(self.step - 1), device=device).unbind()),
            fused=has_fused_optimizer(device),
            grad_scale=scale,
            amsgrad=False,
            beta1=self.config.adam_beta1,
            beta2=self.config.adam_beta2,
            lr=self.lr,
            weight_decay=self.config.weight_decay if self.decays else 0.0,
            eps=self.config.adam_eps,
            maximize=False,
        )


class _LeanSlot(_Slot):
    """One bf16 matrix that has no master: its moments in 8 bits, its rounding random."""

    def make_state(self, value: torch.Tensor) -> None:
        self.exp_avg, self.exp_avg_sq = EightBit.zeros_like(value, True), EightBit.zeros_like(value, False)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "weight": _local(self.parameter),
            "exp_avg_codes": self.exp_avg.codes,
            "exp_avg_scales": self.exp_avg.scales,
            "exp_avg_sq_codes": self.exp_avg_sq.codes,
            "exp_avg_sq_scales": self.exp_avg_sq.scales,
        }

    @staticmethod
    def update(slots: list[_LeanSlot], adamw: _Update) -> None:
        for slot in slots:
            value = _local(slot.parameter)
            noise = _noise(adamw.step, value.device)
            flat = [t.view(-1).split(CHUNK) for t in (value, slot.gradient)]
            for weight, gradient, *moments in zip(*flat, slot.exp_avg.split(CHUNK), slot.exp_avg_sq.split(CHUNK)):
                wide, (first, second) = weight.float(), (moment.read() for moment in moments)
                adamw([wide], [gradient.float()], [first], [second])
                moments[0].write(first)
                moments[1].write(second)
                round_at_random(wide, weight, noise[: len(wide)])


@lru_cache(maxsize=1)
def _noise(step: int, device: torch.device) -> torch.Tensor:
    """[CHUNK] int32 from 0 to 65535, the same on every process: copies of a weight must stay copies."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 1 << 16, (CHUNK,), dtype=torch.int32, generator=generator).to(device)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, without a gradient; a plain tensor itself is all of it."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
