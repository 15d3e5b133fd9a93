"""inference.py and evaluation.py: MindSpeed-LLM's tasks, frames and lines; the answers are transformers' own."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tuneval import cli
from tuneval.checkpoints.load import load_model

ASSETS = Path(__file__).parents[2] / "tuneval" / "assets"
RULES = {"Greedy Search": 46, "Do Sample": 44, "Beam Search": 45, "Beam Search with sampling": 45}


def run(capsys, entry, *words, status=0):
    assert cli.run_entry(entry, list(words)) == status
    return capsys.readouterr()


@pytest.fixture
def model(tmp_path):
    """The embedded model as Megatron shards at TP 2, without a config of their own."""
    mcore = tmp_path / "mcore"
    words = [
        "--load",
        str(ASSETS / "model"),
        "--save",
        str(mcore),
        "--to",
        "mcore",
        "--target-tensor-parallel-size",
        "2",
    ]
    assert cli.run("convert", words) == 0
    (mcore / "config.json").unlink()
    return ["--load", str(mcore), "--tokenizer-name-or-path", str(ASSETS / "model")]


def reference(prompt: str, **settings) -> str:
    """transformers' own answer to a text."""
    loaded = load_model(ASSETS / "model", "fp32")
    ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
    output = loaded.model.generate(ids, max_new_tokens=12, pad_token_id=0, **settings)[0, ids.shape[1] :]
    return loaded.tokenizer.decode(output, skip_special_tokens=True)


def test_every_task_in_its_frame(model, capsys):
    output = run(capsys, "inference.py", *model, "--max-new-tokens", "12", "--task", "greedy", "do_sample", "beam_search",
                 "beam_search_with_sampling").out  # fmt: skip
    blocks = re.findall(
        r"\n(=+ ([A-Z][\w ]+) =+)\n\nYou:\nhow are you\?\n\nMindSpeed-LLM:\n(.*)\n(=+)\n\nElapsed: \d+\.?\d*s\n", output
    )
    assert {name: len(rule) for _, name, _, rule in blocks} == RULES and all(len(t) == len(r) for t, _, _, r in blocks)
    answers = {name: text for _, name, text, _ in blocks}
    assert answers["Greedy Search"] == reference("how are you?", do_sample=False)
    assert answers["Beam Search"] == reference("how are you?", do_sample=False, num_beams=2)
    again = run(capsys, "inference.py", *model, "--max-new-tokens", "12", "--task", "do_sample").out
    assert answers["Do Sample"] in again  # the seed alone decides


def test_templates_and_raw_text(model, capsys):
    greedy = ("--task", "greedy", "--max-new-tokens", "12")
    raw = run(capsys, "inference.py", *model, *greedy)
    assert "goes in as it is, as in MindSpeed-LLM" in raw.err
    named = run(capsys, "inference.py", *model, *greedy, "--prompt-type", "qwen").out
    own = run(capsys, "inference.py", *model, *greedy, "--hf-chat-template").out
    prompt = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhow are you?<|im_end|>\n"
    assert reference(f"{prompt}<|im_start|>assistant\n", do_sample=False) in named and named != raw.out != own
    both = run(capsys, "inference.py", *model, *greedy, "--prompt-type", "qwen", "--hf-chat-template", status=2)
    assert "--hf-chat-template and --prompt-type: give one" in both.err


