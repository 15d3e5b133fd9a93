"""fp32 numbers as a bf16 weight and what is left of them: 16 more bits, or chance.

Shifts are written as operators: Ascend has kernels for these, and none for `bitwise_left_shift_` and its kin, which would move every
weight to the host and back.
"""

from __future__ import annotations

import torch


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
    bits.copy_(weight.view(torch.int16))
    bits <<= 16
    bits += low
    return out


def split(wide: torch.Tensor, weight: torch.Tensor, low: torch.Tensor) -> None:
    """Write fp32 `wide` into `weight` (nearest bf16; a tie goes away from zero) and `low`, so that `join` is exact.

    `wide` is overwritten.
    """
    bits = wide.view(torch.int32)
    upper = bits + 0x8000
    upper >>= 16
    weight.view(torch.int16).copy_(upper)
    upper <<= 16
    low.copy_(bits.sub_(upper))


def round_at_random(wide: torch.Tensor, weight: torch.Tensor, noise: torch.Tensor) -> None:
    """Write fp32 `wide` into bf16 `weight`, up or down with the probability that keeps its mean.

    Args:
        wide: [n] fp32, overwritten.
        weight: [n] bf16.
        noise: [n] int32, even from 0 to 65535.
    """
    bits = wide.view(torch.int32).add_(noise)
    bits >>= 16
    weight.view(torch.int16).copy_(bits)
