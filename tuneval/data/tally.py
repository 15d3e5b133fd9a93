"""What passes through preprocess, counted: lengths, trained tokens, duplicates, bad rows."""

from __future__ import annotations

from array import array
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np

from tuneval.data.rendering import MASKED
from tuneval.data.workers import Chunk
from tuneval.errors import UserError

LISTED_ROWS = 100
"""Row numbers kept for each reason."""
PERCENTILES = (5, 50, 90, 95, 99)
OVER_LONG = "over-long"


class Tally:
    """Running counts of one preprocess job."""

    def __init__(self) -> None:
        self.rows = self.trained_tokens = self.over_long = 0
        self.lengths = array("i")
        self.digests = array("Q")
        self.skipped: Counter[str] = Counter()
        self.skipped_rows: dict[str, list[int]] = {}

    def count(self, chunk: Chunk, kept: np.ndarray) -> None:
        """Count one chunk, of which the samples `kept` (bool [samples]) are written."""
        self.rows += chunk.rows
        self.over_long += chunk.cut
        for row, reason in chunk.bad:
            self.skip(row, reason)
        for row in chunk.row_numbers[~kept]:
            self.over_long += 1
            self.skip(int(row), OVER_LONG)
        self.lengths.extend(chunk.lengths[kept].tolist())
        self.trained_tokens += int(np.count_nonzero(chunk.labels[np.repeat(kept, chunk.lengths)] != MASKED))
        ends = np.cumsum(chunk.lengths, dtype=np.int64)
        for start, end, keep in zip(ends - chunk.lengths, ends, kept):
            if keep:
                self.digests.append(digest(chunk.input_ids[start:end]))

    def skip(self, row: int, reason: str) -> None:
        self.skipped[reason] += 1
        listed = self.skipped_rows.setdefault(reason, [])
        if len(listed) < LISTED_ROWS:
            listed.append(row)

    def check(self, input_path: Path, strict: bool) -> None:
        """Raise a UserError where nothing is left, or, if `strict`, where a row was bad."""
        reasons = "; ".join(
            f"{reason}: {n} (rows {', '.join(map(str, self.skipped_rows[reason][:10]))}{', ...' if n > 10 else ''})"
            for reason, n in self.skipped.most_common()
        )
        if strict and self.skipped:
            raise UserError(f"--strict: {sum(self.skipped.values())} bad rows, counted from 0. {reasons}")
        if not self.lengths:
            raise UserError(f"--input {input_path}: none of its {self.rows} rows can be used. {reasons}")

    @property
    def duplicates(self) -> int:
        """Samples whose tokens an earlier one had."""
        return len(self.digests) - len(np.unique(np.frombuffer(self.digests, np.uint64)))


def digest(input_ids: np.ndarray) -> int:
    """64-bit hash of a sample's tokens."""
    return int.from_bytes(blake2b(np.ascontiguousarray(input_ids, "<i4").tobytes(), digest_size=8).digest(), "little")


def length_percentiles(lengths: np.ndarray) -> dict[str, int]:
    """{p5, p50, p90, p95, p99, max}: lengths that samples have, in tokens."""
    found = np.percentile(lengths, PERCENTILES, method="inverted_cdf") if len(lengths) else [0] * len(PERCENTILES)
    return {**{f"p{p}": int(v) for p, v in zip(PERCENTILES, found)}, "max": int(lengths.max(initial=0))}
