"""Megatron's lines: what the start, every iteration and validation print, and the floating-point operations behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tuneval.model.weight_map import head_dim_of
from tuneval.training.loop import Step


def iteration_line(
    steps: Sequence[Step], train_iters: int, global_batch_size: int, tflops: float | None, now: datetime
) -> str:
    """Megatron's line for the steps since the last one, to the letter (reference 4.6).

    Args:
        steps: since the last line, at least one.
        train_iters: planned.
        global_batch_size: samples of a step.
        tflops: TFLOP/s of one device, for `--log-throughput`; None leaves the field out.
        now: time stamp.
    """
    last = steps[-1]
    losses = [s.loss for s in steps if not s.skipped]
    loss = sum(losses) / len(losses) if losses else 0.0
    milliseconds = 1000.0 * sum(s.seconds for s in steps) / len(steps)
    fields = [
        f" [{now:%Y-%m-%d %H:%M:%S}] iteration {last.step:8d}/{train_iters:8d}",
        f"consumed samples: {last.samples:12d}",
        f"elapsed time per iteration (ms): {milliseconds:.1f}",
        f"throughput per GPU (TFLOP/s/GPU): {tflops:.1f}" if tflops is not None else None,
        f"learning rate: {last.next_lr:.6E}",
        f"global batch size: {global_batch_size:5d}",
        f"lm loss: {loss:.6E}" if loss > 0 else None,
        f"loss scale: {last.loss_scale:.1f}",
        f"grad norm: {last.grad_norm:.3f}" if last.grad_norm is not None else None,
        f"number of skipped iterations: {sum(s.skipped for s in steps):3d}",
        f"number of nan iterations: {0:3d}",  # a NaN loss ends the run instead
    ]
    return " | ".join(f for f in fields if f is not None) + " |"


def tokens_per_second_field(steps: Sequence[Step]) -> str:
    """What follows Megatron's line: true tokens, no padding counted, by the wall clock."""
    return f" tokens per second: {sum(s.tokens for s in steps) / sum(s.seconds for s in steps):.1f} |"


def validation_lines(loss: float, where: str) -> list[str]:
    """Megatron's framed validation line (reference 4.5); `where` is such as `iteration 100`."""
    line = f" validation loss at {where} | lm loss value: {loss:.6E} | lm loss PPL: {perplexity(loss):.6E} | "
    return ["-" * len(line), line, "-" * len(line)]


def argument_lines(values: Mapping[str, Any]) -> list[str]:
    """MindSpeed-LLM's listing of its arguments at the start, here of the resolved settings (reference 4.5)."""
    lines = [f"  {name} {'.' * (48 - len(name))} {values[name]}" for name in sorted(values, key=str.lower)]
    title, end = " MindSpeed-LLM Arguments ", " end of MindSpeed-LLM Arguments "
    return ["-" * 24 + title + "-" * 24, *lines, "-" * 20 + end + "-" * 21]


def loaded_lines(folder: object, iteration: int) -> list[str]:
    """Megatron's lines about a checkpoint whose weights training starts from (reference 4.5)."""
    return [
        f" loading checkpoint from {folder} at iteration {iteration}",
        " checkpoint version 3.0",
        f"  successfully loaded checkpoint from {folder} [ t 0, p 0 ] at iteration 0",
    ]


def perplexity(loss: float) -> float:
    """exp of the loss, which Megatron caps at 20."""
    return math.exp(min(20.0, loss))


def step_flops(config: Any, lengths: Sequence[int], causal: bool = True) -> float:
    """Floating-point operations of one full-tuning step by Megatron's formula, with the samples' true lengths.

    Args:
        config: transformers' config of a gated (SwiGLU) decoder.
        lengths: tokens of each sample. Megatron takes `--seq-length` for all, far too much where samples are short.
        causal: count half of the attention scores, as Megatron core 0.12 does; core 0.8 counts all.

    Source: reference 4.7: 12 B s L h^2 [(1 + g/n + s/h) (n d / h) + 1.5 f/h + V / (2 L h)], s/h halved when causal.
    """
    h, layers, f, vocabulary = (
        getattr(config, k) for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    n = config.num_attention_heads
    g = getattr(config, "num_key_value_heads", None) or n
    d = head_dim_of(config)
    tokens, squares = sum(lengths), sum(s * s for s in lengths)
    scores = squares / h / (2 if causal else 1)
    per_token = (1 + g / n) * (n * d / h) + 1.5 * f / h + vocabulary / (2 * layers * h)
    return 12.0 * layers * h * h * (tokens * per_token + scores * n * d / h)
