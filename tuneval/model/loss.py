"""Output head and cross entropy in one, chunk by chunk: the logits of all tokens never exist together.

Shapes: N trained rows, H hidden size, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from tuneval.data.batches import MicroBatch
    from tuneval.model.decoder import Decoder

CHUNK_BYTES = 1 << 28
"""Memory of one chunk's fp32 log probabilities."""


def sequence_loss(decoder: Decoder, micro_batch: MicroBatch) -> torch.Tensor:
    """Loss of one packed micro-batch: sum of weight x cross entropy over its trained positions.

    Args:
        decoder: the model.
        micro_batch: targets are already the next tokens; weights say what each position counts.

    Returns:
        fp32 scalar; a micro-batch without trained positions gives 0 (with a gradient of zeros).
    """
    hidden = decoder(micro_batch.input_ids, micro_batch.position_ids, micro_batch.segments)[0]  # [T, H]
    targets, weights = micro_batch.targets[0], micro_batch.weights[0]
    rows = ((targets != -100) & (weights != 0)).nonzero()[:, 0]  # [N]
    return linear_cross_entropy(hidden.index_select(0, rows), decoder.head_weight, targets[rows], weights[rows])


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """sum_n weights[n] * cross_entropy(hidden[n] @ weight.T, targets[n]).

    Gradients are computed in the forward pass, where a chunk's probabilities are at hand; the backward pass only scales
    them. A frozen `weight` costs no gradient, and under `no_grad` none is computed at all.

    Args:
        hidden: [N, H].
        weight: [V, H], the output head, same type as `hidden`.
        targets: [N], ids below V (no -100).
        weights: [N] fp32.

    Returns:
        fp32 scalar.
    """
    grads = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden, weight, targets, weights.float(), grads and hidden.requires_grad, grads and weight.requires_grad
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, weights, wants_hidden, wants_weight):
        chunk = max(1, min(len(hidden), CHUNK_BYTES // (4 * len(weight))))
        # Weights such as 1/50000 underflow in fp16: they enter its products as shares of the largest.
        largest = torch.cat((weights.abs(), weights.new_full((1,), torch.finfo(torch.float32).tiny))).max()
        shares = weights / largest
        loss = weights.new_zeros(())
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, target = hidden[rows], targets[rows, None]
            log_p = torch.log_softmax(h @ weight.T, -1, dtype=torch.float32)  # [C, V]
            log_p_target = log_p.gather(1, target)  # [C, 1]
            loss -= weights[rows].dot(log_p_target[:, 0])
            if not (wants_hidden or wants_weight):
                continue
            grad_logits = log_p.exp_().to(hidden.dtype)
            # p - 1 of a target that is nearly sure has lost its digits in bf16; expm1 keeps them.
            grad_logits.scatter_(1, target, log_p_target.expm1().to(hidden.dtype))
            if wants_hidden:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if wants_weight:
                part = grad_logits.T @ (h * shares[rows, None].to(h.dtype))  # [V, H]
                grad_weight = _add(grad_weight, part)
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
        return grad_hidden, grad_weight, None, None, None, None


def _add(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """Sum of the chunks' gradients, kept in fp32 from the second chunk on."""
    if total is None:
        return part
    return (total if total.dtype == torch.float32 else total.float()).add_(part)
