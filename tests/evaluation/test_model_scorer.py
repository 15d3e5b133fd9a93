"""A tiny real model behind the scorer: letters, options and replies against transformers, prompt by prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lively import lively_folder
from tiny_exams import SUBJECTS, tiny_exam
from transformers import AutoModelForCausalLM

from tuneval.checkpoints.load import Loaded, load_model
from tuneval.config.schema import SamplingConfig
from tuneval.data.template import load_template
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import STYLES
from tuneval.evaluation.decisions import OptionLikelihood, Prompt
from tuneval.evaluation.model_scorer import ModelScorer
from tuneval.evaluation.score import shared_prefix
from tuneval.evaluation.styles import prompts
from tuneval.inference.generate import generate
from tuneval.inference.prefix import compute_prefix
from tuneval.model.decoder import Decoder

LETTERS = list("ABCD")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return lively_folder(tmp_path_factory.mktemp("lively") / "model", tokenizer, "qwen2", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def loaded(folder) -> Loaded:
    return load_model(folder, "fp32")


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def scorer(loaded):
    return ModelScorer(loaded, Decoder(loaded.model).eval(), load_template("auto", loaded.tokenizer), 4096)


def asked(task: str, style: str, shots: int = 2) -> list[Prompt]:
    return prompts(STYLES[task, style], tiny_exam(task, 4), SUBJECTS[task], min(shots, STYLES[task, style].max_shots))


def text_of(tokenizer, prompt: Prompt) -> str:
    """The whole prompt as one text, by transformers' own rendering."""
    if not prompt.messages:
        return prompt.text
    rows = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=prompt.opens_answer)


@pytest.mark.parametrize(
    "name", [n for (task, n), s in STYLES.items() if task == "ceval" and s.decision.kind != "reply"]
)
def test_choices_equal_a_plain_loop(scorer, loaded, reference, name):
    """Every style that reads scores: log probabilities of the four letters, one whole prompt at a time."""
    exam, decision = tiny_exam("ceval", 4), STYLES["ceval", name].decision
    rows = asked("ceval", name)
    answers = decision.answers(scorer, rows, exam.questions["logic"], lambda n: None)
    tokenizer = loaded.tokenizer
    for prompt, answer in zip(rows, answers, strict=True):
        text = text_of(tokenizer, prompt)
        before = len(tokenizer(text.rstrip(" "))["input_ids"])
        expected = []
        for letter in LETTERS:
            ids = tokenizer(text + decision.target.format(answer=letter))["input_ids"]
            with torch.no_grad():
                logs = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected.append(sum(float(logs[i - 1, ids[i]]) for i in range(before, len(ids))))
        actual = torch.tensor([answer.scores[x] for x in LETTERS])
        if decision.kind == "letter_logits":  # the same, less the logarithm of the sum
            actual = actual - actual[0] + expected[0]
        torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-3, rtol=0)
        assert answer.prediction == LETTERS[max(range(4), key=expected.__getitem__)]


def test_options_begin_where_lm_evaluation_harness_lets_them(scorer, loaded):
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2)
    for task in ("hellaswag", "boolq"):
        exam = tiny_exam(task, 4)
        questions = exam.questions[SUBJECTS[task]]
        rows = asked(task, "lm_eval", 0)
        options = [[f" {o}" for o in q.choices.values()] for q in questions]
        found = scorer.options(rows, options, lambda n: None)
        for prompt, texts, values in zip(rows, options, found, strict=True):
            pairs = [((prompt.text, t), *harness._encode_pair(prompt.text, t)) for t in texts]
            expected = [log for log, _ in harness._loglikelihood_tokens(pairs, disable_tqdm=True)]
            assert [log for log, _ in values] == pytest.approx(expected, abs=1e-3)
            assert [n for _, n in values] == [len(continuation) for _, _, continuation in pairs]


