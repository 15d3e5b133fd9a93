"""Questions planted in training data are found, in records and in token files; others are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_exams import tiny_exam

from tuneval import cli
from tuneval.errors import UserError
from tuneval.evaluation.contamination import check_training_data, measure, overlap, summary, training_texts, units
from tuneval.evaluation.exam import Question

TEXTS = {
    "whole": "甲公司与乙公司签订服装加工合同，约定乙公司支付预付款1万元",
    "half": "在一个密闭的容器中发生的可逆反应达到平衡状态的标志是什么呢",
    "absent": "下列关于传输层面向连接服务特性的说法中不正确的一项是哪个",
    "english": "Which of the following best describes the structure that collects urine in the human body?",
    "short": "选出正确的",
}


def exam():
    base = tiny_exam("ceval")
    questions = tuple(
        Question(subject="logic", id=name, question=text, choices={"A": "", "B": "", "C": "", "D": ""}, answer="A")
        for name, text in TEXTS.items()
    )
    return replace(base, questions={"logic": questions})


RECORDS = [
    {"instruction": "题：" + TEXTS["whole"].replace("，", " , "), "output": "好"},
    {"conversations": [{"value": TEXTS["half"][:20] + "？"}, {"value": 7}]},
    {"output": "which of the following BEST describes the structure\nthat collects urine in the human body"},
    {"output": "选出正确的，下列关于传输层"},
]


def shares(texts) -> dict[str, float | None]:
    return {id: share for (_, id), share in overlap(exam(), texts).items()}


def test_units_of_both_scripts():
    assert units("２月，H₂O 的A_b 值") == ["2", "月", "h2o", "的", "a", "b", "值"]
    assert units("naïve Größe — 1.5") == ["naïve", "größe", "1", "5"]


def test_planted_questions_are_found():
    found = shares("\n".join(map(str, r.values())) for r in RECORDS)
    assert (found["whole"], found["absent"], found["english"], found["short"]) == (1.0, 0.0, 1.0, None)
    assert 0.3 < found["half"] < 0.7
    assert set(shares([]).values()) == {0.0, None}


def test_a_run_does_not_cross_records():
    text = TEXTS["whole"]
    assert shares([text[:10], text[10:]])["whole"] < 0.5 < shares([text])["whole"]


def test_short_questions_are_judged_with_their_choices():
    base = exam()
    question = replace(base.questions["logic"][4], choices={"A": "猫和狗", "B": "鸟", "C": "鱼", "D": "马"})
    short = replace(base, questions={"logic": (question,)})
    assert overlap(short, ["选出正确的 A. 猫和狗 B. 鸟"]) == {("logic", "short"): 0.0}
    assert overlap(short, ["选出正确的：猫和狗，鸟，鱼，马"]) == {("logic", "short"): 1.0}


@pytest.fixture
def records(tmp_path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS), encoding="utf-8")
    return path


def test_records_of_any_shape(records):
    training = measure(exam(), records, None)
    assert training.shares["logic", "whole"] == training.shares["logic", "english"] == 1.0
    assert list(training.files) == [str(records)] and len(training.files[str(records)]) == 64


def test_token_files(tmp_path, records, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    alpaca = tmp_path / "alpaca.jsonl"
    alpaca.write_text(json.dumps({"instruction": TEXTS["whole"], "output": TEXTS["english"]}) + "\n")
    words = ["preprocess", "--input", str(alpaca), "--tokenizer-name-or-path", str(tmp_path / "tokenizer")]
    assert cli.main([*words, "--output-prefix", str(tmp_path / "data/t")]) == 0
    check_training_data(tmp_path / "data/t")
    assert TEXTS["whole"] in next(training_texts(tmp_path / "data/t", tokenizer))
    found = measure(exam(), tmp_path / "data/t", tokenizer).shares
    assert (found["logic", "whole"], found["logic", "english"], found["logic", "half"]) == (1.0, 1.0, 0.0)


def test_the_score_without_them(records):
    training = measure(exam(), records, None)
    right = {("logic", name): name in ("whole", "absent") for name in TEXTS}
    found = summary(training, right)
    assert {k: found[k] for k in ("judged", "touched", "half", "whole")} == {"judged": 4, "touched": 3, "half": 2 + (
        training.shares["logic", "half"] >= 0.5), "whole": 2}  # fmt: skip
    assert found["clean"] == {"n": 1, "correct": 1, "accuracy": 1.0}
    assert summary(training, dict.fromkeys(right))["clean"] == {"n": 0, "correct": 0, "accuracy": None}


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"--train-data .*nothing: neither a record file nor the prefix of token files"):
        check_training_data(tmp_path / "nothing")
