"""Exams are read in place, alike from a folder and a zip; what is wrong with one is named by file and row."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest

from tuneval.errors import UserError
from tuneval.evaluation.exam import CATEGORIES, HARD, Exam, Subject, categories
from tuneval.evaluation.tasks import TASKS, built_in_subjects, find_task, load_exam

HEADER = ["id", "question", "A", "B", "C", "D", "answer"]


def load_ceval(path: Path, split: str = "val", subjects=(), limit=None, shots: int = 0) -> Exam:
    return load_exam(TASKS["ceval"], path, split, subjects, limit, shots)


def write_csv(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def row(id: int, answer: str = "B", question: str = "二加三等于几？____") -> list[str]:
    return [str(id), question, "四", "五", "六", "七", answer]


@pytest.fixture
def exam(tmp_path) -> Path:
    folder = tmp_path / "exam"
    for subject in ("law", "logic"):
        write_csv(folder / f"val/{subject}_val.csv", [row(i, "ABCD"[i % 4]) for i in range(3)])
        write_csv(folder / f"test/{subject}_test.csv", [row(i)[:-1] for i in range(4)], HEADER[:-1])
        write_csv(folder / f"dev/{subject}_dev.csv", [[*row(i), "因为。"] for i in range(5)], [*HEADER, "explanation"])
    return folder


def zipped(folder: Path, root: str = "") -> Path:
    path = folder.with_name(f"{folder.name}{len(root)}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, root + file.relative_to(folder).as_posix())
        archive.writestr(f"__MACOSX/{root}val/._law_val.csv", b"\0\1")
    return path


def test_folder_and_zip_read_alike(exam):
    a = load_ceval(exam, "val", shots=5)
    assert list(a.subjects) == ["logic", "law"]  # the built-in table's order
    assert [q.answer for q in a.questions["law"]] == ["A", "B", "C"] and a.answered
    assert a.questions["law"][0].choices == {"A": "四", "B": "五", "C": "六", "D": "七"}
    assert [q.explanation for q in a.dev["law"]] == ["因为。"] * 5
    assert load_ceval(zipped(exam), "val", shots=5) == a
    assert load_ceval(zipped(exam, "ceval/exam/"), "val", shots=5) == a


def test_files_that_macos_leaves_are_no_subjects(exam):
    """On a disk that is not its own it writes `._NAME` beside NAME."""
    read = load_ceval(exam)
    (exam / "val/._law_val.csv").write_bytes(b"\0\5\x16\7")
    assert load_ceval(exam) == load_ceval(zipped(exam)) == load_ceval(zipped(exam, "exam/")) == read


def test_hash_follows_the_content(exam):
    before = load_ceval(exam, "val").data_sha256
    assert load_ceval(exam, "val", ("law",)).data_sha256 != before
    write_csv(exam / "val/law_val.csv", [row(i, "D") for i in range(3)])
    assert load_ceval(exam, "val").data_sha256 != before


def test_test_split_has_no_answers(exam):
    read = load_ceval(exam, "test", limit=2)
    assert not read.answered and [q.answer for q in read.questions["law"]] == [None, None]


def test_cells_stay_as_written(exam):
    odd = ["0", '第一行\r\n第二行，"引号"____', " 1.0", "$\\frac{1}{2}$", "null", "1e3", "A"]
    write_csv(exam / "val/law_val.csv", [odd])
    question = load_ceval(exam, "val", ("law",)).questions["law"][0]
    assert [question.question, *question.choices.values()] == odd[1:6]


def test_own_mapping_extends_and_overrides(exam):
    write_csv(exam / "val/zoo_val.csv", [row(0)])
    with pytest.raises(UserError, match=r"no name and category known for zoo; add subject_mapping.json"):
        load_ceval(exam, "val")
    mapping = {"zoo": ["Zoo", "动物园", "Other"], "law": ["Law", "法律", "Humanities"]}
    (exam / "subject_mapping.json").write_text(json.dumps(mapping), encoding="utf-8")
    read = load_ceval(exam, "val")
    assert read.subjects["zoo"] == Subject(id="zoo", name_zh="动物园", name_en="Zoo", groups=("Other",))
    assert read.subjects["law"].name_zh == "法律"
    assert load_ceval(zipped(exam), "val").subjects == read.subjects
    (exam / "subject_mapping.json").write_text('{"zoo": ["Zoo", "动物园", "Animals"]}', encoding="utf-8")
    with pytest.raises(UserError, match=r"zoo.*category one of STEM, Social Science, Humanities, Other"):
        load_ceval(exam, "val")
    (exam / "subject_mapping.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        load_ceval(exam, "val")


def test_built_in_table():
    table = built_in_subjects(TASKS["ceval"])
    counts = [sum(s.category == c for s in table.values()) for c in CATEGORIES]
    assert counts == [20, 10, 11, 11] and len(HARD) == 8
    assert all(table[s].category == "STEM" for s in HARD)
    assert table["computer_network"].name_zh == "计算机网络" and table["physician"].name_en == "Physician"


def test_hard_overlaps_with_stem():
    groups = {
        "law": ("Humanities",),
        "college_physics": ("STEM", "Hard"),
        "computer_network": ("STEM",),
        "zoo": ["Other"],
    }
    found = categories(groups)
    assert found == categories({s: g[0] for s, g in groups.items()})  # as earlier results hold them
    stem = ["college_physics", "computer_network"]
    assert found == {"STEM": stem, "Humanities": ["law"], "Other": ["zoo"], "Hard": ["college_physics"]}
    assert list(found)[-1] == "Hard"


def test_unknown_subjects_get_the_nearest_names(exam):
    with pytest.raises(UserError) as error:
        load_ceval(exam, "val", ("lawn", "logics", "law", "xyz"))
    assert "--subjects lawn" in str(error.value) and "did you mean law?" in str(error.value)
    assert "did you mean logic?" in str(error.value) and "known are law, logic" in str(error.value)


BAD_ROWS = {
    "answer 'E' is not one of A, B, C, D": row(7, "E"),
    "empty question": row(7, question=" "),
    "empty A, D": ["7", "问题", "", "五", "六", " ", "A"],
    "6 cells, the header has 7": row(7)[:-1],
    "this id stands twice": row(0),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_rows_are_named(exam, reason):
    write_csv(exam / "val/law_val.csv", [row(0), row(1), BAD_ROWS[reason]])
    with pytest.raises(UserError) as error:
        load_ceval(exam, "val")
    assert f"{exam / 'val/law_val.csv'}, row 3 (id {BAD_ROWS[reason][0]}): {reason}" in str(error.value)
    with pytest.raises(UserError, match=r"exam0.zip!val/law_val.csv, row 3"):
        load_ceval(zipped(exam), "val")


def test_all_problems_at_once(exam):
    write_csv(exam / "val/law_val.csv", [row(0, "x"), row(1, "y")])
    write_csv(exam / "val/logic_val.csv", [["0", "q"]], ["id", "question"])
    (exam / "dev/law_dev.csv").unlink()
    with pytest.raises(UserError) as error:
        load_ceval(exam, "val", shots=5)
    text = str(error.value)
    assert text.startswith("4 problems") and "no column A, B, C, D; found id, question" in text
    assert f"--shots 5: {exam / 'dev/law_dev.csv'} is missing; add it or give --shots 0" in text


def test_answers_are_needed_but_for_the_test_split(exam):
    write_csv(exam / "val/law_val.csv", [row(i)[:-1] for i in range(3)], HEADER[:-1])
    told = r"law_val.csv: 3 of 3 questions have no right answer \(such as id 0\); split val needs them"
    with pytest.raises(UserError, match=told):
        load_ceval(exam, "val")


def test_an_empty_column_of_answers_is_none(exam):
    """Told once, not for each row; where answers may be secret they are."""
    for split in ("val", "test"):
        write_csv(exam / f"{split}/law_{split}.csv", [row(i, "") for i in range(3)])
    assert not load_ceval(exam, "test", ("law",)).answered
    with pytest.raises(
        UserError, match=r"^\S+: 3 of 3 questions have no right answer \(such as id 0\); split val needs"
    ):
        load_ceval(exam, "val", ("law",))
    write_csv(exam / "test/law_test.csv", [row(0), row(1, " "), row(2)])
    with pytest.raises(
        UserError, match=r"1 of 3 questions have no right answer \(such as id 1\); give all of split test"
    ):
        load_ceval(exam, "test", ("law",))


def test_a_fifth_option_is_not_dropped(exam):
    header = [*HEADER[:-1], "E", "answer"]
    rows = [[*row(i)[:-1], "", "A"] for i in range(2)]
    write_csv(exam / "val/law_val.csv", rows, header)
    assert list(load_ceval(exam, "val", ("law",)).questions["law"][0].choices) == list("ABCD")
    write_csv(exam / "val/law_val.csv", [*rows, [*row(2)[:-1], "以上都不对", "A"]], header)
    with pytest.raises(UserError, match=r"law_val.csv, row 3 \(id 2\): has a fifth option E"):
        load_ceval(exam, "val", ("law",))


def test_tasks_are_known_by_name():
    with pytest.raises(UserError, match="--task cmlu: unknown; did you mean cmmlu"):
        find_task("cmlu")


def test_dev_with_too_few_rows(exam):
    write_csv(exam / "dev/law_dev.csv", [row(i) for i in range(2)])
    with pytest.raises(UserError, match=r"law_dev.csv has 2 usable rows; give --shots 2"):
        load_ceval(exam, "val", shots=3)
    assert len(load_ceval(exam, "val", shots=2).dev["law"]) == 2
    (exam / "dev/law_dev.csv").unlink()
    assert load_ceval(exam, "val").dev["law"] == ()


def test_files_that_are_no_exam(tmp_path, exam):
    with pytest.raises(UserError, match="no such folder or zip"):
        load_ceval(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"Give a folder or zip in ceval's layout: dev/<subject>_dev\.csv"):
        load_ceval(tmp_path)
    with pytest.raises(UserError, match="not a zip file"):
        load_ceval(exam / "val/law_val.csv")
    (exam / "val/law_val.csv").write_bytes("id,question,A,B,C,D,answer\n0,中,a,b,c,d,A\n".encode("gbk"))
    with pytest.raises(UserError, match=r"law_val.csv: not UTF-8 text"):
        load_ceval(exam, "val")
    (exam / "val/law_val.csv").write_text('id,question,A,B,C,D,answer\n0,"open', encoding="utf-8")
    with pytest.raises(UserError, match=r"law_val.csv: broken csv in row 2"):
        load_ceval(exam, "val")
    (exam / "val/law_val.csv").write_text("id,question,A,B,C,D,answer\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"law_val.csv: no question in it"):
        load_ceval(exam, "val")
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a/val/law_val.csv", "")
        archive.writestr("b/val/law_val.csv", "")
    with pytest.raises(UserError, match=r"holds several exams \(a/, b/\)"):
        load_ceval(two)


@pytest.mark.parametrize("fault, words", [("damaged", "Bad CRC"), ("encrypted", "is encrypted")])
def test_a_zip_that_cannot_be_read(exam, fault, words):
    path = zipped(exam)
    data = bytearray(path.read_bytes())
    if fault == "damaged":
        data[data.index("四".encode())] ^= 1
    else:
        for mark, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            at = data.find(mark)
            while at >= 0:
                data[at + flag] |= 1
                at = data.find(mark, at + 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"_(val|dev)\.csv: can't be read \(.*{words}.*fetch the zip again"):
        load_ceval(path, "val", shots=5)


@pytest.mark.real
def test_the_official_zip(real_data):
    counts = {"val": (1346, True), "test": (12342, False), "dev": (260, True)}
    for split, (questions, answered) in counts.items():
        exam = load_ceval(real_data / "ceval-exam.zip", split, shots=5 if split != "dev" else 0)
        assert (len(exam.subjects), sum(map(len, exam.questions.values()))) == (52, questions)
        assert exam.answered == answered
