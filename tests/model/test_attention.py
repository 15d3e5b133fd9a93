"""Segment attention against transformers' eager attention, one sample at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import HEAD_DIM, HEADS, KV_HEADS
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention

from tuneval import runtime
from tuneval.model import attention
from tuneval.model.attention import Segments, segment_attention

SEGMENTS = (0, 5, 6, 15, 23)


class Layer(torch.nn.Module):
    num_key_value_groups = HEADS // KV_HEADS


def heads(length: int = 23) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, HEADS, length, HEAD_DIM), (1, KV_HEADS, length, HEAD_DIM), (1, KV_HEADS, length, HEAD_DIM)]
    return tuple(torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)


def by_definition(q, k, v, segments, prefix_length=0, window=None) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v with an explicit [T, T] mask built pair by pair."""
    number, position = [], []
    for index, (start, end) in enumerate(itertools.pairwise(segments)):
        number += [index] * (end - start)
        position += [(prefix_length if index else 0) + i for i in range(end - start)]
    allowed = torch.zeros(len(number), len(number), dtype=torch.bool)
    for i in range(len(number)):
        for j in range(len(number)):
            same = number[i] == number[j] or (prefix_length > 0 and number[j] == 0)
            distance = position[i] - position[j]
            allowed[i, j] = same and distance >= 0 and (window is None or distance < window) and j <= i
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) / HEAD_DIM**0.5).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def check(q, k, v, segments, expected_segments=None, **settings) -> None:
    window, prefix_length = settings.get("window"), settings.get("prefix_length", 0)
    actual, weights = segment_attention(
        Layer(), q, k, v, None, sliding_window=window, segments=Segments(segments, prefix_length)
    )
    expected = by_definition(q, k, v, expected_segments or segments, **settings)
    assert weights is None and actual.shape == (1, q.shape[2], HEADS, v.shape[3])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    direction = torch.linspace(-1, 1, actual.numel()).view_as(actual)
    for a, b in zip(
        torch.autograd.grad(actual, (q, k, v), direction), torch.autograd.grad(expected, (q, k, v), direction)
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("short", [0, 8, 100])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_segments_are_separate(monkeypatch, window, short):
    monkeypatch.setattr(attention, "SHORT", short)  # which of them attend by plain products
    check(*heads(), SEGMENTS, window=window)
    check(*heads(), (0, 23), window=window)


@pytest.mark.parametrize("short", [0, 100])
@pytest.mark.parametrize("size", [5, 11])
def test_values_of_another_size_than_keys(monkeypatch, size, short):
    """As latent attention has them."""
    monkeypatch.setattr(attention, "SHORT", short)
    q, k, v = heads()
    check(q, k, torch.cat((v, v.flip(3)), 3)[..., :size].detach().requires_grad_(), SEGMENTS)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_prefix_is_shared(window):
    check(*heads(), SEGMENTS, prefix_length=5, window=window)


def test_wrong_bounds_are_noticed():
    with pytest.raises(AssertionError):
        check(*heads(), SEGMENTS, expected_segments=(0, 5, 7, 15, 23))
    with pytest.raises(AssertionError):
        check(*heads(), (0, 5, 7, 15, 23), expected_segments=SEGMENTS, prefix_length=5)


def test_plain_products_are_as_near_as_the_fused_kernel_in_bf16(monkeypatch):
    """Output and every gradient, against the definition in fp64."""
    q, k, v = (2 * x.detach().bfloat16() for x in heads(200))
    direction = torch.linspace(-1, 1, q.numel()).view(1, 200, HEADS, HEAD_DIM)

    def all_of(compute, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        output = compute(*inputs)
        return output, *torch.autograd.grad(output, inputs, direction.to(dtype))

    exact = all_of(lambda *inputs: by_definition(*inputs, (0, 200)), torch.float64)
    distances = {}
    for short in (0, 200):
        monkeypatch.setattr(attention, "SHORT", short)
        found = all_of(lambda *i: segment_attention(Layer(), *i, None, segments=Segments((0, 200)))[0], torch.bfloat16)
        distances[short] = [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact)]
    assert distances[0] != distances[200]  # two ways, indeed
    assert all(plain < 1.5 * fused < 0.02 for plain, fused in zip(distances[200], distances[0])), distances


def test_without_segments_it_is_sdpa_with_a_cache():
    """A prompt, then one token at a time over a key/value cache, equals one pass over everything."""
    from conftest import tiny_model

    plain, ours = tiny_model(), tiny_model(attn_implementation="tuneval")
    assert ours.config._attn_implementation == "tuneval"
    input_ids = torch.arange(20)[None] * 7 % 160
    cache = DynamicCache(config=ours.config)
    with torch.no_grad():
        parts = [ours(input_ids[:, :12], past_key_values=cache).logits]
        parts += [ours(input_ids[:, i : i + 1], past_key_values=cache).logits for i in range(12, 20)]
        torch.testing.assert_close(torch.cat(parts, 1), plain(input_ids).logits, rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_changes_nothing():
    from conftest import tiny_model

    ours = tiny_model(attn_implementation="tuneval")
    input_ids = torch.arange(9)[None] * 7 % 160
    padded = torch.cat((torch.ones(1, 4, dtype=torch.long), input_ids), 1)
    mask = (torch.arange(13) >= 4).long()[None]
    with torch.no_grad():
        alone = ours(input_ids).logits
        beside = ours(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    torch.testing.assert_close(beside[:, 4:], alone, rtol=1e-5, atol=1e-5)


def test_what_it_does_not_compute_is_refused():
    from conftest import tiny_config

    with pytest.raises(ValueError, match="LlamaAttention uses capped attention scores"):
        segment_attention(
            LlamaAttention(tiny_config("llama"), 0), *heads(), None, segments=Segments((0, 23)), softcap=30.0
        )


@pytest.mark.parametrize("made", ["attention_mask", "position_bias"])
def test_what_a_layer_adds_to_its_scores_is_refused(made):
    given = {"attention_mask": None, made: torch.zeros(1, HEADS, 23, 23)}
    with pytest.raises(ValueError, match="Layer makes a mask of its own"):
        segment_attention(Layer(), *heads(), **given, segments=Segments((0, 23)))


def by_documentation(q, k, v, queries, keys, max_q, max_k, scale=None, window_size=(-1, -1), enable_gqa=False):
    """What torch says of `varlen_attn`: a segment's last query stands beside its last key; `window_size` (left, right)."""
    outputs = []
    for (a, b), (c, d) in zip(itertools.pairwise(queries.tolist()), itertools.pairwise(keys.tolist())):
        assert b - a <= max_q and d - c <= max_k and queries.dtype == keys.dtype == torch.int32
        own_k, own_v = (x[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))  # [keys, Hq, D]
        at = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        behind = at - torch.arange(d - c)[None]
        left, right = window_size
        allowed = (behind >= -right) & ((behind <= left) | (left < 0))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], own_k) * (HEAD_DIM**-0.5 if scale is None else scale)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), own_v))
    return torch.cat(outputs)


