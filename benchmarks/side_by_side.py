"""What every benchmark here shares: engines run alternately in processes of their own, medians, ratios, the GEMM limit."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tuneval import runtime
from tuneval.model.build import empty_model

TOKENS = 1024
"""Rows of the products that the limit is measured with."""


def alternate(engines: dict[str, Sequence[object]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Run every engine once a round, in turn, each in a new process: none warms or starves another.

    Args:
        engines: name -> arguments after the Python interpreter; the process prints one JSON object as its last line.
        rounds: runs of each.

    Returns:
        name -> what its runs printed.

    Raises:
        subprocess.CalledProcessError: an engine failed; its error is on the console.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for number in range(rounds):
        for name, arguments in engines.items():
            done = subprocess.run([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"round {number + 1} of {rounds}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def medians(runs: dict[str, list[dict[str, Any]]], figure: str) -> dict[str, dict[str, float]]:
    """name -> `spread` of one figure over its runs."""
    return {name: spread([run[figure] for run in results]) for name, results in runs.items()}


def gemm_limit(folder: Path, dtype: torch.dtype, products: int) -> float:
    """Tokens a second if a step were nothing but the matrix products of the model's own linear layers.

    Args:
        folder: Hugging Face model.
        dtype: of the products.
        products: per weight and token: 1 forward, 2 with the gradient of the input (LoRA), 3 with the weight's (full).

    Returns:
        By the sum over all layers and the head of the median time of each shape, at 1024 tokens: 2, 4 or 6 operations per
        parameter and token, the usual count. (Trained positions alone need the head, so a step may do with a little less.)
    """
    model = empty_model(AutoConfig.from_pretrained(folder), dtype)
    shapes: dict[tuple[int, int], int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            shapes[tuple(module.weight.shape)] = shapes.get(tuple(module.weight.shape), 0) + 1
    device = runtime.device()
    total = sum(count * _seconds(shape, dtype, products, device) for shape, count in shapes.items())
    return TOKENS / total


def _seconds(shape: tuple[int, int], dtype: torch.dtype, products: int, device: torch.device) -> float:
    out, inner = shape
    weight, x = (torch.randn(rows, inner, device=device).to(dtype) for rows in (out, TOKENS))
    y = torch.randn(TOKENS, out, device=device).to(dtype)
    work: list[Callable[[], torch.Tensor]] = [lambda: x @ weight.T, lambda: y @ weight, lambda: y.T @ x][:products]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        results = [product() for product in work]
        float(results[-1][0, 0])  # waits for an accelerator
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def setting() -> dict[str, Any]:
    """Machine and versions, for the record."""
    return {"machine": runtime.machine(), "versions": runtime.versions()}


def write(report: dict[str, Any], output: Path | None) -> None:
    """Print the report; write it where a path is given."""
    text = json.dumps(report, ensure_ascii=False, indent=2)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
