"""Moments of 8 bits within their steps, rounding without a bias, and a tuning that goes as with fp32 state."""

import pytest
import torch
from conftest import tiny_model
from token_files import sample, write
from training.test_loop import LENGTHS, decoder_of, run

from tuneval.config.schema import OptimConfig, PrecisionConfig
from tuneval.training import optim
from tuneval.training.eight_bit import BLOCK, EightBit, has_blocks
from tuneval.training.halves import round_at_random
from tuneval.training.optim import make_optimizer

LEAN = OptimConfig(lr=1e-3, lr_decay_style="constant", optimizer="adam8bit")
CPU = torch.device("cpu")


def values() -> torch.Tensor:
    """[40, 128] of very different size, a row of zeros among them."""
    drawn = torch.randn(40, 2 * BLOCK, generator=torch.Generator().manual_seed(0))
    drawn *= torch.logspace(-9, 3, 40)[:, None]
    drawn[7] = 0
    return drawn


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_read_lies_within_half_a_step_of_what_was_written(signed):
    written = values() if signed else values().abs()
    kept = EightBit.zeros_like(written, signed)
    assert torch.equal(kept.read(), torch.zeros_like(written))
    kept.write(written)
    largest = written.abs().unflatten(-1, (-1, BLOCK)).amax(-1, keepdim=True).expand(-1, -1, BLOCK).flatten(1)
    error = (kept.read() - written).abs()
    step = 1 / (64 if signed else 128)  # the coarsest, near the largest value of a block
    assert (error <= largest * step / 2 * 1.01).all()
    assert not (error <= largest * step / 8).all(), "8 bits are not more"
    assert torch.equal(kept.read()[7], torch.zeros(2 * BLOCK))


def test_a_second_moment_beside_a_large_one_never_becomes_zero():
    kept = EightBit.zeros_like(torch.empty(1, BLOCK), signed=False)
    written = torch.full((1, BLOCK), 1e-12)
    written[0, 0] = 1.0
    kept.write(written)
    assert kept.read().min() > 0


def test_pieces_are_views():
    whole = EightBit.zeros_like(torch.empty(4, BLOCK), signed=True)
    for i, piece in enumerate(whole.split(2 * BLOCK)):
        piece.write(torch.full((2 * BLOCK,), float(i + 1)))
    assert torch.equal(whole.read(), torch.tensor([1.0, 1, 2, 2])[:, None].expand(4, BLOCK))


@pytest.mark.parametrize(("shape", "fits"), [((8, BLOCK), True), ((2 * BLOCK,), False), ((BLOCK, 8), False)])
def test_only_matrices_of_whole_blocks(shape, fits):
    assert has_blocks(torch.empty(shape)) == fits


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5])
def test_rounding_keeps_the_mean(value):
    weight, noise = torch.empty(1 << 20, dtype=torch.bfloat16), optim._noise(5, CPU)
    round_at_random(torch.full((1 << 20,), value), weight, noise)
    assert len(weight.unique()) == 2
    assert weight.double().mean() == pytest.approx(value, rel=1e-5)
    assert torch.tensor(value).bfloat16().double() != pytest.approx(value, rel=1e-5), "the nearest is no such mean"


def test_noise_is_the_same_everywhere_and_another_each_step():
    first = optim._noise(1, CPU).clone()
    assert not torch.equal(optim._noise(2, CPU), first)
    assert torch.equal(optim._noise(1, CPU), first)


def losses(tmp_path, config: OptimConfig, steps: int = 60) -> list[float]:
    data = write(tmp_path / "data", [sample(i, n) for i, n in enumerate(LENGTHS)])
    model = tiny_model(hidden_size=2 * BLOCK, intermediate_size=4 * BLOCK)
    done, optimizer = run(
        decoder_of(model, torch.bfloat16), data, steps, optim=config, precision=PrecisionConfig(bf16=True)
    )
    lean = [slot for slot in optimizer.slots.values() if isinstance(slot.exp_avg, EightBit)]
    assert len(lean) == (
        0 if config.optimizer == "adam" else sum(has_blocks(s.parameter) for s in optimizer.slots.values())
    )
    assert config.optimizer == "adam" or len(lean) >= 15
    return [step.loss for step in done]


def test_tuning_goes_as_with_fp32_state(tmp_path):
    full = losses(tmp_path, OptimConfig(lr=1e-3, lr_decay_style="constant"))
    lean = losses(tmp_path, LEAN)
    assert full[-1] < 0.3 * full[0]
    assert lean[0] == full[0]
    assert sum(lean[-10:]) == pytest.approx(sum(full[-10:]), rel=0.25)


def test_small_updates_count(tmp_path, monkeypatch):
    """At a rate far below a weight's half step, rounding to the nearest loses most of what random rounding keeps."""
    config = OptimConfig(lr=2e-5, lr_decay_style="constant", optimizer="adam8bit")
    at_random = losses(tmp_path, config)

    def to_nearest(wide, weight, noise):
        weight.copy_(wide)

    monkeypatch.setattr(optim, "round_at_random", to_nearest)
    nearest = losses(tmp_path, config)
    assert at_random[0] - at_random[-1] > 1.3 * (nearest[0] - nearest[-1])


def test_sums_in_bf16_when_asked_for():
    for config, dtype in ((OptimConfig(), torch.float32), (OptimConfig(main_grads_dtype="bf16"), torch.bfloat16)):
        weight = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16))
        optimizer = make_optimizer([("w", weight)], config)
        optimizer.expect(2)
        for _ in range(2):
            (weight * 0.5).sum().backward()
        assert optimizer.slots["w"].gradient.dtype == dtype
        assert torch.equal(optimizer.slots["w"].gradient.float(), torch.ones(3, 3))
        assert optimizer.grad_norm() == pytest.approx(3.0)
