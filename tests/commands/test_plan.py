"""`tuneval plan` as its user meets it."""

from __future__ import annotations

import json

import token_files

from tuneval import cli
from tuneval.commands.plan_flags import memory_bytes


def test_a_run_folder_is_taken_as_tune_takes_it(tiny_folder, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    tiny_folder(name="run/model")
    (run / "config.json").write_text(json.dumps({"schema_version": 1}), encoding="utf-8")
    assert cli.run("plan", ["--load", str(run), "--seq-length", "16", "--global-batch-size", "1"]) == 0
    assert "a step: 1 samples, 16 tokens" in capsys.readouterr().out


def test_steps_are_those_that_tune_makes_of_the_training_split(tiny_folder, tmp_path, capsys):
    token_files.write(tmp_path / "d", [token_files.sample(i, 8) for i in range(100)])
    words = ["--load", str(tiny_folder()), "--data-path", str(tmp_path / "d"), "--global-batch-size", "7"]
    assert cli.run("plan", words) == 0
    assert "the run: 14 steps" in capsys.readouterr().out  # 98 of the 100 samples
    assert cli.run("plan", [*words, "--global-batch-size", "11", "--train-epochs", "2"]) == 0
    assert "the run: 17 steps" in capsys.readouterr().out  # of all 100 it would be 18


def test_what_would_be_ignored_is_an_error(tiny_folder, tmp_path, capsys):
    words = ["--load", str(tiny_folder()), "--train-epochs", "2", "--lora-load", "a", "--data-path", "nothing"]
    assert cli.run("plan", words[:-2]) == 2
    error = capsys.readouterr().err
    assert "--train-epochs 2.0: of what? Give --data-path too" in error
    assert "--lora-load a: no weights are read here; give its --lora-r" in error
    assert cli.run("plan", ["--load", str(tiny_folder()), "--lora-alpha", "8", *words[-2:]]) == 2
    error = capsys.readouterr().err
    assert "--lora-alpha 8: LoRA is off" in error and "nothing" in error


def test_memory_without_a_unit_is_an_error(tiny_folder, capsys):
    """64 bytes would be what nobody means."""
    for size in ("64", "0GiB", "GiB", "64iB"):
        assert cli.run("plan", ["--load", str(tiny_folder(name=size)), "--device-memory", size]) == 2
        assert f"--device-memory {size}: give a size such as 64GiB or 32GB" in capsys.readouterr().err
    assert [memory_bytes(size) for size in ("64GiB", "32GB", "1.5G")] == [64 * 2**30, 32 * 10**9, 1_500_000_000]
