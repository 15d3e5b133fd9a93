"""Matrix products of bf16 and fp16 on a processor without a unit for them: computed in fp32, rounded once.

torch multiplies such matrices there with plain loops: on two cores with AVX2 a linear layer at 19 GFLOP/s, the gradient of its
input at 1, where fp32 reaches 150. oneDNN's products, where there is a unit, are the same sums in fp32, rounded the same way.
Only the operands of one product are widened, block by block: weights, activations and what autograd keeps stay narrow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch

FEW_ROWS = 8
"""Rows below which torch's own product with a transposed weight, as a linear layer has it, is faster than widening the weight."""

BLOCK_NUMBERS = 1 << 24
"""Numbers of an operand that are in fp32 at a time, 64 MiB: a head over 150,000 words would be 0.5 GB."""


@lru_cache(maxsize=1)
def widen_products() -> bool:
    """Exchange torch's products of bf16 and fp16 on the CPU, for this process, where the processor has no unit for bf16.

    Returns:
        Whether they are exchanged. Never before torch 2.10, which does not hand out the kernels to fall back on.
    """
    if multiplies(torch.bfloat16) or not hasattr(torch.library, "get_kernel"):
        return False
    exchange(_LIBRARY, {dtype for dtype in (torch.bfloat16, torch.float16) if not multiplies(dtype)})
    return True


def multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of bf16 or fp16 on this CPU. Where it does not, torch's own loops do."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    return ops._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported()


_LIBRARY = torch.library.Library("aten", "IMPL")
"""Holds the exchanged kernels; they go when it goes."""


def exchange(library: torch.library.Library, narrow: set[torch.dtype]) -> None:
    """Let the products below stand in for torch's own, for operands of the types in `narrow`, as long as `library` lives."""
    for name, product in _PRODUCTS.items():
        kernel = partial(_product, torch.library.get_kernel(f"aten::{name}", "CPU"), product, narrow)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*other operators may also be overridden")  # on purpose
            library.impl(name, kernel, "CPU", with_keyset=True)


def _product(
    own: Any, ours: Callable[..., Any], narrow: set[torch.dtype], keys: Any, *args: Any, **options: Any
) -> Any:
    """Our product, or torch's own where it is of another type or ours returns None."""
    result = ours(*args, **options) if args[0].dtype in narrow else None
    return own.call_boxed(keys, *args, **options) if result is None else result


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    return _mm_into(a, b, out=a.new_empty(a.shape[0], b.shape[-1]))


def _mm_into(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor | None:
    """[m, k], [k, n] -> [m, n]"""
    if not _takes(a, b) or out.shape != (a.shape[0], b.shape[1]) or out.dtype != a.dtype:
        return None
    (m, k), n = a.shape, b.shape[1]
    if k > max(m, n):
        total = a.new_zeros(m, n, dtype=torch.float32)
        for part in _slices(k, max(m, n)):
            total.addmm_(a[:, part].float(), b[part].float())
        return out.copy_(total)
    for rows in _slices(m, k):
        wide = a[rows].float()
        for columns in _slices(n, k):
            out[rows, columns] = wide @ b[:, columns].float()
    return out


def _addmm(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: float) -> torch.Tensor | None:
    """[n] or [m, n], [m, k], [k, n] -> [m, n]"""
    return torch.addmm(c.float(), a.float(), b.float(), **factors).to(c.dtype) if _takes(a, b) else None


def _addmm_into(
    c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor, **factors: float
) -> torch.Tensor | None:
    result = _addmm(c, a, b, **factors)
    return None if result is None else _copied(result, out)


def _addmm_in_place(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: float) -> torch.Tensor | None:
    return _addmm_into(c, a, b, out=c, **factors)


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, m, k], [B, k, n] -> [B, m, n]"""
    return torch.bmm(a.float(), b.float()).to(a.dtype)


def _bmm_into(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor | None:
    return _copied(_bmm(a, b), out)


def _attention_backward(*args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value."""
    dtype = args[0].dtype

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype == dtype else value

    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients = backward(*map(wide, args), **{name: wide(value) for name, value in options.items()})
    return tuple(gradient.to(dtype) for gradient in gradients)


def _takes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a product is one of two matrices that widening makes faster. What is no product at all is torch's to refuse."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype or not a.numel():
        return False
    return len(a) >= FEW_ROWS or b.stride(0) != 1


def _copied(result: torch.Tensor, out: torch.Tensor) -> torch.Tensor | None:
    return out.copy_(result) if out.shape == result.shape and out.dtype == result.dtype else None


def _slices(length: int, other: int) -> list[slice]:
    """Parts of a dimension, of at most BLOCK_NUMBERS numbers with the other dimension of an operand."""
    step = max(1, BLOCK_NUMBERS // other)
    return [slice(start, start + step) for start in range(0, length, step)]


_PRODUCTS: dict[str, Callable[..., Any]] = {
    "mm": _mm,
    "mm.out": _mm_into,
    "addmm": _addmm,
    "addmm.out": _addmm_into,
    "addmm_": _addmm_in_place,
    "bmm": _bmm,
    "bmm.out": _bmm_into,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}
