"""The text of each style, letter by letter, and its hashes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tuneval.errors import UserError
from tuneval.evaluation.styles import STYLES, check_shots, find_style, prompt_sha256, prompts, run_sha256, target
from tuneval.evaluation.tasks import Exam, Question, Subject

OFFICIAL = STYLES["official"]


def question(id: int, answer: str | None = "B") -> Question:
    choices = {"A": f"{id}", "B": f"$\\frac{{1}}{{{id}}}$", "C": "丙", "D": " 丁"}
    return Question(subject="logic", id=str(id), question=f"第{id}题____", choices=choices, answer=answer)


@pytest.fixture
def exam() -> Exam:
    subject = Subject(id="logic", name_zh="逻辑学", name_en="Logic", category="Humanities")
    dev = tuple(replace(question(10 + i), answer="ABCDA"[i]) for i in range(5))
    questions = {"logic": (question(1), question(2, None))}
    return Exam(
        task="ceval",
        split="val",
        subjects={"logic": subject},
        questions=questions,
        dev={"logic": dev},
        data_sha256="0",
    )


GOLDEN_TWO_SHOTS = """以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。

第10题____
A. 10
B. $\\frac{1}{10}$
C. 丙
D.  丁
答案：A

第11题____
A. 11
B. $\\frac{1}{11}$
C. 丙
D.  丁
答案：B

第1题____
A. 1
B. $\\frac{1}{1}$
C. 丙
D.  丁
答案："""
GOLDEN_ZERO_SHOT = """以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。

第2题____
A. 2
B. $\\frac{1}{2}$
C. 丙
D.  丁
答案："""


def test_official_text(exam):
    assert prompts(OFFICIAL, exam, "logic", 2)[0] == GOLDEN_TWO_SHOTS
    assert prompts(OFFICIAL, exam, "logic", 0)[1] == GOLDEN_ZERO_SHOT
    assert prompts(OFFICIAL, exam, "logic", 5)[0].count("答案：") == 6
    assert [target(OFFICIAL, letter) for letter in "AB"] == ["A", "B"]


def test_a_new_style_needs_only_data(exam):
    style = replace(OFFICIAL, header="{name_en}\n", query="{question} {A}=", target=" {answer}", separator=";")
    assert prompts(style, exam, "logic", 1)[0] == "Logic\n第10题____ 10= A;第1题____ 1="
    assert target(style, "C") == " C"


def test_hash_covers_text_style_and_shots(exam):
    hashes = prompt_sha256(prompts(OFFICIAL, exam, "logic", 2))
    assert len({*hashes, *prompt_sha256(prompts(OFFICIAL, exam, "logic", 3))}) == 4
    whole = run_sha256(OFFICIAL, 2, hashes)
    assert whole == run_sha256(OFFICIAL, 2, list(hashes))
    assert len({whole, run_sha256(OFFICIAL, 3, hashes), run_sha256(OFFICIAL, 2, hashes[::-1])}) == 3
    assert run_sha256(replace(OFFICIAL, target=" {answer}"), 2, hashes) != whole


def test_unknown_styles_and_shots():
    assert find_style("official") is OFFICIAL
    with pytest.raises(UserError, match="--style oficial: unknown; did you mean official"):
        find_style("oficial")
    with pytest.raises(UserError, match="--shots 6: style official takes 0 to 5"):
        check_shots(OFFICIAL, 6, "val")
    with pytest.raises(UserError, match="the shots are the dev questions themselves"):
        check_shots(OFFICIAL, 5, "dev")
    check_shots(OFFICIAL, 0, "dev")


@pytest.mark.real
def test_every_real_question_has_a_prompt(real_data):
    from tuneval.evaluation.tasks import load_ceval

    exam = load_ceval(real_data / "ceval-exam.zip", "val", shots=5)
    texts = [text for subject in exam.subjects for text in prompts(OFFICIAL, exam, subject, 5)]
    assert len(texts) == 1346 and len(set(texts)) == 1345  # one question stands twice
    assert all(t.endswith("\n答案：") and t.count("\n答案：") >= 6 for t in texts)
