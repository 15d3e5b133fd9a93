"""Reading what Megatron and MindSpeed write, and saying what is wrong with what can't be read."""

from __future__ import annotations

import collections
import io
import json
import os
import shutil
import sys
import types

import pytest
import torch
from conftest import tiny_model

from tuneval.checkpoints.convert import to_mcore
from tuneval.checkpoints.hf import HfSource
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.megatron import MegatronSource
from tuneval.checkpoints.rank_files import MegatronFiles
from tuneval.errors import UserError


@pytest.fixture
def shards(tmp_path):
    """Function (tp, pp, **config changes) -> (source, Megatron folder)."""

    def make(tp=2, pp=2, layer_list=None, **changes):
        tiny_model("qwen2", **changes).save_pretrained(tmp_path / "hf")
        source = HfSource(tmp_path / "hf")
        to_mcore(source, tmp_path / "mcore", plan_layout(source.config, tp, pp, layer_list))
        return source, tmp_path / "mcore"

    return make


def rewrite(folder, change):
    """Load every rank file with torch, let `change(state, tp, pp)` alter it, save it again."""
    for file in sorted(folder.rglob("*.pt")):
        tp, _, pp = file.parent.name.removeprefix("mp_rank_").partition("_")
        state = torch.load(file, weights_only=False)
        torch.save(change(state, int(tp), int(pp or 0)) or state, file, pickle_protocol=4)


def assert_same(source, folder, **options):
    found = MegatronSource(folder, **options)
    assert found.names() and sorted(found.names()) == sorted(source.names())
    for name in source.names():
        assert tuple(found.shape(name)) == tuple(source.shape(name))
        assert torch.equal(found.read(name), source.read(name)), name


def test_files_of_a_trainer(shards):
    """Whole args namespace with foreign classes, optimizer, random states, OrderedDict, None and blob extra states."""
    source, folder = shards()
    foreign = types.ModuleType("megatron_enums")
    foreign.ModelType = type("ModelType", (), {"__module__": "megatron_enums", "__qualname__": "ModelType"})
    sys.modules["megatron_enums"] = foreign

    def as_trainer(state, tp, pp):
        state["args"].model_type, state["args"].params_dtype = foreign.ModelType(), torch.bfloat16
        del state["args"].num_key_value_heads
        model = collections.OrderedDict(state["model"])
        model["decoder.layers.0.self_attention.linear_qkv._extra_state"] = None
        model["decoder.layers.0.self_attention.core_attention._extra_state"] = io.BytesIO(b"fp8 state")
        model["output_layer._extra_state"] = torch.zeros(3, dtype=torch.uint8)
        state.update(model=model, optimizer={"param": torch.ones(5)}, rng_state=[{"torch": torch.get_rng_state()}])

    try:
        rewrite(folder, as_trainer)
    finally:
        del sys.modules["megatron_enums"]
    assert_same(source, folder)


def test_names_of_transformer_engine(shards):
    source, folder = shards()
    names = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }

    def renamed(state, tp, pp):
        model = collections.defaultdict(dict)
        for name, tensor in state["model"].items():
            stem, _, tail = name.partition(".layers.")
            layer, _, rest = tail.partition(".")
            model[f"{stem}.layers.{layer}.{names[rest]}" if rest in names else name] = tensor
        state["model"] = model

    rewrite(folder, renamed)
    assert_same(source, folder)
    ours = folder.with_name("written")
    to_mcore(source, ours, plan_layout(source.config, 2, 2, None), transformer_impl="transformer_engine")
    for file in sorted(p.relative_to(folder) for p in folder.rglob("*.pt")):
        theirs, written = (torch.load(f / file, weights_only=False) for f in (folder, ours))
        assert sorted(written["model"]) == sorted(theirs["model"])
        assert written["args"].transformer_impl == "transformer_engine"
    assert_same(source, ours)


@pytest.mark.parametrize("tied", [False, True])
def test_virtual_stages(shards, tied):
    """VPP 2 over PP 2: stage 0 holds layers 0 and 2, stage 1 layers 1 and 3, in model0 and model1."""
    source, folder = shards(2, 4, tie_word_embeddings=tied)
    files = {
        (t, p): folder / f"iter_0000001/mp_rank_{t:02d}_{p:03d}/model_optim_rng.pt" for t in (0, 1) for p in range(4)
    }
    for t in (0, 1):
        quarters = [torch.load(files[t, p], weights_only=False) for p in range(4)]
        for p in (0, 1):
            state = {**quarters[p], "model0": quarters[p]["model"], "model1": quarters[p + 2]["model"]}
            del state["model"]
            torch.save(state, files[t, p])
            shutil.rmtree(files[t, p + 2].parent)
    assert_same(source, folder)


def test_noop_layers_take_a_number_and_hold_nothing(shards):
    source, folder = shards(1, 2)

    def shifted(state, tp, pp):
        state["args"].num_layers, state["args"].noop_layers = 6, "1,4"
        old_to_new = ({0: 0, 1: 2}, {0: 0, 1: 2})[pp]
        state["model"] = {
            ".".join([*n.split(".")[:2], str(old_to_new[int(n.split(".")[2])]), *n.split(".")[3:]])
            if n.startswith("decoder.layers.")
            else n: t
            for n, t in state["model"].items()
        }

    rewrite(folder, shifted)
    assert_same(source, folder)


