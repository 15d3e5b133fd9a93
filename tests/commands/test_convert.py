"""`tuneval convert` from the command line: every direction, an adapter merged on the way, errors before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from tuneval.checkpoints.hf import HfSource
from tuneval.checkpoints.load import open_source
from tuneval.cli import main


@pytest.fixture(scope="session")
def real_llama() -> Path:
    value = os.environ.get("TUNEVAL_REAL_LLAMA")
    if not value:
        pytest.skip("TUNEVAL_REAL_LLAMA is not set")
    return Path(value)


def convert(load, save, to, *more):
    return main(["convert", "--load", str(load), "--save", str(save), "--to", to, *map(str, more)])


def layout(tp, pp):
    return "--target-tensor-parallel-size", tp, "--target-pipeline-parallel-size", pp


def assert_same(a, b):
    assert sorted(a.names()) == sorted(b.names())
    for name in a.names():
        assert torch.equal(a.read(name).view(torch.uint8), b.read(name).view(torch.uint8)), name


def test_there_to_another_layout_and_back(tiny_folder, tmp_path, capsys):
    base = tiny_folder("qwen2", tie_word_embeddings=True)
    assert convert(base, tmp_path / "a", "mcore", *layout(2, 3), "--num-layer-list", "2,1,1") == 0
    assert convert(tmp_path / "a", tmp_path / "b", "mcore", *layout(8, 2)) == 0
    assert convert(tmp_path / "b", tmp_path / "c", "hf", "--max-shard-size-gib", 0.00003) == 0
    assert_same(open_source(base), HfSource(tmp_path / "c"))
    assert len(list((tmp_path / "c").glob("*.safetensors"))) > 2
    record = json.loads((tmp_path / "b" / "convert.json").read_text())
    assert record["config"]["target_tensor_parallel_size"] == 8
    assert record["source"] == {"path": str(tmp_path / "a"), "kind": "mcore"}
    (tmp_path / "a" / "latest_checkpointed_iteration.txt").write_text("7")
    (tmp_path / "a" / "iter_0000001").rename(tmp_path / "a" / "iter_0000007")
    for file in (tmp_path / "a").rglob("*.pt"):
        torch.save({**torch.load(file, weights_only=False), "iteration": 7}, file)
    assert convert(tmp_path / "a", tmp_path / "d", "mcore", "--transformer-impl", "transformer_engine") == 0
    assert (tmp_path / "d" / "latest_checkpointed_iteration.txt").read_text() == "7"  # Megatron's converter keeps it
    assert_same(open_source(base), open_source(tmp_path / "d"))
    said = capsys.readouterr()
    assert "TP 2 x PP 3 (layers 2,1,1)" in said.out
    assert "TP 8 does not divide 6 heads and 2 KV heads" in said.err
    assert main(["verify", str(base), str(tmp_path / "c")]) == 0


def test_an_adapter_is_merged_on_the_way(tiny_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_folder("qwen2")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "k_proj", "up_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    assert convert(base, tmp_path / "mcore", "mcore", *layout(4, 2), "--lora-load", tmp_path / "adapter") == 0
    source = open_source(tmp_path / "mcore")
    for name, parameter in merged.named_parameters():
        assert torch.equal(source.read(name), parameter), name


def test_megatron_without_a_config_takes_one(tiny_folder, tmp_path, capsys):
    base = tiny_folder("qwen2")
    convert(base, tmp_path / "a", "mcore", *layout(2, 2))
    (tmp_path / "a" / "config.json").unlink()
    assert convert(tmp_path / "a", tmp_path / "b", "hf") == 2
    assert "--hf-cfg-dir" in capsys.readouterr().err
    assert convert(tmp_path / "a", tmp_path / "b", "hf", "--hf-cfg-dir", base) == 0
    assert_same(open_source(base), open_source(tmp_path / "b"))


def test_a_config_of_other_weights_gets_the_type_of_those_written(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_folder("qwen2")  # fp32
    convert(base, tmp_path / "a", "mcore", "--params-dtype", "bf16")
    assert convert(tmp_path / "a", tmp_path / "b", "hf", "--hf-cfg-dir", base) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto").dtype == torch.bfloat16


def test_errors_come_before_any_work(tiny_folder, tmp_path, capsys):
    base = tiny_folder("qwen2")
    before = sorted(tmp_path.iterdir())
    assert convert(base, tmp_path / "a", "mcore", *layout(3, 3)) == 2
    said = capsys.readouterr().err
    assert "3 problems" in said and "Choose 1, 2, 4, 8." in said and "--num-layer-list 2,1,1" in said
    assert convert(base, tmp_path / "a", "hf", *layout(2, 1)) == 2
    assert "describes a Megatron checkpoint" in capsys.readouterr().err
    assert convert(tmp_path / "absent", tmp_path / "a", "hf") == 2
    assert convert(base, tmp_path / "a", "mcore", "--num-attention-heads", 7) == 2
    assert "num_attention_heads is 6" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_the_shape_of_7b_at_tp_8(tmp_path):
    changes = {
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 6, "hidden_size": 24,
        "intermediate_size": 32, "vocab_size": 144,
    }  # fmt: skip
    tiny_model("qwen2", **changes).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    assert convert(tmp_path / "hf", tmp_path / "a", "mcore", *layout(8, 1)) == 0
    assert convert(tmp_path / "a", tmp_path / "b", "hf") == 0
    assert main(["verify", str(tmp_path / "hf"), str(tmp_path / "b")]) == 0


@pytest.mark.real
def test_the_real_model_round_trip(real_model, tmp_path):
    round_trip(real_model, tmp_path)


@pytest.mark.real
def test_a_real_llama_round_trip(real_llama, tmp_path):
    round_trip(real_llama, tmp_path, tp=3)  # 9 heads, 3 KV heads


def round_trip(model, tmp_path, tp=2):
    assert convert(model, tmp_path / "a", "mcore", *layout(tp, 2)) == 0
    assert convert(tmp_path / "a", tmp_path / "b", "hf") == 0
    assert_same(open_source(model), HfSource(tmp_path / "b"))
    assert main(["verify", str(model), str(tmp_path / "b")]) == 0


@pytest.mark.parametrize("load", [".", "iter_0000001"])
def test_the_checkpoint_being_read_is_kept_wherever_its_config_lies(load, tiny_folder, tmp_path, capsys):
    hf, shards = tiny_folder(), tmp_path / "shards"
    assert convert(hf, shards, "mcore", *layout(2, 2)) == 0
    assert convert(shards / load, shards, "mcore", "--hf-cfg-dir", hf) == 2
    said = capsys.readouterr().err
    assert f"--save {shards}: holds what is read and would be replaced" in said and "remove" not in said
    assert (shards / "iter_0000001" / "mp_rank_01_001").is_dir()


@pytest.mark.parametrize(
    "to, flags, words",
    [
        ("hf", layout(2, 1), "--target-tensor-parallel-size 2: describes a Megatron checkpoint. Leave it out, or give --to mcore"),
        ("hf", ("--transformer-impl", "transformer_engine"), "--transformer-impl transformer_engine: describes a Megatron"),
        ("hf", ("--num-layer-list", "3,1"), "--num-layer-list 3,1: describes"),
        ("hf", ("--make-vocab-size-divisible-by", 8), "--make-vocab-size-divisible-by 8: describes"),
        ("hf", ("--keep-lora",), "--keep-lora: is Megatron's form"),
        ("mcore", ("--max-shard-size-gib", 1), "--max-shard-size-gib 1.0: is the size of a safetensors file"),
        ("mcore", ("--make-vocab-size-divisible-by", 0), "--make-vocab-size-divisible-by 0: must be at least 1"),
        ("mcore", ("--num-layers-per-virtual-pipeline-stage", -1), "-1: must be at least 1"),
        ("hf", ("--max-shard-size-gib", 0), "--max-shard-size-gib 0.0: must be above 0"),
        ("hf", ("--max-shard-size-gib=-1",), "--max-shard-size-gib -1.0: must be above 0"),
        ("hf", ("--max-shard-size-gib", "nan"), "--max-shard-size-gib nan: must be above 0"),
        ("hf", ("--max-shard-size-gib", "inf"), "--max-shard-size-gib inf: must be above 0"),
        ("peft", ("--params-dtype", "bf16"), "--params-dtype bf16: casts weights"),
        ("hf", ("--lora-r", 8), "--lora-r 8: there is no adapter"),
        ("hf", ("--hf-cfg-dir", "elsewhere"), "--hf-cfg-dir elsewhere: gives a Megatron checkpoint its config.json"),
        ("mcore", layout(0, 1), "--target-tensor-parallel-size 0"),
        ("mcore", layout(1, -1), "--target-pipeline-parallel-size -1"),
        ("mcore", layout(1, 10**12), "the model has 4 layers"),
        ("mcore", (*layout(1, 2), "--num-layer-list", "1,x"), "must be whole numbers"),
        ("mcore", (*layout(1, 2), "--num-layer-list", "5,-1"), "every stage needs a layer"),
        ("mcore", (*layout(1, 2), "--num-layer-list="), "must be whole numbers"),
    ],
)  # fmt: skip
def test_every_flag_acts_or_is_an_error(tiny_folder, tmp_path, capsys, to, flags, words):
    assert convert(tiny_folder(), tmp_path / "out", to, *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_told(tiny_folder, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tiny_folder()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 70000.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for to in ("hf", "mcore"):
        assert convert(folder, tmp_path / "out", to, "--params-dtype", "fp16") == 2
        assert "a weight of 70000 is beyond its 65504" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert convert(folder, tmp_path / "out", "hf", "--params-dtype", "bf16") == 0


def test_a_file_in_the_place_of_the_result_is_told(tiny_folder, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    for to in ("hf", "mcore"):
        assert convert(tiny_folder(), tmp_path / "out", to) == 2
        assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_what_is_replaced_is_told(tiny_folder, tmp_path, capsys):
    out, base = tmp_path / "out", tiny_folder()
    assert convert(base, out, "mcore", *layout(2, 3), "--num-layer-list", "2,1,1") == 0
    assert "is replaced" not in capsys.readouterr().err
    assert convert(base, out, "mcore", *layout(4, 1)) == 0
    assert "the earlier result there (Megatron, TP 2 x PP 3, layers 2,1,1) is replaced" in capsys.readouterr().err
    assert main(["export", "--load", str(base), "--save", str(out), "--to", "hf"]) == 0
    assert "the earlier result there (Megatron, TP 4 x PP 1) is replaced" in capsys.readouterr().err
    (out / "my_notes.txt").write_text("keep")
    assert main(["export", "--load", str(base), "--save", str(out), "--to", "hf"]) == 2
    said = capsys.readouterr().err
    assert "no conversion wrote: my_notes.txt. Move that, or choose another folder." in said
    assert "is replaced" not in said
    assert (out / "my_notes.txt").read_text() == "keep"
    (out / "my_notes.txt").unlink()
    assert convert(base, out, "hf") == 0
    assert "the earlier result there (Hugging Face) is replaced" in capsys.readouterr().err
