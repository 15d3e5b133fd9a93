"""The axes `data_size` and `data_filter`: a part of the records, the same part every time."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneval.data.records import BadRow, make_handler, read_rows
from tuneval.errors import Problems, UserError
from tuneval.files import write_jsonl

SHUFFLE_SEED = 1234
"""Of the order in which `data_size` takes records, so that a smaller part lies within a larger one."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Which records stay."""

    size: int | None = None
    """At most this many, drawn evenly. None: all that pass."""
    min_answer_characters: int = 0
    """Of the last answer."""
    max_answer_characters: int | None = None
    lacks: str | None = None
    """Regular expression that no question or answer may match."""
    contains: str | None = None
    """Regular expression that some question or answer must match."""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Subset:
        """From a point's `data_size` and `data_filter`.

        Raises:
            UserError: unknown conditions, wrong types, a pattern that is none.
        """
        size, conditions = data.get("data_size"), data.get("data_filter") or {}
        problems = Problems()
        problems.check(
            size in (None, "all") or (isinstance(size, int) and not isinstance(size, bool) and size > 0),
            f"data_size {size}: must be a number of records, or all",
        )
        known = {"min_answer_characters": int, "max_answer_characters": int, "lacks": str, "contains": str}
        if not isinstance(conditions, dict):
            problems.add(f"data_filter {conditions}: must hold conditions ({', '.join(known)})")
            conditions = {}
        for key, value in conditions.items():
            if key not in known:
                problems.add(f"data_filter: {key}: unknown; known are {', '.join(known)}")
            elif not isinstance(value, known[key]) or isinstance(value, bool):
                problems.add(f"data_filter: {key} {value}: must be {'a number' if known[key] is int else 'a text'}")
            elif known[key] is str:
                try:
                    re.compile(value)
                except re.error as error:
                    problems.add(f"data_filter: {key} {value}: no regular expression ({error})")
        problems.raise_if_any()
        return cls(size=None if size == "all" else size, **conditions)

    def takes(self, texts: list[str]) -> bool:
        """Whether a conversation stays; `texts` are its questions and answers, the last answer last."""
        length = len(texts[-1])
        if length < self.min_answer_characters or length > (self.max_answer_characters or length):
            return False
        if self.lacks is not None and any(re.search(self.lacks, text) for text in texts):
            return False
        return self.contains is None or any(re.search(self.contains, text) for text in texts)


def write_subset(source: Path, place: Path, subset: Subset, handler_name: str, map_keys: str | None) -> None:
    """Write the records that stay to `place`, JSON lines in the order of the source.

    Args:
        source: anything `preprocess --input` takes.
        place: the file to write.
        subset: what stays.
        handler_name: as of `preprocess`; says where a record's texts are.
        map_keys: the same.

    Raises:
        UserError: no record is left.
    """
    rows = list(_passing(source, subset, handler_name, map_keys))
    if not rows:
        raise UserError(f"{source}: no record passes {subset}; loosen data_filter")
    if subset.size is not None and subset.size < len(rows):
        order = list(range(len(rows)))
        random.Random(SHUFFLE_SEED).shuffle(order)
        rows = [rows[i] for i in sorted(order[: subset.size])]
    write_jsonl(place, rows)


def _passing(source: Path, subset: Subset, handler_name: str, map_keys: str | None) -> Iterator[dict[str, Any]]:
    handler = None
    for number, row in enumerate(read_rows(source)):
        if isinstance(row, BadRow) or not isinstance(row, dict):
            continue  # preprocess of the whole file counts them; a part is made of good ones
        if handler is None:
            handler = make_handler(handler_name, json.loads(map_keys) if map_keys else None, row)
        try:
            conversation = handler(row, number)
        except BadRow:
            continue
        if subset.takes([m.content for m in conversation.messages if m.role != "system"]):
            yield row
