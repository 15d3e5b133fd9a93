"""What every benchmark here shares: engines run alternately in processes of their own, medians, ratios, the GEMM limit."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from tuneval import runtime
from tuneval.model.build import build_model, empty_model
from tuneval.wide_products import widen_products

SHAPE_OF_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Qwen2.5-7B's."""


def config_of(model: Path, seven_billion: bool) -> PretrainedConfig:
    """Of a folder, or of the 7B shape."""
    return Qwen2Config(**SHAPE_OF_7B) if seven_billion else AutoConfig.from_pretrained(model)


def random_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Weights drawn at random on the device, another stretch of the same numbers for every tensor."""
    device = runtime.device()
    shapes = {name: tensor.shape for name, tensor in empty_model(config, dtype).state_dict().items()}
    values = torch.randn((1 << 24) + 4099, generator=torch.Generator().manual_seed(1)).mul_(0.02).to(device, dtype)

    def read(name: str) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(shapes[name], dtype=dtype, device=device)
        tensor = torch.empty(shapes[name].numel(), dtype=dtype, device=device)
        for part in tensor.split(len(values)):
            part.copy_(values[: len(part)])
        return tensor.view(shapes[name])

    return build_model(config, read, dtype, device)


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


def gemm_limit(config: PretrainedConfig, dtype: torch.dtype, products: int, tokens: int = 1024) -> float:
    """Tokens a second if a step were nothing but the matrix products of the model's own linear layers.

    Args:
        config: of the model.
        dtype: of the products.
        products: per weight and token: 1 forward, 2 with the gradient of the input (LoRA), 3 with the weight's (full).
        tokens: of a micro-batch.

    Returns:
        By the sum over all layers and the head of the median time of each shape: 2, 4 or 6 operations per parameter and
        token, the usual count. (Trained positions alone need the head, so a step may do with a little less.)
    """
    widen_products()  # as every command of tuneval has it
    device = runtime.device()
    shapes = _linear_shapes(config)
    return tokens / sum(count * _seconds(shape, dtype, products, device, tokens) for shape, count in shapes.items())


def flop_per_token(config: PretrainedConfig, products: int) -> int:
    """Operations of those products for one token."""
    return 2 * products * sum(out * inner * count for (out, inner), count in _linear_shapes(config).items())


def _linear_shapes(config: PretrainedConfig) -> Counter[tuple[int, int]]:
    """[out, in] of the linear layers and the head, and how many there are of each."""
    modules = empty_model(config, torch.bfloat16).modules()
    return Counter(tuple(m.weight.shape) for m in modules if isinstance(m, torch.nn.Linear))


def _seconds(shape: tuple[int, int], dtype: torch.dtype, products: int, device: torch.device, tokens: int) -> float:
    out, inner = shape
    weight, x = (torch.randn(rows, inner, device=device).to(dtype) for rows in (out, tokens))
    y = torch.randn(tokens, out, device=device).to(dtype)
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
