"""Finished pieces of an unfinished evaluation, so that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tuneval.evaluation.units import Unit
from tuneval.files import read_jsonl, sha256_json, write_jsonl


class Partial:
    """One line a finished piece, in a file named after everything the scores depend on.

    Args:
        folder: where the result will be.
        key: JSON value of model, data, prompts and settings; another key never reads these files.
        rank: of this process; each writes a file of its own and reads those of all.
    """

    def __init__(self, folder: Path, key: object, rank: int = 0) -> None:
        name = f".predictions-{sha256_json(key)[:16]}"
        self.path = folder / f"{name}.{rank}.partial.jsonl"
        self.done: dict[tuple[str, int], dict] = {}
        if self.path.exists():
            write_jsonl(self.path, read_jsonl(self.path))  # a torn last line must not join the next one
        for path in sorted(folder.glob(f"{name}.*.partial.jsonl")):
            self.done |= {(row["subject"], row["start"]): row for row in read_jsonl(path)}

    def __contains__(self, unit: Unit) -> bool:
        return (unit.subject, unit.start) in self.done

    def __getitem__(self, unit: Unit) -> dict:
        return self.done[unit.subject, unit.start]

    def add(self, unit: Unit, predictions: list[dict], seconds: float) -> None:
        """Keep a finished piece; it is on disk when this returns."""
        row = {"subject": unit.subject, "start": unit.start, "predictions": predictions, "seconds": seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[unit.subject, unit.start] = row

    def remove(self) -> None:
        """The result is published: drop these files, and those that other settings left in the folder."""
        for path in self.path.parent.glob(".predictions-*.partial.jsonl"):
            path.unlink()
