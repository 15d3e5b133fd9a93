"""`tuneval generate` through the command line's own entry."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from lively import lively_folder
from transformers import AutoModelForCausalLM

from tuneval.checkpoints.load import load_model
from tuneval.cli import main
from tuneval.commands.generate import answer_all
from tuneval.config.schema import GenerateConfig, SamplingConfig
from tuneval.data.records import Message
from tuneval.data.template import load_template
from tuneval.files import read_jsonl, write_jsonl
from tuneval.inference.generate import generate

FLAGS = ["--dtype", "fp32", "--greedy", "--max-new-tokens", "7"]
GREEDY = SamplingConfig(max_new_tokens=7, greedy=True)
TALK = [Message("user", "two plus two?"), Message("assistant", "A B"), Message("user", "C D?")]


@pytest.fixture
def folder(tmp_path, tokenizer):
    return lively_folder(tmp_path / "model", tokenizer)


def expected(folder, messages: list[Message], template: str = "auto") -> str:
    loaded = load_model(folder, "fp32")
    rendered = load_template(template, loaded.tokenizer)
    tokens = generate(loaded, [rendered.prompt_ids(messages)], GREEDY, rendered.stop_token_ids)[0]
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True)


def run(folder, *flags: str) -> int:
    return main(["generate", "--load", str(folder), *FLAGS, *flags])


def test_one_prompt(folder, capsys):
    assert run(folder, "--prompt", "two plus two?") == 0
    assert capsys.readouterr().out == expected(folder, [Message("user", "two plus two?")]) + "\n"


def test_template_and_system_act(folder, capsys):
    assert run(folder, "--prompt", "two plus two?", "--prompt-type", "qwen", "--system", "You are kind.") == 0
    messages = [Message("system", "You are kind."), Message("user", "two plus two?")]
    assert capsys.readouterr().out == expected(folder, messages, "qwen") + "\n"


def test_raw_text_goes_in_as_it_is(folder, capsys):
    assert run(folder, "--prompt", "The answer is", "--raw") == 0
    loaded = load_model(folder, "fp32")
    tokens = generate(loaded, [loaded.tokenizer("The answer is")["input_ids"]], GREEDY, [3])[0]
    assert capsys.readouterr().out == loaded.tokenizer.decode(tokens, skip_special_tokens=True) + "\n"


def test_a_file_is_answered_in_its_order_whatever_the_batch(folder, tmp_path, capsys):
    rows = [
        {"prompt": text, "id": i}
        for i, text in enumerate(("You are kind", "What is two plus two?", "A. B. C. D.", "two?"))
    ]
    rows.append({"messages": [{"role": m.role, "content": m.content} for m in TALK], "id": 4})
    write_jsonl(tmp_path / "in.jsonl", rows)
    answers = [expected(folder, [Message("user", r["prompt"])]) for r in rows[:4]] + [expected(folder, TALK)]
    for batch_size in ("1", "2", "8"):
        output = tmp_path / f"out{batch_size}.jsonl"
        flags = ("--input", str(tmp_path / "in.jsonl"), "--output", str(output), "--batch-size", batch_size)
        assert run(folder, *flags) == 0
        found = read_jsonl(output)
        settings = {"dtype": "fp32", "greedy": True, "max_new_tokens": 7}
        assert found == [
            {**row, "response": a, "stopped": f["stopped"], "settings": settings}
            for row, a, f in zip(rows, answers, found)
        ]
    capsys.readouterr()
    assert run(folder, "--input", str(tmp_path / "in.jsonl")) == 0
    assert [json.loads(line)["response"] for line in capsys.readouterr().out.splitlines()] == answers


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give one of --prompt TEXT and --input"),
        (["--prompt", "a", "--input", "b"], "give one of --prompt TEXT and --input"),
        (["--prompt", "a", "--output", "b"], "--output: goes with --input"),
        (["--prompt", "a", "--raw", "--system", "b"], "--raw: uses no template, so --system can't act"),
        (["--prompt", "a", "--temperature", "0"], "--temperature 0.0: must be positive"),
        (["--prompt", "a", "--prompt-type", "qwne"], "qwen"),
        (["--prompt", "A. " * 600], "the model has 512 positions"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["--prompt", "a\ud83d"], "--prompt: has half a character"),
        (["--prompt", "a", "--system", "a\udcff"], "--system: has half a character"),
        (["--prompt", "a", "--seed", "-1"], "--seed -1: must be from 0"),
        (["--prompt", "a", "--seed", str(2**70)], "must be from 0 to below 2**63"),
        (["--prompt", "a", "--top-p", "nan"], "--top-p nan: must be above 0"),
    ],
)
def test_bad_flags_are_refused(folder, capsys, flags, words):
    assert run(folder, *flags) == 2
    assert words in capsys.readouterr().err


def test_every_bad_line_is_named_and_nothing_is_written(folder, tmp_path, capsys):
    rows = [
        {"prompt": "a"},
        {"text": "b"},
        {"messages": "c"},
        {"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]},
        {"prompt": 7},
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with open(tmp_path / "in.jsonl", "a", encoding="utf-8") as file:
        file.write('{"prompt": "torn')
    assert run(folder, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")) == 2
    error = capsys.readouterr().err
    for number in (2, 3, 4, 5, 6):
        assert f"line {number}: " in error
    assert "line 1: " not in error and not (tmp_path / "out.jsonl").exists()


def test_a_file_of_something_else_is_told_in_a_dozen_lines(folder, tmp_path, capsys):
    write_jsonl(tmp_path / "records.jsonl", [{"instruction": "a", "output": "b"}] * 1000)
    assert run(folder, "--input", str(tmp_path / "records.jsonl")) == 2
    error = capsys.readouterr().err
    assert "line 12: must be an object with" in error and "line 13" not in error and "and 988 more lines" in error


def test_an_adapter_on_top_answers_as_pefts_model(folder, tmp_path, capsys):
    """--lora-load on the base, and --load of the adapter alone, answer what peft's own model answers."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B." in name:
                p.copy_(torch.sin(torch.arange(p.numel()) * 0.7).view_as(p))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = load_model(folder, "fp32").tokenizer
    rendered = load_template("auto", tokenizer)
    ids = rendered.prompt_ids([Message("user", "two plus two?")])
    output = model.generate(
        input_ids=torch.tensor([ids]),
        max_new_tokens=7,
        do_sample=False,
        eos_token_id=list(rendered.stop_token_ids),
        pad_token_id=1,
    )
    answer = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True) + "\n"
    assert run(folder, "--prompt", "two plus two?", "--lora-load", str(tmp_path / "adapter")) == 0
    assert capsys.readouterr().out == answer != expected(folder, [Message("user", "two plus two?")]) + "\n"
    assert run(tmp_path / "adapter", "--prompt", "two plus two?") == 0
    assert capsys.readouterr().out == answer


