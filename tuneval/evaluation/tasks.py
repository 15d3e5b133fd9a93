"""Exams by name: where their files lie, how subjects are called, which split counts. Local files only; none is ever run.

C-Eval's layout, for one: `{dev,val,test}/<subject>_<split>.csv` with the columns id, question, A, B, C, D, answer (absent
where the answers are secret) and explanation (dev only). An optional `subject_mapping.json` beside the split folders, in
the official form {"subject": ["English name", "Chinese name", "category"]}, overrides and extends the built-in table.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tuneval.errors import Problems, UserError
from tuneval.evaluation import layouts
from tuneval.evaluation.exam import CATEGORIES, HARD, Exam, Question, Subject
from tuneval.evaluation.exam import categories as categories
from tuneval.evaluation.exam_files import MAPPING, ExamFiles
from tuneval.evaluation.layouts import Layout, read_questions


@dataclass(frozen=True, kw_only=True)
class Task:
    """An exam tuneval reads by itself."""

    name: str
    layout: Layout
    split: str
    """Scored where the user names none."""
    shots_split: str | None
    """Where worked examples come from; None: the exam has none."""
    style: str
    """Prompt style where the user names none."""
    table: str | None = None
    """File of the subjects' names in tuneval/assets; None: the exam is one subject, or its subjects are its files."""
    subjects: tuple[Subject, ...] = ()
    """Its subjects where no table names them."""
    secret: tuple[str, ...] = ()
    """Splits whose answers may be absent."""


