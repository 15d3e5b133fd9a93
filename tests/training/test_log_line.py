"""Megatron's lines to the letter, its operation count against the golden values."""

from datetime import datetime
from types import SimpleNamespace

import pytest

from tuneval.training.log_line import iteration_line, step_flops, tokens_per_second_field, validation_lines
from tuneval.training.loop import Step

NOW = datetime(2025, 4, 30, 9, 5, 1)
QWEN_7B = SimpleNamespace(
    hidden_size=3584,
    num_hidden_layers=28,
    intermediate_size=18944,
    vocab_size=152064,
    num_attention_heads=28,
    num_key_value_heads=4,
)


def step(**changes):
    values = dict(  # noqa: C408
        step=20,
        loss=1.25,
        grad_norm=2.5,
        lr=1e-6,
        next_lr=1.25e-6,
        samples=160,
        tokens=900,
        trained_tokens=400,
        lengths=(450, 450),
        loss_scale=1.0,
        skipped=False,
        seconds=0.75,
        tokens_per_second=1200.0,
        peak_memory_bytes=1 << 30,
    )
    return Step(**{**values, **changes})


def test_iteration_line():
    assert iteration_line([step()], 2000, 8, None, NOW) == (
        " [2025-04-30 09:05:01] iteration       20/    2000 | consumed samples:          160 |"
        " elapsed time per iteration (ms): 750.0 | learning rate: 1.250000E-06 | global batch size:     8 |"
        " lm loss: 1.250000E+00 | loss scale: 1.0 | grad norm: 2.500 | number of skipped iterations:   0 |"
        " number of nan iterations:   0 |"
    )


def test_throughput_field_and_mean_over_the_interval():
    line = iteration_line([step(step=19, loss=1.75, seconds=0.25), step()], 2000, 8, 123.44, NOW)
    assert " (ms): 500.0 | throughput per GPU (TFLOP/s/GPU): 123.4 | learning rate:" in line
    assert "lm loss: 1.500000E+00" in line


def test_skipped_steps_count_and_their_loss_does_not():
    line = iteration_line([step(), step(skipped=True, grad_norm=None, loss=9.0)], 2000, 8, None, NOW)
    assert "lm loss: 1.250000E+00" in line and "grad norm" not in line
    assert "number of skipped iterations:   1 |" in line


def test_true_tokens_follow():
    assert tokens_per_second_field([step(), step()]) == " tokens per second: 1200.0 |"


def test_validation_lines():
    rule, line, last = validation_lines(2.0, "iteration 100")
    assert line == " validation loss at iteration 100 | lm loss value: 2.000000E+00 | lm loss PPL: 7.389056E+00 | "
    assert rule == last == "-" * len(line)
    assert "PPL: 4.851652E+08" in validation_lines(99.0, "iteration 1")[1]


@pytest.mark.parametrize(("causal", "expected"), [(False, 1.5517e15), (True, 1.4709e15)])
def test_operations_golden(causal, expected):
    """Qwen2.5-7B, 8 samples of 4096: Megatron core 0.8 counts all scores, 0.12 half of them."""
    assert step_flops(QWEN_7B, [4096] * 8, causal) == pytest.approx(expected, rel=5e-5)
    assert step_flops(QWEN_7B, [2048] * 16, causal) < expected
