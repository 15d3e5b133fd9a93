import json

import numpy as np
import pytest

from tuneval import cli
from tuneval.commands.inspect import answers_with_end, end_of_turn, runs

ROWS = [{"messages": [{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, texts)]} for texts in (
    ("What?", "four", "A", "B C"), ("你好", "答案"), ("What?", "four", "A", "B C"), ("A", "B " * 90)
)]  # fmt: skip


@pytest.fixture
def made(tmp_path, tokenizer):
    """Function (flags) -> prefix of a data set made with them."""
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS), encoding="utf-8")

    def make(*flags):
        words = ["--input", f"{tmp_path}/rows.jsonl", "--tokenizer-name-or-path", f"{tmp_path}/model"]
        assert cli.run("preprocess", [*words, "--output-prefix", f"{tmp_path}/data", *flags]) == 0
        return tmp_path / "data"

    return make


def shown(capsys, prefix, *flags, status=0):
    capsys.readouterr()
    assert cli.run("inspect", ["--data-path", str(prefix), *flags]) == status
    output = capsys.readouterr()
    return output.out if status == 0 else output.err


def test_sample_with_trained_parts_between_brackets(made, capsys):
    prefix = made("--seq-length", "100")
    text = shown(capsys, prefix)
    assert "<|im_start|>assistant\n⟦four<|im_end|>⟧\n<|im_start|>user\nA<|im_end|>" in text
    assert "⟦B C<|im_end|>⟧" in text
    assert "end-of-turn token: <|im_end|> trained in 2 of 2 answers" in text
    assert "end-of-turn token trained in 5 of 5 answers" in text
    assert "duplicates: 1 samples repeat an earlier one" in text
    assert "truncation: 1 over-long samples left out (--seq-length 100)" in text
    assert "rows left out: 1 over-long (of 4)" in text
    assert "lengths in tokens: p5 " in text and "3 samples, " in text
    assert "⟦答案<|im_end|>⟧" in shown(capsys, prefix, "--index", "1")


def test_newline_after_the_end_and_no_end_at_all(made, capsys):
    assert "trained in 2 of 2 answers" in shown(capsys, made("--prompt-type", "qwen_lf"))
    text = shown(capsys, made("--prompt-type", "empty"))
    assert "truncation: 0 over-long samples left out (no --seq-length)" in text
    assert "NOT TRAINED" in text and "end-of-turn token trained in 0 of 6 answers" in text


def test_files_without_a_manifest(made, capsys, tmp_path):
    prefix = made()
    (tmp_path / "data_manifest.json").unlink()
    assert "give --tokenizer-name-or-path" in shown(capsys, prefix, status=2)
    text = shown(capsys, prefix, "--tokenizer-name-or-path", str(tmp_path / "model"))
    assert "truncation: unknown (no manifest" in text and "⟦four<|im_end|>⟧" in text


def test_wrong_index_and_prefix(made, capsys, tmp_path):
    prefix = made()
    assert "--index 9: the data set has samples 0 to 3" in shown(capsys, prefix, "--index", "9", status=2)
    assert f"there is {prefix}" in shown(capsys, tmp_path / "dat", status=2)


def test_runs_and_ends(tokenizer):
    labels = np.array([-100, 5, 3, -100, -100, 6, 7, -100])
    assert runs(labels) == [(0, 1, False), (1, 3, True), (3, 5, False), (5, 7, True), (7, 8, False)]
    assert answers_with_end(labels, {3}) == (1, 2)
    assert end_of_turn(labels, labels, {3}, tokenizer) == (
        "<|im_end|> NOT TRAINED, the model won't learn to stop: in 1 of 2 answers"
    )
    twice = np.array([-100, 5, 3, 3, -100, 6, 7])  # --append-eod
    assert end_of_turn(twice, twice, {3}, tokenizer).endswith("in 1 of 2 answers")