@pytest.mark.parametrize("prefix_length", [0, 5])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_all_segments_at_once(monkeypatch, window, prefix_length):
    monkeypatch.setattr(attention, "varlen_attention", lambda device: by_documentation)
    monkeypatch.setattr(attention, "_is_flash", lambda q, v, dropout: True)
    check(*heads(), SEGMENTS, window=window, prefix_length=prefix_length)
    if window != 1:  # each token sees itself alone, wherever its segment begins
        with pytest.raises(AssertionError):
            check(*heads(), SEGMENTS, expected_segments=(0, 5, 7, 15, 23), window=window, prefix_length=prefix_length)


@pytest.mark.skipif(runtime.varlen_attention(runtime.device()) is None, reason="no flash attention on this device")
@pytest.mark.parametrize("prefix_length", [0, 5])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_flash_attention_is_the_same(window, prefix_length):
    device = runtime.device()
    halves = [x.detach().to(device, torch.bfloat16).requires_grad_() for x in heads()]
    wide = [x.detach().float().cpu().requires_grad_() for x in halves]
    bounds = Segments(SEGMENTS, prefix_length)
    actual, _ = segment_attention(Layer(), *halves, None, sliding_window=window, segments=bounds)
    expected = by_definition(*wide, SEGMENTS, prefix_length, window)
    torch.testing.assert_close(actual.float().cpu(), expected, rtol=0.02, atol=0.02)
    direction = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    found = torch.autograd.grad(actual, halves, direction.to(device, torch.bfloat16))
    for a, b in zip(found, torch.autograd.grad(expected, wide, direction)):
        torch.testing.assert_close(a.float().cpu(), b, rtol=0.03, atol=0.03)
