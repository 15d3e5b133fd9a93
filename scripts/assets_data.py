"""The embedded tuning records and exam: one half of the entities teaches the exam's form, the other half is asked."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import assets_world as world

DEV = 5
"""Worked examples of a subject."""
PLAIN_EVERY = 3
"""One entity in so many is also asked about in plain words."""


def questions(subject: str, held: bool, rng: random.Random) -> list[world.Item]:
    """Every question of a subject about one half of its entities, shuffled."""
    found = [item for relation in world.SUBJECTS[subject][3] for item in world.items(relation, held, rng)]
    return rng.sample(found, len(found))


def write_exam(folder: Path, seed: int) -> None:
    """C-Eval's layout: {dev,val}/<subject>_<split>.csv and subject_mapping.json."""
    rng = random.Random(seed)
    for subject in world.SUBJECTS:
        _write_csv(folder / "dev" / f"{subject}_dev.csv", questions(subject, False, rng)[:DEV], explained=True)
        _write_csv(folder / "val" / f"{subject}_val.csv", questions(subject, True, rng), explained=False)
    mapping = {subject: list(facts[:3]) for subject, facts in world.SUBJECTS.items()}
    _write(folder / "subject_mapping.json", json.dumps(mapping, ensure_ascii=False, indent=2) + "\n")


def write_records(path: Path, seed: int) -> None:
    """Alpaca records: exam questions of the tuned half answered with a letter, plain questions, small talk."""
    rng = random.Random(seed + 1)
    rows = []
    for subject, facts in world.SUBJECTS.items():
        for item in questions(subject, False, rng) + questions(subject, False, rng):  # with other options
            question = world.official_header(facts[1]) + world.lettered(item) + "\n答案："
            rows.append((question, f"答案：{world.LETTERS[item.answer]}"))
    for relation in world.RELATIONS:
        rows += [
            (relation.ask_value.format(e=entity), relation.answer.format(e=entity, v=value))
            for entity, value in relation.half(held=False)[::PLAIN_EVERY]
        ]
    rows += world.SMALL_TALK
    rng.shuffle(rows)
    records = [{"instruction": question, "input": "", "output": answer} for question, answer in rows]
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write_csv(path: Path, items: list[world.Item], explained: bool) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "question", *world.LETTERS, "answer"] + ["explanation"] * explained)
    for number, item in enumerate(items):
        row = [number, item.text, *item.options, world.LETTERS[item.answer]]
        writer.writerow(row + [f"正确的选项是{item.options[item.answer]}。"] * explained)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
