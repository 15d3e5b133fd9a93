"""Conversion is exact: bit-identical round trips at every layout, and the shards compute what transformers computes.

A round trip alone proves nothing (a wrong order comes back right), so `megatron_logits` runs the rank files themselves,
written as Megatron's layers read them, knowing nothing of the weight table.
"""

from __future__ import annotations

import argparse
import json
import shutil

import pytest
import torch
from conftest import tiny_config, tiny_model
from megatron_forward import IDS, megatron_logits
from safetensors.torch import load_file, save_file

from tuneval.checkpoints.convert import to_hf, to_mcore
from tuneval.checkpoints.hf import HfSource
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.megatron import MegatronSource
from tuneval.errors import UserError
from tuneval.files import atomic_folder

MODELS = [
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {}),
]
LAYOUTS = [(1, 1, None), (2, 2, None), (4, 3, "1,2,1"), (8, 4, None)]
SEVEN_B = {
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 6, "hidden_size": 24,
    "intermediate_size": 32, "vocab_size": 144,
}  # fmt: skip
"""Qwen2.5-7B's layers, heads and KV heads; at TP 8 a chunk of linear_qkv crosses the border between heads."""


def hf_folder(folder, family, **changes):
    tiny_model(family, **changes).save_pretrained(folder)
    return HfSource(folder)


def shards_of(source, folder, tp, pp, layer_list=None, **options):
    to_mcore(source, folder, plan_layout(source.config, tp, pp, layer_list), **options)
    return MegatronSource(folder)


def assert_same(a, b):
    assert sorted(a.names()) == sorted(b.names())
    for name in a.names():
        assert a.dtype(name) == b.dtype(name) and tuple(a.shape(name)) == tuple(b.shape(name)), name
        assert torch.equal(a.read(name), b.read(name)), name


@pytest.mark.parametrize(("tp", "pp", "layer_list"), LAYOUTS)
@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_round_trip_is_bit_identical(tmp_path, family, changes, tp, pp, layer_list):
    source = hf_folder(tmp_path / "hf", family, **changes)
    shards = shards_of(source, tmp_path / "mcore", tp, pp, layer_list)
    assert_same(source, shards)
    to_hf(shards, tmp_path / "back")
    assert_same(source, HfSource(tmp_path / "back"))


@pytest.mark.parametrize(("tp", "pp", "layer_list"), [(8, 1, None), (8, 8, "4,4,4,4,3,3,3,3"), (4, 4, None)])
def test_round_trip_of_the_shape_of_7b(tmp_path, tp, pp, layer_list):
    source = hf_folder(tmp_path / "hf", "qwen2", **SEVEN_B)
    shards = shards_of(source, tmp_path / "mcore", tp, pp, layer_list)
    assert_same(source, shards)
    torch.testing.assert_close(megatron_logits(tmp_path / "mcore"), hf_logits(tmp_path / "hf"), rtol=1e-5, atol=1e-5)


def test_from_layout_to_layout_in_one_step(tmp_path):
    source = hf_folder(tmp_path / "hf", "qwen2", tie_word_embeddings=True)
    first = shards_of(source, tmp_path / "first", 8, 3, "2,1,1")
    shards_of(first, tmp_path / "second", 2, 2)
    shards_of(source, tmp_path / "direct", 2, 2)
    for file in (tmp_path / "direct").rglob("*.pt"):
        other = tmp_path / "second" / file.relative_to(tmp_path / "direct")
        expected, found = (torch.load(f, weights_only=False) for f in (file, other))
        assert list(expected["model"]) == list(found["model"])
        assert all(torch.equal(expected["model"][n], found["model"][n]) for n in expected["model"])