def test_scores_per_token_and_character():
    class Fixed:
        def options(self, prompts, options, scored):
            return [[(-4.0, 4), (-3.0, 2), (-6.0, 3), (-2.5, 1)] for _ in prompts]

    question = tiny_exam("hellaswag").questions["hellaswag"][:1]
    chosen = {
        per: OptionLikelihood(target=" {option}", per=per).answers(Fixed(), [Prompt(text="x")], question, print)[0]
        for per in ("text", "token", "character")
    }
    assert [chosen[per].prediction for per in ("text", "token", "character")] == ["D", "A", "D"]
    assert chosen["character"].scores == {"A": -4.0, "B": -1.0, "C": -3.0, "D": -2.5 / 3}


def test_letters_must_be_tokens_of_their_own(scorer, metaspace_tokenizer, loaded):
    rows = [Prompt(text="答案：")]
    assert len(set(scorer.letter_ids(rows[0], LETTERS))) == 4
    with pytest.raises(UserError, match=r"answer 'A B' after .*not one token of its own"):
        scorer.letter_ids(rows[0], ["A B"])
    with pytest.raises(UserError, match="are not distinct"):
        scorer.letter_ids(rows[0], ["A", "A"])
    other = ModelScorer(_with(loaded, metaspace_tokenizer), None, None, 4096)
    with pytest.raises(UserError, match=r"answer 'A' after .*not one token of its own"):
        other.letter_ids(rows[0], LETTERS)  # joins `：A`

    class AddsAnEnd:
        def __call__(self, text):
            return {"input_ids": [*loaded.tokenizer(text)["input_ids"], 3]}

    with pytest.raises(UserError, match="add_eos_token"):
        ModelScorer(_with(loaded, AddsAnEnd()), None, None, 4096).letter_ids(rows[0], LETTERS)


def _with(loaded: Loaded, tokenizer) -> Loaded:
    from dataclasses import replace

    return replace(loaded, tokenizer=tokenizer)


def test_a_conversation_is_rendered_once(scorer, loaded):
    """Prompt and answer have the ids that training gives them; a letter is what follows the generation prompt."""
    prompt = asked("ceval", "lm_eval_chat")[0]
    text = text_of(loaded.tokenizer, prompt)
    assert scorer.encode(prompt) == loaded.tokenizer(text)["input_ids"]
    assert scorer.encode(prompt, "B") == loaded.tokenizer(text + "B")["input_ids"]
    closed = asked("ceval", "mindspeed_direct")[0]
    assert loaded.tokenizer.decode(scorer.encode(closed)).endswith("答：<|im_end|>\n")
    without = ModelScorer(loaded, None, None, 4096)
    with pytest.raises(UserError, match="through its chat template, and the model has none"):
        without.encode(prompt)


def greedy(reference, tokenizer, prompt: Prompt, tokens: int) -> str:
    ids = torch.tensor([tokenizer(text_of(tokenizer, prompt))["input_ids"]])
    output = reference.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=[3], pad_token_id=1)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_tokens", [1, 900, 100_000])
def test_replies_equal_transformers_one_by_one(loaded, reference, batch_tokens):
    template = load_template("auto", loaded.tokenizer)
    scorer = ModelScorer(loaded, Decoder(loaded.model).eval(), template, batch_tokens)
    rows = asked("ceval", "qwen_chat") + asked("ceval", "official_chat", 1) + [Prompt(text="答案：")]
    expected = [greedy(reference, loaded.tokenizer, p, 9) for p in rows]
    assert len(set(expected)) > 4 and max(map(len, expected)) > 5, "too plain"
    done: list[int] = []
    assert scorer.replies(rows, 9, (), lambda text: False, done.append) == expected
    assert sum(done) == len(rows) and len(done) == {1: 9, 100_000: 1}.get(batch_tokens, len(done))


def tokens_computed(loaded: Loaded, call) -> int:
    """Token positions that pass through the model, padding included."""
    seen: list[int] = []
    hook = loaded.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    call()
    hook.remove()
    return sum(seen)


