"""C-Eval and exams in its layout: a folder or the official zip -> questions, shots, subjects. Read in place.

Layout: `{dev,val,test}/<subject>_<split>.csv` with the columns id, question, A, B, C, D, answer (absent where the
answers are secret) and explanation (dev only). An optional `subject_mapping.json` beside the split folders, in the
official form {"subject": ["English name", "Chinese name", "category"]}, overrides and extends the built-in table.

Cells are taken as they are written: a choice `1.0` stays `1.0` (a reader that guesses types would make it a number).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tuneval.errors import Problems, UserError
from tuneval.evaluation.exam_files import MAPPING, ExamFiles

LETTERS = ("A", "B", "C", "D")
CATEGORIES = ("STEM", "Social Science", "Humanities", "Other")
HARD = frozenset(
    (
        "advanced_mathematics",
        "discrete_mathematics",
        "probability_and_statistics",
        "college_chemistry",
        "college_physics",
        "high_school_mathematics",
        "high_school_chemistry",
        "high_school_physics",
    )
)
"""C-Eval Hard: eight STEM subjects that are also counted as a category of their own."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject of an exam."""

    id: str
    """As in the file names, such as `computer_network`."""
    name_zh: str
    """As prompts name it."""
    name_en: str
    category: str
    """One of CATEGORIES."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a subject's file."""

    subject: str
    id: str
    """The row's `id`, unique in its file."""
    question: str
    choices: dict[str, str]
    """Letter -> text, A to D."""
    answer: str | None
    """The right letter; None where the split's answers are secret."""
    explanation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions of one split, the shots that go with them, and the hash of the files they came from."""

    task: str
    split: str
    subjects: dict[str, Subject]
    """In the order of the built-in table, then of the exam's own."""
    questions: dict[str, tuple[Question, ...]]
    """Subject -> its questions, in the order of the file."""
    dev: dict[str, tuple[Question, ...]]
    """Subject -> worked examples; empty where the exam has no dev file for it."""
    data_sha256: str
    """Over the files read, by name and content: equal for a folder and a zip of it."""

    @property
    def answered(self) -> bool:
        """Whether every question's right letter is known."""
        return all(q.answer is not None for rows in self.questions.values() for q in rows)


def load_ceval(
    path: str | Path, split: str = "val", subjects: tuple[str, ...] = (), limit: int | None = None, shots: int = 0
) -> Exam:
    """Read an exam in C-Eval's layout.

    Args:
        path: folder or zip.
        split: `val`, `test` or `dev`.
        subjects: ids to read; empty means every subject that has a file of the split.
        limit: at most this many questions a subject, from the top.
        shots: worked examples each subject must have in its dev file.

    Returns:
        The exam.

    Raises:
        UserError: no such exam or split, unknown subjects (with the nearest names), a missing dev file or too few rows
            in it, bad rows (each named by file and row). All problems of the chosen subjects are listed at once.
    """
    with ExamFiles(path) as files:
        table = {**built_in_subjects(), **_own_subjects(files)}
        chosen = _choose(files, table, split, subjects)
        problems, digest = Problems(), hashlib.sha256()
        questions, dev = {}, {}
        for subject in chosen:
            questions[subject] = _read(files, subject, split, problems, digest)[:limit]
            dev[subject] = _read(files, subject, "dev", problems, digest) if shots else ()
            _check_shots(files, subject, dev[subject], shots, problems)
        problems.raise_if_any()
    names = {s: table[s] for s in chosen}
    digest.update(repr(sorted((s.id, s.name_zh, s.category) for s in names.values())).encode())
    return Exam(task="ceval", split=split, subjects=names, questions=questions, dev=dev, data_sha256=digest.hexdigest())


def built_in_subjects() -> dict[str, Subject]:
    """C-Eval's 52 subjects. Source: subject_mapping.json of the benchmark's authors (hkust-nlp/ceval)."""
    text = resources.files("tuneval.assets").joinpath("ceval_subject_mapping.json").read_text(encoding="utf-8")
    return _subjects(json.loads(text), "the built-in table")


def categories(category_of: dict[str, str]) -> dict[str, list[str]]:
    """Category -> its subjects, from subject -> category; in the usual order, `Hard` (which overlaps) last.

    Categories without subjects are left out.
    """
    groups = {name: [s for s, category in category_of.items() if category == name] for name in CATEGORIES}
    groups["Hard"] = [s for s in category_of if s in HARD]
    return {name: subjects for name, subjects in groups.items() if subjects}


def _subjects(mapping: object, where: str) -> dict[str, Subject]:
    problems, table = Problems(), {}
    if not isinstance(mapping, dict):
        raise UserError(f'{where}: must hold an object {{"subject": ["English name", "Chinese name", "category"]}}')
    for subject, entry in mapping.items():
        well = isinstance(entry, list) and len(entry) == 3 and all(isinstance(e, str) and e for e in entry)
        if not well or entry[2] not in CATEGORIES:
            form = '["English name", "Chinese name", "category"], category one of ' + ", ".join(CATEGORIES)
            problems.add(f"{where}: {subject}: {json.dumps(entry, ensure_ascii=False)} must be {form}")
            continue
        table[subject] = Subject(id=subject, name_en=entry[0], name_zh=entry[1], category=entry[2])
    problems.raise_if_any()
    return table


