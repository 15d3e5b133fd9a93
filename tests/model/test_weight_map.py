"""The table: golden orders from Megatron's layout, every tensor once, names and shapes equal transformers' own."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config

from tuneval.errors import Problems, UserError
from tuneval.model.weight_map import (
    Row,
    by_query_group,
    check_tensor_parallel,
    gate_then_up,
    hf_modules,
    megatron_targets,
    rows,
    whole,
)

FAMILIES = [
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {}),
]


def named(parts, letters):
    """Parts -> words such as q0, at one row per head."""
    return [f"{letters[p.hf]}{i}" for p in parts for i in range(p.start, p.stop)]


def test_qkv_order_is_megatrons():
    """Reference, section 9: 4 heads, 2 KV heads (one row a head here)."""
    assert named(by_query_group((4, 2, 2), 2, 1)[0], "qkv") == "q0 q1 k0 v0 q2 q3 k1 v1".split()
    first, second = by_query_group((4, 2, 2), 2, 2)
    assert named(first, "qkv") == "q0 q1 k0 v0".split()
    assert named(second, "qkv") == "q2 q3 k1 v1".split()


def test_qkv_chunks_may_cross_kv_heads():
    """TP 4 over 2 KV heads: plain quarters of the grouped order."""
    chunks = [named(parts, "qkv") for parts in by_query_group((4, 2, 2), 2, 4)]
    assert chunks == [["q0", "q1"], ["k0", "v0"], ["q2", "q3"], ["k1", "v1"]]


def test_fc1_order_is_megatrons():
    first, second = gate_then_up((4, 4), 1, 2)
    assert named(first, "gu") == "g0 g1 u0 u1".split()
    assert named(second, "gu") == "g2 g3 u2 u3".split()


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_names_and_shapes_equal_transformers(family, changes):
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, **changes)
    with torch.device("meta"):
        expected = {n: tuple(p.shape) for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    table = {n: s for row in rows(config) for n, s in zip(row.hf_names, row.hf_shapes)}
    assert table == expected


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_every_element_is_on_one_rank(family, changes, tp):
    for row in rows(tiny_config(family, **changes)):
        if row.tp_dim is None:
            continue
        seen = [[0] * shape[row.tp_dim] for shape in row.hf_shapes]
        for rank in range(tp):
            for part in row.parts(tp, rank):
                for i in range(part.start, part.stop):
                    seen[part.hf][i] += 1
        assert all(count == 1 for tensor in seen for count in tensor), row.name


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_split_undoes_fuse(tp):
    for row in rows(tiny_config("qwen2")):
        tensors = {
            n: torch.arange(torch.Size(s).numel(), dtype=torch.float32).view(s) + 1e5 * i
            for i, (n, s) in enumerate(zip(row.hf_names, row.hf_shapes))
        }
        ranks = [row.fuse(lambda n, dim, a, b, t=tensors: t[n].narrow(dim, a, b - a), tp, r) for r in range(tp)]
        assert all(t.is_contiguous() and tuple(t.shape) == row.rank_shape(tp) for t in ranks)
        for i, name in enumerate(row.hf_names):
            size = row.hf_shapes[i][row.tp_dim or 0]
            read = lambda rank, dim, a, b, r=ranks: r[rank].narrow(dim, a, b - a)  # noqa: E731
            assert torch.equal(row.split(read, tp, i, 0, size), tensors[name])
            middle = tensors[name].narrow(row.tp_dim or 0, 1, size - 2)
            assert torch.equal(row.split(read, tp, i, 1, size - 1), middle)


def test_a_large_tensor_is_put_together_block_by_block():
    row = Row("w", "layer", 0, ("a",), ((6, 1 << 24),), 0, whole, 1, "")  # two rows a block, three a rank
    tensor = (torch.arange(6 << 24, dtype=torch.int32) % 251).to(torch.uint8).view(6, 1 << 24)
    reads = []

    def read(rank, dim, start, stop):
        reads.append((rank, start, stop))
        return tensor[3 * rank + start : 3 * rank + stop]

    assert torch.equal(row.split(read, 2, 0, 0, 6), tensor)
    assert reads == [(0, 0, 2), (0, 2, 3), (1, 0, 2), (1, 2, 3)]


@pytest.mark.parametrize(
    ("sizes", "total"),
    [
        ((896, 24, 4864, 14, 2, 151936, True), 494_032_768),
        ((1536, 28, 8960, 12, 2, 151936, True), 1_543_714_304),
        ((3584, 28, 18944, 28, 4, 152064, False), 7_615_616_512),
    ],
)
def test_parameter_totals_are_those_of_qwen(sizes, total):
    hidden, layers, ffn, heads, kv, vocabulary, tied = sizes
    config = tiny_config(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=ffn, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=tied, head_dim=hidden // heads,
    )  # fmt: skip
    shapes = (s for row in rows(config) if not row.is_copy for s in row.hf_shapes)
    assert sum(torch.Size(s).numel() for s in shapes) == total


def test_lora_names_come_from_the_table():
    assert megatron_targets() == ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    assert hf_modules("linear_qkv") == ("q_proj", "k_proj", "v_proj")
    assert hf_modules("linear_proj") == ("o_proj",)
    assert hf_modules("linear_fc1") == ("gate_proj", "up_proj")
    assert hf_modules("linear_fc2") == ("down_proj",)


def test_every_tensor_parallel_problem_is_told_with_what_would_work():
    problems = Problems()
    check_tensor_parallel(tiny_config(), 3, "--tp", problems)
    assert len(problems.messages) == 2  # qkv rows 80, ffn 40; 48 columns of proj divide, a vocabulary is padded
    assert all(message.endswith("Choose 1, 2, 4, 8.") for message in problems.messages)
    fine = Problems()
    check_tensor_parallel(tiny_config(), 8, "--tp", fine)  # more ranks than the 2 KV heads
    assert fine.messages == []


def test_an_unknown_family_names_the_known_ones():
    from transformers import GPT2Config

    with pytest.raises(UserError, match=r"model_type gpt2.*qwen2, qwen3, llama, mistral"):
        rows(GPT2Config())
