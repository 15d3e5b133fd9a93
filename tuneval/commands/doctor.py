"""`tuneval doctor`: what this machine has, proved by a matrix product; what is missing and how to get it."""

from __future__ import annotations

import time
from importlib.util import find_spec

import torch

from tuneval import console, runtime
from tuneval.commands.number_type import WORTH_A_WORD
from tuneval.config.flags import Parsed

OPTIONAL = {
    "pyarrow": ("--input *.parquet", "pip install 'tuneval[parquet]'"),
    "bitsandbytes": ("--optimizer adam8bit", "pip install 'tuneval[adam8bit]'"),
    "tensorboard": ("--tensorboard-dir", "pip install 'tuneval[tensorboard]'"),
    "lm_eval": ("evaluate --task lm_eval:NAME", "pip install 'tuneval[lm-eval]'"),
    "modelscope": ("download --source modelscope", "pip install 'tuneval[modelscope]'"),
}


def main(parsed: Parsed) -> int:
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", "found")
    for name, value in {**runtime.versions(), **runtime.machine()}.items():
        table.add_row(name, f"{value / 2**30:.1f} GiB" if name == "memory_bytes" else str(value))
    speeds = {name: product_speed(dtype) for name, dtype in runtime.DTYPES.items()}
    for name, speed in speeds.items():
        table.add_row(f"{name} matrix product", speed if isinstance(speed, str) else f"{speed:,.0f} GFLOP/s")
    # fp16 trains with loss scaling and overflows elsewhere: not a type to recommend for its speed.
    half, whole = speeds["bf16"], speeds["fp32"]
    slow = isinstance(half, str) or (not isinstance(whole, str) and whole > WORTH_A_WORD * half)
    best = "fp32" if slow else "bf16"
    table.add_row("type to take", f"{best}: tune --{best}, evaluate --dtype {best}")
    for module, (use, install) in OPTIONAL.items():
        table.add_row(module, "yes" if find_spec(module) else escape(f"no; for {use}: {install}"))
    console.out.print(table)
    return 0


def product_speed(dtype: torch.dtype, size: int = 1024) -> float | str:
    """GFLOP/s of a linear layer's matrix product on the device, or why there is none. The result is checked.

    Processors without matrix units for bf16 compute fp32 faster; the default stays bf16, which needs half the memory.
    """
    device = runtime.device()
    a = torch.eye(size, dtype=dtype, device=device) * 2
    b = torch.arange(size * size, device=device).remainder(7).view(size, size).to(dtype)
    try:
        exact = bool((torch.nn.functional.linear(a, b) == b.T * 2).all())
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 0.3:
            torch.nn.functional.linear(a, b).sum().item()
            count += 1
    except RuntimeError as error:
        return f"not supported: {error}"
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9 if exact else "WRONG RESULT"
