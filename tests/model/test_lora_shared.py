"""`--lora-shared-a`: MindSpeed-LLM's parametrisation, one A for q, k, v and one for gate, up."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny_model
from peft import PeftModel
from safetensors.torch import load_file

from tuneval.model.build import build_model, empty_model
from tuneval.model.lora import LoraSettings, add_lora, inject_lora, save_adapter

IDS = torch.tensor([[3, 141, 59, 26, 53, 58, 97, 93, 23, 84]])
SHARED = LoraSettings(r=3, alpha=7.0, shared_a=True)
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
SEVEN_B = {
    "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


def built(settings, family="qwen2"):
    """The tiny model with adapters whose B is not 0, the same for both parametrisations."""
    model = tiny_model(family)
    model = add_lora(build_model(model.config, lambda n: model.state_dict()[n].clone(), torch.float32), settings, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B." in name:
                p.copy_(torch.sin(torch.arange(p.numel()) * 0.3 + len(name)).view_as(p) * 0.1)
    return model


def separate_with_equal_a():
    """peft's own modules, each with an A of its own, of the shared model's values."""
    model, values = built(LoraSettings(3, 7.0)), dict(built(SHARED).named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(values[name])
    return model


@pytest.mark.parametrize(("shared", "expected"), [(True, 17_776_640), (False, 20_185_088)])
def test_parameters_of_7b_golden(shared, expected):
    """Reference, section 9: rank 8 on the four fused layers of Qwen2.5-7B."""
    from transformers import Qwen2Config

    model = empty_model(Qwen2Config(**SEVEN_B), torch.bfloat16)
    inject_lora(model, LoraSettings(8, 16, 0.0, ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), shared))
    assert sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n) == expected


def check_gradients(model):
    """Loss and gradients are those of separate modules with equal A; the shared A's is the sum of theirs."""
    reference = separate_with_equal_a()
    losses = [m(IDS, labels=IDS).loss for m in (model, reference)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    theirs = {n: p.grad for n, p in reference.named_parameters() if ".lora_" in n}
    for name, p in model.named_parameters():
        if ".lora_" in name:
            group = next((g for g in GROUPS if f".{g[0]}.lora_A." in name), ())
            same = [theirs[name.replace(f".{group[0]}.", f".{member}.")] for member in group] or [theirs[name]]
            torch.testing.assert_close(p.grad, sum(same), rtol=1e-4, atol=1e-7)


def test_the_shared_gradient_is_the_sum_of_the_modules():
    check_gradients(built(SHARED))


def test_gradient_parity_notices_an_a_that_is_not_shared():
    with pytest.raises(AssertionError):
        check_gradients(separate_with_equal_a())


def test_peft_loads_what_is_saved(tmp_path):
    model = built(SHARED)
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    save_adapter(model, SHARED, tmp_path / "adapter", str(base))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 4 * 7 * 2
    stem = "base_model.model.model.layers.2.self_attn.{}.lora_A.weight"
    assert torch.equal(tensors[stem.format("q_proj")], tensors[stem.format("v_proj")])
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()(IDS).logits
    torch.testing.assert_close(model(IDS).logits, theirs)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 3


def test_a_part_of_a_group_shares_what_is_adapted():
    model = built(LoraSettings(3, 7.0, 0.0, ("k_proj", "v_proj", "up_proj"), True))
    names = [n for n, _ in model.named_parameters() if "layers.0." in n and ".lora_A." in n]
    assert names == [
        "model.layers.0.self_attn.k_proj.lora_A.default.weight",
        "model.layers.0.mlp.up_proj.lora_A.default.weight",
    ]
