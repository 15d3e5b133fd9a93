"""The text of every style, letter by letter, against golden files; its hashes; LLaMA-Factory's order of examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_exams import SUBJECTS, tiny_exam

from tuneval.data.records import Message
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import STYLES, find_styles, styles_of
from tuneval.evaluation.decisions import LetterLogits, Prompt
from tuneval.evaluation.styles import all_prompts, check_explained, check_shots, prompt_sha256, prompts, run_sha256
from tuneval.evaluation.tasks import TASKS, find_task

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = STYLES["ceval", "official"]
ISSUE = (
    "official official_chat official_cot lm_eval lm_eval_chat oc_gen oc_ppl oc_ppl_internal oc_cot0 llamafactory "
    "mindspeed_direct mindspeed_template mindspeed_alt qwen_base qwen_chat evalscope mi_optimize"
).split()


def spelled(prompt: Prompt) -> str:
    """A prompt as its golden file holds it: the text, or each message under its role."""
    if not prompt.messages:
        return prompt.text
    turns = "".join(f"<{m.role}>{m.content}</{m.role}>\n" for m in prompt.messages)
    return turns + ("<assistant>" if prompt.opens_answer else "(no generation prompt)")


def rendered(task: str, name: str, chat: bool) -> str:
    """The first question's prompt, and how its answer is read."""
    style, exam = STYLES[task, name], tiny_exam(task)
    shots = min(2, style.max_shots)
    prompt = prompts(style, exam, SUBJECTS[task], shots, chat)[0]
    return f"{spelled(prompt)}\n----\n{read_as(style.decision_for(shots), exam)}\nreports: {style.aggregation}\n"


def read_as(decision, exam) -> str:
    if decision.kind == "reply":
        stops = "".join(f", stop {stop!r}" for stop in decision.stops)
        return f"reply of {decision.max_new_tokens} tokens{stops}: {decision.extraction}"
    choices = exam.questions[SUBJECTS[exam.task]][0].choices.items()
    scored = ", ".join(repr(decision.target.format(answer=label, option=text)) for label, text in choices)
    return f"{decision.kind} per {getattr(decision, 'per', 'token')}: {scored}"


def golden_names() -> list[tuple[str, str, bool]]:
    """(task, style, chat template or not) of every form a style can take."""
    found = []
    for (task, name), style in STYLES.items():
        forms = (True, False) if "or plain" in style.form else (style.form != "plain",)
        found += [(task, name, chat) for chat in forms]
    return found


def golden_file(task: str, name: str, chat: bool) -> Path:
    plain = "-plain" if "or plain" in STYLES[task, name].form and not chat else ""
    return GOLDEN / (f"{name}{plain}.txt" if task == "ceval" else f"{task}-{name}{plain}.txt")


@pytest.mark.parametrize("task, name, chat", golden_names())
def test_golden_text(task, name, chat):
    """Each file was checked by hand against the recipe its style names as the source."""
    text = golden_file(task, name, chat).read_text(encoding="utf-8")
    assert rendered(task, name, chat) == text


def test_every_golden_file_is_of_a_style():
    assert sorted(GOLDEN.glob("*.txt")) == sorted(golden_file(*each) for each in golden_names())


def test_the_named_styles_are_all_there():
    assert set(ISSUE) <= set(styles_of("ceval")) and {task for task, _ in STYLES} == set(TASKS)
    assert all(task.style in styles_of(name) for name, task in TASKS.items())


def test_two_shots_and_none():
    five, none = (prompts(OFFICIAL, tiny_exam("ceval"), "logic", shots)[1] for shots in (5, 0))
    assert five.text.count("答案：") == 6 and five.text.endswith(none.text.removeprefix(five.text[:33]))
    assert none.text.startswith("以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。\n\n第2题")
    assert five.name == "logic, question 2"


def test_zero_shot_forms_of_chat():
    few, none = (prompts(STYLES["ceval", "official_chat"], tiny_exam("ceval"), "logic", n)[0] for n in (1, 0))
    header = "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。\n\n"
    assert [m.role for m in few.messages] == ["system", "user", "assistant", "user"]
    assert few.messages[1].content.startswith(header) and not few.messages[3].content.startswith(header)
    assert [m.role for m in none.messages] == ["system", "user"] and none.messages[1].content.startswith(header)
    assert STYLES["ceval", "official_chat"].decision_for(0).extraction == "official_zero_shot"
    assert STYLES["ceval", "official_chat"].decision_for(5).extraction == "whole_reply"
    assert OFFICIAL.decision_for(0) == OFFICIAL.decision_for(5) == LetterLogits()


def test_a_new_style_needs_only_data():
    style = replace(
        OFFICIAL, header="{name_en}\n", query="{question}{choices}=", joint=" ", separator=";", choice="{label}"
    )
    assert prompts(style, tiny_exam("ceval"), "logic", 1)[0].text == (
        "Logic\n第10题$\\frac{1}{10}$____ A\nB\nC\nD= A;第1题$\\frac{1}{1}$____ A\nB\nC\nD="
    )