def test_an_answer_that_ends_by_itself_is_told_from_one_that_is_cut(folder):
    loaded = load_model(folder, "fp32")
    prompts = [[5, 9, 7], [2, 11]]
    whole = generate(loaded, prompts, GREEDY, [3])
    config = GenerateConfig(load=folder, sampling=GREEDY)
    assert [len(answer) for answer in whole] == [7, 7] and whole[0][4] not in (*whole[0][:4], *whole[1])
    assert [a.stopped for a in answer_all(loaded, prompts, config, (whole[0][4],))] == [True, False]


def test_answers_stand_beside_earlier_ones(folder, tmp_path, capsys):
    prompts, before = tmp_path / "prompts.jsonl", tmp_path / "before.jsonl"
    write_jsonl(prompts, [{"prompt": "two plus two?"}, {"prompt": "The answer is"}])
    assert run(folder, "--input", str(prompts), "--output", str(before)) == 0
    assert run(folder, "--input", str(prompts), "--before", str(before), "--max-new-tokens", "3") == 0
    samples = read_jsonl(folder / "samples.jsonl")
    earlier = read_jsonl(before)
    assert [(s["prompt"], s["before"]) for s in samples] == [(e["prompt"], e["response"]) for e in earlier]
    assert all(e["response"].startswith(s["after"]) and s["after"] for s, e in zip(samples, earlier))
    assert all(s["before_stopped"] == e["stopped"] and s["after_stopped"] is False for s, e in zip(samples, earlier))
    assert samples[0]["settings"] == {"dtype": "fp32", "greedy": True, "max_new_tokens": 3}
    told = f"--before {before}: its answers were made with other settings: max_new_tokens 7 then, 3 now\n"
    assert told in capsys.readouterr().err
    assert run(folder, "--input", str(prompts), "--before", str(before)) == 0
    assert "other settings" not in capsys.readouterr().err

    acting = ("--num-beams", "2", "--repetition-penalty", "1.5", "--temperature", "0.5", "--seed", "7")
    capsys.readouterr()
    assert run(folder, "--input", str(prompts), "--before", str(before), *acting) == 0
    assert "--temperature 0.5, --seed 7: no effect, --greedy takes the likeliest\n" in capsys.readouterr().err
    settings = {"dtype": "fp32", "greedy": True, "max_new_tokens": 7, "num_beams": 2, "repetition_penalty": 1.5}
    assert read_jsonl(folder / "samples.jsonl")[0]["settings"] == settings

    write_jsonl(prompts, [{"prompt": "two plus two?"}])
    assert run(folder, "--input", str(prompts), "--before", str(before)) == 2
    assert "its prompts are not those of --input" in capsys.readouterr().err


