"""Adapters against peft and transformers themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from conftest import VOCAB, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from tuneval.errors import UserError
from tuneval.model.adapter import read_peft
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora, hf_targets, save_adapter

TESTS = Path(__file__).parents[1]

IDS = torch.arange(30)[None] * 7 % VOCAB
ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
SETTINGS = LoraSettings(r=3, alpha=7.0)


def built(family: str = "qwen2", dtype=torch.float32, **changes):
    model = tiny_model(family, **changes)
    return build_model(model.config, lambda name: model.state_dict()[name].clone(), dtype)


def trained(model):
    """Stand-in for training: B is no longer 0."""
    with torch.no_grad():
        for number, (name, p) in enumerate(model.named_parameters()):
            if ".lora_B." in name:
                p.copy_(torch.sin(torch.arange(p.numel()) * 0.3 + number).view_as(p) * 0.1)
    return model


def adapters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}


def test_only_adapters_train_and_at_first_they_change_nothing():
    plain = built()
    model = add_lora(built(), SETTINGS, seed=1)
    assert all((".lora_" in name) is p.requires_grad for name, p in model.named_parameters())
    assert len(adapters(model)) == 4 * 7 * 2
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_init_depends_on_seed_and_name_alone():
    model, state = built(), torch.get_rng_state()
    one = adapters(add_lora(model, SETTINGS, seed=1))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(99)
    some = adapters(add_lora(built(), LoraSettings(3, 7.0, targets=("v_proj", "up_proj")), seed=1))
    other = adapters(add_lora(built(), SETTINGS, seed=2))
    assert some.keys() < one.keys() and all(torch.equal(some[name], one[name]) for name in some)
    assert all(torch.equal(one[n], other[n]) is (".lora_B." in n) for n in one)
    assert len({float(a.sum()) for n, a in one.items() if ".lora_A." in n}) == 28, "every layer has its own"


def test_init_is_spread_as_pefts():
    config = {"hidden_size": 240, "head_dim": 40}
    ours = adapters(add_lora(built(**config), LoraSettings(32, 7.0, targets=("q_proj",)), seed=1))
    torch.manual_seed(0)
    theirs = adapters(peft.get_peft_model(tiny_model(**config), peft.LoraConfig(r=32, target_modules=["q_proj"])))
    a, b = (torch.cat([t.flatten() for n, t in x.items() if ".lora_A." in n]) for x in (ours, theirs))
    assert a.abs().max() <= 240**-0.5 and b.abs().max() <= 240**-0.5
    assert abs(a.std() / b.std() - 1) < 0.02 and abs(a.mean()) < 0.001


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_equal_pefts(dropout):
    """Loss and adapter gradients of the decoder equal transformers + peft on the same ids, dropout included."""
    settings = LoraSettings(3, 7.0, dropout)
    model = trained(add_lora(built(), settings, seed=1))
    decoder = Decoder(model).train()
    config = peft.LoraConfig(r=3, lora_alpha=7.0, lora_dropout=dropout, target_modules=list(ALL))
    reference = peft.get_peft_model(tiny_model(), config)
    peft.set_peft_model_state_dict(
        reference, {"base_model.model." + n.replace(".default", ""): p for n, p in adapters(model).items()}
    )
    weights = torch.linspace(-1, 1, 30 * VOCAB).view(1, 30, VOCAB)
    torch.manual_seed(4)
    hidden = decoder(IDS, torch.arange(30)[None])
    (hidden @ decoder.head_weight.T * weights).sum().backward()
    torch.manual_seed(4)
    (reference.train()(IDS).logits * weights).sum().backward()
    expected = {n.removeprefix("base_model.model."): p.grad for n, p in reference.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected.pop(name), rtol=1e-5, atol=1e-5)
    assert not expected


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_saved_adapter_is_loaded_by_peft(family, tiny_folder, tmp_path):
    base = tiny_folder(family)
    model = trained(add_lora(built(family), SETTINGS, seed=1))
    save_adapter(model, SETTINGS, tmp_path / "adapter", str(base))
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(loaded(IDS).logits, built(family)(IDS).logits, atol=1e-3)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["task_type"] == "CAUSAL_LM"


def test_a_changed_adapter_is_noticed(tiny_folder, tmp_path):
    base = tiny_folder()
    model = trained(add_lora(built(), SETTINGS, seed=1))
    save_adapter(model, SETTINGS, tmp_path, str(base))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.2.self_attn.k_proj.lora_B.weight"][0, 0] += 1.0
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_adapter_merges_as_peft_does(rslora, tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=rslora, target_modules=["q_proj", "down_proj"])
    reference = trained(peft.get_peft_model(tiny_model(), config))
    reference.save_pretrained(tmp_path)
    expected, plain, delta = reference.merge_and_unload(), tiny_model().state_dict(), read_peft(tmp_path).delta
    for name, value in expected.state_dict().items():
        merged = plain[name] if delta(name) is None else plain[name] + delta(name)
        torch.testing.assert_close(merged, value, rtol=0, atol=1e-7)
        changed = name.endswith(("q_proj.weight", "down_proj.weight"))
        assert (delta(name) is not None) is changed is (not torch.equal(value, plain[name]))


def test_bf16_adapters_merge_to_the_weights_that_peft_gives(tmp_path):
    model = trained(add_lora(built(dtype=torch.bfloat16), SETTINGS, seed=1))
    save_adapter(model, SETTINGS, tmp_path, "base")
    assert {a.dtype for a in adapters(model).values()} == {torch.bfloat16}
    loaded = peft.PeftModel.from_pretrained(tiny_model().to(torch.bfloat16), tmp_path, autocast_adapter_dtype=False)
    base, delta = built(dtype=torch.bfloat16).state_dict(), read_peft(tmp_path).delta
    for name, value in loaded.merge_and_unload().state_dict().items():
        if delta(name) is not None:
            assert torch.equal(value, base[name] + delta(name).to(torch.bfloat16)), name


def test_adapters_can_be_fp32_over_bf16_weights():
    model = add_lora(built(dtype=torch.bfloat16), SETTINGS, seed=1, dtype=torch.float32)
    assert {a.dtype for a in adapters(model).values()} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_adapters_bring_no_bitsandbytes():
    """Its import takes longer than all else that adapters need; peft finds it again afterwards."""
    code = (
        "import sys; from conftest import tiny_model; from tuneval.model.lora import LoraSettings, add_lora; "
        "add_lora(tiny_model(), LoraSettings(r=2, alpha=4), seed=1); print('bitsandbytes' in sys.modules); "
        "from peft import import_utils; print(import_utils.is_bnb_available())"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.split() == ["False", "True"]


def test_megatron_names_mean_hugging_face_modules():
    config = tiny_config()
    assert hf_targets(["linear_qkv", "o_proj"], config) == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert (
        hf_targets(["linear_fc1", "linear_fc2", "linear_qkv", "linear_proj"], config) == ALL == hf_targets([], config)
    )
    some = add_lora(built(), LoraSettings(3, 7.0, targets=("linear_fc2",)), seed=1)
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in adapters(some)} == {"down_proj"}


def test_bad_settings_are_named_together():
    with pytest.raises(UserError) as error:
        add_lora(built(), LoraSettings(0, 1.0, 1.0, ("q_porj", "lm_head")), seed=1)
    for part in ("--lora-r 0", "--lora-dropout 1.0", "q_porj: the blocks have no", "mean q_proj?", "lm_head: the"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="did you mean linear_qkv"):
        hf_targets(["linear_kv"], tiny_config())
    with pytest.raises(UserError, match=r"linear_qkv,linear_proj: .* layer; put spaces between the names, not commas"):
        hf_targets(["linear_qkv,linear_proj"], tiny_config())


@pytest.mark.parametrize("names", [[], ["c_attn"]])
def test_a_model_without_such_layers_is_named(names):
    with pytest.raises(UserError, match=r"^model type gpt2: its blocks have no linear layers") as refused:
        hf_targets(names, GPT2Config(n_embd=48, n_head=6, n_layer=2, vocab_size=160))
    assert "problems" not in str(refused.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"use_dora": True}, "DoRA"),
        ({"alora_invocation_tokens": [3, 4]}, "activation by a text"),
        ({"init_lora_weights": "pissa_niter_4"}, "started as pissa_niter_4 .*, which changed the weights under it"),
        ({"init_lora_weights": "olora"}, "started as olora"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"rank_pattern": {"q_proj": 2}}, "a rank for each layer"),
        ({"peft_type": "IA3"}, "kind IA3"),
    ],
)
def test_other_kinds_of_adapter_are_refused(tmp_path, changes, words):
    save_adapter(add_lora(built(), SETTINGS, seed=1), SETTINGS, tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=words):
        read_peft(tmp_path)


def test_a_head_in_the_adapter_is_refused(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"])
    peft.get_peft_model(tiny_model(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lm_head\.lora_A\.weight: not A or B of a linear layer in a block"):
        read_peft(tmp_path)


def test_a_folder_without_an_adapter_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        read_peft(tmp_path)