def test_categories_have_their_own_question_text():
    exam = tiny_exam("agieval")
    english = replace(exam.subjects["gaokao-chinese"], groups=("English",))
    found = prompts(
        STYLES["agieval", "official"], replace(exam, subjects={"gaokao-chinese": english}), "gaokao-chinese", 0
    )
    assert found[0].messages[0].content.endswith("\nA: Among A through D, the answer is")


def test_hash_covers_text_style_and_shots():
    exam = tiny_exam("ceval")
    hashes = {"logic": prompt_sha256(prompts(OFFICIAL, exam, "logic", 2))}
    assert len({*hashes["logic"], *prompt_sha256(prompts(OFFICIAL, exam, "logic", 3))}) == 4
    whole = run_sha256(OFFICIAL, 2, hashes)
    assert whole == run_sha256(OFFICIAL, 2, {"logic": list(hashes["logic"])})
    turned = {"logic": hashes["logic"][::-1]}
    other = replace(OFFICIAL, decision=LetterLogits(target=" {answer}"))
    assert (
        len({whole, *(run_sha256(*a) for a in ((OFFICIAL, 3, hashes), (OFFICIAL, 2, turned), (other, 2, hashes)))}) == 4
    )
    same = [Prompt(text="x"), Prompt(messages=(Message("user", "x"),)), Prompt(messages=(Message("system", "x"),))]
    same.append(Prompt(messages=(Message("user", "x"),), opens_answer=False))
    assert len(set(prompt_sha256(same))) == 4
    assert prompt_sha256([replace(p, name="y") for p in same]) == prompt_sha256(same)


def test_unknown_styles_and_shots():
    ceval = find_task("ceval")
    assert find_styles(ceval, None, True) == [OFFICIAL]
    assert [s.name for s in find_styles(ceval, "qwen_base, oc_ppl", True)] == ["qwen_base", "oc_ppl"]
    with pytest.raises(UserError, match="--style oficial: unknown; did you mean official"):
        find_styles(ceval, "oficial", True)
    with pytest.raises(UserError, match="--shots 6: style official takes 0 to 5"):
        check_shots(OFFICIAL, 6, "val")
    with pytest.raises(UserError, match=r"--shots 1: style oc_cot0 takes 0$"):
        check_shots(STYLES["ceval", "oc_cot0"], 1, "val")
    with pytest.raises(UserError, match="the shots are the dev questions themselves"):
        check_shots(OFFICIAL, 5, "dev")
    check_shots(OFFICIAL, 0, "dev")


def test_all_means_styles_that_read_scores():
    names = [s.name for s in find_styles(find_task("ceval"), "all", True)]
    assert names == "official lm_eval lm_eval_chat oc_ppl oc_ppl_internal llamafactory qwen_base mi_optimize".split()
    assert {s.name for s in find_styles(find_task("ceval"), "all", False)} == set(names) - {
        "lm_eval_chat",
        "llamafactory",
    }


def test_all_of_an_exam_that_is_only_generated():
    with pytest.raises(UserError, match=r"--style all: .* gsm8k has none; give lm_eval, lm_eval_flexible"):
        find_styles(find_task("gsm8k"), "all", True)


def test_shuffled_examples_are_those_of_datasets():
    """LLaMA-Factory calls datasets.shuffle() for every question, under numpy's global seed 42."""
    datasets = pytest.importorskip("datasets")
    import numpy as np

    exam = tiny_exam("ceval", questions=7)
    style = STYLES["ceval", "llamafactory"]
    rows = datasets.Dataset.from_dict({"answer": [q.question for q in exam.dev["logic"]]})
    np.random.seed(42)
    expected = [rows.shuffle().select(range(3))["answer"][:] for _ in exam.questions["logic"]]
    found = all_prompts(style, exam, 3, chat=True)["logic"]
    shown = [[m.content for m in p.messages if m.role == "user"][:-1] for p in found]
    assert all(q in text for texts, wanted in zip(shown, expected) for text, q in zip(texts, wanted))
    assert len({tuple(texts) for texts in map(tuple, expected)}) > 3


@pytest.mark.real
def test_every_real_question_has_a_prompt(real_data):
    from tuneval.evaluation.tasks import load_exam

    exam = load_exam(find_task("ceval"), real_data / "ceval-exam.zip", "val", shots=5)
    texts = [p.text for rows in all_prompts(OFFICIAL, exam, 5, False).values() for p in rows]
    assert len(texts) == 1346 and len(set(texts)) == 1345  # one question stands twice
    assert all(t.endswith("\n答案：") and t.count("\n答案：") >= 6 for t in texts)


def test_reasoning_is_shown_only_where_there_is_some():
    exam = tiny_exam("ceval")
    bare = replace(
        exam, dev={s: (rows[0], replace(rows[1], explanation=None), *rows[2:]) for s, rows in exam.dev.items()}
    )
    for name in ("official_cot", "evalscope"):
        check_explained(STYLES["ceval", name], 5, exam)
        check_explained(STYLES["ceval", name], 1, bare)
        told = rf"--style {name}: .* 1 of 5 have none \(such as logic, id 11\); .* give --shots 0"
        with pytest.raises(UserError, match=told):
            check_explained(STYLES["ceval", name], 5, bare)
    check_explained(OFFICIAL, 5, bare)
