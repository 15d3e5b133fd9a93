"""`tuneval evaluate`: the whole path with a dummy scorer, resuming, comparing, refusing; and once with a tiny model."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from tuneval import cli
from tuneval.commands import evaluate_harness
from tuneval.commands.evaluate import evaluate
from tuneval.commands.evaluate_run import Examination, score_exam
from tuneval.config.schema import EvaluateConfig
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import STYLES
from tuneval.evaluation.harness import HarnessRow, HarnessRun
from tuneval.evaluation.margins import bf16_step, decide
from tuneval.evaluation.tasks import TASKS, load_exam
from tuneval.evaluation.units import ALONE, Ranks
from tuneval.report.comparison import compare_results
from tuneval.report.records import Comparison, EvalResult, Prediction, read_record, read_records

HEADER = ["id", "question", "A", "B", "C", "D", "answer"]
SUBJECTS = ("college_physics", "law", "accountant")
MODEL = {"path": "somewhere", "kind": "hf", "weights_sha256": "1"}


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def exam(tmp_path) -> Path:
    """Three subjects; choices are animals, and 猫 is always right."""
    folder = tmp_path / "exam"
    for number, subject in enumerate(SUBJECTS):
        for split, count in (("val", 4 + number), ("dev", 5), ("test", 3)):
            rows = []
            for i in range(count):
                animals = ["狗", "鸟", "鱼"]
                animals.insert((i + number) % 4, "猫")
                rows.append([str(i), f"问题{i}____", *animals, "ABCD"[(i + number) % 4]])
            if split == "test":
                write(folder / f"test/{subject}_test.csv", [r[:-1] for r in rows], HEADER[:-1])
            else:
                write(folder / f"{split}/{subject}_{split}.csv", rows)
    return folder


class KnowsCats:
    """A scorer that finds 猫 in every kind of style, except where the question contains `wrong`."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong, self.calls = wrong, []

    def letters(self, prompts, targets, scored):
        rows = [self._sign(p) * np.array([self._cat(p) == t.strip() for t in targets]) for p in prompts]
        self._count(prompts, scored)
        return [[float(v) + 0.001 * i for i, v in enumerate(row)] for row in rows]

    def options(self, prompts, options, scored):
        return [[(v, 1) for v in row] for row in self.letters(prompts, options[0], scored)]

    def replies(self, prompts, max_new_tokens, stops, settled, scored):
        self._count(prompts, scored)
        replies = [self._cat(p) if self._sign(p) > 0 else "不知道" for p in prompts]
        return [f" 想。所以答案是{r}。" if p.text.endswith("\n1.") else r for p, r in zip(prompts, replies)]

    def _count(self, prompts, scored) -> None:
        if "self-test" not in prompts[0].name:
            self.calls.append(len(prompts))
        for _ in prompts:
            scored(1)

    def _cat(self, prompt) -> str:
        """Letter of the line that holds 猫, in the last question of the prompt."""
        text = prompt.text or prompt.messages[-1].content
        if "本题的正确答案是" in text:
            return text.rsplit("本题的正确答案是", 1)[1][0]
        lines = [line for line in text.splitlines() if line[1:3] == ". " or line[2:4] == ". "]
        return next(line.strip()[0] for line in reversed(lines) if "猫" in line)

    def _sign(self, prompt) -> float:
        text = (prompt.text or prompt.messages[-1].content)[-60:]
        return -1.0 if self.wrong and self.wrong in text else 1.0


def run(exam: Path, output: Path, scorer=None, identity=MODEL, style: str = "official", ranks=ALONE, **changes):
    config = EvaluateConfig(
        task_data_path=exam, output=output, **{"split": "val", "style": style, "shots": 5, **changes}
    )
    read = load_exam(TASKS["ceval"], exam, config.split, (), config.limit, config.shots)
    each = Examination(exam=read, style=STYLES["ceval", style], shots=config.shots, config=config, chat=True)
    return score_exam(each, identity, scorer or KnowsCats(), output, ranks)


