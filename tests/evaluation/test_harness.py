"""lm-evaluation-harness over a loaded model: its figures are this project's own, offline, with nothing of the data run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lively import lively_folder
from tiny_exams import HARNESS_TASK, SUBJECTS, tiny_exam

pytest.importorskip("lm_eval")

from tuneval import cli
from tuneval.checkpoints.load import load_model
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import STYLES
from tuneval.evaluation.harness import run_harness
from tuneval.evaluation.styles import prompts
from tuneval.report.records import EvalResult, Prediction, read_record, read_records


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder with the tiny exam as a task of the harness."""
    folder, exam = tmp_path / "own", tiny_exam("ceval", 6)
    folder.mkdir()
    for split, rows in (("val", exam.questions["logic"]), ("dev", exam.dev["logic"])):
        lines = [json.dumps({"question": q.question, **q.choices, "answer": q.answer}) + "\n" for q in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    (folder / "toy.yaml").write_text(HARNESS_TASK.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> Path:
    return lively_folder(
        tmp_path_factory.mktemp("harness") / "model", tokenizer, "qwen2", max_position_embeddings=4096
    )  # fmt: skip


@pytest.mark.parametrize("style, chat", [("lm_eval", False), ("lm_eval_chat", True)])
def test_the_styles_named_after_it_are_its_own(own, model, style, chat):
    """Prompt by prompt the same text, question by question the same log probabilities."""
    from tuneval.evaluation.model_scorer import ModelScorer
    from tuneval.inference.generate import choose_template
    from tuneval.model.decoder import Decoder

    loaded, exam = load_model(model, "fp32"), tiny_exam("ceval", 6)
    theirs = run_harness(loaded, "toy_ceval", own, 3, chat, None)
    rows = prompts(STYLES["ceval", style], exam, SUBJECTS["ceval"], 3)
    scorer = ModelScorer(loaded, Decoder(loaded.model).eval(), choose_template(loaded, None), 4096)
    decision = STYLES["ceval", style].decision
    ours = decision.answers(scorer, rows, exam.questions["logic"], lambda n: None)
    check_equal(ours, theirs.rows, chat)
    assert (theirs.metric, theirs.shots, theirs.chance) == ("acc", 3, 0.25)
    other = prompts(STYLES["ceval", "llamafactory" if chat else "official"], exam, SUBJECTS["ceval"], 3)
    with pytest.raises(AssertionError):
        check_equal(decision.answers(scorer, other, exam.questions["logic"], lambda n: None), theirs.rows, chat)


def check_equal(ours, theirs, chat: bool) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert "ABCD"[int(other.prediction)] == mine.prediction
        values, expected = list(mine.scores.values()), list(other.scores.values())
        shift = expected[0] - values[0]  # the harness counts the newline of the generation prompt too
        assert (abs(shift) < 1e-3) != chat
        assert [v + shift for v in values] == pytest.approx(expected, abs=1e-3)


def test_from_the_command_line(own, model, tmp_path, capsys):
    words = [
        "evaluate",
        "--load",
        str(model),
        "--task",
        "lm_eval:toy_ceval",
        "--task-data-path",
        str(own),
        "--shots",
        "2",
    ]
    assert cli.main([*words, "--output", str(tmp_path / "out"), "--limit", "4", "--dtype", "fp32"]) == 0
    result = read_record(EvalResult, tmp_path / "out/results.json")
    rows = read_records(Prediction, tmp_path / "out/predictions.jsonl")
    recorded = json.loads((tmp_path / "out/lm_eval.json").read_text())["results"]["toy_ceval"]
    assert result.micro["accuracy"] == recorded["acc,none"] == sum(r.correct for r in rows) / 4
    assert result.shots == 2 and result.versions["lm_eval"] and list(result.subjects) == ["toy_ceval"]
    assert all((r.prediction == r.answer) == r.correct for r in rows)
    assert "toy_ceval" in capsys.readouterr().out
    again = [*words, "--output", str(tmp_path / "again"), "--limit", "4", "--dtype", "fp32"]
    assert cli.main([*again, "--compare", str(tmp_path / "out")]) == 0
    assert "no difference" in capsys.readouterr().out
    assert cli.main([*again, "--style", "official"]) == 2
    assert "--style official: lm_eval:toy_ceval takes plain or chat" in capsys.readouterr().err


def test_nothing_is_fetched_and_nothing_is_run(own, model):
    loaded = load_model(model, "fp32")
    with pytest.raises(UserError, match="lm-evaluation-harness knows no such task"):
        run_harness(loaded, "no_such_task", None, None, False, None)
    with pytest.raises(UserError, match=r"its data is not on this machine(.|\n)*The network is not used here"):
        run_harness(loaded, "hellaswag", None, None, False, None)
    bad, marker = own / "toy.yaml", own / "ran"
    good = bad.read_text(encoding="utf-8")
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(marker) + "') }}"
    bad.write_text(good.replace("{{question.strip()}}", reach), encoding="utf-8")
    with pytest.raises(Exception, match="unsafe"):
        run_harness(loaded, "toy_ceval", own, 0, False, None)
    assert not marker.exists()
    bad.write_text(good + "process_docs: !function utils.f\n", encoding="utf-8")
    (own / "utils.py").write_text(f"import os\nos.mkdir('{marker}')\n")
    with pytest.raises(UserError, match=r"toy.yaml: calls Python \(!function"):
        run_harness(loaded, "toy_ceval", own, 0, False, None)
    assert not marker.exists()
