"""Output head and cross entropy in one, chunk by chunk: the logits of all tokens never exist together.

Shapes: N trained rows, H hidden size, V vocabulary, W words of it that this process holds (all of them, or with tensor
parallelism its share), C rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from tuneval.data.rendering import MASKED

if TYPE_CHECKING:
    from tuneval.data.batches import MicroBatch
    from tuneval.model.decoder import Decoder

CHUNK_BYTES = 1 << 27
"""Memory of one chunk's log probabilities, were they all there in fp32."""
ACCELERATOR_CHUNK_BYTES = 1 << 29
"""The same on an accelerator, whose products want more rows to be fast."""
BLOCK_BYTES = 1 << 22
"""fp32 log probabilities that a CPU computes at a time: within its cache, five passes cost less than one through memory."""


def sequence_loss(decoder: Decoder, micro_batch: MicroBatch) -> torch.Tensor:
    """Loss of one packed micro-batch: sum of weight x cross entropy over its trained positions.

    Args:
        decoder: the model.
        micro_batch: targets are already the next tokens; weights say what each position counts.

    Returns:
        fp32 scalar; a micro-batch without trained positions gives 0 (with a gradient of zeros).
    """
    hidden = decoder(micro_batch.input_ids, micro_batch.position_ids, micro_batch.segments)
    return hidden_loss(decoder, hidden, micro_batch)


def hidden_loss(decoder: Decoder, hidden: torch.Tensor, micro_batch: MicroBatch) -> torch.Tensor:
    """`sequence_loss` from the decoder's hidden states [1, T, H] on."""
    targets, weights = micro_batch.targets[0], micro_batch.weights[0]
    rows = ((targets != MASKED) & (weights != 0)).nonzero()[:, 0]  # [N]
    return linear_cross_entropy(hidden[0].index_select(0, rows), decoder.head_weight, targets[rows], weights[rows])


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """sum_n weights[n] * cross_entropy(hidden[n] @ weight.T, targets[n]).

    Gradients are computed in the forward pass, where a chunk's probabilities are at hand; the backward pass only scales
    them. A frozen `weight` costs no gradient, and under `no_grad` none is computed at all.

    Args:
        hidden: [N, H], the same on every process.
        weight: [V, H], the output head, same type as `hidden`. A DTensor cut by words: each process computes its words'
            logits, and what it adds to the gradient of `hidden` is its share of a sum.
        targets: [N], ids below V (no -100).
        weights: [N] fp32.

    Returns:
        fp32 scalar, the same on every process.
    """
    words = None
    if isinstance(weight, DTensor):
        words, weight = VocabularyShard.of(weight), weight.to_local()
    grads = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden, weight, targets, weights.float(), words, grads and hidden.requires_grad, grads and weight.requires_grad
    )


