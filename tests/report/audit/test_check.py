"""`tuneval report --check`: a real run is sound; each way to spoil it is named."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from token_files import sample, write

from tuneval.cli import main
from tuneval.errors import UserError
from tuneval.files import read_json, read_jsonl, write_json, write_jsonl
from tuneval.report.audit.check import check_run
from tuneval.report.audit.findings import OPEN, WRONG
from tuneval.training.log_line import loaded_lines

ASSETS = Path(str(resources.files("tuneval.assets")))


def tuneval(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base, its data, and two runs: LoRA (scored, compared) and full, 8 steps each."""
    place = tmp_path_factory.mktemp("audit")
    shutil.copytree(ASSETS / "model", place / "base")
    shutil.copytree(ASSETS / "exam", place / "exam")
    tuneval("preprocess", "--input", ASSETS / "records.jsonl", "--tokenizer-name-or-path", place / "base",
            "--output-prefix", place / "data" / "zh")  # fmt: skip
    common = ("--load", place / "base", "--data-path", place / "data" / "zh", "--fp32", "--seq-length", 40,
              "--global-batch-size", 8, "--train-iters", 8, "--eval-interval", 4, "--eval-iters", 1)  # fmt: skip
    exam = ("--task-data-path", place / "exam", "--shots", 0, "--limit", 4)
    tuneval("evaluate", "--load", place / "base", *exam, "--output", place / "before")
    tuneval("tune", *common, "--save", place / "lora", "--lora-r", 4, "--lr", "1e-2", "--lr-warmup-iters", 2)
    tuneval("tune", *common, "--save", place / "full", "--lr", "1e-3", "--lr-decay-style", "linear")
    scored = ("--output", place / "lora" / "evaluation" / "ceval-official")
    trained = ("--train-data", ASSETS / "records.jsonl")
    tuneval("evaluate", "--load", place / "lora", *exam, *trained, "--compare", place / "before", *scored)
    return place


@pytest.fixture
def lora(place, tmp_path) -> Path:
    shutil.copytree(place / "lora", tmp_path / "lora")
    return tmp_path / "lora"


def wrong(run: Path) -> dict[str, str]:
    return {f.what: f.detail for f in check_run(run).found if f.state == WRONG}


def test_sound_runs(place):
    for name in ("lora", "full"):
        found = check_run(place / name)
        assert wrong(place / name) == {} and found.sound
    states = {f.what: f.state for f in check_run(place / "lora").found}
    assert OPEN not in states.values(), states
    assert len(states) >= 20


def change_row(path: Path, number: int, **values) -> None:
    rows = read_jsonl(path)
    rows[number] = {**rows[number], **values}
    write_jsonl(path, rows)


def change_json(path: Path, *keys: str, value) -> None:
    values = read_json(path)
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(path, values)


def drop_row(path: Path, number: int) -> None:
    rows = read_jsonl(path)
    del rows[number]
    write_jsonl(path, rows)


