"""Answers against transformers' own `generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lively import lively_folder
from transformers import AutoModelForCausalLM

from tuneval.checkpoints.load import Loaded, load_model
from tuneval.config.schema import SamplingConfig
from tuneval.data.template import load_template
from tuneval.errors import UserError
from tuneval.inference.generate import TextStream, choose_template, generate

PROMPTS = [[5, 9, 33, 70], [8], [100, 101, 102, 103, 104, 105, 106, 7], [44, 45, 46]]
GREEDY = SamplingConfig(max_new_tokens=12, greedy=True)
DRAWN = SamplingConfig(max_new_tokens=12, temperature=1.5, top_k=0, top_p=1.0)


@pytest.fixture
def lively(tmp_path, tokenizer):
    """Function (family, **config changes) -> folder of a lively model."""

    def make(family: str = "qwen2", **changes) -> Path:
        return lively_folder(tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}", tokenizer, family, **changes)

    return make


@pytest.fixture
def loaded(lively) -> Loaded:
    return load_model(lively(), "fp32")


def theirs(folder, prompt: list[int], stops: list[int], **settings) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, eos_token_id=stops or None, pad_token_id=1, **settings
    )
    answer = output[0, len(prompt) :].tolist()
    return answer[:-1] if answer[-1] in stops else answer


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_greedy_equals_transformers_one_by_one_and_in_a_batch(family, lively):
    changes = {"sliding_window": 6} if family == "mistral" else {}
    folder = lively(family, **changes)
    loaded = load_model(folder, "fp32")
    expected = [theirs(folder, p, [3], do_sample=False) for p in PROMPTS]
    assert generate(loaded, PROMPTS, GREEDY, [3]) == expected
    assert [generate(loaded, [p], GREEDY, [3])[0] for p in PROMPTS] == expected
    assert len({tuple(e) for e in expected}) == len(PROMPTS) and max(len(set(e)) for e in expected) > 6, "too plain"


@pytest.mark.parametrize("settings", [{"repetition_penalty": 3.0}, {"num_beams": 3}])
def test_the_penalty_and_beams_act_without_sampling(lively, loaded, settings):
    folder = lively()
    expected = [theirs(folder, p, [3], do_sample=False, **settings) for p in PROMPTS]
    assert generate(loaded, PROMPTS, replace(GREEDY, **settings), [3]) == expected
    assert expected != generate(loaded, PROMPTS, GREEDY, [3])


def test_another_weight_gives_another_answer(lively, loaded):
    folder = lively()
    with torch.no_grad():
        loaded.model.lm_head.weight[17] *= 5
    assert generate(loaded, PROMPTS, GREEDY, [3]) != [theirs(folder, p, [3], do_sample=False) for p in PROMPTS]


def test_answers_end_before_the_first_stop_token(loaded):
    whole = generate(loaded, PROMPTS, GREEDY, [])
    stop = whole[0][4]
    answers = generate(loaded, PROMPTS, GREEDY, [159, stop])
    for answer, full in zip(answers, whole):
        assert answer == (full[: full.index(stop)] if stop in full else full)
    assert len(answers[0]) == 4


def test_sampling_equals_transformers_and_depends_on_the_seed_alone(lively, loaded):
    folder, state = lively(), torch.get_rng_state()
    torch.manual_seed(7)
    expected = theirs(folder, PROMPTS[0], [3], do_sample=True, temperature=1.5, top_k=0, top_p=1.0)
    torch.set_rng_state(state)
    assert generate(loaded, PROMPTS[:1], replace(DRAWN, seed=7), [3])[0] == expected
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again = generate(loaded, PROMPTS, replace(DRAWN, seed=8), [3])
    torch.manual_seed(2)
    assert generate(loaded, PROMPTS, replace(DRAWN, seed=8), [3]) == again
    assert generate(loaded, PROMPTS, replace(DRAWN, seed=9), [3]) != again


def test_every_sampling_flag_acts(loaded):
    greedy, drawn = (generate(loaded, PROMPTS, s, []) for s in (GREEDY, DRAWN))
    assert drawn != greedy
    assert generate(loaded, PROMPTS, replace(DRAWN, top_k=1), []) == greedy
    assert generate(loaded, PROMPTS, replace(DRAWN, top_p=1e-6), []) == greedy
    assert generate(loaded, PROMPTS, replace(DRAWN, temperature=1e-5), []) == greedy
    penalised = generate(loaded, PROMPTS, replace(DRAWN, top_k=1, repetition_penalty=50.0), [])
    assert penalised != greedy and all(len(set(a)) == len(a) for a in penalised)
    assert [len(a) for a in generate(loaded, PROMPTS, replace(GREEDY, max_new_tokens=3), [])] == [3] * 4


def test_bad_flags_are_named_together(loaded):
    wrong = SamplingConfig(max_new_tokens=0, temperature=0.0, top_k=-1, top_p=1.5, repetition_penalty=0.0)
    with pytest.raises(UserError) as error:
        generate(loaded, PROMPTS, wrong, [])
    for flag in ("--max-new-tokens 0", "--temperature 0.0", "--top-k -1", "--top-p 1.5", "--repetition-penalty 0.0"):
        assert flag in str(error.value)


def test_the_models_positions_are_the_limit(loaded):
    assert len(generate(loaded, [[5] * 508], GREEDY, [])[0]) == 4
    with pytest.raises(UserError, match="a prompt of 512 tokens: the model has 512 positions"):
        generate(loaded, [[5] * 512], GREEDY, [])


def test_streamed_pieces_add_up_to_the_answer(loaded):
    pieces: list[str] = []
    stream = TextStream(loaded.tokenizer, pieces.append)
    answer = generate(loaded, PROMPTS[:1], GREEDY, [], stream)[0]
    assert "".join(pieces) == stream.text == loaded.tokenizer.decode(answer, skip_special_tokens=True)
    assert len(pieces) > 3


def test_a_character_of_several_tokens_is_shown_whole():
    """A byte-level tokenizer splits each of these characters into bytes; no piece may hold half of one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    text, pieces = "你好 a😀b\n是", []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in tokenizer(text)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert pieces == list(text)