def test_the_whole_path(exam, tmp_path, capsys):
    result = run(exam, tmp_path / "out", KnowsCats(wrong="问题0"))
    assert result == read_record(EvalResult, tmp_path / "out/results.json")
    assert result.micro["accuracy"] == 12 / 15 and result.micro["n"] == result.questions == 15
    assert result.macro["accuracy"] == pytest.approx((3 / 4 + 4 / 5 + 5 / 6) / 3)
    assert list(result.categories) == ["STEM", "Humanities", "Other", "Hard"]
    assert result.categories["Hard"] == result.categories["STEM"]
    assert result.subjects["law"]["name_zh"] == "法学" and result.subjects["law"]["correct"] == 4
    assert result.model == MODEL and result.dtype == "bf16" and result.config["shots"] == 5
    assert "torch" in result.versions and "Wilson" in result.methods["micro"]
    rows = read_records(Prediction, tmp_path / "out/predictions.jsonl")
    assert [r.correct for r in rows if r.subject == "accountant"] == [False] + [True] * 5
    row = rows[1]
    assert (row.id, row.answer, row.prediction, row.margin) == ("1", "B", "B", pytest.approx(0.998))
    assert decide(row.scores)[0] == row.prediction and len(row.prompt_sha256) == 64
    shown = capsys.readouterr().out
    assert "college_physics" in shown and "all questions (micro)" in shown and "80.0%" in shown
    assert [p.name for p in (tmp_path / "out").iterdir() if "partial" in p.name] == []


