"""Finished pieces of an unfinished evaluation, so that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tuneval.evaluation.units import ALONE, Ranks, Unit
from tuneval.files import read_jsonl, sha256_json, write_jsonl


class Partial:
    """One line a finished piece, in a file named after everything the scores depend on.

    Args:
        folder: where the result will be.
        key: JSON value of model, data, prompts and settings; another key never reads these files.
        ranks: each writes a file of its own; all know what those of an earlier call hold.
    """

    def __init__(self, folder: Path, key: object, ranks: Ranks = ALONE) -> None:
        name = f".predictions-{sha256_json(key)[:16]}"
        self.path, self._writes = folder / f"{name}.{ranks.rank}.partial.jsonl", ranks.leads
        found: dict[tuple[str, int], dict] = {}
        for path in sorted(folder.glob(f"{name}.*.partial.jsonl")) if ranks.is_main else ():
            found |= {(row["subject"], row["start"]): row for row in read_jsonl(path)}
        self.done = ranks.first(found)
        if self._writes and self.path.exists():
            write_jsonl(self.path, read_jsonl(self.path))  # a torn last line must not join the next one

    def __contains__(self, unit: Unit) -> bool:
        return (unit.subject, unit.start) in self.done

    def __getitem__(self, unit: Unit) -> dict:
        return self.done[unit.subject, unit.start]

    def add(self, unit: Unit, predictions: list[dict], seconds: float) -> None:
        """Keep a finished piece; it is on disk when this returns."""
        row = {"subject": unit.subject, "start": unit.start, "predictions": predictions, "seconds": seconds}
        self.done[unit.subject, unit.start] = row
        if not self._writes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The result is published: drop these files, and those that other settings left in the folder."""
        for path in self.path.parent.glob(".predictions-*.partial.jsonl"):
            path.unlink()
