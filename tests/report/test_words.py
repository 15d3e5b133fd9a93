"""Both languages say the same: the same names in both, and nothing that no page uses."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from tuneval.report import words
from tuneval.report.words import WORDS, Words

SOURCES = Path(words.__file__).parent
DYNAMIC = ("cat_", "machine_", "fig_", "why_", "skip_", "packed_", "mean_m", "what_", "state_", "w_", "s_best_")
"""Keys put together from a record's values."""


def names(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", WORDS)
def test_both_languages_fill_in_the_same(key):
    chinese, english = WORDS[key]
    assert chinese.strip() and english.strip() and names(chinese) == names(english)
    assert not re.search(r"[\u4e00-\u9fff，。；：（）]", english), "Chinese in the English column"


def test_every_key_is_used():
    text = "".join(p.read_text(encoding="utf-8") for p in SOURCES.rglob("*.py") if not p.name.startswith("words"))
    text += 'self("separator") self("missing")'
    text = text.replace("'", '"')
    unused = [k for k in WORDS if not k.startswith(DYNAMIC) and f'"{k}"' not in text]
    assert set(unused) <= {"full", "lora"}, "named by a record's method"


def test_every_key_asked_for_exists():
    for path in SOURCES.rglob("*.py"):
        for key in re.findall(r"""\bt\(\s*["']([a-z_0-9]+)["']""", path.read_text(encoding="utf-8")):
            assert key in WORDS, f"{path.name}: {key}"


@pytest.mark.parametrize("lang", words.LANGUAGES)
def test_a_missing_value_is_an_error(lang):
    with pytest.raises(KeyError):
        Words(lang)("say_score", exam="C-Eval")


@pytest.mark.parametrize(
    "text, values, expected",
    [
        ("仅{a}答对", {"a": "微调后"}, "仅微调后答对"),
        ("仅{a}答对", {"a": "LoRA"}, "仅 LoRA 答对"),
        ("共 {n} 条", {"n": "三"}, "共三条"),
        ("共 {n} 条", {"n": 3}, "共 3 条"),
        ("（{n} 题）", {"n": 3}, "（3 题）"),
        ("{a} → {b}", {"a": "前", "b": "LoRA"}, "前 → LoRA"),
        ("{a}：{b}。", {"a": "a 甲", "b": "乙 b"}, "a 甲：乙 b。"),
        ("{a}", {"a": ""}, ""),
    ],
)
def test_chinese_spacing(text, values, expected):
    assert words.fill_chinese(text, values) == expected


def test_figures_are_spelled():
    assert words.points(0.0181) == "+1.8" and words.points(-0.031) == "−3.1" and words.points(-0.0001) == "0.0"
    assert [words.rate(v) for v in (1e-4, 2.5e-5, 0.0, 1.25e-6)] == ["1e-4", "2.5e-5", "0", "1.25e-6"]
    assert words.p_value(0.00001) == "p\u00a0<\u00a00.001" and words.p_value(0.0312) == "p\u00a0=\u00a00.031"
    assert words.number(1234567) == "1,234,567" and words.number(1234.6) == "1,235" and words.number(12.3456) == "12.35"
    assert words.gib(5 * 2**30) == "5.00 GiB" and words.gib(3 * 2**20) == "3 MiB"
    assert [Words("en").seconds(s) for s in (3.21, 59.4, 75, 3725)] == ["3.2 s", "59 s", "1 min 15 s", "1 h 2 min"]