class Dies(KnowsCats):
    """Killed when it has scored some subjects."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def letters(self, prompts, targets, scored):
        if len(self.calls) == self.after and "self-test" not in prompts[0].name:
            raise KeyboardInterrupt
        return super().letters(prompts, targets, scored)


def test_a_killed_run_goes_on_by_subject(exam, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(exam, tmp_path / "out", Dies(after=2))
    assert not (tmp_path / "out/results.json").exists() and not (tmp_path / "out/predictions.jsonl").exists()
    (partial,) = (tmp_path / "out").glob(".predictions-*.partial.jsonl")
    with open(partial, "a", encoding="utf-8") as file:
        file.write('{"subject": "accountant", "predic')  # killed while writing
    second = KnowsCats()
    resumed = run(exam, tmp_path / "out", second)
    assert second.calls == [6]
    unbroken = run(exam, tmp_path / "unbroken")
    assert (resumed.micro, resumed.subjects) == (unbroken.micro, unbroken.subjects)
    a, b = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("out", "unbroken"))
    assert a == b and not partial.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"shots": 4},
        {"limit": 2},
        {"dtype": "fp32"},
        {"batch_tokens": 64},
        {"identity": {**MODEL, "kind": "x"}},
        {"style": "qwen_base"},
        {"tokenizer_name_or_path": "elsewhere"},
    ],
)
def test_other_settings_do_not_reuse_an_unfinished_run(exam, tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        run(exam, tmp_path / "out", Dies(after=1))
    second = KnowsCats()
    run(exam, tmp_path / "out", second, **change)
    assert len(second.calls) == 3


@pytest.mark.parametrize("style", [name for task, name in STYLES if task == "ceval"])
def test_every_style_with_a_dummy_scorer(exam, tmp_path, style, capsys):
    kind = STYLES["ceval", style].decision.kind
    shots = min(2, STYLES["ceval", style].max_shots)
    result = run(exam, tmp_path / "out", KnowsCats(wrong="问题0"), style=style, shots=shots, allow_unparsed=True)
    assert result.micro["correct"] == 12 + (style == "qwen_chat")  # which takes the likest option where none is named
    assert result.decision["kind"] == kind and result.chance == 0.25
    assert result.self_test["trivial_right"] == result.self_test["trivial"] == 4
    assert result.unparsed == (3 if kind == "reply" and style not in ("qwen_chat",) else 0)
    rows = read_records(Prediction, tmp_path / "out/predictions.jsonl")
    assert all((row.response is None) == (kind != "reply") and bool(row.scores) == (kind != "reply") for row in rows)
    assert sum(result.answers.values()) == 15 - result.unparsed and not result.at_chance


def test_unreadable_replies_are_an_error_unless_allowed(exam, tmp_path):
    first = KnowsCats(wrong="问题0")
    with pytest.raises(UserError, match="3 of 15 replies hold no readable answer, such as college_physics 0: '不知道'"):
        run(exam, tmp_path / "out", first, style="oc_gen")
    assert first.calls == [4, 5, 6] and not (tmp_path / "out/results.json").exists()
    second = KnowsCats()
    result = run(exam, tmp_path / "out", second, style="oc_gen", allow_unparsed=True)
    assert second.calls == [] and result.unparsed == 3 and result.micro["correct"] == 12


class Replies(KnowsCats):
    """A scorer that says the same to every question."""

    def __init__(self, reply: str) -> None:
        super().__init__()
        self.reply = reply

    def replies(self, prompts, max_new_tokens, stops, settled, scored):
        return [self.reply for _ in prompts]


def test_answers_chosen_are_counted_whatever_is_right(exam, tmp_path, capsys):
    """Of one question a subject, whose answers are A, B and C, D is never right."""
    result = run(exam, tmp_path / "out", Replies("D"), style="oc_gen", limit=1)
    assert result.answers == {"A": 0, "B": 0, "C": 0, "D": 3}
    result = run(exam, tmp_path / "other", Replies("I say D"), style="oc_gen", limit=1)
    assert result.answers == {"A": 0, "B": 0, "C": 0, "D": 0} and result.unparsed == 0
    assert run(exam, tmp_path / "test", Replies("D"), style="oc_gen", split="test").answers["D"] == 9


def test_free_answers_are_not_counted(tmp_path):
    rows = [json.dumps({"question": f"{n}+1?", "answer": f"So {n + 1}.\n#### {n + 1}"}) for n in range(6)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    config = EvaluateConfig(task="gsm8k", task_data_path=tmp_path, split="test", style="lm_eval", shots=0)
    exam = load_exam(TASKS["gsm8k"], tmp_path, "test")
    each = Examination(exam=exam, style=STYLES["gsm8k", "lm_eval"], shots=0, config=config, chat=False)
    result = score_exam(each, MODEL, Replies("#### 3"), tmp_path / "out")
    assert result.answers == {} and result.micro["correct"] == 1


def test_ranks_divide_the_subjects(exam, tmp_path):
    """Two ranks, one after the other: the first gathers what the second would send."""
    sent: list = []

    def gather(own):
        sent.append(own)
        return [own] if len(sent) == 1 else [sent[1], sent[0]]

    scorers = KnowsCats(wrong="问题1"), KnowsCats(wrong="问题1")
    with pytest.raises(KeyError):  # rank 1 alone lacks the others' pieces
        run(exam, tmp_path / "out", scorers[1], ranks=Ranks(1, 2, gather))
    result = run(exam, tmp_path / "out", scorers[0], ranks=Ranks(0, 2, gather))
    assert sorted(scorers[0].calls + scorers[1].calls) == [4, 5, 6] and scorers[0].calls and scorers[1].calls
    alone = run(exam, tmp_path / "alone", KnowsCats(wrong="问题1"))
    assert (result.micro, result.subjects) == (alone.micro, alone.subjects)
    assert (tmp_path / "out/predictions.jsonl").read_text() == (tmp_path / "alone/predictions.jsonl").read_text()
    assert not list((tmp_path / "out").glob("*.partial.jsonl")) and not list(
        (tmp_path / "out").glob(".*.partial.jsonl")
    )


def test_an_error_of_one_rank_is_told_by_all(exam, tmp_path):
    """Else the others would wait for one that has gone on to the next style."""
    ranks = Ranks(0, 2, lambda own: [own, ("law 3: its prompt is too long", {})])
    with pytest.raises(UserError, match="law 3: its prompt is too long"):
        run(exam, tmp_path / "out", ranks=ranks)
    assert not (tmp_path / "out/results.json").exists()


def test_results_that_mean_little_are_called_out(exam, tmp_path, capsys):
    class AlwaysB(KnowsCats):
        def letters(self, prompts, targets, scored):
            return [[float(t == "B") for t in targets] for _ in prompts]

    path = exam / "val/law_val.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text(
        "\n".join([*lines, *(f"{20 + i},{lines[2].split(',', 1)[1]}" for i in range(10))]), encoding="utf-8"
    )
    result = run(exam, tmp_path / "out", AlwaysB(), limit=None)
    assert result.at_chance and result.answers == {"A": 0, "B": 25, "C": 0, "D": 0}
    assert result.duplicates == {"repeated": 19, "contradictory": 0, "worked_examples": 24}  # 问题5 is no example
    shown = capsys.readouterr().out
    assert "no better than guessing" in shown and "25 of 25 answers are B: the model chooses a letter" in shown
    assert "19 questions repeat an earlier one" in shown and "24 questions stand among the worked examples" in shown
    assert "Self-test: 1 of 4 questions whose answer stands in them were answered right" in shown


def test_secret_answers_make_a_submission(exam, tmp_path, capsys):
    result = run(exam, tmp_path / "out", split="test")
    assert result.micro == {} and result.questions == 9
    submission = json.loads((tmp_path / "out/submission.json").read_text(encoding="utf-8"))
    assert submission["college_physics"] == {"0": "A", "1": "B", "2": "C"} and list(submission) == [
        "college_physics",
        "law",
        "accountant",
    ]
    assert not (tmp_path / "out/results.json").exists()
    assert read_record(EvalResult, tmp_path / "out/record.json").prompt_sha256 == result.prompt_sha256
    rows = read_records(Prediction, tmp_path / "out/predictions.jsonl")
    assert all(r.correct is None and r.answer is None for r in rows)
    assert "secret" in capsys.readouterr().out
    with pytest.raises(UserError, match="secret, so it has no accuracy"):
        compare_results(tmp_path / "out", tmp_path / "out")


def test_comparing_two_results(exam, tmp_path, capsys):
    run(exam, tmp_path / "before", KnowsCats(wrong="问题"), identity={**MODEL, "weights_sha256": "0"})
    run(exam, tmp_path / "after", KnowsCats(wrong="问题5"))
    status = cli.main(["evaluate", "--compare", str(tmp_path / "before"), str(tmp_path / "after/results.json")])
    assert status == 0
    comparison = read_record(Comparison, tmp_path / "after/comparison.json")
    assert (comparison.n, comparison.a_only, comparison.b_only, comparison.a_accuracy) == (15, 0, 14, 0.0)
    assert comparison.difference == pytest.approx(14 / 15) and comparison.p_value == pytest.approx(2 / 2**14)
    assert list(comparison.categories) == ["STEM", "Humanities", "Other", "Hard"]
    assert comparison.categories["Other"]["b_only"] == 5
    assert comparison.verdict.startswith("after is better than before: +93.3 points")
    shown = capsys.readouterr().out
    assert comparison.verdict in shown and "p corrected for all 3 (Holm): none differs" in shown
    assert comparison.detectable == pytest.approx(2.8016 * 14**0.5 / 15, rel=1e-3)
    assert comparison.subjects["accountant"]["p_holm"] == pytest.approx(3 * 2 / 2**5)
    assert (
        comparison.bootstrap["macro_difference"] == pytest.approx((1 + 1 + 5 / 6) / 3)
        and comparison.bootstrap["micro"][1] == 1
    )
    assert (
        cli.main(
            [
                "evaluate",
                "--compare",
                str(tmp_path / "after"),
                str(tmp_path / "before"),
                "--output",
                str(tmp_path / "c"),
            ]
        )
        == 0
    )
    assert read_record(Comparison, tmp_path / "c/comparison.json").difference == -comparison.difference


def test_results_that_cannot_be_compared(exam, tmp_path):
    run(exam, tmp_path / "a")
    run(exam, tmp_path / "fewer", limit=4)
    with pytest.raises(UserError, match=r"3 questions are in .*a only \(such as accountant 4\)"):
        compare_results(tmp_path / "a", tmp_path / "fewer")
    run(exam, tmp_path / "shots", shots=2)
    with pytest.raises(UserError, match=r"shots: 5 in .*, 2 in "):
        compare_results(tmp_path / "a", tmp_path / "shots")
    path = exam / "val/law_val.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("问题3", "题目3"), encoding="utf-8")
    run(exam, tmp_path / "text")
    with pytest.raises(UserError, match=r"the prompts of 1 questions differ \(such as law 3\)"):
        compare_results(tmp_path / "a", tmp_path / "text")
    with pytest.raises(UserError, match=r"no results.json in it; give the folder"):
        compare_results(tmp_path / "a", tmp_path / "nothing")


BAD_CALLS = {
    "--compare names 0 results": [],
    "--compare names 1 results": ["--compare", "a"],
    "--limit: nothing is scored without --load": ["--compare", "a", "b", "--limit", "3"],
    "--task, --dtype: nothing is scored without --load": ["--compare", "a", "b", "--task", "mmlu", "--dtype", "fp32"],
    "--compare a a/results.json: one result twice; give two": ["--compare", "a", "a/results.json"],
    "--style officail: lm_eval:arc takes plain or chat": [
        "--load",
        "m",
        "--task",
        "lm_eval:arc",
        "--style",
        "officail",
    ],
    "--shots -1: must be 0 or more": ["--load", "m", "--task", "lm_eval:arc", "--shots", "-1"],
    "--limit -2: must be at least 1": ["--load", "m", "--task", "lm_eval:arc", "--limit", "-2"],
    "--compare: 2 results beside --load": ["--load", "m", "--task", "lm_eval:arc", "--compare", "a", "b"],
    "--output: give a folder for the result (m": ["--load", "m", "--task", "lm_eval:arc"],
    "--compare o: this call's result would take its place": [
        *("--load", "m", "--task", "lm_eval:arc", "--output", "o", "--compare", "o")
    ],
    "--style official_cot: shows the reasoning of worked examples, and 15 of 15 have none": [
        *("--load", "m", "--task-data-path", "EXAM", "--style", "official_cot", "--output", "o")
    ],
    "--task mmlv: unknown; did you mean mmlu?": ["--load", "m", "--task", "mmlv", "--task-data-path", "x"],
    "--subjects ',': names none; leave it out for all": ["--load", "m", "--task-data-path", "EXAM", "--subjects", ","],
    "--split train: ceval has dev, val, test": ["--load", "m", "--task-data-path", "EXAM", "--split", "train"],
    "--compare: needs one --style, 2 are asked for": [
        *("--load", "m", "--task-data-path", "EXAM", "--style", "official,lm_eval", "--compare", "a")
    ],
    "--task-data-path: give the exam's folder or zip": ["--load", "m"],
    "--limit 0: must be at least 1": ["--load", "m", "--task-data-path", "EXAM", "--limit", "0"],
    "--style officail: unknown; did you mean official?": [
        "--load",
        "m",
        "--task-data-path",
        "EXAM",
        "--style",
        "officail",
    ],
    "--shots 9: style official takes 0 to 5": ["--load", "m", "--task-data-path", "EXAM", "--shots", "9"],
    "did you mean law?": ["--load", "m", "--task-data-path", "EXAM", "--subjects", "lwa", "--output", "o"],
    "(m is not a run folder)": ["--load", "m", "--task-data-path", "EXAM"],
    "m: no such folder": ["--load", "m", "--task-data-path", "EXAM", "--output", "o"],
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_say_what_to_do(exam, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(exam) if word == "EXAM" else word for word in BAD_CALLS[message]]
    assert cli.main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_an_earlier_result_is_checked_before_scoring(exam, tmp_path):
    run(exam, tmp_path / "earlier", shots=2)
    config = EvaluateConfig(
        load=tmp_path / "no-model", task_data_path=exam, output=tmp_path / "o", compare=(tmp_path / "earlier",)
    )
    with pytest.raises(UserError, match="shots 2 there, 5 here; score with 2"):
        evaluate(config)
    with pytest.raises(UserError, match="questions are in this call only"):
        evaluate(replace(config, shots=2, compare=(limited(exam, tmp_path),)))


def test_an_earlier_result_of_another_chat_template_is_told_before_scoring(exam, tmp_path, monkeypatch):
    model = resources.files("tuneval.assets") / "model"
    config = EvaluateConfig(
        load=Path(str(model)), task_data_path=exam, style="lm_eval_chat", shots=0, limit=1, dtype="fp32",
        output=tmp_path / "a", subjects="law",
    )  # fmt: skip
    (first,) = evaluate(config)
    path = tmp_path / "a" / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace(first.template_fingerprint, "00" * 32), encoding="utf-8")
    monkeypatch.setattr("tuneval.commands.evaluate.score_exam", lambda *_: pytest.fail("scored"))
    with pytest.raises(
        UserError, match=r"chat template: 000000000000 in .*a, .* in this call; score both with the same"
    ):
        evaluate(replace(config, output=tmp_path / "b", compare=(tmp_path / "a",)))


def test_a_result_is_not_compared_with_itself(exam, tmp_path):
    run(exam, tmp_path / "earlier")
    (tmp_path / "file").write_text("")
    config = EvaluateConfig(load=tmp_path / "no-model", task_data_path=exam, output=tmp_path / "earlier")
    for earlier in (tmp_path / "earlier", tmp_path / "earlier/results.json"):
        with pytest.raises(UserError, match="this call's result would take its place; give another --output"):
            evaluate(replace(config, compare=(earlier,)))
    for output in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="file is a file; give a folder"):
            evaluate(replace(config, output=output))


def test_nothing_of_an_earlier_result_stays_in_the_folder(exam, tmp_path, capsys):
    run(exam, tmp_path / "out")
    run(exam, tmp_path / "other")
    assert cli.main(["evaluate", "--compare", str(tmp_path / "other"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/comparison.json").is_file()
    run(exam, tmp_path / "out", split="test", limit=2)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["predictions.jsonl", "record.json", "submission.json"]
    assert "submission.json: not every question of the exam is in it" in capsys.readouterr().err
    run(exam, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predictions.jsonl", "results.json"]


def limited(exam: Path, tmp_path: Path) -> Path:
    run(exam, tmp_path / "limited", shots=2, limit=2)
    return tmp_path / "limited"


@pytest.fixture
def letter_folder(tmp_path):
    """A run folder with a tiny model and a byte-level tokenizer of Qwen's kind, as transformers loads it."""
    from conftest import fill, tiny_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(["以下是中国关于考试的单项选择题，请选出其中的正确答案。", "猫狗鸟鱼答案：问题"], trainer)
    model = tiny_model("qwen2", vocab_size=300, max_position_embeddings=4096)
    fill(model, 0.25)
    folder = tmp_path / "run"
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder / "model")
    (folder / "metrics.jsonl").write_text("")
    return folder, model, AutoTokenizer.from_pretrained(folder / "model")