def change_adapter(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


RESULT = "evaluation/ceval-official/results.json"
PREDICTIONS = "evaluation/ceval-official/predictions.jsonl"


def flip_prediction(run: Path) -> None:
    row = read_jsonl(run / PREDICTIONS)[0]
    change_row(run / PREDICTIONS, 0, correct=not row["correct"])


@pytest.mark.parametrize(
    "spoil, what, detail",
    [
        (lambda r: (r / "config.json").unlink(), "config.json", "no such file"),
        (lambda r: (r / "metrics.jsonl").unlink(), "metrics.jsonl", "is missing"),
        (lambda r: drop_row(r / "metrics.jsonl", 3), "steps in order", "line 4 of metrics.jsonl is step 5"),
        (lambda r: drop_row(r / "metrics.jsonl", -1), "all steps done", "ends at step 7 of 8"),
        (lambda r: change_row(r / "metrics.jsonl", 2, loss=0.5), "log.txt agrees with metrics.jsonl", "step 3: loss"),
        (lambda r: change_row(r / "metrics.jsonl", 2, loss=float("nan")), "losses are numbers", "step 3: nan"),
        (lambda r: change_row(r / "metrics.jsonl", 4, lr=0.005), "learning rates follow the schedule", "step 5: 5.0"),
        (lambda r: change_row(r / "metrics.jsonl", 1, samples=99), "samples = steps x global batch size", "step 2: 99, not 16"),
        (lambda r: change_row(r / "metrics.jsonl", 1, trained_tokens=10**6), "trained tokens within tokens", "step 2"),
        (lambda r: change_row(r / "metrics.jsonl", 1, seconds=1e-9), "speed = tokens / seconds", "step 2"),
        (lambda r: change_row(r / "metrics.jsonl", 5, trained_tokens=1), "tokens of every step, counted again", "step 6"),
        (lambda r: change_json(r / "config.json", "config", "seed", value=9), "tokens of every step, counted again", "step 1"),
        (lambda r: change_json(r / "config.json", "config", "lora_r", value=8), "adapter/adapter_config.json agrees with config.json",
         "r is 4, config.json says 8"),
        (lambda r: change_row(r / "validation.jsonl", 1, perplexity=1.0), "validations", "step 4: 1, not"),
        (lambda r: change_row(r / "validation.jsonl", 1, step=3), "validations", "step 3: none is due there"),
        (lambda r: shutil.rmtree(r / "adapter"), "adapter/", "is missing: the run has no result"),
        (lambda r: change_json(r / "adapter/tuneval.json", "data_sha256", value="0"), "adapter/tuneval.json agrees with config.json",
         "data_sha256 is 0"),
        *((lambda r, name=name: (r / "adapter" / name).write_text("[1]"), f"adapter/{what}", "must hold a JSON object, found a list")
          for name, what in (("tuneval.json", "tuneval.json agrees with config.json"), ("adapter_config.json", ""))),
        (lambda r: (r / "adapter/tuneval.json").unlink(), "adapter/tuneval.json agrees with config.json", "no such file"),
        (lambda r: change_adapter(r / "adapter", lambda t: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in t.items()}),
         "the adapter was tuned", "is still zero"),
        (lambda r: change_adapter(r / "adapter", lambda t: dict(list(t.items())[:-1])), "parameters of the adapter", "config.json says"),
        (lambda r: change_adapter(r / "adapter", lambda t: {k: v * 2 for k, v in t.items()}),
         "ceval-official: the model scored is this run's", "its weights have hash"),
        (lambda r: change_json(r / "config.json", "model", "weights_sha256", value="0" * 64), "weights it started from", "config.json says 000"),
        (lambda r: (r / "log.txt").unlink(), "log.txt agrees with metrics.jsonl", "log.txt is missing"),
        (lambda r: change_json(r / RESULT, "micro", "accuracy", value=0.9), "ceval-official: results.json follows from predictions.jsonl",
         "micro.accuracy is 0.9"),
        (lambda r: change_json(r / RESULT, "subjects", "world_geography", "low", value=0.01),
         "ceval-official: results.json follows from predictions.jsonl", "subjects.world_geography.low"),
        *((lambda r, name=name, value=value: change_json(r / RESULT, name, value=value),
           "ceval-official: results.json follows from predictions.jsonl", f"{name} is {value}, the predictions give")
          for name, value in (("within_noise", 99), ("exact_ties", 99), ("near_ties", 99), ("unparsed", 99))),
        (lambda r: change_json(r / RESULT, "contamination", "touched", value=99),
         "ceval-official: results.json follows from predictions.jsonl", "contamination.touched is 99"),
        (lambda r: change_json(r / RESULT, "contamination", "clean", "accuracy", value=0.99),
         "ceval-official: results.json follows from predictions.jsonl", "contamination.clean.accuracy is 0.99"),
        (lambda r: drop_row(r / PREDICTIONS, 0), "ceval-official: results.json follows from predictions.jsonl", "predictions"),
        (flip_prediction, "ceval-official: predictions agree with their scores", "is called"),
        (lambda r: change_row(r / PREDICTIONS, 0, scores={"A": 0.0, "B": 0.0, "C": 0.0, "D": 9.0}, prediction="A"),
         "ceval-official: predictions agree with their scores", "its scores say D"),
        (lambda r: change_row(r / PREDICTIONS, 0, answer="E"), "ceval-official: the exam's own answers", "the exam says"),
        (lambda r: (r / "samples.jsonl").write_text('{"prompt": 3}\n'), "samples.jsonl", "prompt must be a text"),
    ],
)  # fmt: skip
def test_each_fault_is_named(lora, spoil, what, detail):
    spoil(lora)
    found = wrong(lora)
    assert what in found, found
    assert detail in found[what]


