from __future__ import annotations

import pytest
import torch
import transformers
from conftest import VOCAB, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoConfig, MixtralConfig

from tuneval.errors import UserError
from tuneval.model.build import build_model, empty_model

FAMILIES = ["qwen2", "qwen3", "llama", "mistral"]
IDS = torch.arange(40)[None] * 7 % VOCAB


def reader(model: torch.nn.Module, seen: list[str] | None = None):
    tensors = {name: t.clone() for name, t in model.state_dict().items()}

    def read(name: str) -> torch.Tensor:
        if seen is not None:
            seen.append(name)
        return tensors[name]

    return read, tensors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_model_it_was_read_from(family, tied):
    model, seen = tiny_model(family, tie_word_embeddings=tied), []
    read, _ = reader(model, seen)
    built = build_model(model.config, read, torch.float32)
    assert torch.equal(built(IDS).logits, model(IDS).logits)
    assert sorted(seen) == sorted(dict(model.named_parameters())), "every parameter is read exactly once"
    assert (built.lm_head.weight is built.model.embed_tokens.weight) is tied
    assert built.config._attn_implementation == "tuneval" and model.config._attn_implementation == "sdpa"
    assert not built.training


def test_one_wrong_tensor_is_noticed():
    model = tiny_model()
    read, tensors = reader(model)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] += 0.5
    assert not torch.equal(build_model(model.config, read, torch.float32)(IDS).logits, model(IDS).logits)


def test_weights_are_cast_and_rotary_frequencies_are_not(tmp_path):
    """bf16 weights, fp32 frequencies: what transformers' own loading gives, scaled rotary embedding included."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny_model("llama", rope_parameters=rope)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    built = build_model(model.config, reader(model)[0], torch.bfloat16)
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}
    assert built.model.rotary_emb.inv_freq.dtype == torch.float32
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, built.get_buffer(name)), name
    assert torch.equal(built(IDS).logits, loaded(IDS).logits)


def test_all_missing_and_misshapen_tensors_are_named():
    model = tiny_model()
    read, tensors = reader(model)
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.k_proj.bias"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:150]
    with pytest.raises(UserError) as error:
        build_model(model.config, read, torch.float32)
    for part in ("3 problems", "model.norm.weight: not in", "layers.1.self_attn.k_proj.bias: not in", "[150, 48]"):
        assert part in str(error.value)


@pytest.mark.skipif(transformers.__version__ < "5", reason="GPT-2 kept its mask in a buffer beside weights before 5")
def test_any_decoder_of_transformers_is_built():
    config = GPT2Config(
        n_embd=48, n_head=6, n_layer=2, vocab_size=VOCAB, n_positions=64, bos_token_id=0, eos_token_id=3
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    built = build_model(config, reader(model)[0], torch.float32)
    torch.testing.assert_close(built(IDS).logits, model(IDS).logits)


def test_a_model_that_generates_nothing_is_refused():
    from transformers import CLIPVisionConfig

    with pytest.raises(UserError, match="clip_vision_model"):
        build_model(CLIPVisionConfig(), lambda name: torch.zeros(1), torch.float32)


def test_a_model_that_chooses_among_its_own_attentions_is_refused():
    config = GPTNeoConfig(
        hidden_size=48, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=6, vocab_size=160
    )
    with pytest.raises(UserError, match="model type gpt_neo: transformers has no place for another attention"):
        empty_model(config, torch.float32)


@pytest.mark.skipif(transformers.__version__ < "5", reason="before 5 a model held its experts as checkpoints do")
def test_a_mixture_of_experts_is_refused_as_what_it_is():
    config = MixtralConfig(vocab_size=VOCAB, hidden_size=48, intermediate_size=40, num_hidden_layers=1)
    with pytest.raises(UserError, match="model type mixtral: a mixture of experts"):
        empty_model(config, torch.float32)


def test_weights_can_go_to_meta_free_of_reads_of_tied_names():
    config = tiny_config("qwen2", tie_word_embeddings=True)
    read, tensors = reader(tiny_model("qwen2", tie_word_embeddings=True))
    tensors.pop("lm_head.weight", None)
    assert build_model(config, read, torch.float32).lm_head.weight.shape == (VOCAB, 48)