@pytest.mark.parametrize("batch_tokens", [1, 2000, 100_000])
def test_worked_examples_are_computed_once(loaded, reference, batch_tokens):
    """Prompts of unequal lengths with the same examples: their replies are those of each alone, for fewer tokens."""
    template = load_template("auto", loaded.tokenizer)
    scorer = ModelScorer(loaded, Decoder(loaded.model).eval(), template, batch_tokens)
    rows = []
    for n, prompt in enumerate(asked("ceval", "official_chat", 2)):
        last = prompt.messages[-1]
        rows.append(
            replace(prompt, messages=(*prompt.messages[:-1], replace(last, content=last.content + "，答案" * n)))
        )
    encoded = [scorer.encode(p) for p in rows]
    shared = shared_prefix(encoded)
    assert shared > 100 and len({len(ids) for ids in encoded}) > 1
    expected = [greedy(reference, loaded.tokenizer, p, 9) for p in rows]
    found: list[str] = []
    used = tokens_computed(loaded, lambda: found.extend(scorer.replies(rows, 9, (), lambda text: False, print)))
    assert found == expected and len(set(expected)) > 2
    longest = max(map(len, encoded)) - shared
    assert used <= shared + len(rows) * (longest + 8)
    if batch_tokens == 1:
        assert used <= shared + sum(len(ids) - shared + 8 for ids in encoded)


@pytest.mark.filterwarnings("error::FutureWarning")  # of transformers: what the cache is called
def test_a_prefix_is_no_padding(loaded):
    """The comparison above fails where positions count the padding behind the prefix."""
    ids = [[5, 9, 14, 22, 31, 40, 11, 8, 17], [5, 9, 14, 22, 31, 60]]
    prefix, sampling = compute_prefix(loaded, ids[0][:5]), SamplingConfig(greedy=True, max_new_tokens=8)
    alone = [generate(loaded, [row], sampling, [3])[0] for row in ids]
    assert generate(loaded, ids, sampling, [3], prefix=prefix) == alone
    assert generate(loaded, ids, sampling, [3], prefix=prefix) == alone, "the prefix is used again"
    wrong = compute_prefix(loaded, [7, *ids[0][1:5]])
    assert generate(loaded, ids, sampling, [3], prefix=wrong) != alone


def test_a_sliding_window_shares_no_prefix(tmp_path, tokenizer):
    folder = lively_folder(
        tmp_path / "m", tokenizer, "qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=2,
        layer_types=["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
    )  # fmt: skip
    assert compute_prefix(load_model(folder, "fp32"), [5, 9, 14]) is None


def test_replies_end_where_they_may(scorer, loaded, reference):
    rows = asked("ceval", "official_chat", 1)
    whole = [greedy(reference, loaded.tokenizer, p, 12) for p in rows]
    steps: list[int] = []
    hook = loaded.model.register_forward_pre_hook(lambda *_: steps.append(1))
    settled = scorer.replies(rows, 12, (), lambda text: len(text) >= 2, lambda n: None)
    hook.remove()
    assert all(w.startswith(s) and len(s) >= min(2, len(w)) for w, s in zip(whole, settled)) and len(steps) < 12
    stop = next(w for w in whole if len(w) > 3)[2:4]
    cut = scorer.replies(rows, 12, (stop,), lambda text: False, lambda n: None)
    assert cut == [w.split(stop)[0] for w in whole] and cut != whole


def test_a_reply_needs_room(scorer):
    with pytest.raises(UserError, match=r"law, question 7: its prompt has \d+ tokens, with 9000 of a reply"):
        scorer.replies([Prompt(text="x", name="law, question 7")], 9000, (), bool, print)
    with pytest.raises(UserError, match="law, question 7: its prompt has"):
        scorer.letters([Prompt(text="x，" * 9000, name="law, question 7")], LETTERS, print)