def test_a_comparison_is_computed_again(lora):
    path = lora / "evaluation/ceval-official/comparison.json"
    change_json(path, "p_value", value=0.001)
    what = "ceval-official: comparison.json follows from both predictions"
    assert "p_value is 0.001" in wrong(lora)[what]


@pytest.mark.parametrize(
    "keys, value, detail",
    [
        (("bootstrap", "macro"), [0.9, 1.0], "bootstrap.macro is 0.9"),
        (("subjects", "world_geography", "p_holm"), 0.01, "subjects.world_geography.p_holm is 0.01"),
        (("detectable",), 0.001, "detectable is 0.001"),
        (("verdict",), "after is better than before: +40.0 points", "the verdict says otherwise: after is better"),
    ],
)
def test_every_figure_of_a_comparison_is_computed_again(lora, keys, value, detail):
    change_json(lora / "evaluation/ceval-official/comparison.json", *keys, value=value)
    assert detail in wrong(lora)["ceval-official: comparison.json follows from both predictions"]


def test_replies_are_read_again(place, lora):
    """A prediction is what the style's rule finds in the reply; a reply that was put right later is not."""
    tuneval("evaluate", "--load", place / "lora", "--task-data-path", place / "exam", "--style", "oc_gen", "--shots", 0,
            "--limit", 2, "--max-new-tokens", 3, "--allow-unparsed", "--output", lora / "evaluation" / "ceval-oc_gen")  # fmt: skip
    assert wrong(lora) == {}
    rows = lora / "evaluation/ceval-oc_gen/predictions.jsonl"
    number = next(i for i, row in enumerate(read_jsonl(rows)) if not row["correct"])
    change_row(rows, number, response="E")
    assert "its reply says" in wrong(lora)["ceval-oc_gen: the exam's own answers"]


def test_a_wrong_reply_that_is_called_right(place, lora):
    folder = lora / "evaluation" / "ceval-oc_gen"
    tuneval("evaluate", "--load", place / "lora", "--task-data-path", place / "exam", "--style", "oc_gen", "--shots", 0,
            "--limit", 1, "--max-new-tokens", 3, "--allow-unparsed", "--output", folder)  # fmt: skip
    number = next(i for i, row in enumerate(read_jsonl(folder / "predictions.jsonl")) if not row["correct"])
    change_row(folder / "predictions.jsonl", number, correct=True)
    assert "is called right" in wrong(lora)["ceval-oc_gen: predictions agree with their scores"]


def test_a_result_in_the_evaluation_folder_itself(lora):
    """The report reads it there, too."""
    shutil.copytree(lora / "evaluation" / "ceval-official", lora / "own")
    shutil.rmtree(lora / "evaluation")
    shutil.move(lora / "own", lora / "evaluation")
    assert wrong(lora) == {}
    change_json(lora / "evaluation" / "results.json", "micro", "accuracy", value=0.9)
    assert "micro.accuracy is 0.9" in wrong(lora)["evaluation: results.json follows from predictions.jsonl"]


