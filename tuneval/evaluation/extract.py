"""Answers from generated text: the rules of each published recipe, as data and small functions.

An extraction reads a reply and the question it answers, and gives a label (or a free answer), or None: unparsed. `settled`
says of an unfinished reply that no continuation changes the outcome any more, so that generation may stop there.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from tuneval.evaluation.exam import Question


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How one recipe finds the answer in a reply."""

    take: Callable[[str, Question], str | None]
    settled: Callable[[str], bool] = lambda text: False
    source: str


def first_capital(text: str, question: Question) -> str | None:
    """The first upper-case character, whatever it is: `I choose B` answers I, and is wrong."""
    return next((c for c in text if c.isupper()), None)


def whole_reply(text: str, question: Question) -> str | None:
    """The reply itself, less case, punctuation and space around it, where that is a label."""
    plain = _plain(text)
    return plain if plain in question.choices else None


def _plain(text: str) -> str:
    return " ".join("".join(c for c in text if c not in string.punctuation).split()).upper()


def stripped_reply(text: str, question: Question) -> str | None:
    """The reply itself, less space around it, where that is a label."""
    return text.strip() if text.strip() in question.choices else None


_OFFICIAL_ZERO_SHOT = [
    r"^选([A-D])",
    r"^选项([A-D])",
    *(
        rf"{lead}\s?选?项?\s?([A-D])"
        for lead in ("答案是", "答案为", "答案应为", "答案选", "答案是:", "答案应该是:")
    ),
    r"正确的一项是\s?([A-D])",
    *(
        rf"{lead}\s?选?项?\s?([A-D])"
        for lead in (
            *("答案为:", "答案应为:", "答案:"),
            *("答案是：", "答案应该是：", "答案为：", "答案应为：", "答案："),
        )
    ),
]  # fmt: skip


def official_zero_shot(text: str, question: Question) -> str | None:
    """A label at the very start, else the last match of the first of 17 patterns that matches."""
    text = text.strip()
    if text[:1] in question.choices:
        return text[0]
    matches = next((found for p in _OFFICIAL_ZERO_SHOT if (found := re.findall(p, text))), [])
    return matches[-1] if matches else None


def official_cot(text: str, question: Question) -> str | None:
    """The last `答案是…。`, else the last `答案为…。`, else the last `选项…是正确的。`; it must be a label."""
    patterns = (r"答案是(.+?)。", r"答案为(.+?)。", r"选项(.+?)是正确的。")
    matches = next((found for p in patterns if (found := re.findall(p, text))), [])
    return whole_reply(matches[-1], question) if matches else None


def first_option(text: str, question: Question) -> str | None:
    """OpenCompass's ladder for reasoned replies: the first pattern that matches anywhere; the first label in its match."""
    labels = "".join(question.choices)
    for pattern in _first_option_ladder(labels):
        found = re.search(pattern, text)
        if found:
            inside = next((label for label in labels if label in found.group(0)), None)
            if inside:
                return inside
    return None


def _first_option_ladder(labels: str) -> list[str]:
    x = f"([{labels}])"
    says = [
        rf"答案{verb}{x}"
        for verb in (r"是?\s?", r"是?\s?：", r"是?\s?:", r"应该?是\s?", r"应该?选\s?", r"为\s?", r"选\s?")
    ]
    only = [rf"只有选?项?\s?{x}\s?{rest}" for rest in ("是?对", "是?错", "不?正确", "错误")]
    which = [rf"说法{what}选?项?的?是\s?{x}" for what in ("不?对", "不?正确", "错误")]
    right = [rf"{x}\s?是正确的", rf"{x}\s?是正确答案", rf"选项\s?{x}\s?正确", rf"所以答\s?{x}"]
    ends = [
        rf"1.\s?{x}[.。$]?$",
        rf"所以\s?([{labels}][.。$]?$)",
        rf"所有\s?([{labels}][.。$]?$)",
        rf"[\s，：:,]{x}[。，,\.]?$",
        rf"[\s，,：:][故即]{x}[。\.]?$",
        rf"[\s，,：:]因此{x}[。\.]?$",
        rf"[是为。]\s?{x}[。\.]?$",
        rf"因此\s?{x}[。\.]?$",
        rf"显然\s?{x}[。\.]?$",
    ]
    loose = [rf"答案{verb}\s?(\S+)(?:。|$)" for verb in ("是", "应该是", "为")]
    english = [
        rf"[Tt]he {what} {x}"
        for what in (
            *("answer is", "answer is option", "correct answer is", "correct answer is option"),
            "answer to the question is",
        )
    ]
    alone = [rf"^选项\s?{x}", rf"^{x}\s?选?项", rf"(\s|^)[{labels}][\s。，,：:\.$]", rf"(\s|^)[{labels}](\s|$)"]
    return [*says, rf"选择?\s?{x}", *only, *which, *right, *ends, *loose, *english, *alone, r"1.\s?(.*?)$", f"{x}:", x]


