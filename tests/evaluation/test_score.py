"""Shared-prefix scoring equals a plain loop over whole prompts through transformers; and shows when it does not."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCAB, fill, tiny_config, tiny_model

from tuneval.errors import UserError
from tuneval.evaluation import score
from tuneval.evaluation.margins import bf16_step, decide, near_tie
from tuneval.evaluation.score import chunks, letter_logits, option_log_probabilities, shared_prefix
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder

LETTERS = list("ABCD")
HEADER = "以下是中国关于考试的单项选择题，请选出其中的正确答案。\n\n问题：答案是什么？\nA. 猫\nB. 狗\n答案：B\n\n"
QUESTIONS = [
    "你好，请回答问题。\nA. 猫\nB. 狗\nC. 鸟\nD. 鱼\n答案：",
    "你好吗？\nA. 鱼\nB. 鸟\n答案：",
    "请选出答案。答案是什么？\nA. 中国\nB. 考试\n答案：",
    "你好，请选出其中的问题。\nA. 题\n答案：",
    "What is two plus two?\nA. four\nB. kind\n答案：",
    "你好，请选出其中的问题。\nA. 题\n答案：",
]
PROMPTS = [HEADER + question for question in QUESTIONS]


@pytest.fixture(scope="module")
def splitter():
    """A BPE tokenizer whose letters stand alone and whose short tokens straddle the end of what texts share."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("[A-Z]"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<unk>", "<s>"], show_progress=False, max_token_length=4
    )
    raw.train_from_iterator([*PROMPTS, *["你好，"] * 30], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")


def reference(family: str, **changes):
    model = tiny_model(family, **changes)
    fill(model, 0.25)
    return model


def decoder_of(model) -> Decoder:
    state = model.state_dict()
    return Decoder(build_model(model.config, lambda name: state[name].clone(), torch.float32)).eval()


def plain_loop(model, tokenizer, prompts: list[str]) -> list[list[float]]:
    """The benchmark authors' way: one whole prompt at a time through transformers."""
    ids = letter_tokens(tokenizer)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0, -1, ids].tolist() for text in prompts]


def letter_tokens(tokenizer) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]


def shared(model, tokenizer, prompts: list[str], batch_tokens: int = 4096, scored=lambda n: None) -> list[list[float]]:
    encoded = [tokenizer(text)["input_ids"] for text in prompts]
    names = [f"law, question {i}" for i in range(len(prompts))]
    return letter_logits(model, encoded, letter_tokens(tokenizer), batch_tokens, names, scored)


def letters(logits: list[list[float]]) -> list[str]:
    return [decide(dict(zip(LETTERS, row)))[0] for row in logits]


def check_parity(actual: list[list[float]], expected: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=1e-4, rtol=0)
    assert letters(actual) == letters(expected)


@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
@pytest.mark.parametrize(
    "family,changes",
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("llama", {}),
        ("mistral", {"sliding_window": 24}),
    ],
)
def test_equals_a_plain_loop(splitter, family, changes, batch_tokens):
    model = reference(family, **changes)
    expected = plain_loop(model, splitter, PROMPTS)
    assert torch.tensor(expected).std(0).max() > 1e-1  # the prompts matter
    done: list[int] = []
    actual = shared(decoder_of(model), splitter, PROMPTS, batch_tokens, done.append)
    check_parity(actual, expected)
    assert sum(done) == len(PROMPTS) and (len(done) == 1) == (batch_tokens == 4096)


@pytest.mark.parametrize("wrong", [-3, 2])
def test_parity_check_sees_a_wrong_prefix_length(splitter, monkeypatch, wrong):
    """A prefix that is too long swallows tokens; one that is too short is slower, and still right."""
    model = reference("qwen2")
    expected = plain_loop(model, splitter, PROMPTS)
    monkeypatch.setattr(score, "shared_prefix", lambda encoded: shared_prefix(encoded) + wrong)
    actual = shared(decoder_of(model), splitter, PROMPTS)
    if wrong < 0:
        check_parity(actual, expected)
        return
    with pytest.raises(AssertionError):
        check_parity(actual, expected)


@pytest.mark.parametrize("fault", ["unseen prefix", "positions start again"])
def test_parity_check_sees_broken_sharing(splitter, fault):
    model = reference("qwen2")
    decoder = decoder_of(model)

    class Broken:
        head_weight, config = decoder.head_weight, decoder.config

        def __call__(self, input_ids, position_ids, segments, prefix_length):
            if fault == "unseen prefix":
                prefix_length = 0
            else:
                position_ids = position_ids % prefix_length
            return decoder(input_ids, position_ids, segments, prefix_length)

    actual = shared(Broken(), splitter, PROMPTS)
    with pytest.raises(AssertionError):
        check_parity(actual, plain_loop(model, splitter, PROMPTS))


def test_prefix_is_shared_by_tokens_not_characters(splitter):
    """`你好，` is one token and `你好` another: the characters they share belong to no shared token."""
    texts = [HEADER + "你好，请", HEADER + "你好吗"]
    encoded = [splitter(text)["input_ids"] for text in texts]
    shared = shared_prefix(encoded)
    alone = splitter(HEADER + "你好")["input_ids"]  # what cutting the text at its common part would give
    assert alone != encoded[0][: len(alone)]
    assert shared == len(alone) - 1 and encoded[0][:shared] == encoded[1][:shared] == alone[:shared]


def test_shared_prefix_leaves_each_prompt_a_token():
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 3]]) == 1
    assert shared_prefix([[5, 6, 7]]) == 2
    assert shared_prefix([[1], [2]]) == 0


def test_nothing_shared_and_one_prompt(splitter):
    model = reference("llama")
    for prompts in (["答案：", "你好，请", "What"], PROMPTS[:1]):
        actual = shared(decoder_of(model), splitter, prompts)
        check_parity(actual, plain_loop(model, splitter, prompts))