def test_a_reply_may_hold_what_is_no_label(place, lora):
    """`I say B` answers I with the style's rule, the first capital: wrong, but honest."""
    folder = lora / "evaluation" / "ceval-oc_gen"
    tuneval("evaluate", "--load", place / "lora", "--task-data-path", place / "exam", "--style", "oc_gen", "--shots", 0,
            "--limit", 1, "--max-new-tokens", 3, "--allow-unparsed", "--output", folder)  # fmt: skip
    rows, results = read_jsonl(folder / "predictions.jsonl"), read_json(folder / "results.json")
    number = next(i for i, row in enumerate(rows) if not row["correct"])
    unparsed = results["unparsed"] - (rows[number]["prediction"] is None)
    answers = {x: n - (rows[number]["prediction"] == x) for x, n in results["answers"].items()}
    write_json(folder / "results.json", {**results, "unparsed": unparsed, "answers": answers})
    change_row(folder / "predictions.jsonl", number, response="I say B", prediction="I")
    assert wrong(lora) == {}
    change_json(folder / "results.json", "answers", "B", value=99)
    assert "answers chosen are" in wrong(lora)["ceval-oc_gen: results.json follows from predictions.jsonl"]


# --- honest runs that are out of the ordinary ---


def tune_more(place: Path, run: Path, *words: object) -> None:
    tuneval("tune", "--load", place / "base", "--data-path", place / "data" / "zh", "--fp32", "--seq-length", 40,
            "--global-batch-size", 8, "--eval-iters", 1, "--lora-r", 4, "--lr", "1e-2", "--lr-decay-style", "constant",
            "--lr-decay-iters", 99, "--save", run, *words)  # fmt: skip


@pytest.fixture(scope="module")
def continued(place) -> Path:
    """A run of 3 steps, continued to 6 with other intervals."""
    tune_more(place, place / "continued", "--train-iters", 3, "--eval-interval", 2, "--log-interval", 2)
    tune_more(place, place / "continued", "--train-iters", 6, "--eval-interval", 5)
    return place / "continued"


def test_a_continued_run_may_have_had_other_settings(continued):
    found = {f.what: f for f in check_run(continued).found}
    assert wrong(continued) == {}
    assert found["validations"].state == found["log.txt agrees with metrics.jsonl"].state == OPEN
    assert "step 2: none is due there, but the run was continued at step 3" in found["validations"].detail
    assert "up to step 3" in found["log.txt agrees with metrics.jsonl"].detail


@pytest.mark.parametrize(
    "spoil, what, detail",
    [
        (lambda r: change_row(r / "validation.jsonl", 3, step=4), "validations", "step 4: none is due there"),
        (lambda r: change_row(r / "validation.jsonl", 1, perplexity=1.0), "validations", "step 2: 1, not"),
        (lambda r: change_row(r / "metrics.jsonl", 4, loss=0.5), "log.txt agrees with metrics.jsonl", "step 5: loss"),
    ],
)
def test_a_continuation_excuses_nothing_else(continued, tmp_path, spoil, what, detail):
    shutil.copytree(continued, tmp_path / "run")
    spoil(tmp_path / "run")
    found = wrong(tmp_path / "run")
    assert list(found) == [what] and detail in found[what]


def test_the_checkpoint_of_load_continues_no_run(lora):
    """Megatron's own lines about `--load`."""
    lines = "\n".join(loaded_lines("megatron/checkpoints", 1000))
    (lora / "log.txt").write_text(f"{lines}\n{(lora / 'log.txt').read_text()}")
    change_row(lora / "validation.jsonl", 1, step=3)
    assert "step 3: none is due there" in wrong(lora)["validations"]


@pytest.fixture(scope="module")
def skipping(place) -> Path:
    """A run whose second step has no trainable token."""
    rows = [sample(i, 12) for i in range(8)]
    rows[2:4] = [(ids, labels * 0 - 100) for ids, labels in rows[2:4]]
    facts = read_json(place / "data" / "zh_manifest.json")
    write(place / "skipping-data", rows, {**facts, "samples": len(rows), "data_sha256": "0", "files_sha256": {}})
    tuneval("tune", "--load", place / "base", "--data-path", place / "skipping-data", "--fp32", "--seq-length", 40,
            "--global-batch-size", 2, "--train-iters", 4, "--split", "100,0,0", "--no-shuffle", "--lr", "1e-2",
            "--lr-decay-style", "linear", "--lora-r", 4, "--save", place / "skipping")  # fmt: skip
    return place / "skipping"


