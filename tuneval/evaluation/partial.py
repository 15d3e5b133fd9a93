"""Finished subjects of an unfinished evaluation, so that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tuneval.files import read_jsonl, sha256_json, write_jsonl


class Partial:
    """One line a finished subject, in a file named after everything the scores depend on.

    Args:
        folder: where the result will be.
        key: JSON value of model, data, prompts and settings; another key never reads this file.
    """

    def __init__(self, folder: Path, key: object) -> None:
        self.path = folder / f".predictions-{sha256_json(key)[:16]}.partial.jsonl"
        self.subjects: dict[str, dict] = {}
        if self.path.exists():
            rows = read_jsonl(self.path)
            write_jsonl(self.path, rows)  # a torn last line must not join the next one
            self.subjects = {row["subject"]: row for row in rows}

    def add(self, subject: str, predictions: list[dict], seconds: float) -> None:
        """Keep a finished subject; it is on disk when this returns."""
        row = {"subject": subject, "predictions": predictions, "seconds": seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.subjects[subject] = row

    def remove(self) -> None:
        """The result is published: drop this file, and those that other settings left in the folder."""
        for path in self.path.parent.glob(".predictions-*.partial.jsonl"):
            path.unlink()
