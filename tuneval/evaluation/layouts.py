"""How published exams lie in their files: bytes of one file -> questions. What is wrong with a row is named by its number.

Cells are taken as they are written: a choice `1.0` stays `1.0` (a reader that guesses types would make it a number).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tuneval.errors import Problems
from tuneval.evaluation.exam import LETTERS, Question

Row = dict[str, Any]


class BadQuestion(ValueError):
    """Why a row can't be used."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a task's questions stand, and what a row of them says."""

    files: dict[str, tuple[str, ...]]
    """Split -> names of its files below the root, with {subject}; the first that is there counts."""
    rows: Callable[[str, str, Problems], Iterator[tuple[int, Row]]]
    """(text of a file, how errors name it, problems) -> number and fields of each row."""
    question: Callable[[Row, int], Row]
    """Fields of a row and its number -> fields of `Question`, less `subject`. Raises BadQuestion, or KeyError for a field
    that is missing."""

    def patterns(self) -> list[str]:
        """Regular expressions of every file name of the layout."""
        names = [name for alternatives in self.files.values() for name in alternatives]
        return [re.escape(name).replace(re.escape("{subject}"), "[^/]+") for name in names]


def read_questions(layout: Layout, subject: str, raw: bytes, where: str, problems: Problems) -> tuple[Question, ...]:
    """The questions of one file. Adds to `problems` one line for each bad row."""
    known = len(problems.messages)
    try:
        questions = tuple(_questions(layout, subject, raw.decode("utf-8-sig"), where, problems))
    except UnicodeDecodeError as error:
        problems.add(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")
        return ()
    problems.check(questions or len(problems.messages) > known, f"{where}: no question in it")
    return questions


def _questions(layout: Layout, subject: str, text: str, where: str, problems: Problems) -> Iterator[Question]:
    seen: set[str] = set()
    for number, row in layout.rows(text, where, problems):
        try:
            question = Question(subject=subject, **layout.question(row, number))
            _check(question, seen)
        except KeyError as missing:
            problems.add(f"{where}, row {number}: no field {missing.args[0]}")
        except BadQuestion as bad:
            problems.add(f"{where}, row {number} (id {row.get('id', number)}): {bad}")
        else:
            seen.add(question.id)
            yield question


def _check(question: Question, seen: set[str]) -> None:
    empty = [label for label, text in question.choices.items() if not text.strip()]
    for name, value in (("id", question.id), ("question", question.question)):
        empty += [] if value.strip() else [name]
    if empty:
        raise BadQuestion(f"empty {', '.join(sorted(empty, key=len, reverse=True))}")
    if question.id in seen:
        raise BadQuestion("this id stands twice in the file")
    if question.answer is not None and question.choices and question.answer not in question.choices:
        raise BadQuestion(f"answer {question.answer!r} is not one of {', '.join(question.choices)}")


def csv_rows(required: tuple[str, ...], columns: tuple[str, ...] = ()) -> Callable:
    """Reader of a csv file.

    Args:
        required: columns that must be in the header.
        columns: what the columns are called where the file has no header.
    """

    def read(text: str, where: str, problems: Problems) -> Iterator[tuple[int, Row]]:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = list(columns) or next(rows, [])
            missing = [c for c in required if c not in header]
            if missing:
                problems.add(f"{where}: no column {', '.join(missing)}; found {', '.join(header) or 'an empty file'}")
                return
            for number, cells in enumerate(rows, 1):
                if cells and len(cells) != len(header):
                    problems.add(
                        f"{where}, row {number} (id {cells[0]}): {len(cells)} cells, the header has {len(header)}; quote "
                        "cells that hold commas or line breaks"
                    )
                elif cells:
                    yield number, dict(zip(header, cells))
        except csv.Error as error:
            problems.add(f"{where}: broken csv in row {rows.line_num} ({error})")

    return read


def json_rows(text: str, where: str, problems: Problems) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON-lines file."""
    for number, line in enumerate((x for x in text.split("\n") if x.strip()), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(f"{where}, row {number}: not valid JSON ({error})")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(f"{where}, row {number}: must be an object, found {type(row).__name__}")


def _four_choices(row: Row) -> dict[str, str]:
    if (row.get("E") or "").strip():
        raise BadQuestion("has a fifth option E, and this layout's questions have four, A to D; leave the row out")
    return {letter: row[letter] for letter in LETTERS}


def _ceval(row: Row, number: int) -> Row:
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": _four_choices(row),
        "answer": row.get("answer", "").strip() or None,
        "explanation": row.get("explanation") or None,
    }