def test_a_step_without_a_trainable_token(skipping):
    """It does not advance the schedule. Nor are there samples to validate with."""
    assert [row["trained_tokens"] for row in read_jsonl(skipping / "metrics.jsonl")] == [20, 0, 20, 20]
    assert wrong(skipping) == {}
    details = {f.what: f.detail for f in check_run(skipping).found}
    assert details["learning rates follow the schedule"] == "linear, peak 0.01, 1 steps skipped"


@pytest.mark.parametrize(
    "values, what",
    [
        ({"trained_tokens": 0}, "trained tokens within tokens"),
        ({"trained_tokens": 0, "tokens": 0, "tokens_per_second": 0.0}, "trained tokens within tokens"),
        ({"trained_tokens": 0, "tokens": 0, "loss": 0.0}, "learning rates follow the schedule"),
        ({"trained_tokens": 0, "tokens": 0, "loss": 0.0}, "tokens of every step, counted again"),
    ],
)
def test_a_step_that_was_not_skipped(skipping, tmp_path, values, what):
    shutil.copytree(skipping, tmp_path / "run")
    change_row(tmp_path / "run" / "metrics.jsonl", 2, **values)
    assert what in wrong(tmp_path / "run")


def test_steps_that_overflowed_fp16(place):
    run = place / "fp16"
    tuneval("tune", "--load", place / "base", "--data-path", place / "data" / "zh", "--fp16", "--seq-length", 40,
            "--global-batch-size", 8, "--train-iters", 6, "--eval-iters", 0, "--lr", "1e-2", "--lr-decay-style", "linear",
            "--lora-r", 4, "--initial-loss-scale", 2**18, "--hysteresis", 1, "--save", run)  # fmt: skip
    overflows = [row["grad_norm"] is None for row in read_jsonl(run / "metrics.jsonl")]
    assert overflows[0] and not overflows[-1]
    assert wrong(run) == {}
    change_row(run / "metrics.jsonl", 5, lr=0.01 / 6)  # as without skipped steps
    assert "step 6: 1.66" in wrong(run)["learning rates follow the schedule"]


def test_data_that_was_changed(place, lora, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    change_json(lora / "config.json", "config", "data_path", value=str(tmp_path / "data" / "zh"))
    assert wrong(lora) == {}
    file = tmp_path / "data" / "zh_packed_labels_document.bin"
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    assert "is not the file that the manifest describes" in wrong(lora)["training data"]


def test_a_full_run_that_was_not_tuned(place, tmp_path):
    shutil.copytree(place / "full", tmp_path / "full")
    for file in (place / "base").glob("*.safetensors"):
        shutil.copyfile(file, tmp_path / "full" / "model" / file.name)
    assert "those it started from" in wrong(tmp_path / "full")["the model was tuned"]


def test_what_is_on_another_machine_is_open_not_wrong(lora):
    for key in ("load", "data_path"):
        change_json(lora / "config.json", "config", key, value="/elsewhere/x")
    change_json(lora / "config.json", "model", "path", value="/elsewhere/x")
    change_json(lora / RESULT, "config", "task_data_path", value="/elsewhere/exam.zip")
    found = check_run(lora)
    assert found.sound
    opened = {f.what for f in found.found if f.state == OPEN}
    assert {"weights it started from", "training data", "ceval-official: the exam's own answers"} <= opened


def test_the_command(place, lora, capsys):
    assert main(["report", "--check", str(place / "full")]) == 0
    assert "complete and consistent" in capsys.readouterr().out
    change_row(lora / "metrics.jsonl", 2, loss=0.5)
    assert main(["report", "--check", str(place / "full"), str(lora)]) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said and "1 of " in said
    assert main(["report", str(lora), "--check", str(lora)]) == 2
    assert "makes no page" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such folder"):
        check_run(lora / "nowhere")


def test_records_that_are_no_json(lora):
    (lora / RESULT).write_text(json.dumps({"schema_version": 1}))
    assert "micro is missing" in wrong(lora)["ceval-official: results.json"]
