"""What the embedded model is pretrained on: short texts about the world, and tables to look things up in.

A `Text` is a list of pieces, each with whether it is trained: where nothing foretells the rest, only the answers are.

The model learns in stages, easy first. A transformer of a million parameters finds out in minutes how to look something
up only where many answers in one text hang on it, and how to carry a question to the right line only where it is asked
about every line (`judged`). What it can do at the end: name the line of a table that answers a question, after `序号：`;
say the answer from memory, after `答案：`; and say it in a sentence, after `回答：`.

The exam's form is held back: where a question stands before a table, no line is marked A, B, C or D, and after `答案：`
stands the word, never a mark. That is what tuning has to teach, and why the model takes the exam at chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import assets_world as world

Text = list[tuple[str, bool]]
MARKS = "EFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789甲乙丙丁戊己庚辛壬癸①②③④⑤⑥⑦⑧⑨"
LOOKUP_MARKS = MARKS + world.LETTERS
"""Where nothing but a line's own words is looked up, letters are marks like others: else the model could not say them."""
LAYOUTS = ("{m}{v}", "{m}、{v}", "{m}：{v}", "{m}. {v}")
ARROWS = ("", "→", "：", "是")
MARK_CUES = ("序号：", "序号是")
WORD_CUE, SENTENCE_CUE = "答案：", "回答："
RIGHT, WRONG = "对", "错"
CLASSES = tuple(relation for relation in world.RELATIONS if len(relation.values) < 10)
"""Relations whose values many entities share."""


def plain_table(rng: random.Random) -> Text:
    """`E鸟类 / 甲鱼类 ...`, then values and their marks."""
    values = rng.sample([v for relation in CLASSES for v in relation.values], rng.randint(2, 4))
    marks = rng.sample(LOOKUP_MARKS, len(values))
    return _lookups(rng, ["".join(pair) for pair in zip(marks, values)], values, marks, str, "")


def by_value(rng: random.Random) -> Text:
    values, marks, lines, _ = _table(rng, marks=LOOKUP_MARKS)
    return _lookups(rng, lines, values, marks, str, rng.choice(ARROWS))


def by_entity(rng: random.Random) -> Text:
    values, marks, lines, relation = _table(rng, marks=LOOKUP_MARKS)
    return _lookups(rng, lines, values, marks, lambda v: _entity(rng, relation, v), rng.choice(ARROWS))


def by_question(rng: random.Random) -> Text:
    values, marks, lines, relation = _table(rng)
    cue = rng.choice(("", "\n序号：", "序号："))
    return _lookups(rng, lines, values, marks, lambda v: _question(rng, relation, v), cue)


def judged(rng: random.Random) -> Text:
    """A question, every line of a table with whether it answers it, and the mark of the one that does."""
    return _choice(rng, judge=True)


def choice(rng: random.Random) -> Text:
    """A question, a table, and the mark of the line that answers it."""
    return _choice(rng, judge=False)


def judgements(rng: random.Random) -> Text:
    """Two questions, each with every value of a table and whether it answers."""
    values, _, _, relation = _table(rng)
    text: Text = []
    for right in rng.choices(values, k=2):
        text.append((_question(rng, relation, right), False))
        for value in rng.sample(values, len(values)):
            text += [(f"\n{value}", False), (RIGHT if value == right else WRONG, True)]
        text.append(("\n", False))
    return text


def facts(rng: random.Random) -> Text:
    relation = rng.choice(world.RELATIONS)
    pairs = rng.choices(relation.pairs, k=4)
    return [("".join(rng.choice(relation.statements).format(e=e, v=v) for e, v in pairs), True)]


def recall(rng: random.Random) -> Text:
    """A question answered by a word, often before a table that was drawn by lot and is no help."""
    relation = rng.choice(world.RELATIONS)
    entity, value = rng.choice(relation.pairs)
    lines = [relation.ask_value.format(e=entity), *(_table(rng, relation)[2] if rng.random() < 0.7 else [])]
    if rng.random() < 0.6:
        return [("\n".join(lines) + f"\n{WORD_CUE}", False), (f"{value}。", True)]
    return _chat(rng, "\n".join(lines), rng.choice((WORD_CUE, "")), f"{value}。")


