"""Optimizer moments in 8 bits, quantised by bitsandbytes: a byte for each element, a scale for every 64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

BLOCK = 64
"""Elements that share a scale: the smallest block that bitsandbytes has, so that few values are small beside their block's."""


def has_blocks(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a matrix of whole blocks. Others, norms and biases among them, are few and stay in fp32."""
    return tensor.dim() > 1 and tensor.shape[-1] % BLOCK == 0


class EightBit:
    """An fp32 tensor in 8 bits, zeros at first.

    Blocks lie along the last dimension: rows and columns of blocks can be spread over processes, and put together in
    another way, without touching a code.

    Args:
        codes: [..., n] uint8, n a multiple of `BLOCK`.
        scales: [..., n / BLOCK] fp32: the largest absolute value of each block.
        signed: whether values may be negative; those that can't be have finer steps.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> None:
        self.codes, self.scales, self.signed = codes, scales, signed

    @classmethod
    def zeros_like(cls, tensor: torch.Tensor, signed: bool) -> EightBit:
        """Of a tensor's shape and device."""
        scales = tensor.new_zeros((*tensor.shape[:-1], tensor.shape[-1] // BLOCK), dtype=torch.float32)
        return cls(torch.zeros_like(tensor, dtype=torch.uint8), scales, signed)

    def split(self, elements: int) -> Iterator[EightBit]:
        """Flat views of `elements`, a multiple of `BLOCK`, each; the last may be shorter."""
        codes, scales = self.codes.view(-1).split(elements), self.scales.view(-1).split(elements // BLOCK)
        return (EightBit(c, s, self.signed) for c, s in zip(codes, scales, strict=True))

    def read(self) -> torch.Tensor:
        """The values, fp32."""
        code = _code(self.signed, self.codes.device)
        return _bitsandbytes().dequantize_blockwise(self.codes, absmax=self.scales.view(-1), code=code, blocksize=BLOCK)

    def write(self, values: torch.Tensor) -> None:
        """Replace the values by the nearest that 8 bits have.

        A second moment never becomes zero beside others that are not: what it divides would grow without bound.
        """
        code = _code(self.signed, self.codes.device)
        codes, state = _bitsandbytes().quantize_blockwise(values, code=code, blocksize=BLOCK)
        self.codes.copy_(codes if self.signed else codes.clamp_(min=1))
        self.scales.copy_(state.absmax.view_as(self.scales))


@lru_cache(maxsize=1)
def _bitsandbytes() -> Any:
    """Imported when it is needed: an extra."""
    import bitsandbytes.functional

    return bitsandbytes.functional


@lru_cache
def _code(signed: bool, device: torch.device) -> torch.Tensor:
    """[256] fp32, rising: the values in -1 to 1 or 0 to 1 that a code stands for."""
    return _bitsandbytes().create_dynamic_map(signed=signed).to(device)