def test_a_run_folder_end_to_end(exam, letter_folder):
    """From the command line, into RUN/evaluation; logits equal those of transformers on whole prompts."""
    from tuneval.evaluation.styles import prompts

    folder, model, tokenizer = letter_folder
    command = [
        "evaluate",
        "--load",
        str(folder),
        "--task-data-path",
        str(exam),
        "--dtype",
        "fp32",
        "--batch-tokens",
        "700",
    ]
    assert cli.main(command) == 0
    assert cli.main([*command, "--shots", "0", "--split", "test"]) == 0
    assert sorted(p.name for p in (folder / "evaluation").iterdir()) == ["ceval-official", "ceval-official-test-0shot"]
    rows = read_records(Prediction, folder / "evaluation/ceval-official/predictions.jsonl")
    read = load_exam(TASKS["ceval"], exam, "val", shots=5)
    texts = [p.text for subject in read.subjects for p in prompts(STYLES["ceval", "official"], read, subject, 5)]
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]
    ids = tokenizer.convert_tokens_to_ids(list("ABCD"))
    with torch.no_grad():
        expected = [model(**tokenizer(t, return_tensors="pt")).logits[0, -1, ids] for t in texts]
    actual = torch.tensor([list(r.scores.values()) for r in rows])
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-4, rtol=0)
    assert [r.prediction for r in rows] == ["ABCD"[int(e.argmax())] for e in expected]
    earlier = folder / "evaluation/ceval-official"
    assert cli.main([*command, "--compare", str(earlier), "--output", str(folder / "again")]) == 0
    assert "no difference" in read_record(Comparison, folder / "again/comparison.json").verdict


