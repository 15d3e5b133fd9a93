"""Evaluation and generation on two real processes against one: the same letters, perplexities, replies and texts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
from lively import lively_folder
from parallel.answer_cases import BROKEN, CASES, printed
from tiny_exams import HARNESS_TASK, question
from transformers import AutoModelForCausalLM

from tuneval import cli
from tuneval.commands import evaluate_run
from tuneval.evaluation.partial import Partial
from tuneval.files import read_jsonl, write_jsonl
from tuneval.report.records import EvalResult, Prediction, read_record, read_records

WORKER = Path(__file__).parent / "answer_cases.py"
ROOT = Path(__file__).parents[2]
SUBJECTS = ("college_physics", "law", "accountant")
SOUND = [name for name in CASES if name not in BROKEN]


class Launched:
    """The files that every case reads, one torchrun of two processes, and the same commands in this process."""

    def __init__(self, folder: Path, tokenizer) -> None:
        self.folder = folder
        lively_folder(folder / "model", tokenizer, max_position_embeddings=4096)
        lively_folder(folder / "tied", tokenizer, max_position_embeddings=4096, tie_word_embeddings=True)
        odd = {"num_attention_heads": 3, "num_key_value_heads": 1}  # one and a half on each process
        lively_folder(folder / "odd", tokenizer, max_position_embeddings=4096, **odd)
        write_run(folder)
        write_exam(folder / "exam")
        write_harness_task(folder / "own")
        prompts = ("You are kind", "What is two plus two?", "A. B. C. D.", "two?", "答案是什么？")
        write_jsonl(folder / "prompts.jsonl", [{"prompt": text} for text in prompts])
        for name in CASES:
            (folder / name).mkdir()
        self.interrupted = self.interrupt(("resumed", "resumed dp"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run([*command, WORKER, folder], check=True, timeout=600, env=environment())

    def interrupt(self, names: tuple[str, ...]) -> list[dict]:
        """Leave an evaluation by one process after its first subject; returns the piece that was finished."""
        add = Partial.add

        def add_and_leave(self, *piece) -> None:
            add(self, *piece)
            raise KeyboardInterrupt

        output = self.folder / names[0]
        evaluate_run.Partial.add = add_and_leave
        try:
            with pytest.raises(KeyboardInterrupt):
                printed(CASES[names[0]], self.folder, output, 1)
        finally:
            evaluate_run.Partial.add = add
        (partial,) = output.glob(".*.partial.jsonl")
        (piece,) = read_jsonl(partial)
        write_jsonl(partial, [{**piece, "seconds": 1e6}])
        for other in names[1:]:
            shutil.copy(partial, self.folder / other)
        return piece["predictions"]

    def said(self, name: str) -> str:
        """What the job's processes printed."""
        own, other = ((self.folder / name / f"printed{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1))
        assert other == "", "process 0 alone prints"
        return own

    def alone(self, name: str) -> tuple[str, Path]:
        """What one process prints, and its folder of results."""
        output = self.folder / "alone" / name
        output.mkdir(parents=True, exist_ok=True)
        return printed(CASES[name], self.folder, output, 1), output


def environment() -> dict[str, str]:
    found = [str(WORKER.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(found)}


def write_run(folder: Path) -> None:
    """A run folder with an adapter that changes answers."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    targets = ["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, p in wrapped.named_parameters():
        if "lora_" in name:
            p.data.fill_(0.03).mul_(1 + 0.1 * (len(name) % 7))
    wrapped.peft_config["default"].base_model_name_or_path = str(folder / "model")
    wrapped.save_pretrained(folder / "run" / "adapter")
    (folder / "run" / "metrics.jsonl").write_text("")


def write_exam(folder: Path) -> None:
    for number, subject in enumerate(SUBJECTS):
        for split, count in (("val", 5 + number), ("dev", 5)):
            rows = [question("ceval", 7 * number + i, "BADC"[(i + number) % 4]) for i in range(count)]
            path = folder / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8", newline="") as file:
                lines = [[str(i), q.question, *q.choices.values(), q.answer] for i, q in enumerate(rows)]
                csv.writer(file).writerows([["id", "question", "A", "B", "C", "D", "answer"], *lines])


def write_harness_task(folder: Path) -> None:
    folder.mkdir()
    for split, count in (("val", 7), ("dev", 5)):
        rows = [question("ceval", i, "BADC"[i % 4]) for i in range(count)]
        write_jsonl(
            folder / f"{split}.jsonl", [{"question": q.question, **q.choices, "answer": q.answer} for q in rows]
        )
    (folder / "toy.yaml").write_text(HARNESS_TASK.format(folder=folder), encoding="utf-8")


@pytest.fixture(scope="module")
def launched(tmp_path_factory, tokenizer) -> Launched:
    return Launched(tmp_path_factory.mktemp("answers"), tokenizer)


def check(name: str, launched: Launched) -> None:
    """What two processes printed and wrote is what one prints and writes."""
    said, here = launched.said(name), launched.folder / name
    alone, there = launched.alone(name)
    if CASES[name].command == "evaluate":
        check_same_result(here, there)
        return
    assert said.strip() or files(here)
    assert without_times(said) == without_times(alone)
    assert files(here) == files(there)


def check_same_result(here: Path, there: Path, rounding: float = 1e-4) -> None:
    result, expected = (read_record(EvalResult, folder / "results.json") for folder in (here, there))
    assert (result.micro, result.subjects, result.unparsed) == (expected.micro, expected.subjects, expected.unparsed)
    assert (result.model["weights_sha256"], result.prompt_sha256) == (
        expected.model["weights_sha256"],
        expected.prompt_sha256,
    )
    rows, others = (read_records(Prediction, folder / "predictions.jsonl") for folder in (here, there))
    assert len({r.prediction for r in others} | {r.response for r in others}) > 2, "answers differ from each other"
    for row, other in zip(rows, others, strict=True):
        assert (row.subject, row.id, row.prediction, row.response) == (
            other.subject,
            other.id,
            other.prediction,
            other.response,
        )
        assert row.scores == pytest.approx(other.scores, abs=rounding)


def without_times(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "Elapsed" not in line)


def files(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.jsonl")}


@pytest.mark.parametrize("name", [n for n in SOUND if n not in ("letters bf16", "several styles")])
def test_two_processes_answer_as_one(name, launched):
    if "harness" in name:
        pytest.importorskip("lm_eval")
    check(name, launched)


@pytest.mark.parametrize("name", BROKEN)
def test_the_comparison_fails_where_something_is_broken(name, launched):
    with pytest.raises(AssertionError):
        check(name, launched)


@pytest.mark.parametrize("name", ["resumed", "resumed dp"])
def test_what_one_process_has_scored_is_not_scored_again(name, launched):
    """An evaluation that one process began: two go on, and leave nothing behind."""
    rows = [json.loads(line) for line in (launched.folder / name / "predictions.jsonl").read_text().splitlines()]
    first = launched.interrupted
    assert [r for r in rows if r["subject"] == first[0]["subject"]] == first  # to the last digit
    result = read_record(EvalResult, launched.folder / name / "results.json")
    assert 1e6 < result.seconds < 1e6 + 100 and result.questions == len(rows) > len(first)
    assert not list((launched.folder / name).glob(".*"))


def test_process_0_alone_writes_the_table_of_several_styles(launched):
    assert "lm_eval" in launched.said("several styles")
    matrix = json.loads((launched.folder / "several styles" / "matrix.json").read_text(encoding="utf-8"))
    assert list(matrix["styles"]) == ["official", "lm_eval"]
    check_same_result(launched.folder / "several styles" / "official", launched.folder / "letters")


def test_what_the_number_type_changes_is_measured_on_many_processes_too(launched):
    result = read_record(EvalResult, launched.folder / "letters bf16" / "results.json")
    _, there = launched.alone("letters bf16")
    expected = read_record(EvalResult, there / "results.json")
    assert result.noise["questions"] == expected.noise["questions"] > 0
    assert result.noise["largest"] == pytest.approx(expected.noise["largest"], rel=0.9)


def test_too_few_processes_are_told_before_anything_is_loaded(launched, capsys):
    words = f"generate --load {launched.folder}/model --prompt two? --tensor-model-parallel-size 2"
    assert cli.main(words.split()) == 2
    assert "needs 2 processes or a multiple; there is one process. Start 2" in capsys.readouterr().err


def started(*words: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=400, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_labs_command_line_under_torchrun(launched, tmp_path, capsys):
    """evaluation.py as a script starts it, stages included: MindSpeed-LLM's lines, once, with one process's figures."""
    folder, entry = launched.folder, str(ROOT / "evaluation.py")
    words = (
        f"--task ceval --task-data-path {folder}/exam/val --no-chat-template --max-new-tokens 1 --load {folder}/model"
    )
    words = [*words.split(), "--use-mcore-models", "--seed", "42"]
    layout = ["--pipeline-model-parallel-size", "2", "--output", str(tmp_path / "many")]
    done = started("torch.distributed.run", "--standalone", "--nproc-per-node=2", entry, *words, *layout)
    assert done.stderr.count("--pipeline-model-parallel-size: no effect, a model that only answers has no stages") == 1
    assert cli.run_entry(entry, [*words, "--output", str(tmp_path / "one")]) == 0
    assert mindspeeds_lines(done.stdout) == mindspeeds_lines(capsys.readouterr().out)
    check_same_result(tmp_path / "many", tmp_path / "one")


def mindspeeds_lines(text: str) -> list[str]:
    kept = ("correct: ", "ceval acc = ", "subject", "total")
    found = [line.strip() for line in text.splitlines()]
    found = [line for line in found if line.startswith(kept) or "corrects in" in line]
    assert len(found) > 20
    return found


@pytest.mark.slow
def test_the_command_starts_its_processes_itself(launched, capsys):
    words = f"generate --load {launched.folder}/model --prompt two? --dtype fp32 --greedy --max-new-tokens 7".split()
    done = started("tuneval", *words, "--nproc-per-node", "2", "--tensor-model-parallel-size", "2")
    assert cli.main(words) == 0
    assert done.stdout == capsys.readouterr().out