@pytest.mark.parametrize(("tp", "pp", "layer_list"), [(1, 1, None), (2, 2, None), (2, 3, "1,1,2")])
@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_shards_compute_what_transformers_computes(tmp_path, family, changes, tp, pp, layer_list):
    shards_of(hf_folder(tmp_path / "hf", family, **changes), tmp_path / "mcore", tp, pp, layer_list)
    torch.testing.assert_close(megatron_logits(tmp_path / "mcore"), hf_logits(tmp_path / "hf"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tp", "pp", "each"), [(1, 2, 1), (2, 2, 3)])
def test_virtual_stages_compute_what_transformers_computes(tmp_path, tied, tp, pp, each):
    """Stage 0 holds layers 0, 2, 4, ... (or 0-2 and 6-8), stage 1 the others, in pieces of their own."""
    source = hf_folder(tmp_path / "hf", "qwen2", num_hidden_layers=12, tie_word_embeddings=tied)
    to_mcore(source, tmp_path / "mcore", plan_layout(source.config, tp, pp, None, each))
    state = torch.load(next((tmp_path / "mcore").rglob("*.pt")), weights_only=False)
    assert sorted(k for k in state if k.startswith("model")) == [f"model{i}" for i in range(6 // each)]
    assert_same(source, MegatronSource(tmp_path / "mcore"))
    torch.testing.assert_close(megatron_logits(tmp_path / "mcore"), hf_logits(tmp_path / "hf"), rtol=1e-5, atol=1e-5)


def test_a_padded_vocabulary_repeats_its_last_row(tmp_path):
    source = hf_folder(tmp_path / "hf", "qwen2", dtype="bfloat16")
    words = source.config.vocab_size
    to_mcore(source, tmp_path / "mcore", plan_layout(source.config, 2, 1, None), vocabulary=words + 64)
    states = [torch.load(f, weights_only=False) for f in sorted((tmp_path / "mcore").rglob("*.pt"))]
    assert states[0]["args"].padded_vocab_size == words + 64
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        whole = torch.cat([s["model"][name] for s in states])
        assert len(whole) == words + 64 and (whole[words:] == whole[words - 1]).all()
    assert_same(source, MegatronSource(tmp_path / "mcore"))


def test_a_vocabulary_that_the_ranks_cannot_share_is_padded(tmp_path):
    """As version 1 of MindSpeed-LLM's converter does: 32,001 words, a model with one added token, at TP 2."""
    source = hf_folder(tmp_path / "hf", "llama", vocab_size=353, tie_word_embeddings=True)
    shards_of(source, tmp_path / "mcore", 2, 2)
    states = [torch.load(f, weights_only=False) for f in sorted((tmp_path / "mcore").rglob("*.pt"))]
    assert {s["args"].padded_vocab_size for s in states} == {354}
    assert_same(source, MegatronSource(tmp_path / "mcore"))


def test_modules_of_several_types_are_no_one_tensor(tmp_path):
    hf_folder(tmp_path / "hf", "qwen2")
    file, name = tmp_path / "hf" / "model.safetensors", "model.layers.1.self_attn.k_proj.weight"
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name].bfloat16()}, file, {"format": "pt"})
    source = HfSource(tmp_path / "hf")
    with pytest.raises(
        UserError, match=r"layers\.1\.self_attn\.q_proj\.weight, .* are of several types.*--params-dtype"
    ):
        shards_of(source, tmp_path / "mcore", 1, 1)
    shards_of(source, tmp_path / "mcore", 1, 1, dtype=torch.bfloat16)


@pytest.mark.parametrize("wrong", ["qkv order", "fc1 halves", "swapped layers"])
def test_parity_notices_a_wrong_order(tmp_path, wrong):
    """Shards that hold every number once, in another order, must not pass."""
    shards_of(hf_folder(tmp_path / "hf", "qwen2"), tmp_path / "mcore", 2, 2)
    for file in (tmp_path / "mcore").rglob("*.pt"):
        state = torch.load(file, weights_only=False)
        model = state["model"]
        for name in model:
            if wrong == "qkv order" and name.endswith("linear_qkv.weight"):
                model[name] = model[name].roll(8, 0)
            if wrong == "fc1 halves" and name.endswith("linear_fc1.weight"):
                model[name] = model[name].roll(model[name].shape[0] // 2, 0)
        if wrong == "swapped layers":
            key = "decoder.layers.{}.mlp.linear_fc2.weight"
            model[key.format(0)], model[key.format(1)] = model[key.format(1)], model[key.format(0)]
        torch.save(state, file)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            megatron_logits(tmp_path / "mcore"), hf_logits(tmp_path / "hf"), rtol=1e-5, atol=1e-5
        )


def test_written_files_are_what_megatron_expects(tmp_path):
    """Reference, sections 1.1, 1.2, 1.6 and 10."""
    source = hf_folder(tmp_path / "hf", "qwen2", tie_word_embeddings=True, dtype="bfloat16")
    shards_of(source, tmp_path / "mcore", 2, 3, "2,1,1", dtype=torch.bfloat16)
    assert (tmp_path / "mcore" / "latest_checkpointed_iteration.txt").read_text() == "1"
    files = sorted(str(p.relative_to(tmp_path / "mcore")) for p in (tmp_path / "mcore").rglob("*.pt"))
    assert files == [f"iter_0000001/mp_rank_{t:02d}_{p:03d}/model_optim_rng.pt" for t in range(2) for p in range(3)]
    with torch.serialization.safe_globals([argparse.Namespace]):  # plain values only
        last = torch.load(tmp_path / "mcore" / files[2], weights_only=True)
    assert set(last) == {"args", "checkpoint_version", "iteration", "model"}
    assert (last["checkpoint_version"], last["iteration"]) == (3.0, 1)
    args = vars(last["args"])
    expected = {
        "num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 40, "num_attention_heads": 6, "num_query_groups": 2,
        "num_key_value_heads": 2, "group_query_attention": True, "kv_channels": 8, "padded_vocab_size": 352,
        "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 3, "num_layer_list": "2,1,1",
        "add_qkv_bias": True, "add_bias_linear": False, "untie_embeddings_and_output_weights": False, "swiglu": True,
        "rotary_base": 10000.0, "bf16": True, "fp16": False, "params_dtype": "bf16", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    assert {k: args[k] for k in expected} == expected
    assert "model_type" not in args
    model = last["model"]
    assert list(model)[-2:] == ["decoder.final_layernorm.weight", "output_layer.weight"]  # the tied copy
    storages = [t.untyped_storage().data_ptr() for t in model.values()]
    assert len(set(storages)) == len(storages) and all(t.is_contiguous() for t in model.values())
    size = sum(t.numel() * 2 for t in model.values())
    assert (tmp_path / "mcore" / files[2]).stat().st_size < size + 30_000  # no chunk drags its parent along


def test_tied_single_stage_has_no_output_layer(tmp_path):
    shards_of(hf_folder(tmp_path / "hf", "qwen2", tie_word_embeddings=True), tmp_path / "mcore", 2, 1)
    files = sorted((tmp_path / "mcore").rglob("*.pt"))
    assert [f.parent.name for f in files] == ["mp_rank_00", "mp_rank_01"]
    assert "output_layer.weight" not in torch.load(files[0], weights_only=False)["model"]


def test_the_folder_can_be_used_alone(tmp_path, tiny_folder):
    from transformers import AutoConfig, AutoTokenizer

    folder = tiny_folder("qwen2")
    shards_of(HfSource(folder), tmp_path / "mcore", 2, 2)
    shutil.rmtree(folder)
    to_hf(MegatronSource(tmp_path / "mcore"), tmp_path / "back")
    assert AutoConfig.from_pretrained(tmp_path / "back").num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template


@pytest.mark.parametrize("target", ["hf", "mcore"])
def test_params_dtype_casts_and_is_recorded(tmp_path, target):
    from transformers import AutoConfig

    source = hf_folder(tmp_path / "hf", "qwen2")
    if target == "mcore":
        found = shards_of(source, tmp_path / "out", 2, 2, dtype=torch.float16)
    else:
        to_hf(source, tmp_path / "out", torch.float16)
        found = HfSource(tmp_path / "out")
    assert all(torch.equal(found.read(n), source.read(n).half()) for n in source.names())
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert getattr(config, "dtype", None) or config.torch_dtype == torch.float16


def test_every_tensor_is_used(tmp_path):
    from safetensors.torch import load_file, save_file

    source = hf_folder(tmp_path / "hf", "qwen2")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["model.layers.2.self_attn.extra.weight"] = torch.ones(2)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones(3, 48)
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError) as failure:
        shards_of(HfSource(source.folder), tmp_path / "mcore", 1, 1)
    for part in ("missing: model.norm.weight", "left over: model.layers.2.self_attn.extra.weight", "[3, 48], [40, 48]"):
        assert part in str(failure.value)
    assert not (tmp_path / "mcore").exists()


def test_only_an_earlier_result_is_replaced(tmp_path):
    source = hf_folder(tmp_path / "hf", "qwen2")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    for folder in (tmp_path / "precious", tmp_path / "hf"):
        with pytest.raises(UserError, match="would be replaced"):
            to_hf(source, folder)
        with pytest.raises(UserError, match="would be replaced"):
            shards_of(source, folder, 1, 1)
    shards_of(source, tmp_path / "out", 2, 1)
    assert_same(source, shards_of(source, tmp_path / "out", 1, 2))
    with pytest.raises(UserError, match="would be replaced"):  # it is being read
        to_hf(MegatronSource(tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("other", ["notes.txt", "iter_0000002/mp_rank_00/notes.txt", "iter_0000001/empty/", "link"])
@pytest.mark.parametrize("target", ["hf", "mcore"])
def test_what_lies_in_an_earlier_result_besides_is_never_deleted(tmp_path, target, other, listed):
    source, out = hf_folder(tmp_path / "hf", "qwen2"), tmp_path / "out"

    def write():
        shards_of(source, out, 2, 2) if target == "mcore" else to_hf(source, out, max_shard_bytes=30_000)

    for _ in range(2):  # the second time replaces the first
        write()
        if not listed:  # as records were before they listed the files
            (out / "convert.json").write_text("{}")
    (out / other).parent.mkdir(parents=True, exist_ok=True)
    if other == "link":
        (out / other).symlink_to(tmp_path / "hf")
    elif other.endswith("/"):
        (out / other).mkdir(parents=True)
    else:
        (out / other).write_text("keep")
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=f"no conversion wrote: {other.rstrip('/')}. Move that, or choose another"):
        write()
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("max_shard_bytes", [30_000, 4 << 30])
def test_the_record_lists_every_file(tmp_path, max_shard_bytes):
    source = hf_folder(tmp_path / "hf", "qwen2")
    to_hf(source, tmp_path / "back", max_shard_bytes=max_shard_bytes)
    shards_of(source, tmp_path / "mcore", 2, 2)
    for folder in (tmp_path / "back", tmp_path / "mcore"):
        there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        assert json.loads((folder / "convert.json").read_text())["files"] == there
    (tmp_path / "mcore" / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"no conversion wrote: mine\.json\."):
        to_hf(source, tmp_path / "mcore")


def test_every_problem_of_a_layout_at_once():
    config = tiny_config("qwen2")
    with pytest.raises(UserError) as failure:
        plan_layout(config, 3, 2, "3,2")
    assert "3 problems" in str(failure.value) and "Choose 1, 2, 4, 8." in str(failure.value)
    assert "adds up to 5, the model has 4. For example 2,2" in str(failure.value)
    with pytest.raises(UserError, match=r"4 % 3 = 1. Choose 1, 2, 4, or add --num-layer-list 2,1,1"):
        plan_layout(config, 1, 3, None)
    with pytest.raises(UserError, match="Choose 1 to 4"):
        plan_layout(config, 1, 5, None)
    with pytest.raises(UserError, match="whole numbers"):
        plan_layout(config, 1, 2, "2;2")
    with pytest.raises(UserError, match="must be at least 1"):
        plan_layout(config, 0, 1, None)
    with pytest.raises(UserError, match=r"a stage has 2 layers, to be cut into two or more. Choose 1\."):
        plan_layout(config, 1, 2, None, 2)
    with pytest.raises(UserError, match="goes with --target-pipeline-parallel-size above 1"):
        plan_layout(config, 1, 1, None, 2)
    with pytest.raises(UserError, match="give one of them"):
        plan_layout(config, 1, 2, "3,1", 1)


def hf_logits(folder):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


def test_what_a_killed_conversion_left_is_removed(tmp_path):
    """A closed terminal or a scheduler's SIGTERM leaves no time to: gigabytes in a folder that `ls` does not show."""
    source = hf_folder(tmp_path / "hf", "qwen2")
    left, other = tmp_path / ".mcore.0123abcd.partial", tmp_path / ".mcore.v2.0123abcd.partial"
    for folder in (left, other):
        (folder / "iter_0000001").mkdir(parents=True)
    with atomic_folder(tmp_path / "mcore") as of_another:
        shards_of(source, tmp_path / "mcore", 1, 1)
        assert of_another.exists(), "it was still written"
    assert not left.exists() and other.exists()