def test_chat_keeps_so_many_turns(model, capsys, monkeypatch):
    from tuneval.data.rendering import NamedTemplate

    seen, own = [], NamedTemplate.prompt_ids
    monkeypatch.setattr(
        NamedTemplate, "prompt_ids", lambda self, m: seen.append([x.content for x in m]) or own(self, m)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nthree\nclear\nfour\nq\nnever\n"))
    words = ("--task", "chat", "--prompt-type", "qwen", "--history-turns", "1", "--max-new-tokens", "2")
    output = run(capsys, "inference.py", *model, *words).out
    asked = [[m for m in messages if m in ("one", "two", "three", "four")] for messages in seen]
    assert asked == [["one"], ["one", "two"], ["two", "three"], ["four"]]
    assert "1. If you want to quit" in output and output.count("\nMindSpeed-LLM:\n") == 4


def test_bytes_that_are_no_text_do_not_end_the_chat(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff one\nq\n"), encoding="utf-8"))
    words = ("--task", "chat", "--prompt-type", "qwen", "--max-new-tokens", "2")
    assert run(capsys, "inference.py", *model, *words).out.count("\nMindSpeed-LLM:\n") == 1


def test_an_adapter_of_other_settings_is_refused(model, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(ASSETS / "model")
    get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    words = (
        "--task",
        "greedy",
        "--lora-load",
        str(tmp_path / "lora"),
        "--lora-fusion",
        "--lora-target-modules",
        "linear_qkv",
    )
    error = run(capsys, "inference.py", *model, *words, "--lora-r", "8", "--lora-alpha", "16", status=2).err
    assert "--lora-r 8: the adapter in" in error and "has 4" in error and "--lora-alpha 16.0" in error
    of_none = ("--task", "greedy", "--lora-r", "8", "--lora-target-modules", "linear_qkv")
    told = run(capsys, "inference.py", *model, *of_none, status=2).err
    assert "--lora-r 8, --lora-target-modules: " in told and "holds no adapter" in told
    assert "--lora-fusion: no effect" in run(capsys, "inference.py", *model, *words, "--lora-r", "4").err


def test_evaluation_says_mindspeeds_lines_and_writes_ours(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ASSETS / "exam", tmp_path / "ceval")
    words = ["--task", "ceval", "--task-data-path", "ceval/val", "--no-chat-template", "--max-new-tokens", "1"]
    output = run(capsys, "evaluation.py", *model, *words, "--max-eval-samples", "3", "--micro-batch-size", "1").out
    folder = tmp_path / "evaluation" / "mcore-ceval-mindspeed_direct"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    result = json.loads((folder / "results.json").read_text())
    for row in rows:
        assert f"correct: {row['answer']}, AI: {row['prediction'] or ' '.join(row['response'].split())}\n" in output
    right = sum(row["correct"] for row in rows)
    assert f"\nceval acc = {right}/18={right / 18}\n" in output and result["questions"] == 18
    assert "animal_classification has " in output and " corrects in 3 questions, with accuracy " in output
    table = output[output.rindex("subject") :].splitlines()
    assert table[0].split() == ["subject", "question_n", "acc"] and table[-2].split()[:2] == ["total", "18"]
    assert re.fullmatch(r"Ceval Running Time: \d+\.\d+", table[-1])


@pytest.mark.parametrize(
    "words, told",
    [
        ("--task ceval --max-eval-samples 0", "--max-eval-samples 0: must be at least 1"),
        ("--task ceval --style official,lm_eval", "--style official,lm_eval: 2 styles; evaluation.py takes one"),
        ("--task ceval mmlu", "--task ceval mmlu: one exam a call; give one of"),
    ],
)
def test_what_evaluation_can_not_do_is_told_before_it_loads_a_model(model, words, told, capsys):
    error = run(capsys, "evaluation.py", *model, *words.split(), "--task-data-path", str(ASSETS / "exam"), status=2).err
    assert told in error and "loading" not in error


def test_evaluation_calls_nothing_wrong_where_answers_are_secret(model, tmp_path, capsys):
    folder = tmp_path / "exam/test"
    folder.mkdir(parents=True)
    (folder / "law_test.csv").write_text("id,question,A,B,C,D\n0,q,a,b,c,d\n", encoding="utf-8")
    words = ["--task", "ceval", "--task-data-path", str(folder), "--style", "official", "--shots", "0"]
    output = run(capsys, "evaluation.py", *model, *words, "--output", str(tmp_path / "out")).out
    assert "the right answers of test are secret" in output and "acc" not in output
    assert (tmp_path / "out/submission.json").is_file()
