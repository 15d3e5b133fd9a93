"""The further exams in their published layouts: csv without header, JSON lines, options with their labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tuneval.errors import UserError
from tuneval.evaluation.exam import categories
from tuneval.evaluation.tasks import TASKS, built_in_subjects, load_exam


def write_json(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_cmmlu(tmp_path):
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    write_csv(tmp_path / "test/college_law.csv", [header, ["0", "问", "1.0", "2", "3", "4", "D"]])
    write_csv(tmp_path / "dev/college_law.csv", [header, *([str(i), "例", "1", "2", "3", "4", "A"] for i in range(5))])
    exam = load_exam(TASKS["cmmlu"], tmp_path, "test", shots=5)
    question = exam.questions["college_law"][0]
    assert (question.answer, question.choices["A"], exam.subjects["college_law"].name_zh) == ("D", "1.0", "大学法律")
    assert len(exam.dev["college_law"]) == 5 and exam.chance == 0.25
    write_csv(tmp_path / "test/college_law.csv", [header[1:], ["问", "1", "2", "3", "4", "D"]])
    with pytest.raises(UserError, match="no column ; found Question"):
        load_exam(TASKS["cmmlu"], tmp_path, "test")


def test_mmlu_has_no_header(tmp_path):
    rows = [['Find "x"', "0", "1", "2", "3", "B"], ["And y?", "a", "b", "c", "d", "A"]]
    write_csv(tmp_path / "test/abstract_algebra_test.csv", rows)
    exam = load_exam(TASKS["mmlu"], tmp_path, "test")
    found = exam.questions["abstract_algebra"]
    assert [(q.id, q.question, q.answer) for q in found] == [("0", 'Find "x"', "B"), ("1", "And y?", "A")]
    assert exam.subjects["abstract_algebra"].groups == ("STEM",)


def test_gsm8k(tmp_path):
    write_json(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "2000 + 18 = 2018.\n#### 2,018"}])
    question = load_exam(TASKS["gsm8k"], tmp_path, "test").questions["gsm8k"][0]
    assert (question.answer, question.choices) == ("2018", {}) and question.explanation.endswith("#### 2,018")
    assert load_exam(TASKS["gsm8k"], tmp_path, "test").chance == 0
    write_json(
        tmp_path / "test.jsonl", [{"question": "How many?", "answer": "18"}, {"question": 5, "answer": "#### 1"}, {}]
    )
    with pytest.raises(UserError) as error:
        load_exam(TASKS["gsm8k"], tmp_path, "test")
    text = str(error.value)
    assert "row 1 (id 1): the answer has no `#### number`" in text and "row 2 (id 2): question must be a text" in text
    assert "row 3: no field answer" in text


@pytest.mark.parametrize("name, answers", [("val.jsonl", {"label": True}), ("dev.jsonl", {"answer": True})])
def test_boolq_of_superglue_and_of_its_authors(tmp_path, name, answers):
    write_json(tmp_path / name, [{"question": "is it", "passage": "It is.", "idx": 7, **answers}])
    exam = load_exam(TASKS["boolq"], tmp_path, "val")
    question = exam.questions["boolq"][0]
    assert (question.id, question.passage, question.answer) == ("7", "It is.", "yes") and exam.chance == 0.5


def test_hellaswag_is_prepared_as_lm_evaluation_harness_does(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.hellaswag.utils import preprocess

    row = {"activity_label": "Cutting", "ctx_a": "A man [step] sits.", "ctx_b": "he [title]", "label": "2"}
    row["endings"] = ["is  there.", "[header] leaves.", "goes [title] away", "stops."]
    write_json(tmp_path / "hellaswag_val.jsonl", [row])
    question = load_exam(TASKS["hellaswag"], tmp_path, "val").questions["hellaswag"][0]
    assert question.question == preprocess("Cutting: A man [step] sits. He [title]") and question.answer == "C"
    assert list(question.choices.values()) == [preprocess(e) for e in row["endings"]]
    write_json(tmp_path / "hellaswag_val.jsonl", [{**row, "endings": ["one"]}, {**row, "label": "7"}])
    with pytest.raises(UserError, match=r"endings must be four texts(.|\n)*label '7' is not 0 to 3"):
        load_exam(TASKS["hellaswag"], tmp_path, "val")


def test_agieval(tmp_path):
    row = {"passage": None, "question": "选？", "options": ["(A)一", "(B)二", "(C)三"], "label": "C", "answer": None}
    write_json(tmp_path / "gaokao-history.jsonl", [row])
    write_json(tmp_path / "sat-math.jsonl", [{**row, "options": [*row["options"], "(D)4", "(E)5"]}])
    write_json(tmp_path / "gaokao-mathcloze.jsonl", [{"question": "free", "options": None, "label": None}])
    exam = load_exam(TASKS["agieval"], tmp_path, "test")
    assert list(exam.subjects) == ["sat-math", "gaokao-history"] and exam.chance == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert exam.questions["gaokao-history"][0].choices == {"A": "(A)一", "B": "(B)二", "C": "(C)三"}
    assert categories({s: f.groups for s, f in exam.subjects.items()}) == {
        "English": ["sat-math"],
        "Chinese": ["gaokao-history"],
    }
    write_json(tmp_path / "sat-math.jsonl", [{**row, "label": ["A", "B"]}])
    with pytest.raises(UserError, match="2 right answers; questions with several are not scored"):
        load_exam(TASKS["agieval"], tmp_path, "test")
    for wrong, words in (
        ({"options": [1, 2]}, "options must be a list of texts"),
        ({"passage": [1]}, "passage must be a text"),
    ):
        write_json(tmp_path / "sat-math.jsonl", [{**row, **wrong}])
        with pytest.raises(UserError, match=rf"row 1 \(id 1\): {words}"):
            load_exam(TASKS["agieval"], tmp_path, "test")


def test_tables_of_the_further_exams():
    cmmlu, mmlu = (built_in_subjects(TASKS[name]) for name in ("cmmlu", "mmlu"))
    assert (len(cmmlu), len(mmlu), len(built_in_subjects(TASKS["agieval"]))) == (67, 57, 19)
    groups = categories({s: f.groups for s, f in cmmlu.items()})
    assert {name: len(members) for name, members in groups.items()} == {
        "STEM": 17,
        "Social Science": 22,
        "Humanities": 13,
        "Other": 15,
        "China specific": 15,
    }
    assert "Hard" not in categories({s: f.groups for s, f in mmlu.items()})  # college_physics is Hard in C-Eval only


def test_a_layout_that_is_not_there(tmp_path):
    (tmp_path / "test.jsonl").write_text("not json\n[1]\n")
    with pytest.raises(UserError, match=r"row 1: not valid JSON(.|\n)*row 2: must be an object, found list"):
        load_exam(TASKS["gsm8k"], tmp_path, "test")
    with pytest.raises(UserError, match=r"no val.jsonl or dev.jsonl in it. Give a folder or zip in boolq's layout"):
        load_exam(TASKS["boolq"], tmp_path, "val")
