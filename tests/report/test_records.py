"""Records survive the way to disk and back; what doesn't fit is named."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from tuneval.errors import UserError
from tuneval.report import records

STEP = {
    "step": 1,
    "loss": 2.5,
    "grad_norm": 1.25,
    "lr": 1e-4,
    "samples": 16,
    "tokens": 900,
    "trained_tokens": 300,
    "seconds": 2.0,
    "tokens_per_second": 450.0,
    "peak_memory_bytes": 5 * 2**30,
}
RUN = {
    "schema_version": 1,
    "command": ["tuneval", "tune"],
    "created": "2025-01-01T00:00:00+00:00",
    "config": {"lr": 1e-4},
    "versions": {"torch": "2.13.0"},
    "machine": {"cores": 2},
    "git": None,
    "method": "lora",
    "model": {"path": "m"},
    "data": {},
    "template_fingerprint": "ab",
    "parameters": {"total": 10, "trainable": 1},
    "train_samples": 100,
    "train_iters": 7,
    "baseline_evaluation": None,
}
SCORE = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "correct": 5, "n": 10}
RESULT = {
    "schema_version": 1,
    "task": "ceval",
    "style": "official",
    "shots": 5,
    "split": "val",
    "model": {"path": "m"},
    "versions": {},
    "data_sha256": "d",
    "prompt_sha256": "p",
    "template_fingerprint": None,
    "dtype": "bf16",
    "seconds": 1.5,
    "questions": 10,
    "micro": SCORE,
    "macro": {"accuracy": 0.5, "low": 0.4, "high": 0.6},
    "categories": {"STEM": {**SCORE, "macro": 0.5}},
    "subjects": {"law": {**SCORE, "name_zh": "法学", "category": "Humanities"}},
    "near_ties": 1,
    "exact_ties": 0,
    "methods": {"micro": "Wilson score interval, 95%"},
    "config": {"shots": 5},
    "machine": {"cores": 2},
    "chance": 0.25,
    "decision": {"kind": "letter_logits", "target": "{answer}"},
    "aggregation": "micro",
    "source": "a paper",
    "unparsed": 0,
    "answers": {"A": 10},
    "at_chance": False,
    "noise": {"questions": 2, "largest": 0.1, "median": 0.05, "changed": 0},
    "within_noise": 1,
    "self_test": {"trivial": 4, "trivial_right": 4, "largest_batch_difference": 0.0},
    "duplicates": {"repeated": 0},
    "contamination": {},
}
PREDICTION = {
    "subject": "law",
    "id": 0,
    "answer": "A",
    "prediction": "B",
    "correct": False,
    "scores": {"A": 1.0, "B": 2.0},
    "margin": 1.0,
    "prompt_sha256": "p",
    "response": None,
    "contamination": None,
}
COMPARISON = {
    "a": "x",
    "b": "y",
    "n": 10,
    "a_accuracy": 0.4,
    "b_accuracy": 0.5,
    "difference": 0.1,
    "low": -0.1,
    "high": 0.3,
    "a_only": 1,
    "b_only": 2,
    "p_value": 1.0,
    "verdict": "no difference shown",
    "categories": {},
    "detectable": 0.2,
    "subjects": {},
    "bootstrap": {"resamples": 10000},
}
KINDS = [
    (records.RunRecord, RUN),
    (records.Step, STEP),
    (records.Validation, {"step": 1, "loss": 2.0, "perplexity": 7.39}),
    (
        records.SampleAnswer,
        {
            "prompt": "问",
            "before": "前",
            "after": None,
            "before_stopped": True,
            "after_stopped": None,
            "settings": {"greedy": True},
        },
    ),
    (records.EvalResult, RESULT),
    (records.Prediction, PREDICTION),
    (records.Comparison, COMPARISON),
]


@pytest.mark.parametrize("kind, values", KINDS, ids=[k.__name__ for k, _ in KINDS])
def test_round_trip(kind, values, tmp_path):
    record = records.from_dict(kind, values, "here")
    assert records.to_dict(record) == values
    records.write_record(tmp_path / "one.json", record)
    assert records.read_record(kind, tmp_path / "one.json") == record
    records.write_records(tmp_path / "many.jsonl", [record])
    records.append_record(tmp_path / "many.jsonl", record)
    assert records.read_records(kind, tmp_path / "many.jsonl") == [record, record]


@pytest.mark.parametrize("kind, values", KINDS, ids=[k.__name__ for k, _ in KINDS])
def test_unknown_fields_are_ignored(kind, values):
    assert records.from_dict(kind, {**values, "of a later version": 1}, "here") == kind(**values)


def test_every_problem_at_once():
    bad = {**STEP, "loss": "low", "samples": 1.5, "step": True}
    del bad["lr"]
    with pytest.raises(UserError) as caught:
        records.from_dict(records.Step, bad, "metrics.jsonl, line 3")
    text = str(caught.value)
    assert "4 problems" in text and "metrics.jsonl, line 3: lr is missing" in text
    assert "loss must be a number" in text and "samples must be a whole number" in text and "step must be" in text


def test_nested_values_are_checked():
    with pytest.raises(UserError, match="categories must be an object"):
        records.from_dict(records.EvalResult, {**RESULT, "categories": {"STEM": 0.5}}, "results.json")


@pytest.mark.parametrize("version, words", [(2, "upgrade tuneval"), (0, "from 1"), ("1", "from 1"), (None, "from 1")])
def test_schema_version(version, words):
    with pytest.raises(UserError, match=words):
        records.from_dict(records.RunRecord, {**RUN, "schema_version": version}, "config.json")


def test_not_an_object():
    with pytest.raises(UserError, match="must hold a JSON object, found list"):
        records.from_dict(records.EvalResult, [], "results.json")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        records.read_records(records.Step, tmp_path / "metrics.jsonl")


def test_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append_record(path, records.Step(**STEP))
    path.write_text(path.read_text() + json.dumps(STEP)[:30])
    assert len(records.read_records(records.Step, path)) == 1


def test_nan_loss_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append_record(path, records.Step(**{**STEP, "loss": math.nan}))
    assert math.isnan(records.read_records(records.Step, path)[0].loss)


def test_line_separators_inside_a_text(tmp_path):
    answer = records.SampleAnswer(prompt="a\u2028b", before="c\u0085d\n", after="e\x0cf")
    records.write_records(tmp_path / "samples.jsonl", [answer])
    assert records.read_records(records.SampleAnswer, tmp_path / "samples.jsonl") == [answer]


@pytest.mark.parametrize("name", ["report-format.md", "report-format.zh-CN.md"])
def test_every_field_is_documented(name):
    text = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    missing = [f.name for kind, _ in KINDS for f in fields(kind) if f"`{f.name}`" not in text]
    assert not missing
