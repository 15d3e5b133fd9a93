"""Learning rates against the golden values of Megatron's schedule."""

import pytest

from tuneval.config.schema import OptimConfig
from tuneval.errors import Problems, UserError
from tuneval.training.schedule import Schedule


def schedule(train_iters=2000, global_batch_size=8, **settings):
    defaults = {"lr": 1.25e-6, "min_lr": 1.25e-7, "lr_decay_style": "cosine"}
    return Schedule(OptimConfig(**{**defaults, **settings}), train_iters, global_batch_size)


@pytest.mark.parametrize(
    ("step", "printed"),
    [(1, "6.250000E-08"), (20, "1.250000E-06"), (21, "1.249999E-06"), (1000, "6.964246E-07"), (2000, "1.250000E-07")],
)
def test_full_script_golden(step, printed):
    """The lab's script for 7B: 2000 steps of 8, warmup fraction 0.01; what Megatron prints after each step."""
    assert f"{schedule(lr_warmup_fraction=0.01).lr_at(step * 8):.6E}" == printed


def test_lora_script_golden():
    """No warmup: the first step uses the peak and prints the next rate."""
    assert schedule().lr_at(0) == 1.25e-6
    assert f"{schedule().lr_at(8):.6E}" == "1.249999E-06"
    assert f"{schedule().lr_at(8000):.6E}" == "6.875000E-07"


def test_first_step_of_a_warmup_uses_its_initial_rate():
    assert schedule(lr_warmup_fraction=0.01).lr_at(0) == 0.0
    assert schedule(lr_warmup_iters=10, lr_warmup_init=1e-8).lr_at(0) == 1e-8


def test_styles():
    options = {"lr": 1.0, "min_lr": 0.1, "train_iters": 10, "global_batch_size": 1}
    assert schedule(lr_decay_style="constant", **options).lr_at(99) == 1.0
    assert schedule(lr_decay_style="linear", **options).lr_at(5) == pytest.approx(0.55)
    assert schedule(lr_decay_style="linear", **options).lr_at(11) == 0.1
    root = schedule(lr_decay_style="inverse-square-root", lr_warmup_iters=2, **options)
    assert root.lr_at(8) == pytest.approx(0.5)
    assert root.lr_at(11) == 0.1
    for style, expected in (("linear", 0.55), ("cosine", 0.55), ("exponential", 0.1 + 0.9 * (2 * 0.5**0.5 - 1))):
        wsd = schedule(lr_decay_style="WSD", lr_wsd_decay_style=style, lr_wsd_decay_iters=4, **options)
        assert wsd.lr_at(6) == 1.0
        assert wsd.lr_at(8) == pytest.approx(expected)
        assert wsd.lr_at(10) == pytest.approx(0.1)


def test_impossible_schedules_are_named():
    problems = Problems()
    schedule(lr_warmup_iters=2000).check(problems)
    schedule(lr_decay_style="WSD").check(problems)
    with pytest.raises(UserError, match=r"(?s)warmup of 2000 steps.*below.*2000.*WSD.*lr-wsd-decay-iters"):
        problems.raise_if_any()
