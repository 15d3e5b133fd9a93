"""`tuneval plan` as its user meets it."""

from __future__ import annotations

import json

from tuneval import cli


def test_a_run_folder_is_taken_as_tune_takes_it(tiny_folder, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    tiny_folder(name="run/model")
    (run / "config.json").write_text(json.dumps({"schema_version": 1}), encoding="utf-8")
    assert cli.run("plan", ["--load", str(run), "--seq-length", "16", "--global-batch-size", "1"]) == 0
    assert "a step: 1 samples, 16 tokens" in capsys.readouterr().out