def _own_subjects(files: ExamFiles) -> dict[str, Subject]:
    if MAPPING not in files.names:
        return {}
    where = files.where(MAPPING)
    try:
        return _subjects(json.loads(files.read(MAPPING).decode("utf-8-sig")), where)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def _choose(files: ExamFiles, table: dict[str, Subject], split: str, wanted: tuple[str, ...]) -> list[str]:
    """The subjects to read, in the table's order."""
    present = [
        n.split("/")[1].removesuffix(f"_{split}.csv") for n in files.names if re.match(rf"{split}/.+_{split}\.csv$", n)
    ]
    if not present:
        raise UserError(
            f"{files.path}: no {split}/<subject>_{split}.csv in it. Give a folder or zip in C-Eval's layout: "
            "dev/, val/ and test/ with one csv a subject"
        )
    problems = Problems()
    for subject in dict.fromkeys(wanted):
        if subject not in present:
            nearest = difflib.get_close_matches(subject, present, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(sorted(present))}"
            problems.add(f"--subjects {subject}: no such subject in {files.path} {split}; {hint}")
    for subject in present:
        if subject not in table and (not wanted or subject in wanted):
            problems.add(
                f"{files.where(f'{split}/{subject}_{split}.csv')}: no name and category known for {subject}; add "
                f'{MAPPING} beside the split folders: {{"{subject}": ["English name", "Chinese name", "category"]}}'
            )
    problems.raise_if_any()
    return [s for s in table if s in (set(wanted) or set(present)) and s in present]


def _check_shots(files: ExamFiles, subject: str, dev: tuple[Question, ...], shots: int, problems: Problems) -> None:
    name = f"dev/{subject}_dev.csv"
    if shots and name not in files.names:
        problems.add(f"--shots {shots}: {files.where(name)} is missing; add it or give --shots 0")
    elif len(dev) < shots:
        problems.add(f"--shots {shots}: {files.where(name)} has {len(dev)} usable rows; give --shots {len(dev)}")


def _read(
    files: ExamFiles, subject: str, split: str, problems: Problems, digest: hashlib._Hash
) -> tuple[Question, ...]:
    """The questions of one file. Adds to `problems` one line for each bad row, and to `digest` the file."""
    name = f"{split}/{subject}_{split}.csv"
    if name not in files.names:
        return ()
    where, raw = files.where(name), files.read(name)
    digest.update(f"{name}:{len(raw)}:".encode() + raw)
    try:
        rows = csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        missing = [c for c in ("id", "question", *LETTERS) if c not in header]
        if split != "test" and "answer" not in header:
            missing.append("answer")
        if missing:
            problems.add(f"{where}: no column {', '.join(missing)}; found {', '.join(header) or 'an empty file'}")
            return ()
        known = len(problems.messages)
        questions = tuple(_questions(rows, header, subject, where, problems))
        problems.check(questions or len(problems.messages) > known, f"{where}: no row below the header")
        return questions
    except UnicodeDecodeError as error:
        problems.add(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")
    except csv.Error as error:
        problems.add(f"{where}: broken csv in row {rows.line_num} ({error})")
    return ()


def _questions(
    rows: Iterator[list[str]], header: list[str], subject: str, where: str, problems: Problems
) -> Iterator[Question]:
    seen: set[str] = set()
    for number, cells in enumerate(rows, 1):
        if not cells:
            continue
        row = dict(zip(header, cells))
        reason = _bad(row, cells, header, seen)
        if reason:
            problems.add(f"{where}, row {number} (id {row.get('id', '?')}): {reason}")
            continue
        seen.add(row["id"])
        yield Question(
            subject=subject,
            id=row["id"],
            question=row["question"],
            choices={letter: row[letter] for letter in LETTERS},
            answer=row["answer"].strip() if "answer" in header else None,
            explanation=row.get("explanation") or None,
        )


def _bad(row: dict[str, str], cells: list[str], header: list[str], seen: set[str]) -> str | None:
    """Why a row can't be used, or None."""
    if len(cells) != len(header):
        return f"{len(cells)} cells, the header has {len(header)}; quote cells that hold commas or line breaks"
    empty = [c for c in ("id", "question", *LETTERS) if not row[c].strip()]
    if empty:
        return f"empty {', '.join(empty)}"
    if row["id"] in seen:
        return "this id stands twice in the file"
    if "answer" in header and row["answer"].strip() not in LETTERS:
        return f"answer {row['answer']!r} is not one of {', '.join(LETTERS)}"
    return None
