"""AdamW against torch's, the split master weights bit by bit, the loss scaler's moves."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tuneval import runtime
from tuneval.config.schema import OptimConfig, PrecisionConfig
from tuneval.training import optim
from tuneval.training.halves import join, round_at_random, split
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import CHUNK, decays, make_optimizer


class Toy(torch.nn.Module):
    """Two weights, a bias and a norm-like vector; the loss is not convex so that the gradients change."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(7, 5, generator=generator).to(dtype))
        self.second = torch.nn.Linear(7, 3)
        with torch.no_grad():
            for p in self.second.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.second.to(dtype)
        self.gain = torch.nn.Parameter(torch.ones(5, dtype=dtype))

    def forward(self, x):
        return (self.second(torch.tanh(x * self.gain @ self.first.T)) ** 2).mean()


def inputs(step, part):
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + part))


def torchs_own(steps, config, micro_batches=2):
    """torch.optim.AdamW with clip_grad_norm_, in fp32."""
    model = Toy()
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1]
    others = [p for n, p in model.named_parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=0.1,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    norms = []
    for step in range(steps):
        for part in range(micro_batches):
            model(inputs(step, part)).backward()
        limit = config.clip_grad or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
        optimizer.step()
        optimizer.zero_grad()
    return model, norms


def ours(steps, config, dtype=torch.float32, loss_scale=1.0, micro_batches=2):
    model = Toy(dtype)
    optimizer = make_optimizer(model.named_parameters(), config)
    norms = []
    for step in range(steps):
        optimizer.expect(micro_batches)
        for part in range(micro_batches):
            (model(inputs(step, part).to(dtype)) * loss_scale).backward()
            assert all(p.grad is None for p in model.parameters())
        norms.append(optimizer.grad_norm(loss_scale))
        optimizer.step(0.1, norms[-1], loss_scale)
    return model, norms, optimizer


def check_same(config, other=None, **options):
    expected, expected_norms = torchs_own(6, other or config)
    actual, norms, _ = ours(6, config, **options)
    torch.testing.assert_close(norms, expected_norms, rtol=1e-5, atol=0.0)
    for (name, a), b in zip(actual.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("clip_grad", [0.0, 0.3])
def test_equals_torch(clip_grad):
    check_same(OptimConfig(clip_grad=clip_grad, weight_decay=0.1, adam_beta2=0.95))


def test_loss_scale_cancels():
    check_same(OptimConfig(clip_grad=0.3), loss_scale=4096.0)


def test_gradients_are_clipped_where_the_fused_kernel_does_not(monkeypatch):
    """Ascend's takes `grad_scale` and does not look at it."""
    own, clipped = optim.adamw, OptimConfig(clip_grad=0.3)
    monkeypatch.setattr(optim, "adamw", lambda *lists, **options: own(*lists, **{**options, "grad_scale": None}))
    with pytest.raises(AssertionError):
        check_same(clipped)
    monkeypatch.setattr(optim, "fused_optimizer_scales", lambda device: False)
    check_same(clipped)
    check_same(clipped, loss_scale=4096.0)


def test_where_the_fused_kernel_clips():
    kinds = ("cpu", "cuda", "mps", "privateuseone")
    found = {kind: runtime.fused_optimizer_scales(torch.device(kind)) for kind in kinds}
    assert found == {"cpu": True, "cuda": True, "mps": False, "privateuseone": False}


def test_parity_fails_on_another_decay():
    with pytest.raises(AssertionError):
        check_same(OptimConfig(weight_decay=0.1), other=OptimConfig(weight_decay=0.0))


def test_decay_spares_biases_and_vectors():
    found = {name: decays(name, p) for name, p in Toy().named_parameters()}
    assert found == {"first": True, "gain": False, "second.weight": True, "second.bias": False}
    assert not decays("experts.bias", torch.zeros(2, 3))


def thousand_small_steps(dtype):
    parameter = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
    optimizer = make_optimizer([("w", parameter)], OptimConfig(weight_decay=0.0, clip_grad=0.0))
    for _ in range(1000):
        parameter.float().sum().backward()
        optimizer.step(1e-5, 1.0)
    return parameter.detach(), optimizer.state()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_reach_low_precision_weights(dtype):
    """Updates of 1e-5 on weights near 1 vanish in 16 bits; the master takes them as fp32 weights do."""
    expected, _ = thousand_small_steps(torch.float32)
    weight, state = thousand_small_steps(dtype)
    master = joined(state["weight.w"], state["low.w"]) if dtype == torch.bfloat16 else state["master.w"]
    assert torch.equal(master, expected) and float(expected[0, 0]) == pytest.approx(0.99, abs=1e-4)
    assert torch.equal(weight, expected.to(dtype))


def joined(weight, low):
    return join(weight, low, torch.empty(weight.shape))


def test_split_and_join_are_exact():
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(100_000, generator=generator) * 10 ** torch.randint(-30, 30, (100_000,), generator=generator)
    tie = torch.tensor([0x3F808000, 0x3F818000, -0x407F8000, 0x3F807FFF], dtype=torch.int32).view(torch.float32)
    wide = torch.cat([wide, tie, torch.zeros(1), torch.full((1,), -0.0)])
    weight, low = torch.empty(wide.shape, dtype=torch.bfloat16), torch.empty(wide.shape, dtype=torch.int16)
    split(wide.clone(), weight, low)
    assert torch.equal(joined(weight, low).view(torch.int32), wide.view(torch.int32))
    nearest = wide.bfloat16().float()
    assert torch.equal((weight.float() - wide).abs(), (nearest - wide).abs())
    assert not torch.equal(joined(weight, low + 1), wide)


def test_halves_shift_with_kernels_that_ascend_has():
    """It has none for `bitwise_left_shift` and its kin: every weight would go to the host and back."""
    called = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.__name__)
            return func(*args, **(kwargs or {}))

    wide, weight, low = torch.ones(3), torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int16)
    with Watched():
        split(join(weight, low, wide), weight, low)
        round_at_random(wide, weight, torch.zeros(3, dtype=torch.int32))
    assert sum("shift" in name for name in called) == 4 and not any("bitwise" in name for name in called)


