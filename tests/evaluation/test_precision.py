"""The fp32 pass computes what a model loaded in fp32 computes, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from conftest import fill, tiny_model

from tuneval.evaluation.precision import in_fp32, noise
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder


def decoder_in(dtype: torch.dtype, family: str, **changes) -> Decoder:
    model = tiny_model(family, **changes)
    fill(model, 0.25)
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    return Decoder(build_model(model.config, lambda name: state[name].clone(), dtype)).eval()


@pytest.mark.parametrize("family, changes", [("qwen2", {"tie_word_embeddings": True}), ("qwen3", {}), ("llama", {})])
def test_fp32_within_and_bf16_after(family, changes):
    narrow, wide = decoder_in(torch.bfloat16, family, **changes), decoder_in(torch.float32, family, **changes)
    ids, positions = torch.arange(40)[None] % 97, torch.arange(40)[None]
    with torch.inference_mode():
        before, expected = narrow(ids, positions), wide(ids, positions)
        with in_fp32(narrow):
            exact = narrow(ids, positions)
        after = narrow(ids, positions)
    assert exact.dtype == torch.float32 and after.dtype == torch.bfloat16
    torch.testing.assert_close(exact, expected, atol=1e-5, rtol=0)
    assert torch.equal(before, after) and (before.float() - expected).abs().max() > 1e-3
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


def test_an_error_within_leaves_bf16(monkeypatch):
    decoder = decoder_in(torch.bfloat16, "qwen2")
    with pytest.raises(IndexError), in_fp32(decoder):
        decoder(torch.zeros(1, 3, dtype=torch.int32) - 1, torch.arange(3)[None])  # no such token
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert not decoder.model.norm._forward_hooks and not decoder.model.norm._forward_pre_hooks


def test_noise_is_the_change_of_the_chosen_margin():
    here = [{"A": 2.0, "B": 1.0}, {"A": 1.0, "B": 1.1}, {"A": 0.0, "B": 5.0}]
    there = [{"A": 2.0, "B": 1.3}, {"A": 1.2, "B": 1.1}, {"A": 0.0, "B": 5.0}]
    found = noise(here, there)
    assert (found.questions, found.changed) == (3, 1)
    assert found.largest == pytest.approx(0.3) and found.median == pytest.approx(0.2)
