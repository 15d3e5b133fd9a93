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

WHOLE_NUMBERS = 1 << 23
"""Numbers up to which an operand is widened whole, 32 MiB. A head over 150,000 words would be 0.5 GB."""

BLOCK_NUMBERS = 1 << 21
"""Numbers of a larger operand that are in fp32 at a time, 8 MiB: still in the cache when they are multiplied, a head's products
twice as fast as with blocks of 64."""

THIN, THIN_NUMBERS = 64, 1 << 19
"""A product with so few columns, as an adapter's, is a pass over memory: blocks of 2 MiB stay in the cores' own caches."""


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
    return _multiply(None, a, b, out, {})


def _addmm(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: float) -> torch.Tensor | None:
    """[n] or [m, n], [m, k], [k, n] -> [m, n]"""
    return _addmm_into(c, a, b, out=a.new_empty(a.shape[0], b.shape[-1]), **factors)


def _addmm_into(
    c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor, **factors: float
) -> torch.Tensor | None:
    return _multiply(c, a, b, out, factors)


def _addmm_in_place(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: float) -> torch.Tensor | None:
    return _addmm_into(c, a, b, out=c, **factors)


def _multiply(
    c: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, factors: dict[str, float]
) -> torch.Tensor | None:
    """out = a b, or beta c + alpha a b: the larger operand is widened in blocks, along its memory, the other one whole.

    Where the larger one lies in memory across k, its blocks are stretches of k, and so are the other one's: what they give is
    summed.
    """
    if not _takes(a, b) or out.shape != (a.shape[0], b.shape[1]):
        return None
    if out.dtype != a.dtype or (c is not None and c.dtype != a.dtype):
        return None
    (m, k), n = a.shape, b.shape[1]
    thin = min(m, k, n) <= THIN
    by_rows = a.numel() >= b.numel() or k <= THIN
    parts = _blocks(k, max(m, n), thin)
    lies_across_k = a.stride(0) == 1 if by_rows else b.stride(1) == 1
    if len(parts) > 1 and lies_across_k and c is None and out.numel() <= max(a.numel(), b.numel()):
        return out.copy_(_sum(a, b, parts) if m <= n else _sum(b.t(), a.t(), parts).t())
    if c is not None:
        c = c.expand(out.shape)

    def wide(at: slice | tuple[slice, slice], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b if c is None else torch.addmm(c[at].float(), a, b, **factors)

    if by_rows:
        b = b.float()
        if n <= THIN:
            b = b.t().contiguous().t()  # fp32's products with few columns are twice as fast so
        for rows in _blocks(m, max(k, n) if thin else k, thin):
            out[rows] = wide(rows, a[rows].float(), b)
    else:
        a = a.float()
        for block in _blocks(n, k, thin):
            columns = (slice(None), block)
            out[columns] = wide(columns, a, b[columns].float())
    return out


def _sum(a: torch.Tensor, b: torch.Tensor, parts: list[slice]) -> torch.Tensor:
    """[m, k], [k, n] -> fp32 [m, n], part after part of k."""
    total = a.new_zeros(a.shape[0], b.shape[1], dtype=torch.float32)
    for part in parts:
        total.addmm_(a[:, part].float(), b[part].float())
    return total


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """[B, m, k], [B, k, n] -> [B, m, n]"""
    return torch.bmm(a.float(), b.float()).to(a.dtype) if b.dtype == a.dtype else None


def _bmm_into(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor | None:
    result = _bmm(a, b)
    fits = result is not None and out.shape == result.shape and out.dtype == result.dtype
    return out.copy_(result) if fits else None


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


def _blocks(length: int, other: int, thin: bool) -> list[slice]:
    """Parts of a dimension that an operand is widened in, given its other dimension."""
    whole, block = (THIN_NUMBERS, THIN_NUMBERS) if thin else (WHOLE_NUMBERS, BLOCK_NUMBERS)
    step = length if length * other <= whole else max(1, block // other)
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