def test_bf16_chunks_equal_one_piece(monkeypatch):
    config = OptimConfig(weight_decay=0.1)
    whole, *_ = ours(4, config, dtype=torch.bfloat16)
    monkeypatch.setattr("tuneval.training.optim.CHUNK", 4)
    pieces, *_ = ours(4, config, dtype=torch.bfloat16)
    assert CHUNK > 35
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), pieces.parameters(), strict=True))


def test_frozen_parameters_are_left_out():
    model = Toy()
    model.first.requires_grad_(False)
    assert set(make_optimizer(model.named_parameters(), OptimConfig()).slots) == {
        "second.weight",
        "second.bias",
        "gain",
    }


def test_overflow_is_seen_in_the_norm():
    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float16))
    optimizer = make_optimizer([("w", parameter)], OptimConfig())
    (parameter * 60000.0).sum().mul(60000.0).backward()
    assert optimizer.grad_norm() == float("inf")


def test_dynamic_scale_moves_as_megatrons():
    scaler = LossScaler(PrecisionConfig(fp16=True, initial_loss_scale=64.0, loss_scale_window=3, min_loss_scale=16.0))
    scales = []
    for overflow in (True, True, False, False, False, True, True, True, True, True):
        scaler.update(overflow)
        scales.append(scaler.scale)
    # The first overflow is forgiven (hysteresis 2); the spell of three doubles the scale and forgives again.
    assert scales == [64, 32, 32, 32, 64, 64, 32, 16, 16, 16]


def test_scale_is_one_outside_fp16_and_fixed_when_given():
    assert LossScaler(PrecisionConfig(bf16=True, initial_loss_scale=4096.0)).scale == 1.0
    fixed = LossScaler(PrecisionConfig(fp16=True, loss_scale=8.0))
    fixed.update(True)
    assert fixed.scale == 8.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_an_only_micro_batch_is_not_widened_and_gives_the_same(dtype):
    """Two micro-batches, of which the second adds nothing, are summed in fp32: the same weights bit for bit."""
    models = []
    for parts in (1, 2):
        model = Toy(dtype)
        optimizer = make_optimizer(model.named_parameters(), OptimConfig())
        for step in range(4):
            optimizer.expect(parts)
            for part in range(parts):
                (model(inputs(step, 0).to(dtype)) * (part == 0)).backward()
            expected = dtype if parts == 1 else torch.float32
            assert {slot.gradient.dtype for slot in optimizer.slots.values()} == {expected}
            optimizer.step(0.1, optimizer.grad_norm())
        models.append(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