@dataclass(frozen=True)
class VocabularyShard:
    """The words of a vocabulary that this process holds, and the processes that hold the others."""

    share: int
    """Words of a process; the last one may have fewer."""
    first: int
    count: int
    group: Any

    @classmethod
    def of(cls, weight: DTensor) -> VocabularyShard:
        """Of a head [V, H] cut by rows over a one-dimensional mesh, as torch cuts: all shares but the last are equal."""
        mesh = weight.device_mesh
        share = -(-weight.shape[0] // mesh.size())
        return cls(share, share * mesh.get_local_rank(), weight.to_local().shape[0], mesh.get_group())

    def log_softmax(self, logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities of this process's words, and of the targets, wherever they are.

        Args:
            logits: [C, W].
            target: [C, 1] ids of the whole vocabulary.

        Returns:
            fp32 [C, W] and [C, 1].
        """
        logits = logits.float()
        largest = logits.max(1, keepdim=True).values  # [C, 1]
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.group)
        logits -= largest
        mine, at = self.find(target)
        own = torch.where(mine, logits.gather(1, at), 0.0)
        sums = torch.cat((logits.exp().sum(1, keepdim=True), own), 1)  # [C, 2]
        dist.all_reduce(sums, group=self.group)
        log_sum = sums[:, :1].log()
        return logits.sub_(log_sum), sums[:, 1:] - log_sum

    def find(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which targets this process holds, and where; 0 for the others."""
        at = target - self.first
        mine = (at >= 0) & (at < self.count)
        return mine, torch.where(mine, at, 0)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, weights, words, wants_hidden, wants_weight):
        widest = len(weight) if words is None else words.share  # every process makes the same chunks
        # A second chunk's gradient of the weight [W, H] is added in fp32: its memory may as well be so many more rows of logits.
        room = CHUNK_BYTES if hidden.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
        most = max(room // (4 * widest), 4 * hidden.shape[1] // weight.itemsize if wants_weight else 1)
        chunk = max(1, min(len(hidden), most))
        # Weights such as 1/50000 underflow in fp16: they enter its products as shares of the largest.
        largest = torch.cat((weights.abs(), weights.new_full((1,), torch.finfo(torch.float32).tiny))).max()
        shares = weights / largest
        loss = weights.new_zeros(())
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = None
        logits = hidden.new_empty(chunk, len(weight))  # every chunk's: a new one would stand beside the last
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, target = hidden[rows], targets[rows, None]
            torch.mm(h, weight.T, out=logits[: len(h)])  # [C, W]
            probabilities, log_p_target = _softmax(logits[: len(h)], target, words)  # [C, W], [C, 1]
            loss -= weights[rows].dot(log_p_target[:, 0])
            if not (wants_hidden or wants_weight):
                continue
            grad_logits = _subtract_target(probabilities, target, log_p_target, words)
            if wants_hidden:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if wants_weight:
                part = grad_logits.T @ (h * shares[rows, None].to(h.dtype))  # [W, H]
                grad_weight = _add(grad_weight, part)
        if wants_weight and grad_weight is None:  # no rows here, but others may have some, and sum with this process
            grad_weight = torch.zeros_like(weight)
        ctx.save_for_backward(grad_hidden, grad_weight, weights, largest)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight, weights, largest = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = (grad_hidden.float() * (weights * grad_loss)[:, None]).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(largest * grad_loss).to(ctx.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _softmax(
    logits: torch.Tensor, target: torch.Tensor, words: VocabularyShard | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the words here [C, W], over the logits' memory and in their type, and fp32 log p of the targets.

    Args:
        logits: [C, W], no longer logits afterwards.
        target: [C, 1] ids of the whole vocabulary.
        words: held by this process; None: all.
    """
    if words is not None:
        log_p, log_p_target = words.log_softmax(logits, target)
        return logits.copy_(log_p.exp_()), log_p_target
    log_p_target = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    room = BLOCK_BYTES if logits.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    block = max(1, room // (4 * logits.shape[1]))
    for part, at, kept in zip(logits.split(block), target.split(block), log_p_target.split(block)):
        log_p = torch.log_softmax(part, -1, dtype=torch.float32)
        kept.copy_(log_p.gather(1, at))
        part.copy_(log_p.exp_())
    return logits, log_p_target


def _subtract_target(
    p: torch.Tensor, target: torch.Tensor, log_p_target: torch.Tensor, words: VocabularyShard | None
) -> torch.Tensor:
    """p -> p - 1 at each target: the gradient of the logits. expm1 keeps the digits of a target that is nearly sure."""
    value, at = log_p_target.expm1().to(p.dtype), target
    if words is not None:
        mine, at = words.find(target)
        value = torch.where(mine, value, p.gather(1, at))
    p[torch.arange(len(p), device=p.device), at[:, 0]] = value[:, 0]  # `scatter_` would copy all of p twice
    return p


def _add(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """Sum of the chunks' gradients, kept in fp32 from the second chunk on."""
    if total is None:
        return part
    return (total if total.dtype == torch.float32 else total.float()).add_(part)
