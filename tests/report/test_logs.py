"""Logs of Megatron and MindSpeed-LLM stand in a report beside our own runs; nothing they don't say is made up."""

from __future__ import annotations

import csv
import io
import math
from datetime import datetime

import pytest
from pages import Page
from report_runs import make_all, make_steps

from tuneval.cli import main
from tuneval.errors import UserError
from tuneval.report.logs import read_log, read_logs
from tuneval.report.render import write_report
from tuneval.training.log_line import iteration_line, validation_lines
from tuneval.training.loop import Step

ARGUMENTS = """
------------------------ MindSpeed-LLM Arguments ------------------------
  adam_beta1 ...................................... 0.9
  bf16 ............................................ True
  global_batch_size ............................... 8
  load ............................................ ./model_weights/qwen2.5_7b
  lora_alpha ...................................... 16
  lora_r .......................................... 8
  lora_target_modules ............................. ['linear_qkv', 'linear_proj']
  lr .............................................. 1.25e-06
  lr_decay_style .................................. cosine
  min_lr .......................................... 1.25e-07
  params_dtype .................................... torch.bfloat16
  seq_length ...................................... 4096
  train_iters ..................................... 2000
  use_flash_attn .................................. True
-------------------- end of MindSpeed-LLM Arguments ---------------------
"""
# as printed by MindSpeed-LLM 2.3 (core 0.12) with --log-throughput, by torchrun's last rank
LINES = """
[default7]: [2025-03-02 10:00:05] iteration        1/    2000 | consumed samples:            8 | elapsed time per iteration (ms): 5123.4 | throughput per GPU (TFLOP/s/GPU): 61.2 | learning rate: 6.250000E-08 | global batch size:     8 | lm loss: 1.934512E+00 | loss scale: 1.0 | grad norm: 3.921 | number of skipped iterations:   0 | number of nan iterations:   0 |
[default0]:[Rank 0] (after 1 iterations) memory (MB) | allocated: 15210.5 | max allocated: 20480.0 | reserved: 22000.0 | max reserved: 22000.0
[default7]: [2025-03-02 10:00:09] iteration        2/    2000 | consumed samples:           16 | elapsed time per iteration (ms): 4000.0 | learning rate: 1.250000E-07 | global batch size:     8 | loss scale: 1.0 | number of skipped iterations:   1 | number of nan iterations:   0 |
"""
EXAM = """
INFO:__main__:correct: B, AI: B
INFO:__main__:computer_network has 13 corrects in 19 questions, with accuracy 0.6842105263157895
INFO:__main__:law has 16 corrects in 24 questions, with accuracy 0.6666666666666666
INFO:__main__:ceval acc = 29/43=0.6744186046511628
            subject  question_n       acc
0  computer_network          19  0.684211
1               law          24  0.666667
2             total          43  0.674419
INFO:__main__:ceval Running Time: 93.1
"""