def test_plain_text_for_want_of_a_template_is_compared(exam, letter_folder, tmp_path, capsys):
    """Whether such a style converses is the model's to say: its prompts are not known before it is loaded."""
    folder, _, _ = letter_folder
    words = ["evaluate", "--load", str(folder), "--task-data-path", str(exam), "--dtype", "fp32", "--style", "oc_gen"]
    words += ["--shots", "0", "--limit", "1", "--max-new-tokens", "1", "--allow-unparsed"]
    assert cli.main([*words, "--output", str(tmp_path / "a")]) == 0
    assert cli.main([*words, "--output", str(tmp_path / "b"), "--compare", str(tmp_path / "a")]) == 0
    assert read_record(Comparison, tmp_path / "b/comparison.json").n == 3
    told = [*words, "--limit", "2", "--output", str(tmp_path / "c"), "--compare", str(tmp_path / "a")]
    assert cli.main(told) == 2 and "questions are in this call only" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_task_of_the_harness_is_checked_and_compared_as_others_are(letter_folder, tmp_path, monkeypatch, capsys):
    """The harness itself, which need not be installed, is tried elsewhere."""
    facts = {"subject": "toy", "answer": "1", "prediction": "1", "correct": True, "prompt_sha256": "0"}
    found = HarnessRun(results={}, metric="acc", rows=[HarnessRow(id="7", **facts)], shots=2, chance=0.5)
    monkeypatch.setattr(evaluate_harness, "check_can_run", lambda *_: None)
    monkeypatch.setattr(evaluate_harness, "run_harness", lambda *_: found)
    monkeypatch.setattr(evaluate_harness.metadata, "version", lambda name: "0")
    folder, _, _ = letter_folder
    words = ["evaluate", "--load", str(folder), "--task", "lm_eval:toy", "--dtype", "fp32"]
    assert cli.main(words) == 0
    first = folder / "evaluation/lm_eval-toy-plain"
    again = [*words, "--output", str(tmp_path / "out"), "--compare", str(first)]
    assert cli.main([*again, "--noise-questions", "3"]) == 0
    assert read_record(Comparison, tmp_path / "out/comparison.json").n == 1
    assert "--noise-questions: no effect" in capsys.readouterr().err
    assert cli.main([*again, "--style", "chat"]) == 2
    told = capsys.readouterr().err
    assert "style plain there, chat here" in told and "loading" not in told
    monkeypatch.setattr(evaluate_harness, "run_harness", lambda *_: replace(found, metric=None))
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lm_eval.json"]


