"""quickstart: the real thing in a process without a network, and its manners."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuneval.cli import run as run_command
from tuneval.commands import quickstart, quickstart_inputs
from tuneval.config import flags, schema
from tuneval.files import read_json, read_jsonl

NO_NETWORK = """
import socket

def refuse(*arguments):
    raise RuntimeError(f"network used: {arguments}")

socket.getaddrinfo = refuse
socket.socket.connect = refuse
"""


def quickstart_process(out: Path, folder: Path) -> subprocess.CompletedProcess:
    """`tuneval quickstart --out OUT` in a fresh process that can't reach a network."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder), "COLUMNS": "160"}
    command = [sys.executable, "-m", "tuneval", "quickstart", "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    started = time.monotonic()
    process = quickstart_process(folder / "out", folder)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return folder / "out", process, time.monotonic() - started


@pytest.mark.slow
def test_takes_minutes(finished):
    assert finished[2] < 180


@pytest.mark.slow
def test_conversion_is_proven(finished):
    assert finished[1].stdout.count("EQUAL") == 2 and "NOT EQUAL" not in finished[1].stdout


@pytest.mark.slow
def test_score_is_chance_before(finished):
    micro = read_json(finished[0] / "before" / "results.json")["micro"]
    assert micro["low"] < 0.25 < micro["high"]
    assert micro["accuracy"] <= 0.35


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_tuning_lifts_the_score_on_unseen_questions(finished, method):
    folder = finished[0] / method / "evaluation" / "ceval-official"
    comparison, micro = read_json(folder / "comparison.json"), read_json(folder / "results.json")["micro"]
    assert comparison["n"] >= 150 and comparison["p_value"] < 1e-6
    assert micro["accuracy"] >= 0.6 and micro["low"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_loss_falls_and_answers_change(finished, method):
    losses = [step["loss"] for step in read_jsonl(finished[0] / method / "metrics.jsonl")]
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0]
    rows = read_jsonl(finished[0] / method / "samples.jsonl")
    assert [row["prompt"] for row in rows] == list(quickstart_inputs.PROMPTS)
    assert rows[0]["after"] == "猫头鹰属于鸟类。" != rows[0]["before"]


@pytest.mark.slow
def test_report_and_next_step_are_named(finished):
    out, process, _ = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "tuneval tune" in page and "猫头鹰属于" in page
    assert str(out / "report.html") in process.stdout
    assert "tuneval download" in process.stdout.splitlines()[-1]


@pytest.mark.slow
def test_again_does_nothing_twice(finished, tmp_path):
    started = time.monotonic()
    process = quickstart_process(finished[0], tmp_path)
    assert process.returncode == 0 and "done before" in process.stdout and "Report:" in process.stdout
    assert time.monotonic() - started < 30


def config(**values) -> schema.QuickstartConfig:
    return schema.QuickstartConfig(**values)


@pytest.mark.parametrize("model", [None, "base"])
def test_every_command_shown_can_be_typed(tmp_path, model):
    (tmp_path / "base").mkdir()
    settings = config(out=tmp_path / "out", model=tmp_path / model if model else None)
    for step in quickstart.plan(settings, quickstart_inputs.prepare(settings)):
        for command in step.commands:
            name, *words = command.words
            flags.parse(getattr(schema, f"{name.capitalize()}Config"), list(words), f"tuneval {name}")
            assert Path(quickstart.__file__).with_name(f"{name}.py").exists()


def test_missing_inputs_are_all_named(tmp_path, capsys):
    words = ["--out", str(tmp_path / "q"), "--model", "nowhere", "--data", "nothing.json", "--exam", "none.zip"]
    assert run_command("quickstart", words) == 2
    errors = capsys.readouterr().err
    assert all(name in errors for name in ("nowhere", "nothing.json", "none.zip"))
    assert not (tmp_path / "q").exists()


def test_other_files_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run_command("quickstart", ["--out", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_quickstart_of_other_inputs_is_not_mixed(tmp_path, capsys):
    quickstart.Progress(tmp_path / "q", config(out=tmp_path / "q", model=tmp_path))
    assert run_command("quickstart", ["--out", str(tmp_path / "q")]) == 2
    assert "holds a quickstart of" in capsys.readouterr().err


def test_a_failing_step_ends_it(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_command("quickstart", ["--out", str(tmp_path / "q"), "--model", str(tmp_path / "empty")]) == 2
    streams = capsys.readouterr()
    assert "no checkpoint in it" in streams.err and "\n2/" not in streams.out
    assert read_json(tmp_path / "q" / "quickstart.json")["steps"] == {}


def test_a_stopped_step_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("tuneval.commands.tune.main", lambda parsed: 130)
    with pytest.raises(SystemExit) as left:
        quickstart.run(quickstart.Command(words=("tune", "--load", "m", "--data-path", "d", "--save", str(tmp_path))))
    assert left.value.code == 130
