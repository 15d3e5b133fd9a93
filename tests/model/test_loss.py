"""The fused loss against torch's cross entropy over full logits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model

from tuneval.model import loss
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder

N, H, V = 113, 24, 160


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(V, H, generator=generator) * 0.3).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    return hidden, weight, targets, torch.rand(N, generator=generator) / N


def reference(hidden, weight, targets, weights) -> torch.Tensor:
    logits = hidden.float() @ weight.float().T
    return (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum()


def check(values, expected_weights=None, scale: float = 1.0, tolerance: float = 1e-6) -> None:
    hidden, weight, targets, weights = values
    actual = loss.linear_cross_entropy(hidden, weight, targets, weights)
    expected = reference(hidden, weight, targets, weights if expected_weights is None else expected_weights)
    assert actual.dtype == torch.float32 and actual.shape == ()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    grads = torch.autograd.grad(actual * scale, (hidden, weight))
    for a, b in zip(grads, torch.autograd.grad(expected * scale, (hidden, weight))):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("rows", [1, 30, 112, 113, 1000])
def test_equals_torch_whatever_the_chunk(monkeypatch, rows):
    monkeypatch.setattr(loss, "CHUNK_BYTES", rows * V * 4)
    check(inputs())
    check(inputs(), scale=3.5)


def test_equals_torchs_mean_with_equal_weights():
    hidden, weight, targets, _ = inputs()
    actual = loss.linear_cross_entropy(hidden, weight, targets, torch.full((N,), 1 / N))
    torch.testing.assert_close(actual, torch.nn.functional.cross_entropy(hidden @ weight.T, targets))


def test_wrong_weights_are_noticed():
    values = inputs()
    with pytest.raises(AssertionError):
        check(values, expected_weights=values[3].flip(0))


@pytest.mark.parametrize("rows", [5, 1000])
def test_bf16_is_as_near_as_bf16_is(monkeypatch, rows):
    monkeypatch.setattr(loss, "CHUNK_BYTES", rows * V * 4)
    check(inputs(torch.bfloat16), tolerance=1e-2)


def test_a_nearly_sure_target_keeps_its_small_gradient_in_bf16():
    hidden = torch.zeros(1, H, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(V, H, dtype=torch.bfloat16)
    with torch.no_grad():
        hidden[0, 0], weight[7, 0] = 1.0, 13.0
    weight.requires_grad_()
    targets = torch.tensor([7])
    actual = torch.autograd.grad(loss.linear_cross_entropy(hidden, weight, targets, torch.ones(1)), weight)[0][7, 0]
    expected = torch.autograd.grad(reference(hidden, weight, targets, torch.ones(1)), weight)[0][7, 0]
    assert expected != 0 and abs(actual / expected - 1) < 0.01


def test_fp16_small_weights_do_not_underflow():
    hidden, weight, targets, _ = inputs(torch.float16)
    weights = torch.full((N,), 1e-6)
    actual = loss.linear_cross_entropy(hidden, weight, targets, weights) * 65536
    expected = reference(hidden, weight, targets, weights) * 65536
    for a, b in zip(torch.autograd.grad(actual, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=float(b.abs().max()) * 2e-3)


def test_a_frozen_head_has_no_gradient_computed(monkeypatch):
    hidden, weight, targets, weights = inputs()
    monkeypatch.setattr(loss, "_add", lambda *_: pytest.fail("a gradient of the frozen head was computed"))
    frozen = weight.detach()
    actual = torch.autograd.grad(loss.linear_cross_entropy(hidden, frozen, targets, weights), hidden)[0]
    expected = torch.autograd.grad(reference(hidden, frozen, targets, weights), hidden)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(pytest.fail.Exception):
        loss.linear_cross_entropy(hidden, weight, targets, weights)
    with torch.no_grad():
        loss.linear_cross_entropy(hidden, weight, targets, weights)


def micro_batch(targets: torch.Tensor, weights: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        input_ids=torch.arange(20)[None] * 7 % 160,
        targets=targets,
        weights=weights,
        position_ids=torch.cat((torch.arange(8), torch.arange(12)))[None],
        segments=(0, 8, 20),
    )


def decoder_of(model) -> Decoder:
    return Decoder(build_model(model.config, lambda name: model.state_dict()[name].clone(), torch.float32))


@pytest.mark.parametrize("tied", [False, True])
def test_sequence_loss_equals_transformers(tied):
    """Loss and every gradient of a packed micro-batch equal two plain forwards of transformers, summed."""
    model = tiny_model("qwen2", tie_word_embeddings=tied)
    decoder = decoder_of(model)
    targets = torch.arange(20)[None] * 11 % 160
    targets[0, [0, 1, 7, 8, 9, 19]] = -100
    weights = torch.linspace(0.01, 0.2, 20)[None].clone()
    weights[0, 3] = 0.0
    batch = micro_batch(targets, weights)
    loss.sequence_loss(decoder, batch).backward()
    logits = torch.cat([model(batch.input_ids[:, a:b]).logits for a, b in ((0, 8), (8, 20))], 1)[0]
    losses = torch.nn.functional.cross_entropy(logits, targets[0], reduction="none", ignore_index=-100)
    (losses * weights[0]).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_nothing_to_train_is_a_loss_of_zero():
    decoder = decoder_of(tiny_model())
    value = loss.sequence_loss(decoder, micro_batch(torch.full((1, 20), -100), torch.zeros(1, 20)))
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in decoder.parameters())