def write(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def page(tmp_path, *logs, runs=()) -> Page:
    html, *_ = write_report(tuple(runs), tmp_path / "out" / "report.html", "en", logs=logs)
    found = Page(html.read_text(encoding="utf-8"))
    assert found.faults == []
    return found


def test_iteration_lines_and_arguments(tmp_path):
    run = read_log(write(tmp_path, "train.log", ARGUMENTS + LINES)).run
    first, second = run.steps
    assert (first.step, first.loss, first.grad_norm, first.lr, first.samples) == (1, 1.934512, 3.921, 6.25e-08, 8)
    assert first.seconds == pytest.approx(5.1234) and second.peak_memory_bytes == 20480 * 2**20
    assert math.isnan(second.loss) and second.grad_norm is None, "Megatron leaves out what it does not have"
    record = run.record
    assert record.method == "lora" and record.train_iters == 2000 and record.created == "2025-03-02T10:00:05"
    assert record.config["lora_target_modules"] == ["linear_qkv", "linear_proj"] and record.config["lr"] == 1.25e-06
    assert record.config["loss_reduction"] == "micro-batch" and "use_flash_attn" not in record.config
    assert record.model == {"path": "./model_weights/qwen2.5_7b"}


def test_our_own_lines_come_back(tmp_path):
    """What `tune` prints (held to the reference elsewhere) is read back to the digits it prints."""
    now, lines = datetime(2025, 3, 2, 10), []
    steps = [
        Step(step=i, loss=s.loss, grad_norm=s.grad_norm, lr=s.lr, next_lr=s.lr, samples=s.samples, tokens=s.tokens,
             trained_tokens=9, lengths=(), loss_scale=1.0, skipped=False, seconds=s.seconds,
             tokens_per_second=s.tokens_per_second, peak_memory_bytes=0)
        for i, s in enumerate(make_steps(6), 1)
    ]  # fmt: skip
    for step in steps:
        lines += [iteration_line([step], 6, 16, None, now)]
    lines += validation_lines(1.75, "iteration 6 on validation set") + validation_lines(9.0, "iteration 6 on test set")
    run = read_log(write(tmp_path, "log.txt", "\n".join(lines))).run
    assert [s.loss for s in run.steps] == [float(f"{s.loss:.6E}") for s in steps]
    assert [s.samples for s in run.steps] == [s.samples for s in steps]
    assert [(v.step, v.loss) for v in run.validations] == [(6, 1.75)], "not the test set"


def test_a_log_interval_stands_for_its_iterations(tmp_path):
    line = " iteration {:8d}/ 300 | consumed samples: {} | elapsed time per iteration (ms): 100.0 | lm loss: 2.0E+00 |"
    run = read_log(write(tmp_path, "l.log", "\n".join(line.format(n, 8 * n) for n in (100, 200, 300)))).run
    assert sum(s.seconds for s in run.steps) == pytest.approx(30.0)


def test_a_restart_goes_back(tmp_path):
    line = " iteration {:8d}/ 9 | consumed samples: {} | elapsed time per iteration (ms): 1.0 | lm loss: {}E+00 |"
    said = [(1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5), (3, 3.5)]
    run = read_log(write(tmp_path, "l.log", "\n".join(line.format(n, n, loss) for n, loss in said))).run
    assert [(s.step, s.loss) for s in run.steps] == [(1, 1.0), (2, 2.5), (3, 3.5)]


def test_a_restart_and_a_second_ranks_line_leave_the_interval_as_it_is(tmp_path):
    line = " iteration {:8d}/ {} | consumed samples: {} | elapsed time per iteration (ms): 100.0 | lm loss: 2.0E+00 |"
    said = [(100, 300), (100, 300), (200, 300), (300, 300), (200, 500), (300, 500), (400, 500)]
    run = read_log(write(tmp_path, "l.log", "\n".join(line.format(n, planned, 8 * n) for n, planned in said))).run
    assert [s.seconds for s in run.steps] == pytest.approx([10.0] * 4) and run.record.train_iters == 500


@pytest.mark.parametrize(
    "text", [EXAM, EXAM[: EXAM.index("INFO:__main__:ceval acc")], EXAM[EXAM.index("            subject") :]]
)
def test_exam_logs(tmp_path, text):
    result = read_log(write(tmp_path, "eval.log", text)).evaluation.result
    assert (result.micro["correct"], result.micro["n"]) == (29, 43)
    assert result.subjects["law"]["category"] == "Humanities" and result.subjects["law"]["name_zh"] == "法学"
    assert result.macro["accuracy"] == pytest.approx((13 / 19 + 16 / 24) / 2)
    assert set(result.categories) == {"STEM", "Humanities"}


def test_a_total_alone(tmp_path):
    result = read_log(write(tmp_path, "e.log", "mmlu acc = 50/100=0.5\n")).evaluation.result
    assert result.task == "mmlu" and result.micro["accuracy"] == 0.5 and result.categories == {}


def test_order_says_what_belongs_together(tmp_path):
    before, train, after = (
        write(tmp_path, name, text)
        for name, text in (("b.log", EXAM), ("t.log", LINES), ("a.log", EXAM.replace("13", "15")))
    )
    runs, baseline = read_logs((before, train, after))
    assert [r.label for r in runs] == ["t"] and len(runs[0].evaluations) == len(baseline) == 1
    with pytest.raises(UserError, match=r"a second result of ceval after .*t\.log"):
        read_logs((train, before, after))


def test_a_log_stands_beside_our_runs(tmp_path):
    lora, _, _ = make_all(tmp_path)
    logs = (write(tmp_path, "lab.log", ARGUMENTS + LINES), write(tmp_path, "exam.log", EXAM))
    found = page(tmp_path, *logs, runs=(lora,))
    assert "lab" in found.text and "LoRA r=8" in found.text
    assert "the mean over micro-batches" in found.text
    assert "67.4% after tuning (43 questions of 2 subjects" in found.text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text(encoding="utf-8"))))
    assert [r["run"] for r in rows] == ["LoRA r=8", "lab"] and rows[1]["tokens_per_second"] == "nan"


def test_what_a_log_does_not_say_is_called_so(tmp_path):
    found = page(tmp_path, write(tmp_path, "bare.log", LINES.split("\n", 2)[1].split("]:", 1)[1]))
    assert "tuning of an unrecorded method" in found.text.lower() and "tokens per second are not recorded" in found.text
    assert "figure-speed" not in found.ids and "figure-memory" not in found.ids and "figure-loss" in found.ids
    assert "how it is averaged is not recorded" in found.text


def test_logs_through_the_command(tmp_path, capsys):
    log = write(tmp_path, "t.log", ARGUMENTS + LINES)
    assert main(["report", "--from-log", str(log), "--output", str(tmp_path / "r.html"), "--lang", "zh"]) == 0
    assert "未记录" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "nothing of the kind\niteration over\n", "\xff\xfe"])
def test_files_that_are_no_logs(tmp_path, text):
    path = tmp_path / "x.log"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="holds neither Megatron's iteration lines"):
        read_log(path)
    with pytest.raises(UserError, match="no such file"):
        read_log(tmp_path / "nowhere.log")


def test_subjects_without_a_question_do_not_count(tmp_path):
    text = EXAM + "INFO:__main__:logic has 0 corrects in 0 questions, with accuracy nan\n"
    found = read_log(write(tmp_path, "exam.log", text)).evaluation.result
    assert set(found.subjects) == {"computer_network", "law"} and found.questions == 43
    with pytest.raises(UserError, match="holds neither"):
        read_log(write(tmp_path, "none.log", "law has 0 corrects in 0 questions\nceval acc = 0/0=nan\n"))


def test_more_right_answers_than_questions_are_an_error(tmp_path):
    with pytest.raises(UserError, match="law has 25 right answers to 24 questions"):
        read_log(write(tmp_path, "exam.log", EXAM.replace("16 corrects", "25 corrects")))


def test_a_log_that_powershell_wrote(tmp_path):
    plain = read_log(write(tmp_path, "plain.log", ARGUMENTS + LINES)).run
    (tmp_path / "wide.log").write_bytes((ARGUMENTS + LINES).replace("\n", "\r\n").encode("utf-16"))
    wide = read_log(tmp_path / "wide.log").run
    assert len(wide.steps) == 2 and wide.steps[0] == plain.steps[0] and wide.record.config == plain.record.config