def test_kill_9_and_the_same_command_again(exam, letter_folder, tmp_path):
    """A real process, killed when the first of three subjects is on disk; repeated, the rest is scored."""
    folder, _, _ = letter_folder
    words = [sys.executable, "-m", "tuneval", "evaluate", "--load", str(folder), "--task-data-path", str(exam)]
    words += ["--dtype", "fp32", "--batch-tokens", "1", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (files := list((tmp_path / "out").glob(".predictions-*.partial.jsonl"))) or not files[0].stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = files[0].read_text(encoding="utf-8")
    assert not (tmp_path / "out/results.json").exists() and 0 < len(kept.splitlines()) < 3
    stamped = json.loads(kept.splitlines()[0])
    again = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    unbroken = [*words[:-1], str(tmp_path / "unbroken")]
    subprocess.run(unbroken, capture_output=True, check=True, timeout=120)
    a, b = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("out", "unbroken"))
    assert a == b and "all questions (micro)" in again.stdout
    assert not list((tmp_path / "out").glob(".*partial*")) and stamped["subject"] == "college_physics"


def test_several_styles_make_a_matrix(exam, letter_folder, tmp_path, capsys):
    """One model, one call: a result for each style, and the table of style by averaging."""
    folder, _, _ = letter_folder
    words = ["evaluate", "--load", str(folder), "--task-data-path", str(exam), "--dtype", "fp32"]
    assert cli.main([*words, "--style", "official,qwen_base", "--subjects", "law,accountant"]) == 0
    written = folder / "evaluation/ceval-matrix"
    matrix = json.loads((written / "matrix.json").read_text(encoding="utf-8"))
    assert list(matrix["styles"]) == ["official", "qwen_base"]
    for name, row in matrix["styles"].items():
        result = read_record(EvalResult, written / name / "results.json")
        assert (row["micro"], row["macro"], row["aggregation"]) == (result.micro, result.macro, result.aggregation)
    shown = capsys.readouterr().out.splitlines()
    row = next(line for line in shown if line.strip().startswith("qwen_base"))
    assert "letters" in row and row.rstrip().endswith("*") and len(row) <= 80
    assert cli.main([*words, "--style", "all", "--shots", "2", "--limit", "1", "--output", str(tmp_path / "all")]) == 0
    assert "left out, the model has no chat template: lm_eval_chat, llamafactory" in capsys.readouterr().err
    written = {p.name for p in (tmp_path / "all").iterdir() if p.is_dir()}
    assert written == {"official", "lm_eval", "oc_ppl", "oc_ppl_internal", "qwen_base", "mi_optimize"}