_QWEN_CHAT = (
    r"(?:(?:选|选择|选定)|(?:(?:答案|选项)(?![^ABCD]{0,10}?(?:不|非)[^ABCD]{0,10}?(?:是|为|：|:|】))[^ABCD]{0,10}?"
    r"(?:是|为|：|:|】))[^ABCD]{0,10}?)(A|B|C|D)(?:选项)?(?:\)|。|\.|，|,|．|、|A|B|C|D|$)",
    r"(A|B|C|D)(?:选?项)?(?![^ABCD]{0,4}?(?:不|非)[^ABCD]{0,4}?(?:正确|对|符合))[^ABCD]{0,4}?(?:正确|对|符合)",
    r"^(A|B|C|D)(?:。|\.|，|,|．|$)",
    r"(?<![a-zA-Z])(A|B|C|D)(?![a-zA-Z=])",
)


def qwen_chat(text: str, question: Question) -> str | None:
    """Option texts in the reply become their labels, then four patterns; else the option most like the reply.

    The likeness is difflib's; Qwen's script took thefuzz's. It decides only where a reply names no label and no option.
    """
    reply = _with_labels(text, question)
    for pattern in _QWEN_CHAT:
        found = re.search(pattern, reply)
        if found:
            return found.group(1)
    if not reply.strip():
        return None
    return max(question.choices, key=lambda label: SequenceMatcher(None, reply, question.choices[label]).ratio())


def _with_labels(text: str, question: Question) -> str:
    parts = question.question.rstrip("。").split("。")[-1].split("_")
    if len(parts[0].strip()) > 4:
        text = text.replace(parts[0], "答案是")
    if len(parts[-1].strip()) > 4:
        text = text.replace(parts[-1], "")
    for label, choice in sorted(question.choices.items(), key=lambda item: len(item[1]), reverse=True):
        if choice.rstrip("。"):
            text = text.replace(choice.rstrip("。"), label)
    return text


def evalscope(text: str, question: Question) -> str | None:
    """The label after the last `答案：` that has one, brackets and stars passed over; else the last capital letter."""
    for mark in reversed(list(re.finditer(r"答案\s*[:：]\s*\**\s*", text))):
        rest = text[mark.end() :]
        capture = re.match(r"[\(\[（【]\s*([A-Za-z\d](?:\s*[,，]\s*[A-Za-z\d])*)\s*[\)\]）】]", rest)
        capture = capture or re.match(r"([A-Za-z0-9][A-Za-z0-9,，]*)", rest)
        words = re.findall(r"[A-Za-z\d]+", capture[1]) if capture else []
        labels = list(takewhile(lambda word: set(word) <= set(question.choices), words))
        if labels:
            return labels[0] if len(labels) == 1 and labels[0] in question.choices else None
    last = next((c for c in reversed(text) if c.isupper()), None)
    return last if last in question.choices else None


def gsm8k_strict(text: str, question: Question) -> str | None:
    """The first number after `#### `."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return _number(found[1]) if found else None


def gsm8k_flexible(text: str, question: Question) -> str | None:
    """The last number in the reply."""
    found = [a or b for a, b in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
    return _number(found[-1]) if found else None


def _number(text: str) -> str | None:
    """Without thousands' commas, dollar signs and a full stop at the end."""
    return text.replace(",", "").replace("$", "").removesuffix(".") or None


def agieval(text: str, question: Question) -> str | None:
    """The first of the letters A to F."""
    return next((c for c in text if c in "ABCDEF"), None)


def _has_capital(text: str) -> bool:
    return any(c.isupper() for c in text)


def _too_long_for_a_label(text: str) -> bool:
    return len(_plain(text)) > 1


EXTRACTIONS = {
    "first_capital": Extraction(take=first_capital, settled=_has_capital, source="OpenCompass first_capital_postprocess"),
    "first_option": Extraction(take=first_option, source="OpenCompass first_option_postprocess"),
    "whole_reply": Extraction(
        take=whole_reply, settled=_too_long_for_a_label, source="hkust-nlp/ceval exact_match of the normalised reply"
    ),
    "stripped_reply": Extraction(
        take=stripped_reply, settled=lambda text: len(text.strip()) > 1, source="MindSpeed-LLM CEvalExam"
    ),
    "official_zero_shot": Extraction(
        take=official_zero_shot, settled=lambda text: text.strip()[:1] in set("ABCD"), source="hkust-nlp/ceval extract_ans"
    ),
    "official_cot": Extraction(
        take=official_cot,
        settled=lambda text: bool(re.search(r"所以答案是.+?。", text)),
        source="hkust-nlp/ceval, chain of thought",
    ),
    "qwen_chat": Extraction(take=qwen_chat, source="QwenLM/Qwen evaluate_chat_ceval.py"),
    "evalscope": Extraction(take=evalscope, source="evalscope v1.1 parse_answers_zh"),
    "gsm8k_strict": Extraction(
        take=gsm8k_strict,
        settled=lambda text: bool(re.search(r"#### \-?[0-9\.\,]+\s", text)),
        source="lm-evaluation-harness gsm8k, strict-match",
    ),
    "gsm8k_flexible": Extraction(take=gsm8k_flexible, source="lm-evaluation-harness gsm8k, flexible-extract"),
    "agieval": Extraction(
        take=agieval, settled=lambda text: any(c in "ABCDEF" for c in text), source="AGIEval find_first_capital_letter"
    ),
}  # fmt: skip
