"""Norms and feed-forward layers that keep less, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCAB, tiny_config, tiny_model
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import Gemma2Config, Olmo2Config, Phi3Config

from tuneval.model.build import build_model, empty_model
from tuneval.model.decoder import Decoder
from tuneval.model.frugal import FrugalMLP, FrugalRMSNorm
from tuneval.model.lora import LoraSettings, add_lora

IDS = torch.arange(30)[None] * 7 % VOCAB
FAMILIES = ("qwen2", "qwen3", "llama", "mistral")


def built(dtype=torch.float32, family: str = "qwen2"):
    model = tiny_model(family)
    return build_model(model.config, lambda name: model.state_dict()[name].clone(), dtype)


def built_of_theirs(dtype, family: str):
    """The same weights and buffers, the modules' classes those of transformers."""
    model = built(dtype, family)
    for own, theirs in zip(model.modules(), tiny_model(family).modules(), strict=True):
        own.__class__ = type(theirs)
    return model


def kinds(model) -> set[str]:
    return {type(m).__name__ for m in model.modules() if type(m).__name__.endswith(("Norm", "MLP"))}


def gradients(model) -> dict[str, torch.Tensor]:
    model.requires_grad_(True)
    (model(IDS, use_cache=False).logits.float() ** 2).mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_the_same_numbers_and_gradients_the_same_to_rounding(family, dtype):
    theirs, ours = built_of_theirs(dtype, family), built(dtype, family)
    assert kinds(ours) == {"FrugalRMSNorm", "FrugalMLP"} and "FrugalMLP" not in kinds(theirs)
    exact = gradients(tiny_model(family))
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    found, expected = gradients(ours), gradients(theirs)
    for name, gradient in exact.items():
        if dtype == torch.float32:
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
        else:
            error, usual = ((g[name].float() - gradient).norm() for g in (found, expected))
            assert error <= 1.5 * usual + 0.005 * gradient.norm(), name


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (Gemma2Config, {"Gemma2RMSNorm", "Gemma2MLP"}),  # 1 + weight; another activation
        (Olmo2Config, {"Olmo2RMSNorm", "FrugalMLP"}),  # multiplies before it rounds
        (Phi3Config, {"FrugalRMSNorm", "Phi3MLP"}),  # one product for gate and up
    ],
)
def test_classes_that_compute_otherwise_stay(config, left):
    made = config(num_hidden_layers=1, hidden_size=64, intermediate_size=96, vocab_size=64, pad_token_id=None)
    assert kinds(empty_model(made, torch.float32)) == left


class GatedNorm(torch.nn.Module):
    """As hybrids with state-space layers have it: another module's output may come along, and scales its input."""

    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(64)), 1e-6

    def forward(self, hidden_states, gate=None):
        wide = hidden_states.float() if gate is None else hidden_states.float() * gate.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normal.to(hidden_states.dtype)


def test_a_norm_that_may_take_a_gate_stays():
    norm, x = GatedNorm(), torch.randn(3, 64)
    own = GatedNorm()
    own.__class__ = FrugalRMSNorm
    assert torch.equal(norm(x), own(x)) and not FrugalRMSNorm.equals(norm)


def test_looking_at_classes_draws_no_number_of_the_callers():
    state = torch.get_rng_state()
    empty_model(tiny_config(), torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("adapters", [True, False])
def test_the_product_of_gate_and_up_is_not_kept(adapters):
    model = built().train()
    if adapters:
        add_lora(model, LoraSettings(r=2, alpha=4), seed=0)
    decoder, kept = Decoder(model), []
    for module in model.modules():
        if isinstance(module, FrugalMLP):
            module.down_proj.register_forward_pre_hook(
                lambda module, args: kept.append(StorageWeakRef(args[0].untyped_storage()))
            )
    loss = decoder(IDS, torch.arange(30)[None]).sum()
    assert [product.expired() for product in kept] == [True] * 4
    loss.backward()
    assert all(m.weight.grad is not None for m in model.modules() if isinstance(m, FrugalRMSNorm)) is not adapters
    assert not any(m.keeps_product for m in model.modules() if isinstance(m, FrugalMLP))
    Decoder(model, recompute="full")
    assert all(m.keeps_product for m in model.modules() if isinstance(m, FrugalMLP))
