"""Anything `--load` names is opened as what it is, or refused by what was looked for; the model is transformers'."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from tuneval.checkpoints.convert import to_mcore
from tuneval.checkpoints.hf import HfSource
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.load import load_model, load_tokenizer, open_adapter, open_source
from tuneval.config.schema import MegatronLoraConfig
from tuneval.errors import UserError

IDS = torch.tensor([[5, 17, 99, 140, 3, 62]])


def adapter_of(base, folder, targets=("q_proj", "v_proj", "down_proj"), dtype=torch.float32):
    """A PEFT adapter made by peft itself, with B away from zero; returns peft's own merged model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = get_peft_model(
        model, LoraConfig(r=3, lora_alpha=7, target_modules=list(targets)), autocast_adapter_dtype=False
    )
    with torch.no_grad():
        for number, (name, p) in enumerate(model.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.sin(torch.arange(p.numel()) * 0.37 + number).view_as(p) * 0.1)
    model.save_pretrained(folder)
    return model.merge_and_unload().eval()


def shards(source, folder, tp=2, pp=2):
    to_mcore(source, folder, plan_layout(source.config, tp, pp, None))
    return folder


def same_logits(a, b):
    with torch.no_grad():
        return torch.equal(a(IDS).logits, b(IDS).logits)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_transformers_from_every_format(tiny_folder, tmp_path, family, tied):
    folder = tiny_folder(family, tie_word_embeddings=tied)
    expected = tiny_model(family, tie_word_embeddings=tied)
    for path in (folder, shards(open_source(folder), tmp_path / "mcore", 4, 2)):
        loaded = load_model(path, "fp32")
        torch.testing.assert_close(loaded.model(IDS).logits, expected(IDS).logits, rtol=1e-5, atol=1e-5)
        assert loaded.tokenizer.chat_template and loaded.template_name is None
        assert not loaded.model.training