TASKS = {
    task.name: task
    for task in (
        Task(
            name="ceval",
            layout=layouts.CEVAL,
            split="val",
            shots_split="dev",
            style="official",
            table="ceval_subject_mapping.json",
            secret=("test",),
        ),
        Task(
            name="cmmlu",
            layout=layouts.CMMLU,
            split="test",
            shots_split="dev",
            style="official",
            table="cmmlu_subject_mapping.json",
        ),
        Task(
            name="mmlu",
            layout=layouts.MMLU,
            split="test",
            shots_split="dev",
            style="official",
            table="mmlu_subject_mapping.json",
        ),
        Task(
            name="gsm8k",
            layout=layouts.GSM8K,
            split="test",
            shots_split="train",
            style="lm_eval",
            subjects=(Subject(id="gsm8k", name_zh="小学数学应用题", name_en="grade school math", groups=()),),
        ),
        Task(
            name="boolq",
            layout=layouts.BOOLQ,
            split="val",
            shots_split="train",
            style="lm_eval",
            subjects=(Subject(id="boolq", name_zh="是非题", name_en="yes/no questions", groups=()),),
        ),
        Task(
            name="hellaswag",
            layout=layouts.HELLASWAG,
            split="val",
            shots_split="train",
            style="lm_eval",
            subjects=(Subject(id="hellaswag", name_zh="常识推断", name_en="commonsense inference", groups=()),),
            secret=("test",),
        ),
        Task(
            name="agieval",
            layout=layouts.AGIEVAL,
            split="test",
            shots_split=None,
            style="official",
            table="agieval_subject_mapping.json",
        ),
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: unknown; names the nearest and all known ones.
    """
    if name not in TASKS:
        nearest = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"--task {name}: unknown; {hint}known are {', '.join(TASKS)}, and lm_eval:NAME")
    return TASKS[name]


def load_exam(
    task: Task, path: str | Path, split: str, subjects: tuple[str, ...] = (), limit: int | None = None, shots: int = 0
) -> Exam:
    """Read an exam in its published layout.

    Args:
        task: which one.
        path: folder or zip.
        split: a split of the task's layout.
        subjects: ids to read; empty means every subject that has a file of the split.
        limit: at most this many questions a subject, from the top.
        shots: worked examples each subject must have.

    Returns:
        The exam.

    Raises:
        UserError: no such exam or split, unknown subjects (with the nearest names), missing or too few worked examples,
            bad rows (each named by file and row). All problems of the chosen subjects are listed at once.
    """
    with ExamFiles(path, task.layout.patterns()) as files:
        table = {**built_in_subjects(task), **_own_subjects(task, files)}
        chosen = _choose(files, task, table, split, subjects)
        problems, digest = Problems(), hashlib.sha256()
        questions, dev = {}, {}
        for subject in chosen:
            questions[subject] = _read(files, task, subject, split, problems, digest)[:limit]
            shown = task.shots_split if shots else None
            dev[subject] = _read(files, task, subject, shown, problems, digest) if shown else ()
            _check_shots(files, task, subject, dev[subject], shots, problems)
        problems.raise_if_any()
    names = {s: table[s] for s in chosen}
    digest.update(repr(sorted((s.id, s.name_zh, s.category) for s in names.values())).encode())
    return Exam(
        task=task.name, split=split, subjects=names, questions=questions, dev=dev, data_sha256=digest.hexdigest()
    )


def built_in_subjects(task: Task) -> dict[str, Subject]:
    """The subjects of a task by their ids. Source: the mapping files of the benchmarks' authors."""
    if task.table is None:
        return {subject.id: subject for subject in task.subjects}
    text = resources.files("tuneval.assets").joinpath(task.table).read_text(encoding="utf-8")
    return _subjects(task, json.loads(text), "the built-in table", own=False)


def _subjects(task: Task, mapping: object, where: str, own: bool) -> dict[str, Subject]:
    problems, table = Problems(), {}
    if not isinstance(mapping, dict):
        raise UserError(f'{where}: must hold an object {{"subject": ["English name", "Chinese name", "category"]}}')
    for subject, entry in mapping.items():
        well = isinstance(entry, list) and len(entry) >= 3 and all(isinstance(e, str) and e for e in entry)
        if not well or (own and (len(entry) > 3 or entry[2] not in CATEGORIES)):
            form = '["English name", "Chinese name", "category"], category one of ' + ", ".join(CATEGORIES)
            problems.add(f"{where}: {subject}: {json.dumps(entry, ensure_ascii=False)} must be {form}")
            continue
        hard = ("Hard",) if task.name == "ceval" and subject in HARD else ()
        table[subject] = Subject(id=subject, name_en=entry[0], name_zh=entry[1], groups=(*entry[2:], *hard))
    problems.raise_if_any()
    return table


def _own_subjects(task: Task, files: ExamFiles) -> dict[str, Subject]:
    if MAPPING not in files.names:
        return {}
    where = files.where(MAPPING)
    try:
        return _subjects(task, json.loads(files.read(MAPPING).decode("utf-8-sig")), where, own=True)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def _choose(files: ExamFiles, task: Task, table: dict[str, Subject], split: str, wanted: tuple[str, ...]) -> list[str]:
    """The subjects to read, in the table's order."""
    present = _present(files, task, split)
    if not present:
        name = " or ".join(task.layout.files[split]).replace("{subject}", "<subject>")
        raise UserError(
            f"{files.path}: no {name} in it. Give a folder or zip in {task.name}'s layout: "
            + ", ".join(names[0].replace("{subject}", "<subject>") for names in task.layout.files.values())
        )
    problems = Problems()
    for subject in dict.fromkeys(wanted):
        if subject not in present:
            nearest = difflib.get_close_matches(subject, present, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(sorted(present))}"
            problems.add(f"--subjects {subject}: no such subject in {files.path} {split}; {hint}")
    unknown = [subject for subject in present if subject not in table]
    for subject in unknown:
        if not wanted or subject in wanted:
            problems.add(
                f"{files.where(present[subject])}: no name and category known for {subject}; add {MAPPING} beside the "
                f'split folders: {{"{subject}": ["English name", "Chinese name", "category"]}}'
            )
    problems.raise_if_any()
    return [s for s in table if s in (set(wanted) or set(present)) and s in present]


def _present(files: ExamFiles, task: Task, split: str) -> dict[str, str]:
    """Subject -> its file of a split."""
    found: dict[str, str] = {}
    for pattern in task.layout.files[split]:
        if "{subject}" not in pattern:
            only = task.subjects[0].id
            found |= {only: pattern} if pattern in files.names and only not in found else {}
            continue
        name = re.compile(re.escape(pattern).replace(re.escape("{subject}"), "([^/]+)"))
        found |= {m[1]: n for n in files.names if (m := name.fullmatch(n))}
    if task.name == "agieval":  # its folder also holds two subjects of free answers, which are not scored
        found = {s: n for s, n in found.items() if s not in ("math", "gaokao-mathcloze")}
    return found


def _check_shots(
    files: ExamFiles, task: Task, subject: str, shown: tuple[Question, ...], shots: int, problems: Problems
) -> None:
    if not shots or task.shots_split is None:
        return
    name = _present(files, task, task.shots_split).get(subject)
    if name is None:
        missing = task.layout.files[task.shots_split][0].format(subject=subject)
        problems.add(f"--shots {shots}: {files.where(missing)} is missing; add it or give --shots 0")
    elif len(shown) < shots:
        problems.add(f"--shots {shots}: {files.where(name)} has {len(shown)} usable rows; give --shots {len(shown)}")


def _read(
    files: ExamFiles, task: Task, subject: str, split: str, problems: Problems, digest: hashlib._Hash
) -> tuple[Question, ...]:
    """The questions of one file. Adds to `problems` one line for each bad row, and to `digest` the file."""
    name = _present(files, task, split).get(subject)
    if name is None:
        return ()
    where, raw = files.where(name), files.read(name)
    digest.update(f"{name}:{len(raw)}:".encode() + raw)
    questions = read_questions(task.layout, subject, raw, where, problems)
    unanswered = [q for q in questions if q.answer is None]
    if unanswered and not (split in task.secret and len(unanswered) == len(questions)):
        problems.add(
            f"{where}: {len(unanswered)} of {len(questions)} questions have no right answer (such as id {unanswered[0].id}); "
            + (f"give all of split {split}, or none" if split in task.secret else f"split {split} needs them")
        )
    return questions