REAL_SUBJECTS = (
    *(
        "college_physics",
        "computer_network",
        "high_school_biology",
        "discrete_mathematics",
        "education_science",
        "marxism",
    ),
    *("law", "logic", "art_studies", "middle_school_history", "physician", "civil_servant"),
)


def real_texts(archive: Path, limit: int, shots: int, subjects: tuple[str, ...] = REAL_SUBJECTS) -> list[str]:
    """The prompts of some questions of every subject, in the order of the result."""
    from tuneval.evaluation.styles import prompts

    read = load_exam(TASKS["ceval"], archive, "val", subjects, limit, shots)
    return [p.text for subject in read.subjects for p in prompts(STYLES["ceval", "official"], read, subject, shots)]


def real_loop(folder: Path, texts: list[str], dtype: torch.dtype) -> list[torch.Tensor]:
    """One whole question at a time through transformers: the letters' logits as its own head gives them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = [tokenizer.encode(letter)[0] for letter in "ABCD"]
    with torch.no_grad():
        return [
            model(**tokenizer(t, return_tensors="pt"), logits_to_keep=1, use_cache=False).logits[0, -1, ids].float()
            for t in texts
        ]


def real_run(
    folder: Path,
    archive: Path,
    output: Path,
    dtype: str,
    limit: int,
    shots: int,
    subjects: tuple[str, ...] = REAL_SUBJECTS,
) -> tuple[EvalResult, list[Prediction]]:
    config = EvaluateConfig(
        load=folder,
        task_data_path=archive,
        subjects=",".join(subjects),
        limit=limit,
        shots=shots,
        dtype=dtype,
        noise_questions=4,
        output=output,
    )
    (result,) = evaluate(config)
    return result, read_records(Prediction, output / "predictions.jsonl")


@pytest.mark.real
@pytest.mark.slow
def test_real_letters_equal_a_plain_loop(real_model, real_data, tmp_path):
    """Twelve real subjects, fp32: the letters of one-question-at-a-time transformers, exactly."""
    archive = real_data / "ceval-exam.zip"
    result, rows = real_run(real_model, archive, tmp_path / "out", "fp32", limit=1, shots=1)
    expected = real_loop(real_model, real_texts(archive, limit=1, shots=1), torch.float32)
    assert len(result.subjects) == len(expected) == len(rows) == 12
    assert [r.prediction for r in rows] == ["ABCD"[int(e.argmax())] for e in expected]
    actual = torch.tensor([list(r.scores.values()) for r in rows])
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-3, rtol=0)
    assert result.self_test["largest_batch_difference"] < 1e-3


@pytest.mark.real
@pytest.mark.slow
def test_real_letters_in_bf16(real_model, real_data, tmp_path):
    """bf16: where a letter is not that of transformers' bf16 logits, the best two are within their noise."""
    archive, half = real_data / "ceval-exam.zip", REAL_SUBJECTS[:6]
    result, rows = real_run(real_model, archive, tmp_path / "out", "bf16", limit=1, shots=0, subjects=half)
    expected = real_loop(real_model, real_texts(archive, limit=1, shots=0, subjects=half), torch.bfloat16)
    noise = max(result.noise["largest"], *(bf16_step(float(e.max())) for e in expected))
    moved = [r for r, e in zip(rows, expected, strict=True) if "ABCD"[int(e.argmax())] != r.prediction]
    assert all(r.margin < 2 * noise for r in moved), [(r.subject, r.id, r.margin) for r in moved]
    assert len(moved) < len(rows) / 4 and result.noise["questions"] == 2 and result.exact_ties == 0
    difference = max(abs(float(v) - s) for r, e in zip(rows, expected) for v, s in zip(e, r.scores.values()))
    assert 0 < difference < 4 * noise