def test_the_template_is_the_one_of_the_tuning(loaded):
    tokenizer = loaded.tokenizer
    assert choose_template(loaded, None).name == "auto"
    assert choose_template(loaded, "qwen").name == "qwen"
    qwen = load_template("qwen", tokenizer)
    tuned = replace(
        loaded, template_name="qwen", template_fingerprint=qwen.fingerprint, template_description=qwen.description
    )
    assert choose_template(tuned, None).fingerprint == qwen.fingerprint


def test_another_template_than_the_tunings_is_an_error_that_says_what_differs(loaded, capsys):
    auto = load_template("auto", loaded.tokenizer)
    description = {**auto.description, "chat_template": "something older"}
    tuned = replace(loaded, template_name="auto", template_fingerprint="0" * 64, template_description=description)
    with pytest.raises(UserError, match=r"which renders differently here.*chat_template: 'something older'"):
        choose_template(tuned, None)
    assert choose_template(tuned, "auto").name == "auto"
    assert "--prompt-type auto differs from it: chat_template" in capsys.readouterr().err


def test_a_stop_token_beyond_the_vocabulary_is_never_said(loaded):
    """Such as one that a tokenizer adds to a model that was not made larger for it."""
    beyond = loaded.config.vocab_size
    assert generate(loaded, PROMPTS, GREEDY, [beyond]) == generate(loaded, PROMPTS, GREEDY, [])


def test_a_stop_token_is_not_shown_whether_special_or_not(loaded):
    stop, pieces = generate(loaded, PROMPTS[:1], GREEDY, [])[0][4], []
    stream = TextStream(loaded.tokenizer, pieces.append, [stop])
    answer = generate(loaded, PROMPTS[:1], GREEDY, [stop], stream)[0]
    assert "".join(pieces) == stream.text == loaded.tokenizer.decode(answer, skip_special_tokens=True)
    assert stream.tokens == [*answer, stop]