def test_identity_is_the_same_in_every_format_and_changes_with_the_weights(tiny_folder, tmp_path):
    folder = tiny_folder("qwen2", tie_word_embeddings=True)
    first = load_model(folder, "bf16").identity
    second = load_model(shards(open_source(folder), tmp_path / "mcore"), "fp32").identity
    assert first["weights_sha256"] == second["weights_sha256"]
    assert (first["kind"], second["kind"], first["path"]) == ("hf", "mcore", str(folder))
    tiny_model("qwen2", tie_word_embeddings=True, rms_norm_eps=1e-5).save_pretrained(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load_model(folder, "bf16").identity["weights_sha256"] != first["weights_sha256"]


def test_dtype(tiny_folder):
    loaded = load_model(tiny_folder("qwen2"), "bf16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_merges_as_peft_merges(tiny_folder, tmp_path, dtype):
    base = tiny_folder("qwen2")
    tiny_model("qwen2").to(dtype).save_pretrained(base)
    merged = adapter_of(base, tmp_path / "adapter", dtype=dtype)
    source = open_source(tmp_path / "adapter")  # its config names the base
    assert source.kind == "adapter" and source.folder == base
    for name, parameter in merged.named_parameters():
        assert torch.equal(source.read(name), parameter), name
        assert torch.equal(source.read_slice(name, 0, 1, 3), parameter[1:3]), name
    plain = open_source(base)
    changed = [n for n in source.names() if not torch.equal(source.read(n), plain.read(n))]
    assert len(changed) == 3 * 4  # three targets in four layers


def test_adapter_on_shards_and_on_a_base_that_moved(tiny_folder, tmp_path):
    base = tiny_folder("qwen2")
    merged = adapter_of(base, tmp_path / "adapter")
    mcore = shards(open_source(base), tmp_path / "mcore", 4, 2)
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"made for the base model .*not on this machine.*--lora-load"):
        open_source(tmp_path / "adapter")
    loaded = load_model(mcore, "fp32", lora_load=tmp_path / "adapter")
    torch.testing.assert_close(loaded.model(IDS).logits, merged(IDS).logits, rtol=1e-5, atol=1e-5)
    assert loaded.identity["kind"] == "adapter"


def test_an_adapter_of_another_model_is_refused(tiny_folder, tmp_path):
    adapter_of(tiny_folder("qwen2", num_hidden_layers=5), tmp_path / "deep")
    adapter_of(tiny_folder("qwen2", intermediate_size=56), tmp_path / "wide")
    base = open_source(tiny_folder("qwen2"))
    with pytest.raises(UserError, match=r"adapts model\.layers\.4\.mlp\.down_proj, which .* does not have"):
        open_adapter(tmp_path / "deep", base)
    with pytest.raises(UserError, match=r"has 56, .* needs 40"):
        open_adapter(tmp_path / "wide", base)


def test_what_is_stated_is_held_against_an_adapter_that_load_names(tiny_folder, tmp_path):
    adapter_of(tiny_folder("qwen2"), tmp_path / "run/adapter")  # rank 3, alpha 7
    for path in (tmp_path / "run", tmp_path / "run/adapter"):
        with pytest.raises(UserError, match=r"--lora-r 8: the adapter in .* has 3"):
            load_model(path, "fp32", stated=MegatronLoraConfig(lora_r=8, lora_alpha=7.0))
        assert open_source(path, stated=MegatronLoraConfig(lora_r=3, lora_alpha=7.0)).factors.r == 3
        for names in (("linear_qkv",), ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")):
            with pytest.raises(UserError, match=r"--lora-target-modules linear_qkv.*: the adapter in .* is of"):
                open_source(path, stated=MegatronLoraConfig(lora_target_modules=names))
        for names in (("linear_qkv", "linear_fc2"), ("down_proj", "q_proj", "v_proj")):
            assert open_source(path, stated=MegatronLoraConfig(lora_target_modules=names)).factors.r == 3


def test_run_folders(tiny_folder, tmp_path):
    base = tiny_folder("qwen2")
    full, lora = tmp_path / "full", tmp_path / "lora"
    shutil.copytree(base, full / "model")
    record = {"prompt_type": "qwen", "template_fingerprint": "f" * 64}
    (full / "model" / "tuneval.json").write_text(json.dumps(record))
    adapter_of(base, lora / "adapter")
    (lora / "adapter" / "tuneval.json").write_text(json.dumps({**record, "base_model": str(base)}))
    assert open_source(full).folder == full / "model"
    for run in (full, lora, lora / "adapter"):
        loaded = load_model(run, "fp32")
        assert (loaded.template_name, loaded.template_fingerprint) == ("qwen", "f" * 64)
    assert not same_logits(load_model(full, "fp32").model, loaded.model)


def test_a_base_beside_the_adapter_is_found(tiny_folder, tmp_path):
    base = tiny_folder("qwen2", name="base")
    adapter_of(base, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for named in ("../base", os.path.relpath(base)):
        config["base_model_name_or_path"] = named
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        assert isinstance(open_source(tmp_path / "adapter").base, HfSource)
    config["base_model_name_or_path"] = None
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names no base model"):
        open_source(tmp_path / "adapter")


def test_a_wrong_path_lists_what_was_looked_for(tmp_path, tiny_folder):
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "absent", "fp32")
    with pytest.raises(UserError, match=r"Looked for .*model\.safetensors.*latest_checkpointed_iteration.*adapter"):
        load_model(tmp_path, "fp32")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has not ended"):
        load_model(tmp_path / "run", "fp32")
    (tmp_path / "dist" / "iter_0000001").mkdir(parents=True)
    (tmp_path / "dist" / "iter_0000001" / "__0_0.distcp").touch()
    with pytest.raises(UserError, match="torch_dist format"):
        load_model(tmp_path / "dist", "fp32")
    folder = tiny_folder("qwen2")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer. Looked for tokenizer\.json"):
        load_tokenizer(folder)


def test_a_model_of_another_shape_is_never_filled_up(tiny_folder):
    folder = tiny_folder("qwen2")
    config = json.loads((folder / "config.json").read_text())
    config.update(num_hidden_layers=5, layer_types=["full_attention"] * 5)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.layers\.4\.[\s\S]*not in the checkpoint"):
        load_model(folder, "fp32")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_folders_tokenizer_is_the_one_that_was_saved(family, tiny_folder, tokenizer):
    """transformers builds some families' tokenizers anew instead of reading what was saved."""
    from transformers import AutoTokenizer

    text = "以下是中国 What's two plus two?  You're kind.\n\n\té 12 <|im_start|>user\n答案：A<|im_end|>"
    folder, expected = tiny_folder(family), tokenizer(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == expected
    assert load_tokenizer(folder)(text)["input_ids"] == expected
    assert tokenizer.decode(expected) == text


def test_quantised_weights_of_the_right_shape_are_no_weights(tiny_folder, tmp_path):
    """bitsandbytes' and compressed-tensors' 8-bit folders keep the names and shapes, the scales beside them."""
    folder, name = tiny_folder(), "model.layers.1.self_attn.q_proj.weight"
    adapter_of(folder, tmp_path / "adapter")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: (tensors[name] * 100).to(torch.int8), f"{name}_scale": torch.ones(48, 1)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for load in (lambda: load_model(folder, "fp32"), lambda: open_adapter(tmp_path / "adapter")):
        with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.weight: torch\.int8, so quantised"):
            load()