def test_what_would_fail_after_the_answers_fails_before_the_model_is_loaded(folder, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    write_jsonl(source, [{"prompt": "two?"}])
    (tmp_path / "a folder").mkdir()
    for output, words in (
        (tmp_path / "a folder", "give a file, not a folder"),
        (source / "below" / "out.jsonl", "a part of this path is a file"),
        (source, "is --input; choose another file"),
    ):
        assert run(folder, "--input", str(source), "--output", str(output)) == 2
        error = capsys.readouterr().err
        assert words in error and "loading" not in error, error
    assert read_jsonl(source) == [{"prompt": "two?"}] and list((tmp_path / "a folder").iterdir()) == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty; it needs a line such as"),
        ("\n\n", "empty; it needs a line such as"),
        ('{"prompt": "\\ud83d"}', "line 1: has half a character"),
        ('{"prompt": "a", "note": "\\ud83d"}', "line 1: has half a character"),
        ('{"messages": {"role": "user"}}', "line 1: `messages` must be a list of objects"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, '
         '{"role": "user", "content": "c"}]}', "line 1: after a system message at most, user and assistant must"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "must take turns"),
    ],
)  # fmt: skip
def test_odd_inputs_are_told_before_the_model_is_loaded(folder, tmp_path, capsys, text, words):
    (tmp_path / "in.jsonl").write_text(text)
    assert run(folder, "--input", str(tmp_path / "in.jsonl")) == 2
    error = capsys.readouterr().err
    assert words in error and "loading" not in error, error


@pytest.mark.parametrize(
    "text",
    ["", "7\n", '{"prompt": "two?"}', '{"prompt": "two?", "response": 7}', '{"prompt": "x", "response": "y"}', None],
)
def test_odd_earlier_answers_are_told(folder, tmp_path, capsys, text):
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "two?"}])
    before = tmp_path / "before.jsonl"
    if text is not None:
        before.write_text(text)
    assert run(folder, "--input", str(tmp_path / "in.jsonl"), "--before", str(before)) == 2
    error = capsys.readouterr().err
    assert str(before) in error and "loading" not in error, error


def test_what_ctrl_c_says_begins_a_line(folder, capsys, monkeypatch):
    def stopped(loaded, prompts, sampling, stops, stream):
        stream._on_text("it was a")
        raise KeyboardInterrupt

    monkeypatch.setattr("tuneval.commands.generate.generate", stopped)
    assert run(folder, "--prompt", "two?") == 130
    assert capsys.readouterr().out == "it was a\n"
