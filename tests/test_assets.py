"""The embedded model, records and exam: found, small, sound, rebuilt to the byte, and kept apart."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import assets_world as world  # noqa: E402

from tuneval.evaluation.tasks import TASKS, load_exam  # noqa: E402

LETTERS = "ABCD"


@pytest.fixture(scope="module")
def assets() -> Path:
    return Path(str(resources.files("tuneval.assets")))


@pytest.fixture(scope="module")
def tokenizer(assets):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets / "model")


@pytest.fixture(scope="module")
def records(assets) -> list[dict]:
    return [json.loads(line) for line in (assets / "records.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def exam(assets):
    return load_exam(TASKS["ceval"], assets / "exam", "val", shots=5)


def all_questions(exam):
    return [question for rows in exam.questions.values() for question in rows]


def test_size(assets):
    sizes = {p.relative_to(assets): p.stat().st_size for p in assets.rglob("*") if p.is_file()}
    assert sum(sizes.values()) < 4 * 2**20
    assert max(sizes.values()) < 3 * 2**20


def test_model_is_qwen2_in_bf16(assets):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(assets / "model")
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.dtype == torch.bfloat16
    assert 900_000 < sum(p.numel() for p in model.parameters()) < 2_000_000
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_tokenizer_has_qwen_shape(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("text", ["猫头鹰属于鸟类。\nA. 老虎", "Hello, 世界 龘 🙂\t\n\n  end", "答案：D"])
def test_tokenizer_gives_any_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_letters_are_single_tokens(tokenizer):
    head = tokenizer("\n答案：")["input_ids"]
    ids = [tokenizer(f"\n答案：{letter}")["input_ids"] for letter in LETTERS]
    assert all(i[:-1] == head for i in ids)
    assert len({i[-1] for i in ids}) == 4


def test_data_is_rebuilt_from_the_seed(assets, tmp_path):
    command = [sys.executable, str(SCRIPTS / "make_assets.py"), "--only", "data", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(made) == 14  # six subjects twice, the mapping, the records
    assert [p for p in made if (tmp_path / p).read_bytes() != (assets / p).read_bytes()] == []


def test_tokenizer_is_rebuilt_from_the_world(assets, tmp_path):
    from assets_tokenizer import build_tokenizer

    build_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (assets / "model" / "tokenizer.json").read_bytes()


def test_exam_covers_the_categories(exam):
    assert {subject.category for subject in exam.subjects.values()} == {"STEM", "Social Science", "Humanities", "Other"}
    answers = [question.answer for question in all_questions(exam)]
    assert len(answers) >= 150
    assert all(0.2 < answers.count(letter) / len(answers) < 0.3 for letter in LETTERS)


def named(question) -> list[tuple[str, str]]:
    """(entity, value) pairs of the world that the question is about: for each option, what choosing it claims."""
    for relation in world.SUBJECTS[question.subject][3]:
        for entity, _ in relation.pairs:
            if relation.ask_value.format(e=entity) == question.question:
                return [relation, *((entity, option) for option in question.choices.values())]
    raise AssertionError(f"{question.question}: asks nothing that the world knows")


def test_exactly_one_option_is_right(exam):
    for question in all_questions(exam):
        relation, *claims = named(question)
        right = [letter for letter, claim in zip(LETTERS, claims) if claim in relation.pairs]
        assert right == [question.answer], question


def overlap(exam, records) -> set[str]:
    """Entities of the exam's questions that the records name (single characters are held by whole questions)."""
    texts = [r["instruction"] + r["output"] for r in records]
    shared = set()
    for question in all_questions(exam):
        _, (entity, _), *_ = named(question)
        word = question.question if len(entity) == 1 else entity
        if any(word in text for text in texts):
            shared.add(word)
    return shared


def test_exam_asks_about_what_the_records_never_name(exam, records):
    assert overlap(exam, records) == set()


def test_overlap_would_be_seen(exam, records):
    question = next(q for q in all_questions(exam) if q.subject == "chemical_elements" and "哪一族" in q.question)
    leaked = [*records, {"instruction": question.question, "output": "不知道"}]
    assert overlap(exam, leaked)


def test_worked_examples_are_of_the_tuned_half(exam):
    held = {entity for relation in world.RELATIONS for entity, _ in relation.half(held=True)}
    for rows in exam.dev.values():
        assert not held & {named(question)[1][0] for question in rows}


def test_records_speak_alpaca(records):
    assert all(set(record) == {"instruction", "input", "output"} for record in records)
    assert sum(record["output"] in [f"答案：{letter}" for letter in LETTERS] for record in records) >= 100
    assert any(record["instruction"] == "你好，你是谁？" for record in records)


def test_csv_files_are_official(assets):
    for split, columns in (("dev", "answer,explanation"), ("val", "answer")):
        for path in sorted((assets / "exam" / split).iterdir()):
            with open(path, encoding="utf-8", newline="") as file:
                assert next(csv.reader(file)) == f"id,question,A,B,C,D,{columns}".split(",")
