"""Laid-out and 8-bit linear layers against the plain ones, and answers of models that have them."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from lively import lively_folder
from torch import nn

from tuneval import runtime
from tuneval.checkpoints.load import load_model
from tuneval.config.schema import SamplingConfig
from tuneval.errors import UserError
from tuneval.inference.generate import generate
from tuneval.inference.linear import FEW_ROWS, Int8Linear, PackedLinear, speed_up
from tuneval.wide_products import multiplies

PROMPTS = [[5, 9, 33, 70], [8], [100, 101, 102, 103, 104, 105, 106, 7], [44, 45, 46]]
GREEDY = SamplingConfig(max_new_tokens=12, greedy=True)
packs = pytest.mark.skipif(
    not runtime.packs_linear(torch.ones(1, 1, dtype=torch.bfloat16)), reason="no products with laid-out weights here"
)


def layer(bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(48, 40, bias=bias, dtype=dtype).requires_grad_(False)


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (2, 3, 48), (70, 48)])
def test_a_laid_out_layer_computes_what_the_plain_one_does(bias, shape):
    plain, x = layer(bias), torch.randn(shape, dtype=torch.bfloat16)
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x))
    other = layer(bias)
    other.weight[0, 0] += 1
    with pytest.raises(AssertionError):
        torch.testing.assert_close(PackedLinear(other)(x), plain(x))


@packs
def test_answers_stay_the_same(tmp_path, tokenizer):
    folder = lively_folder(tmp_path / "model", tokenizer, "qwen2")
    plain, fast = load_model(folder, "bf16"), load_model(folder, "bf16")
    speed_up(fast)
    assert isinstance(fast.model.lm_head, PackedLinear)
    assert generate(fast, PROMPTS, GREEDY, [3]) == generate(plain, PROMPTS, GREEDY, [3])


def test_a_weight_that_its_layout_cannot_hold_stays_as_it_is():
    large = torch.full((4, 8), 1e6, dtype=torch.bfloat16)
    assert runtime.packs_linear(large) is multiplies(torch.bfloat16), "oneDNN keeps bf16, FBGEMM fp16"


def test_fp32_stays_as_it_is(tmp_path, tokenizer):
    loaded = load_model(lively_folder(tmp_path / "model", tokenizer, "qwen2"), "fp32")
    speed_up(loaded)
    assert type(loaded.model.lm_head) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 70])
def test_an_8_bit_layer_computes_with_its_rounded_weights(rows, dtype):
    plain = layer(dtype=dtype)
    short, x = Int8Linear(plain), torch.randn(rows, 48, dtype=dtype)
    rounded = short.quantized.float() * short.scale.float().unsqueeze(1)
    half_a_step = short.scale.float().unsqueeze(1) / 2
    assert ((rounded - plain.weight.float()).abs() <= half_a_step * 1.05).all(), "the largest may round with its scale"
    expected = nn.functional.linear(x.float(), rounded, plain.bias.float())
    torch.testing.assert_close(short(x).float(), expected, rtol=2e-2, atol=2e-2)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(short(x).float(), expected * 1.05, rtol=2e-2, atol=2e-2)


def test_an_8_bit_model_answers_and_is_near(tmp_path, tokenizer):
    folder = lively_folder(tmp_path / "model", tokenizer, "qwen2")
    plain, short = load_model(folder, "fp32"), load_model(folder, "fp32")
    speed_up(short, "int8")
    assert isinstance(short.model.lm_head, Int8Linear)
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        a, b = (m.model(ids).logits for m in (plain, short))
    assert 0 < (a - b).norm() / a.norm() < 0.03
    assert all(generate(short, PROMPTS, GREEDY, [3]))


def test_each_weight_is_freed_once_its_layer_is_exchanged(tmp_path, tokenizer, monkeypatch):
    loaded = load_model(lively_folder(tmp_path / "model", tokenizer, "qwen2"), "fp32")
    weights = [weakref.ref(m.weight) for m in loaded.model.modules() if isinstance(m, nn.Linear)]
    held = []

    class Counted(Int8Linear):
        def __init__(self, linear: nn.Linear) -> None:
            held.append(sum(weight() is not None for weight in weights))
            super().__init__(linear)

    monkeypatch.setattr("tuneval.inference.linear.Int8Linear", Counted)
    speed_up(loaded, "int8")
    assert held == list(range(len(weights), 0, -1))


def test_a_shared_model_is_refused_8_bits(tmp_path, tokenizer):
    loaded = load_model(lively_folder(tmp_path / "model", tokenizer, "qwen2"), "fp32")
    layout = replace(loaded.mesh.layout, tensor=2)
    loaded.mesh.layout = layout
    with pytest.raises(UserError, match="--quantize int8: is for one process on a CPU, and the model is shared"):
        speed_up(loaded, "int8")