def _cmmlu(row: Row, number: int) -> Row:
    answer = row["Answer"].strip()
    return {"id": row[""], "question": row["Question"], "choices": _four_choices(row), "answer": answer}


def _mmlu(row: Row, number: int) -> Row:
    choices = {letter: row[letter] for letter in LETTERS}
    return {"id": str(number - 1), "question": row["question"], "choices": choices, "answer": row["answer"].strip()}


def _gsm8k(row: Row, number: int) -> Row:
    worked, mark, answer = _text(row, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise BadQuestion("the answer has no `#### number` at its end")
    solution = {"answer": answer.strip().replace(",", ""), "explanation": worked + mark + answer}
    return {"id": str(number - 1), "question": _text(row, "question"), "choices": {}, **solution}


def _boolq(row: Row, number: int) -> Row:
    answer = row.get("answer", row.get("label"))
    if not (answer is None or isinstance(answer, bool)):
        raise BadQuestion(f"answer {answer!r} is neither true nor false")
    return {
        "id": str(row.get("idx", number - 1)),
        "question": _text(row, "question"),
        "passage": _text(row, "passage"),
        "choices": {"no": "no", "yes": "yes"},
        "answer": None if answer is None else "yes" if answer else "no",
    }


def _hellaswag(row: Row, number: int) -> Row:
    """Text as lm-evaluation-harness prepares it: the activity, both parts of the context, WikiHow's marks taken out."""
    context = f"{_text(row, 'ctx_a')} {_text(row, 'ctx_b').capitalize()}"
    endings, label = row["endings"], row.get("label")
    if not (isinstance(endings, list) and len(endings) == len(LETTERS) and all(isinstance(e, str) for e in endings)):
        raise BadQuestion("endings must be four texts")
    if label not in (None, "", *range(4), *"0123"):
        raise BadQuestion(f"label {label!r} is not 0 to 3")
    return {
        "id": str(number - 1),
        "question": _without_marks(f"{_text(row, 'activity_label')}: {context}"),
        "choices": {letter: _without_marks(ending) for letter, ending in zip(LETTERS, endings)},
        "answer": None if label in (None, "") else LETTERS[int(label)],
    }


def _without_marks(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _agieval(row: Row, number: int) -> Row:
    """`(A)text` -> label A; the options stay as they are written, labels included."""
    choices, options = {}, row["options"] or []
    if not (isinstance(options, list) and all(isinstance(o, str) for o in options)):
        raise BadQuestion("options must be a list of texts")
    for option in options:
        label = re.match(r"\s*[(（]([A-G])[)）]", option)
        if label is None:
            raise BadQuestion(f"option {option[:20]!r} does not begin with (A) to (G)")
        choices[label[1]] = option
    label = row["label"]
    if isinstance(label, list):
        if len(label) != 1:
            raise BadQuestion(f"{len(label)} right answers; questions with several are not scored")
        label = label[0]
    return {
        "id": str(number - 1),
        "question": _text(row, "question"),
        "passage": _text(row, "passage") if row.get("passage") else "",
        "choices": choices,
        "answer": label,
    }


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise BadQuestion(f"{name} must be a text, found {type(row[name]).__name__}")
    return row[name]


CEVAL = Layout(
    files={split: (f"{split}/{{subject}}_{split}.csv",) for split in ("dev", "val", "test")},
    rows=csv_rows(("id", "question", *LETTERS)),
    question=_ceval,
)
CMMLU = Layout(
    files={split: (f"{split}/{{subject}}.csv",) for split in ("dev", "test")},
    rows=csv_rows(("", "Question", *LETTERS, "Answer")),
    question=_cmmlu,
)
MMLU = Layout(
    files={split: (f"{split}/{{subject}}_{split}.csv",) for split in ("dev", "val", "test")},
    rows=csv_rows((), ("question", *LETTERS, "answer")),
    question=_mmlu,
)
GSM8K = Layout(files={s: (f"{s}.jsonl",) for s in ("train", "test")}, rows=json_rows, question=_gsm8k)
BOOLQ = Layout(files={"train": ("train.jsonl",), "val": ("val.jsonl", "dev.jsonl")}, rows=json_rows, question=_boolq)
HELLASWAG = Layout(
    files={split: (f"hellaswag_{split}.jsonl", f"{split}.jsonl") for split in ("train", "val", "test")},
    rows=json_rows,
    question=_hellaswag,
)
AGIEVAL = Layout(files={"test": ("{subject}.jsonl",)}, rows=json_rows, question=_agieval)