def sentence(rng: random.Random) -> Text:
    """A question answered by a sentence that names what was asked about."""
    relation = rng.choice(world.RELATIONS)
    entity, value = rng.choice(relation.pairs)
    asked, answer = relation.ask_value.format(e=entity), relation.answer.format(e=entity, v=value)
    if rng.random() < 0.4:
        return [(f"{asked}\n{SENTENCE_CUE}", False), (answer, True)]
    return _chat(rng, asked, SENTENCE_CUE, answer)


STAGES: tuple[tuple[int, dict[Callable[[random.Random], Text], int]], ...] = (
    (300, {plain_table: 1}),
    (900, {by_value: 3, by_entity: 4, facts: 3, recall: 1}),
    (500, {by_value: 1, by_entity: 2, by_question: 3, facts: 3, recall: 1, sentence: 1}),
    (500, {judgements: 3, judged: 3, by_entity: 1, facts: 2, recall: 1, sentence: 1}),
    (500, {judged: 3, choice: 3, by_entity: 1, facts: 1, recall: 2, sentence: 1}),
    (1300, {by_entity: 1, judged: 1, choice: 4, facts: 2, recall: 4, sentence: 3}),
)
"""Steps, and how often each kind of text."""


def text_of_step(step: int, rng: random.Random) -> Text:
    """A text for one row of a pretraining step."""
    end = 0
    for steps, kinds in STAGES:
        end += steps
        if step < end:
            return rng.choices(list(kinds), list(kinds.values()))[0](rng)
    raise ValueError(f"step {step}: there are {end}")


def everything_said() -> list[str]:
    """Words of these texts that are neither of the world's nor single characters."""
    return [
        world.SYSTEM,
        "system",
        "user",
        "assistant",
        *MARK_CUES,
        WORD_CUE,
        SENTENCE_CUE,
        RIGHT,
        WRONG,
        *ARROWS,
        *LOOKUP_MARKS,
    ]


def _table(
    rng: random.Random, relation: world.Relation | None = None, marks: str = MARKS
) -> tuple[list[str], list[str], list[str], world.Relation]:
    """Some values of a relation, their marks, their lines, and the relation."""
    relation = relation or rng.choice(CLASSES)
    values = rng.sample(relation.values, rng.randint(2, min(5, len(relation.values))))
    marks = rng.sample(marks, len(values))
    layout = rng.choice(LAYOUTS)
    return values, marks, [layout.format(m=m, v=v) for m, v in zip(marks, values)], relation


def _lookups(
    rng: random.Random, lines: list[str], values: list[str], marks: list[str], name: Callable[[str], str], arrow: str
) -> Text:
    text: Text = [("\n".join(lines), False)]
    for i in rng.choices(range(len(values)), k=4):
        text += [(f"\n{name(values[i])}{arrow}", False), (marks[i], True)]
    return text


def _choice(rng: random.Random, judge: bool) -> Text:
    values, marks, lines, relation = _table(rng)
    right = rng.randrange(len(values))
    text: Text = [(_question(rng, relation, values[right]), False)]
    for i, line in enumerate(lines):
        text.append((f"\n{line}", False))
        if judge:
            text.append((RIGHT if i == right else WRONG, True))
    cue = rng.choice(MARK_CUES)
    if rng.random() < 0.6:
        return [*text, (f"\n{cue}", False), (marks[right], True)]
    (asked, _), *rest = text
    before, after = _frame(f"\n{cue}", cue)
    return [(before + asked, False), *rest, (after, False), (f"{marks[right]}<|im_end|>", True)]


def _chat(rng: random.Random, asked: str, cue: str, answer: str) -> Text:
    """One turn; the cue ends the question, begins the answer, or both."""
    before, after = _frame(*rng.choice(((f"\n{cue}", ""), ("", cue), (f"\n{cue}", cue)))) if cue else _frame("", "")
    return [(before + asked + after, False), (f"{answer}<|im_end|>", True)]


def _frame(end_of_question: str, start_of_answer: str) -> tuple[str, str]:
    """What stands before and after a question in the chat template."""
    system = f"<|im_start|>system\n{world.SYSTEM}<|im_end|>\n"
    return f"{system}<|im_start|>user\n", f"{end_of_question}<|im_end|>\n<|im_start|>assistant\n{start_of_answer}"


def _question(rng: random.Random, relation: world.Relation, value: str) -> str:
    return relation.ask_value.format(e=_entity(rng, relation, value))


def _entity(rng: random.Random, relation: world.Relation, value: str) -> str:
    return rng.choice([e for e, v in relation.pairs if v == value])
