"""The decoder against transformers' own forward, sample by sample."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import transformers
from conftest import fill, tiny_config, tiny_model
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    NemotronConfig,
    Olmo3Config,
    Phi3Config,
    StableLmConfig,
)

from tuneval.errors import UserError
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder, check_architecture, cut_stage, stored_name
from tuneval.model.lora import LoraSettings, add_lora

KINDS = {
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows in half the layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "mistral window": ("mistral", {"sliding_window": 7}),
}
IDS = torch.arange(40)[None] * 7 % 160
SEGMENTS = (0, 11, 30, 40)


def built(model, **settings) -> Decoder:
    return Decoder(build_model(model.config, model.state_dict().__getitem__, torch.float32), **settings)


def restarting(segments, offset: int = 0) -> torch.Tensor:
    first, *rest = [torch.arange(end - start) for start, end in pairwise(segments)]
    return torch.cat([first, *(r + offset for r in rest)])[None]


def alone(model, segments) -> torch.Tensor:
    return torch.cat([model.model(IDS[:, a:b]).last_hidden_state for a, b in pairwise(segments)], 1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_sample_equals_transformers(kind):
    family, changes = KINDS[kind]
    model = tiny_model(family, **changes)
    hidden = built(model)(IDS, torch.arange(40)[None])
    torch.testing.assert_close(hidden, model.model(IDS).last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_packed_equals_samples_alone(kind):
    family, changes = KINDS[kind]
    model = tiny_model(family, **changes)
    decoder = built(model)
    hidden = decoder(IDS, restarting(SEGMENTS), SEGMENTS)
    torch.testing.assert_close(hidden, alone(model, SEGMENTS), rtol=0, atol=1e-5)
    for wrong in ((0, 40), (0, 12, 30, 40), (0, 11, 29, 40)):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(
                decoder(IDS, restarting(SEGMENTS), wrong), alone(model, SEGMENTS), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_shared_prefix_equals_repeated_prefix(kind):
    family, changes = KINDS[kind]
    model = tiny_model(family, **changes)
    hidden = built(model)(IDS, restarting(SEGMENTS, offset=11), SEGMENTS, prefix_length=11)
    prefix, *questions = IDS.split([11, 19, 10], 1)
    expected = [model.model(prefix).last_hidden_state]
    expected += [model.model(torch.cat((prefix, q), 1)).last_hidden_state[:, 11:] for q in questions]
    torch.testing.assert_close(hidden, torch.cat(expected, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_short_sample_keeps_its_frequencies_beside_a_long_one():
    """Phi 3's rotary embedding has other ones for a text longer than the model was first trained on."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    config = Phi3Config(
        **SMALL,
        vocab_size=160,
        max_position_embeddings=64,
        original_max_position_embeddings=12,
        rope_scaling={"type": "longrope", **factors},
        pad_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    fill(model)
    hidden = built(model)(IDS, restarting(SEGMENTS), SEGMENTS)  # 11, 19 and 10 tokens
    torch.testing.assert_close(hidden, alone(model, SEGMENTS), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(hidden[:, :11], model.model(IDS).last_hidden_state[:, :11], rtol=0, atol=1e-5)


def test_wrong_positions_are_noticed():
    model = tiny_model()
    shifted = restarting(SEGMENTS)
    shifted[:, 20:30] += 3
    with pytest.raises(AssertionError):
        torch.testing.assert_close(built(model)(IDS, shifted, SEGMENTS), alone(model, SEGMENTS), rtol=0, atol=1e-5)


def gradients(recompute) -> dict[str, torch.Tensor]:
    decoder = built(tiny_model(), recompute=recompute).train()
    hidden = decoder(IDS, restarting(SEGMENTS), SEGMENTS)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recompute_gives_the_same_gradients(recompute):
    plain, again = gradients(None), gradients(recompute)
    assert plain.keys() == again.keys() and len(plain) > 40
    for name in plain:
        assert torch.equal(plain[name], again[name]), name


def test_recompute_keeps_less():
    """Bytes that the backward pass holds: `full` < `selective` < none."""

    def kept(recompute) -> int:
        decoder, size = built(tiny_model(), recompute=recompute).train(), 0
        weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

        def pack(tensor):
            nonlocal size
            size += tensor.nbytes if tensor.untyped_storage().data_ptr() not in weights else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            decoder(IDS, restarting(SEGMENTS), SEGMENTS)
        return size

    assert kept("full") < kept("selective") < kept(None)


def test_parameters_keep_their_names():
    model = tiny_model("qwen2", tie_word_embeddings=True)
    assert set(dict(built(model).named_parameters())) == set(dict(model.named_parameters()))


def test_head_weight_is_the_tied_embedding():
    decoder = built(tiny_model("qwen2", tie_word_embeddings=True))
    assert decoder.head_weight is decoder.model.embed_tokens.weight


def slices(model, *bounds, **settings) -> list[Decoder]:
    """The model cut before the layers `bounds`, each slice with weights of its own."""
    state, ends = model.state_dict(), (0, *bounds, len(model.model.layers))
    cuts = []
    for a, b in pairwise(ends):
        whole = build_model(model.config, lambda name: state[name].clone(), torch.float32)
        cuts.append(Decoder(cut_stage(whole, range(a, b), a == 0, b == ends[-1]), **settings))
    return cuts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", [(1,), (1, 3)], ids=str)
@torch.no_grad()
def test_slices_in_a_row_equal_the_whole(kind, bounds):
    family, changes = KINDS[kind]
    model = tiny_model(family, **changes)
    hidden = IDS
    for part in slices(model, *bounds):
        hidden = part(hidden, restarting(SEGMENTS), SEGMENTS)
    torch.testing.assert_close(hidden, alone(model, SEGMENTS), rtol=0, atol=1e-5)
    wrong = slices(model, *bounds)
    with pytest.raises(AssertionError):  # a layer run twice
        hidden = wrong[0](IDS, restarting(SEGMENTS), SEGMENTS)
        for part in (*wrong[1:], Decoder(cut_stage(model_again(model), [3], False, True))):
            hidden = part(hidden, restarting(SEGMENTS), SEGMENTS)
        torch.testing.assert_close(hidden, alone(model, SEGMENTS), rtol=0, atol=1e-5)


def model_again(model):
    state = model.state_dict()
    return build_model(model.config, lambda name: state[name].clone(), torch.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_slices_share_out_the_parameters_under_their_names(tied, lora):
    model = tiny_model("qwen2", tie_word_embeddings=tied)
    whole, parts = model_again(model), slices(model, 1, 3)
    for module in (whole, *parts) if lora else ():
        add_lora(module, LoraSettings(4, 8), seed=1)
    expected = {name: p.requires_grad for name, p in whole.named_parameters()}
    held = [{stored_name(whole.config, name): p.requires_grad for name, p in part.named_parameters()} for part in parts]
    assert {name: grad for part in held for name, grad in part.items()} == expected
    assert sum(map(len, held)) == len(expected) + tied  # the embedding is on both ends
    assert stored_name(whole.config, "lm_head.weight") in held[2]
    assert [(p.is_first, p.is_last) for p in parts] == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recompute_in_a_slice_gives_the_same_gradients(recompute):
    def gradient(recompute):
        _, part = slices(tiny_model(), 1, recompute=recompute)
        inputs = torch.linspace(-1, 1, 40 * 48).view(1, 40, 48).requires_grad_()
        hidden = part.train()(inputs, restarting(SEGMENTS), SEGMENTS)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        return inputs.grad

    assert torch.equal(gradient(None), gradient(recompute))


SMALL = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def test_an_architecture_with_scales_between_its_parts_is_refused():
    """Granite multiplies embeddings and logits: layers in a row give something else, and that must not pass."""
    config = GraniteConfig(**SMALL, vocab_size=160, embedding_multiplier=12.0, logits_scaling=8.0, pad_token_id=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    fill(model)
    with pytest.raises(UserError, match="model type granite: transformers' own forward gives other logits"):
        built(model)
    with pytest.raises(UserError, match="model type granite: transformers' own forward gives other logits"):
        check_architecture(config)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_supported_architectures_pass_the_check_without_their_weights(family):
    config, before = tiny_config(family), torch.get_rng_state()
    check_architecture(config)
    assert config.num_hidden_layers == 4 and torch.equal(torch.get_rng_state(), before)


def test_an_architecture_with_hidden_constants_is_refused():
    """Gemma 2 multiplies embeddings by a buffer that no checkpoint holds, and caps attention scores."""
    config = Gemma2Config(**SMALL, vocab_size=160, head_dim=8, pad_token_id=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match=r"model type gemma2|Gemma2Attention uses capped"):
        built(model)


@pytest.mark.skipif(
    transformers.__version__ < "5", reason="Nemotron and StableLm had no attention of another's before 5"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [NemotronConfig, StableLmConfig])
def test_an_architecture_whose_packed_samples_see_each_other_is_refused(kind, dtype):
    """Their layers drop the arguments they don't know, the samples' bounds among them."""
    config = kind(**SMALL, vocab_size=160, pad_token_id=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    fill(model)
    told = (
        f"model type {config.model_type}: a sample has other logits behind another one .* can be converted and chatted"
    )
    with pytest.raises(UserError, match=told):
        Decoder(build_model(config, model.state_dict().__getitem__, dtype))
    with pytest.raises(UserError, match=told):
        check_architecture(config)


def test_a_layer_that_keeps_the_bounds_to_itself_is_refused():
    """One of four, so that no version of transformers is needed in which a whole architecture does it."""
    whole = model_again(tiny_model())
    layer = whole.model.layers[2]
    forward = layer.forward
    layer.forward = lambda hidden, segments=None, **arguments: forward(hidden, **arguments)
    with pytest.raises(UserError, match="model type qwen2: a sample has other logits behind another one"):
        Decoder(whole)


@pytest.mark.skipif(transformers.__version__ < "5", reason="OLMo 3 had a rotary embedding for each kind before 5")
@pytest.mark.parametrize("kind", [Gemma3TextConfig, Olmo3Config])
def test_an_architecture_that_this_forward_does_not_fit_is_named(kind):
    """Their rotary embedding wants to know the kind of layer."""
    config = kind(**SMALL, vocab_size=160, head_dim=8, pad_token_id=1)
    told = f"model type {config.model_type}: a trial of its layers raised TypeError: .* can be converted and chatted"
    with pytest.raises(UserError, match=told) as refused:
        check_architecture(config)
    assert isinstance(refused.value.__cause__, TypeError)


@pytest.mark.skipif(transformers.__version__ < "5", reason="no layer made a mask of its own before 5")
def test_an_architecture_with_masks_of_its_own_is_refused():
    """Doge's layers choose what they see beyond a window: nothing of it shows in four tokens."""
    config = DogeConfig(**SMALL, vocab_size=160, pad_token_id=1)
    with pytest.raises(UserError, match="DogeAttention makes a mask of its own"):
        check_architecture(config)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="DogeAttention makes a mask of its own"):
        built(model)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("too little memory"), MemoryError(), UserError("no sinks")])
def test_the_trial_leaves_other_errors_alone(error):
    model = tiny_model()
    whole = build_model(model.config, model.state_dict().__getitem__, torch.float32)

    def fail(*args, **kwargs):
        raise error

    whole.model.layers[1].forward = fail
    with pytest.raises(type(error)) as raised:
        Decoder(whole)
    assert raised.value is error


def test_other_attention_is_refused():
    with pytest.raises(UserError, match="attention is sdpa: build the model with build_model"):
        Decoder(tiny_model())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_compiled_layers_give_the_same_gradients_and_are_compiled_once(lora):
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    decoders = [built(tiny_model(), compile=compile).train() for compile in (False, True)]
    if lora:
        models = [tiny_model(), tiny_model()]
        models = [build_model(m.config, m.state_dict().__getitem__, torch.float32) for m in models]
        for model in models:
            add_lora(model, LoraSettings(r=3, alpha=6), seed=1)
        decoders = [Decoder(model, compile=compile).train() for model, compile in zip(models, (False, True))]
    graphs = []
    for bounds in ((0, 5, 9, 20), (0, 3, 21), (0, 4, 5, 8, 19, 22), (0, 2, 4, 6, 8, 10, 24), (0, 11, 23)):
        found = []
        for decoder in decoders:
            decoder(IDS[:, : bounds[-1]], restarting(bounds), bounds).square().sum().backward()
            found.append({n: p.grad for n, p in decoder.named_parameters() if p.grad is not None})
            decoder.zero_grad()
        assert found[0].keys() == found[1].keys() and found[0]
        for name, grad in found[0].items():
            torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max() + 100))
        graphs.append(counted["unique_graphs"])
    assert graphs[0] > 0 and graphs[-1] == graphs[1]
