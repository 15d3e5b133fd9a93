"""Does an exam's question stand in what a model was tuned on? Shared runs of 13 words or Chinese characters.

A text becomes units: a Chinese character each, a run of Latin letters and digits each, everything else left out, after
Unicode NFKC and lower case. Source of the measure: Brown et al. (2020), Language Models are Few-Shot Learners, appendix C.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuneval import console
from tuneval.data.indexed import IndexedDataset, sft_prefix
from tuneval.data.rows import input_files, read_rows
from tuneval.errors import UserError
from tuneval.evaluation.exam import Exam, Question
from tuneval.files import sha256_file

RUN = 13
"""Units of a run. A shorter question is looked for whole."""
SHORTEST = 8
"""Units below which a text says nothing: such questions are judged with their choices, or not at all."""
_UNIT = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")

Key = tuple[str, str]
"""Subject and id of a question."""
Runs = dict[Key, frozenset[tuple[str, ...]]]


def overlap(exam: Exam, texts: Iterable[str]) -> dict[Key, float | None]:
    """How much of each question stands in some text.

    Args:
        exam: the questions.
        texts: of the training data, a record each.

    Returns:
        (subject, id) -> share of the question's runs that some text holds, 0 to 1; None: too short to judge.
    """
    runs = {(q.subject, q.id): _runs(q) for rows in exam.questions.values() for q in rows}
    wanted = {run for each in runs.values() for run in each}
    lengths: dict[tuple[str, str], set[int]] = {}  # the first two units of a run -> how long such runs are
    for run in wanted:
        lengths.setdefault(run[:2], set()).add(len(run))
    found: set[tuple[str, ...]] = set()
    for text in texts:
        seen = units(text)
        for i, pair in enumerate(pairwise(seen)):
            for n in lengths.get(pair, ()):
                run = tuple(seen[i : i + n])
                if run in wanted:
                    found.add(run)
    return {key: len(each & found) / len(each) if each else None for key, each in runs.items()}


def units(text: str) -> list[str]:
    """The units of a text."""
    return _UNIT.findall(unicodedata.normalize("NFKC", text).lower())


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training data, and how much of each question of an exam stands in it."""

    path: Path
    files: dict[str, str]
    """File -> sha256."""
    shares: dict[Key, float | None]


def measure(exam: Exam, path: Path, tokenizer: Any) -> Training:
    """Read training data once and look for an exam's questions in it.

    Raises:
        UserError: as `training_texts`.
    """
    shares = overlap(exam, console.track(training_texts(path, tokenizer), "reading the training data"))
    return Training(path=path, files=training_sha256(path), shares=shares)


def check_training_data(path: Path) -> None:
    """Raise a UserError where nothing can be read, before a model is loaded."""
    if not token_file(path).is_file() and not path.exists():
        raise UserError(
            f"--train-data {path}: neither a record file nor the prefix of token files that preprocess wrote"
        )


def training_texts(path: Path, tokenizer: Any) -> Iterator[str]:
    """The text of each training record.

    Args:
        path: a record file or folder (every text of a row counts, whatever its column), or the prefix of token files.
        tokenizer: decodes token files.

    Raises:
        UserError: nothing there, or nothing of a known kind.
    """
    if token_file(path).is_file():
        samples = IndexedDataset(sft_prefix(path, "input_ids"))
        yield from (tokenizer.decode(samples[i], skip_special_tokens=True) for i in range(len(samples)))
        return
    for row in read_rows(path):
        yield "\n".join(_strings(row))


def training_sha256(path: Path) -> dict[str, str]:
    """File -> hash of the training data's files."""
    files = [token_file(path)] if token_file(path).is_file() else input_files(path)
    return {str(file): sha256_file(file) for file in files}


def token_file(prefix: Path) -> Path:
    return Path(f"{sft_prefix(prefix, 'input_ids')}.bin")


def summary(training: Training, right: Mapping[Key, bool | None]) -> dict[str, Any]:
    """What a reader of the score must know: how many questions occur, and the score without them.

    Args:
        training: what was measured.
        right: question -> whether it was answered right; None: secret.
    """
    judged = {key: share for key, share in training.shares.items() if share is not None}
    clean = [right[key] for key, share in judged.items() if share == 0]
    known = [r for r in clean if r is not None]
    return {
        "train_data": str(training.path),
        "files": training.files,
        "run": RUN,
        "judged": len(judged),
        "touched": sum(share > 0 for share in judged.values()),
        "half": sum(share >= 0.5 for share in judged.values()),
        "whole": sum(share == 1 for share in judged.values()),
        "clean": {"n": len(known), "correct": sum(known), "accuracy": sum(known) / len(known) if known else None},
    }


def _runs(question: Question) -> frozenset[tuple[str, ...]]:
    asked = units(f"{question.passage}\n{question.question}")
    if len(asked) < SHORTEST:
        asked = units("\n".join([question.passage, question.question, *question.choices.values()]))
    if len(asked) < SHORTEST:
        return frozenset()
    n = min(RUN, len(asked))
    return frozenset(tuple(asked[i : i + n]) for i in range(len(asked) - n + 1))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _strings(each)
