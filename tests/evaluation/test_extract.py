"""Answers in replies: each published rule on the replies that tell it from its neighbours."""

from __future__ import annotations

import pytest

from tuneval.evaluation.exam import Question
from tuneval.evaluation.extract import EXTRACTIONS

QUESTION = Question(
    subject="law",
    id="1",
    question="甲去商店。关于传输层的面向连接服务的特性是____。",
    choices={"A": "不可靠", "B": "既不保证可靠，也不保证按序交付", "C": "可靠。", "D": "按序交付"},
    answer="B",
)

CASES = [
    # The first upper-case character, whatever it is.
    ("first_capital", "答案是B，不是C", "B"),
    ("first_capital", "I choose B", "I"),
    ("first_capital", "选b", None),
    # The whole reply, less case, punctuation and space.
    ("whole_reply", " b.\n", "B"),
    ("whole_reply", "(C)", "C"),
    ("whole_reply", "B. 既不保证", None),
    ("whole_reply", "答案：B", None),
    ("whole_reply", "E", None),
    ("stripped_reply", " B\n", "B"),
    ("stripped_reply", "B.", None),
    ("stripped_reply", "b", None),
    # A label at the start, else the last match of the first pattern that matches.
    ("official_zero_shot", " B，因为A错", "B"),
    ("official_zero_shot", "正确答案是A。不，答案是 选项 C", "C"),
    ("official_zero_shot", "答案：A。答案是D", "D"),
    ("official_zero_shot", "选B", "B"),
    ("official_zero_shot", "我选B", None),
    ("official_zero_shot", "答案应该是：选D", "D"),
    ("official_zero_shot", "正确的一项是C", "C"),
    ("official_zero_shot", "", None),
    # 答案是…。 before 答案为…。 before 选项…是正确的。; the last of them.
    ("official_cot", " 略。\n所以答案是B。", "B"),
    ("official_cot", "答案是A。再想，答案是C。答案为D。", "C"),
    ("official_cot", "答案为D。", "D"),
    ("official_cot", "选项A是正确的。", "A"),
    ("official_cot", "答案是第二个。", None),
    ("official_cot", "答案是B", None),
    # OpenCompass: the first pattern of the ladder, wherever it matches.
    ("first_option", "A不对，答案是C。", "C"),
    ("first_option", "选项B正确，C错", "B"),
    ("first_option", "只有选项D是对的，选A", "A"),  # 选择? stands above 只有
    ("first_option", "说法正确的是A", "A"),
    ("first_option", "The answer is D, not A", "A"),  # a letter at the end stands above the English sentences
    ("first_option", "The answer is D, not this", "D"),
    ("first_option", "无关A无关", "A"),
    ("first_option", "答案是： B", "B"),
    ("first_option", "没有", None),
    # Qwen: option texts become labels, the question's words 答案是.
    ("qwen_chat", "关于传输层的面向连接服务的特性是既不保证可靠，也不保证按序交付。", "B"),
    ("qwen_chat", "选C选项。", "C"),
    ("qwen_chat", "A选项不正确，D选项正确。", "D"),
    ("qwen_chat", "D。", "D"),
    ("qwen_chat", "大概B吧", "B"),
    ("qwen_chat", "按序", "D"),  # names none: the option most like it
    ("qwen_chat", " ", None),
    # evalscope: the last 答案： that has a label, else the last capital.
    ("evalscope", "答案：A\n改：\n答案：**B**", "B"),
    ("evalscope", '格式"答案：[LETTER]"。\n答案：【C】', "C"),
    ("evalscope", "答案：A、因为", "A"),
    ("evalscope", "答案：AB", None),
    ("evalscope", "我想是 D", "D"),
    ("evalscope", "我想是 D 吧，OK", None),
    ("evalscope", "答案：无", None),
    # Numbers.
    ("gsm8k_strict", "2,000+18\n#### 2,018\nQ", "2018"),
    ("gsm8k_strict", "#### $5", None),
    ("gsm8k_strict", "It is 5.", None),
    ("gsm8k_flexible", "first 3, then $1,234.", "1234"),
    ("gsm8k_flexible", "7", "7"),
    ("gsm8k_flexible", "none", None),
    ("agieval", "选 E", "E"),
    ("agieval", "G", None),
]


@pytest.mark.parametrize("name, text, expected", CASES)
def test_extraction(name, text, expected):
    assert EXTRACTIONS[name].take(text, QUESTION) == expected


@pytest.mark.parametrize("name", sorted(set(EXTRACTIONS) - {"official_cot"}))
def test_a_settled_reply_keeps_its_answer(name):
    """Where a reply is settled, nothing that could follow changes what is found in it."""
    extraction, settled = EXTRACTIONS[name], 0
    for _, text, _ in CASES:
        for end in range(len(text) + 1):
            if extraction.settled(text[:end]):
                settled += 1
                found = {extraction.take(text[:end] + more, QUESTION) for more in ("", " D", "。所以答案是A。", "\nA")}
                assert len(found) == 1, (text[:end], found)
                break
    assert settled or extraction.settled("") is False


def test_a_chain_of_thought_ends_with_its_conclusion():
    """What a base model writes behind it is the next question, and counts for nothing."""
    assert EXTRACTIONS["official_cot"].settled(" 略。\n所以答案是B。")


def test_settled_saves_tokens():
    assert EXTRACTIONS["first_capital"].settled("答案是B") and not EXTRACTIONS["first_capital"].settled("答案是")
    assert EXTRACTIONS["whole_reply"].settled("选B") and not EXTRACTIONS["whole_reply"].settled("B.")
    assert EXTRACTIONS["official_cot"].settled("1。所以答案是B。") and not EXTRACTIONS["official_cot"].settled(
        "答案是B"
    )
    assert EXTRACTIONS["gsm8k_strict"].settled("#### 12\n") and not EXTRACTIONS["gsm8k_strict"].settled("#### 1")