def test_padded_vocabulary_is_cut(shards):
    source, folder = shards()

    def padded(state, tp, pp):
        model = state["model"]
        state["args"].padded_vocab_size = 448
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            if name in model:  # 352 rows padded to 448: rank 0 holds 0-223, rank 1 the other 128 and 96 of padding
                key = "model.embed_tokens.weight" if name.startswith("embedding") else "lm_head.weight"
                whole = torch.cat([source.read(key), source.read(key)[-1:].expand(96, -1)])
                model[name] = whole.chunk(2)[tp].clone()

    rewrite(folder, padded)
    assert_same(source, folder)


def test_base_layer_names_are_read_and_lora_lies_beside(shards):
    source, folder = shards()
    target = "decoder.layers.0.self_attention.linear_proj"

    def wrapped(state, tp, pp):
        state["model"][f"{target}.base_layer.weight"] = state["model"].pop(f"{target}.weight")

    rewrite(folder, wrapped)
    assert_same(source, folder)
    rewrite(folder, lambda state, tp, pp: state["model"].update({f"{target}.lora_A.default.weight": torch.ones(2, 2)}))
    files = MegatronFiles(folder)
    assert files.has_lora and all(list(rank) == [f"{target}.lora_A.default.weight"] for c in files.lora for rank in c)
    assert_same(source, folder)


def test_every_way_to_name_the_folder(shards):
    source, folder = shards()
    assert_same(source, folder / "iter_0000001")
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert_same(source, folder)
    (folder / "iter_0000001").rename(folder / "release")
    (folder / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert_same(source, folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(UserError, match=r"says 7, but iter_0000007 is not there"):
        MegatronSource(folder)
    (folder / "latest_checkpointed_iteration.txt").unlink()
    (folder / "iter_0000001").mkdir()
    (folder / "iter_0000002").mkdir()
    with pytest.raises(UserError, match="several checkpoints: iter_0000001, iter_0000002"):
        MegatronSource(folder)
    with pytest.raises(UserError, match="Looked for latest_checkpointed_iteration"):
        MegatronSource(folder.parent / "hf")


def test_missing_config_says_what_to_do(shards):
    source, folder = shards()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"Copy the original .* config\.json.*--hf-cfg-dir"):
        MegatronSource(folder)
    assert_same(source, folder, config_folder=source.folder)


def test_missing_rank_file(shards):
    _, folder = shards()
    shutil.rmtree(folder / "iter_0000001" / "mp_rank_01_000")
    with pytest.raises(UserError, match=r"TP 2 x PP 2 by its folders, but not there: mp_rank_01_000"):
        MegatronSource(folder)


def test_missing_and_left_over_tensors_are_named(shards):
    _, folder = shards()

    def damaged(state, tp, pp):
        if (tp, pp) == (1, 1):
            state["model"]["decoder.layers.1.mlp.router.weight"] = torch.ones(2)
            del state["model"]["decoder.layers.0.mlp.linear_fc2.weight"]

    rewrite(folder, damaged)
    with pytest.raises(UserError) as failure:
        MegatronSource(folder)
    assert "missing: mlp.linear_fc2.weight of layer 2" in str(failure.value)
    assert "left over: decoder.layers.1.mlp.router.weight (stage 1, rank 1)" in str(failure.value)


def test_a_config_of_another_model_is_noticed(shards):
    _, folder = shards()
    config = json.loads((folder / "config.json").read_text())
    config.update(num_attention_heads=3, num_hidden_layers=5, layer_types=["full_attention"] * 5)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as failure:
        MegatronSource(folder)
    assert "num_layers = 4" in str(failure.value) and "num_attention_heads = 6" in str(failure.value)
    rewrite(folder, lambda state, tp, pp: state.pop("args") and None)  # without args the shapes tell
    with pytest.raises(UserError, match=r"missing: input_layernorm\.weight of layer 4") as failure:
        MegatronSource(folder)
    assert "self_attention.linear_qkv.weight of layer 0: [40, 48] on rank 0, [28, 48] by the config" in str(
        failure.value
    )


def test_ranks_that_disagree_on_a_replicated_tensor(shards):
    _, folder = shards()

    def drifted(state, tp, pp):
        if tp == 1:
            state["model"]["decoder.layers.0.input_layernorm.weight"][0] += 1

    rewrite(folder, drifted)
    with pytest.raises(UserError, match=r"rank 1 holds another model\.layers\.0\.input_layernorm"):
        MegatronSource(folder).read("model.layers.0.input_layernorm.weight")


def test_the_copy_of_a_tied_embedding_must_be_one(shards):
    source, folder = shards(tie_word_embeddings=True)
    assert_same(source, folder)

    def drifted(state, tp, pp):
        if (tp, pp) == (1, 1):
            state["model"]["output_layer.weight"][0, 0] += 1

    rewrite(folder, drifted)
    with pytest.raises(UserError, match=r"ties output_layer\.weight to the embedding, but on rank 1 they differ"):
        MegatronSource(folder).read("model.embed_tokens.weight")


def test_expert_parallel_folders_are_refused(shards):
    _, folder = shards()
    (folder / "iter_0000001" / "mp_rank_00_000_001").mkdir()
    with pytest.raises(UserError, match="expert-parallel"):
        MegatronSource(folder)


def test_a_rank_file_that_runs_code_is_refused_and_nothing_ran(shards, tmp_path):
    _, folder = shards()
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    state = torch.load(folder / "iter_0000001/mp_rank_01_001/model_optim_rng.pt", weights_only=False)
    state["args"].model_type = Attack()
    torch.save(state, folder / "iter_0000001/mp_rank_01_001/model_optim_rng.pt")
    with pytest.raises(UserError, match="refused"):
        MegatronSource(folder)
    assert not marker.exists()