def test_chunks_fill_the_capacity():
    assert [list(c) for c in chunks([3, 4, 5, 9, 1, 1], 8)] == [[0, 1], [2], [3], [4, 5]]
    assert [list(c) for c in chunks([3, 4], -5)] == [[0], [1]]
    assert [list(c) for c in chunks([2] * 4, 8)] == [[0, 1, 2, 3]]


def test_too_long_prompts_are_refused(splitter):
    model = tiny_model("qwen2", max_position_embeddings=20)
    with pytest.raises(UserError, match=r"law, question 4: its prompt has \d+ tokens, the model's limit is 20"):
        shared(decoder_of(model), splitter, PROMPTS)
    assert tiny_config().max_position_embeddings > 20


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_answer(splitter, value):
    model = reference("qwen2")
    with torch.no_grad():
        model.model.norm.weight[0] = value
    with pytest.raises(UserError, match=r"law, question 0: the answers' scores are .*give --dtype fp32"):
        shared(decoder_of(model), splitter, PROMPTS)


OPTIONS = [["猫", "狗狗，请回答", "鸟"], ["好", "你好吗？好"], ["A", "B", "C"], ["你好，请选", "你好，请答", "你好"]]


def option_rows(tokenizer) -> tuple[list[list[list[int]]], list[int]]:
    """Token ids of prompt and option together, and where the options begin."""
    rows = [[tokenizer(p + o)["input_ids"] for o in options] for p, options in zip(PROMPTS, OPTIONS)]
    starts = [shared_prefix([*each, tokenizer(p)["input_ids"]]) for p, each in zip(PROMPTS, rows)]
    return rows, starts


def plain_options(model, rows, starts) -> list[list[float]]:
    """One whole text at a time: the sum of its log probabilities from where the options begin."""
    found = []
    for options, start in zip(rows, starts):
        with torch.no_grad():
            logs = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in options]
        found.append(
            [sum(float(log[i - 1, ids[i]]) for i in range(start, len(ids))) for log, ids in zip(logs, options)]
        )
    return found


def check_options(actual, expected) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=2e-4, rtol=0)


@pytest.mark.parametrize("batch_tokens", [1, 90, 4096])
@pytest.mark.parametrize("family,changes", [("qwen2", {}), ("llama", {"tie_word_embeddings": True})])
def test_options_equal_a_plain_loop(splitter, family, changes, batch_tokens):
    model = reference(family, **changes)
    rows, starts = option_rows(splitter)
    assert any(len(ids) - start > 2 for options, start in zip(rows, starts) for ids in options)
    done: list[int] = []
    names = ["x"] * len(rows)
    actual = option_log_probabilities(decoder_of(model), rows, starts, batch_tokens, names, done.append)
    check_options(actual, plain_options(model, rows, starts))
    assert sum(done) == len(rows)


def test_a_question_of_many_long_options_shares_its_prompt(splitter, monkeypatch):
    """Without a beginning that the questions share, each question is a pass of its own over [prompt | options]."""
    model = reference("qwen2")
    rows, starts = option_rows(splitter)
    rows[0] = [[5, *ids] for ids in rows[0]]  # nothing is shared by all questions any more
    starts[0] += 1
    decoder, lengths = decoder_of(model), []
    decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    actual = option_log_probabilities(decoder, rows, starts, 4096, ["x"] * len(rows))
    check_options(actual, plain_options(model, rows, starts))
    assert len(lengths) == len(rows)
    assert sum(lengths) < sum(len(ids) for options in rows for ids in options) / 2
    monkeypatch.setattr(score, "_cheaper", lambda chunk, *_: [chunk])
    lengths.clear()
    check_options(option_log_probabilities(decoder, rows, starts, 4096, ["x"] * len(rows)), actual)
    assert len(lengths) == 1


def test_option_parity_sees_a_wrong_start(splitter):
    model = reference("qwen2")
    rows, starts = option_rows(splitter)
    actual = option_log_probabilities(decoder_of(model), rows, [s - 1 for s in starts], 4096, ["x"] * len(rows))
    with pytest.raises(AssertionError):
        check_options(actual, plain_options(model, rows, starts))


def test_single_tokens_take_one_position_a_question(splitter):
    model = reference("qwen2")
    rows = [[[*splitter(p)["input_ids"], letter] for letter in letter_tokens(splitter)] for p in PROMPTS]
    decoder, lengths = decoder_of(model), []
    decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    logs = option_log_probabilities(decoder, rows, [len(r[0]) - 1 for r in rows], 4096, ["x"] * len(rows))
    once = lengths.pop()
    logits = torch.tensor(shared(decoder, splitter, PROMPTS))
    assert once == lengths.pop()
    differences = torch.tensor(logs) - logits
    torch.testing.assert_close(differences, differences[:, :1].expand(-1, 4), atol=1e-4, rtol=0)


def test_the_first_of_equals_wins():
    assert decide({"A": 1.0, "B": 3.0, "C": 3.0, "D": 2.0}) == ("B", 0.0)
    assert decide({"A": -1.0, "B": -3.0}) == ("A", 2.0)


def test_near_ties_are_within_a_bf16_step():
    for value in (1.0, 1.5, 7.9, 20.0, -20.0, 300.0):
        here = torch.tensor(value, dtype=torch.bfloat16)
        there = (here.view(torch.int16) + 1).view(torch.bfloat16)  # the next number away from zero
        assert bf16_step(float(here)) == abs(float(there) - float(here))
    assert near_tie({"A": 20.0, "B": 19.9, "C": 0.0}) and not near_tie({"A": 20.0, "B": 19.8, "C": 0.0})
