"""Hugging Face folders: what transformers writes is read, what is written transformers reads, whole or absent."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from tuneval.checkpoints.hf import HfSink, HfSource, copy_companions, size_of
from tuneval.errors import UserError


def copy(source, folder, max_shard_bytes=4 << 30):
    with HfSink(folder, max_shard_bytes) as sink:
        copy_companions(source.folder, sink.folder)
        for name in source.names():
            sink.add(name, source.read(name))


@pytest.mark.parametrize("shard_bytes", [4 << 30, 40_000])
def test_written_folder_is_what_transformers_reads(tiny_folder, tmp_path, shard_bytes):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = HfSource(tiny_folder("qwen2"))
    copy(source, tmp_path / "out", shard_bytes)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, parameter in tiny_model("qwen2").named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 3) == (shard_bytes == 40_000)


def test_sharded_folder_of_transformers(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    source = HfSource(tmp_path / "in")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 3
    for name, parameter in model.named_parameters():
        assert torch.equal(source.read(name), parameter)
        assert torch.equal(source.read_slice(name, 0, 1, 3), parameter[1:3])
        if parameter.dim() == 2:
            assert torch.equal(source.read_slice(name, 1, 1, 3), parameter[:, 1:3])
    assert size_of(source) == sum(p.numel() * 4 for p in model.parameters())


def test_names_come_in_the_order_of_the_forward_pass(tmp_path):
    tiny_model("qwen2", num_hidden_layers=12).save_pretrained(tmp_path / "in")
    names = HfSource(tmp_path / "in").names()
    layers = [int(n.split(".")[2]) for n in names if n.startswith("model.layers.")]
    assert layers == sorted(layers)
    assert names[0] == "model.embed_tokens.weight" and names[-2:] == ["model.norm.weight", "lm_head.weight"]


def test_older_bin_folders_are_read(tmp_path):
    model = tiny_model("qwen2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    source = HfSource(tmp_path)
    assert all(torch.equal(source.read(n), p) for n, p in model.named_parameters())


def test_dtypes_survive(tmp_path):
    tensors = {f"t{i}": torch.ones(3).to(d) for i, d in enumerate([torch.bfloat16, torch.float32, torch.float16])}
    with HfSink(tmp_path / "out") as sink:  # three bf16 are six bytes: fp32 must not start there
        for name, tensor in tensors.items():
            sink.add(name, tensor)
    source = HfSource(tmp_path / "out")
    assert {n: source.dtype(n) for n in source.names()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(source.read(n), t) for n, t in tensors.items())


def test_a_tied_head_stored_twice_is_one_tensor(tmp_path):
    model = tiny_model("qwen2", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    assert len(HfSource(tmp_path).names()) == len(dict(model.named_parameters()))
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"ties lm_head\.weight"):
        HfSource(tmp_path)


def test_nothing_is_published_when_writing_fails(tmp_path):
    def broken():
        with HfSink(tmp_path / "out") as sink:
            sink.add("a", torch.ones(2))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        broken()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="given twice"), HfSink(tmp_path / "out") as sink:
        sink.add("a", torch.ones(2))
        sink.add("a", torch.ones(2))
    with pytest.raises(UserError, match="no tensor was written"), HfSink(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said(tmp_path, tiny_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no weights. Looked for model\.safetensors"):
        HfSource(tmp_path / "empty")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "empty" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model-00001-of-00002"):
        HfSource(tmp_path / "empty")
    folder = tiny_folder("qwen2")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut off"):
        HfSource(folder)


def test_a_config_that_transformers_refuses(tiny_folder):
    folder = tiny_folder("qwen2")
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"num_hidden_layers": 7}, {"model_type": "unheard_of"}):  # layer_types says 4
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match="transformers can't use it"):
            _ = HfSource(folder).config
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        _ = HfSource(folder).config


def test_reading_a_name_that_is_not_there(tiny_folder):
    with pytest.raises(KeyError, match="nothing"):
        HfSource(tiny_folder("qwen2")).read("nothing")


def test_an_index_that_a_larger_save_left_is_passed_by(tmp_path):
    """transformers removes its old shards and leaves their index; it reads the single file."""
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    (index,) = tmp_path.glob("*.index.json")
    written = index.read_text()
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    index.write_text(written)
    source = HfSource(tmp_path)
    assert all(torch.equal(source.read(name), p) for name, p in model.named_parameters())