@pytest.mark.real
@pytest.mark.slow
def test_a_submission_of_every_subject(real_data, tmp_path, capsys):
    """The first test questions of all 52 subjects of the official zip, by the embedded tiny model.

    In the form that C-Eval's site takes. Without --limit it holds all 12,342.
    """
    model = resources.files("tuneval.assets").joinpath("model")
    words = ["evaluate", "--load", str(model), "--task-data-path", str(real_data / "ceval-exam.zip"), "--split", "test"]
    assert cli.main([*words, "--shots", "0", "--limit", "3", "--output", str(tmp_path / "out")]) == 0
    submission = json.loads((tmp_path / "out/submission.json").read_text(encoding="utf-8"))
    with zipfile.ZipFile(real_data / "ceval-exam.zip") as archive:
        for subject, answers in submission.items():
            rows = csv.DictReader(io.StringIO(archive.read(f"test/{subject}_test.csv").decode("utf-8-sig"), newline=""))
            assert list(answers) == [row["id"] for row in rows][:3]
    assert len(submission) == 52 and sum(map(len, submission.values())) == 156
    assert {letter for answers in submission.values() for letter in answers.values()} <= set("ABCD")
    shown = capsys.readouterr()
    assert not (tmp_path / "out/results.json").exists() and "the right answers of test are secret" in shown.out
    assert "not every question of the exam is in it" in shown.err
