"""Megatron's indexed token files (.bin and .idx): streamed out, memory-mapped in.

`.bin` holds the token arrays back to back. `.idx`, little endian: the nine bytes `MMIDIDX\\0\\0`, a 64-bit version (1),
one byte for the number type, the number of sequences N and of document marks D (64 bits each), int32[N] lengths,
int64[N] byte offsets, int64[D] document marks (the number of sequences before each; the first is 0).
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from array import array
from pathlib import Path
from types import TracebackType

import numpy as np

from tuneval.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
INT32_CODE = 4
DTYPES = {1: "u1", 2: "i1", 3: "<i2", INT32_CODE: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
HEADER = struct.Struct("<9sQBQQ")
SFT_COLUMNS = ("input_ids", "attention_mask", "labels")


def sft_prefix(prefix: str | Path, column: str) -> Path:
    """Path without suffix of one of the three pairs of files that preprocess writes for `prefix`."""
    return Path(f"{prefix}_packed_{column}_document")


def check_files(path_prefix: Path) -> tuple[Path, Path]:
    """The paths of a pair's .idx and .bin. Raises a UserError where one of them is missing."""
    index_path, bin_path = (path_prefix.with_name(path_prefix.name + s) for s in (".idx", ".bin"))
    for path in (index_path, bin_path):
        if not path.is_file():
            raise UserError(f"{path}: no such file. Give the prefix that preprocess got as --output-prefix")
    return index_path, bin_path


class IndexedWriter:
    """Writes one .bin/.idx pair of int32 sequences; both appear only when the `with` block ends well.

    Args:
        path_prefix: path without `.bin` and `.idx`; a missing parent folder is made.
    """

    def __init__(self, path_prefix: str | Path) -> None:
        self.path_prefix = Path(path_prefix)
        self.path_prefix.parent.mkdir(parents=True, exist_ok=True)
        self._partial = {s: self._neighbour(s) for s in (".bin", ".idx")}
        self._bin = open(self._partial[".bin"], "wb")  # noqa: SIM115, closed by `discard`
        self._digest = hashlib.sha256()
        self._lengths, self._documents = array("i"), array("q", [0])
        self._closed = False

    def add(self, sequence: np.ndarray | list[int]) -> None:
        """Append one sequence, a document of its own."""
        self.add_many(np.asarray(sequence, dtype="<i4"), np.array([len(sequence)]))

    def add_many(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        """Append sequences that lie back to back.

        Args:
            flat: int32 [sum(lengths)] tokens.
            lengths: int [n] tokens of each sequence.
        """
        block = np.ascontiguousarray(flat, dtype="<i4").data
        self._bin.write(block)
        self._digest.update(block)
        first = len(self._lengths) + 1
        self._lengths.extend(lengths.tolist())
        self._documents.extend(range(first, first + len(lengths)))

    def add_empty_document(self) -> None:
        """Mark the end of a document that holds nothing: what MindSpeed leaves of an over-long sample it skips."""
        self._documents.append(len(self._lengths))

    @property
    def sequences(self) -> int:
        """Sequences written so far."""
        return len(self._lengths)

    @property
    def sha256(self) -> str:
        """Hash of the .bin written so far."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Write the index and flush both files to disk, still under their temporary names."""
        _flush(self._bin)
        with open(self._partial[".idx"], "wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, INT32_CODE, len(self._lengths), len(self._documents)))
            lengths = np.frombuffer(self._lengths, dtype=np.int32)
            file.write(lengths.astype("<i4").tobytes())
            file.write(_offsets(lengths, itemsize=4).astype("<i8").tobytes())
            file.write(np.frombuffer(self._documents, dtype=np.int64).astype("<i8").tobytes())
            _flush(file)

    def publish(self) -> None:
        """Give both files their names. An old index goes first: an index never lies beside another's .bin."""
        publish_together([self])

    def discard(self) -> None:
        """Remove the temporary files."""
        self._closed = True
        self._bin.close()
        for path in self._partial.values():
            path.unlink(missing_ok=True)

    def _neighbour(self, suffix: str) -> Path:
        return self.path_prefix.with_name(f".{self.path_prefix.name}{suffix}.{uuid.uuid4().hex[:8]}.partial")

    def _final(self, suffix: str) -> Path:
        return self.path_prefix.with_name(self.path_prefix.name + suffix)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._closed:
            return
        try:
            if kind is None:
                self.finish()
                self.publish()
        finally:
            self.discard()


def publish_together(writers: list[IndexedWriter]) -> None:
    """Publish finished writers so that a kill at any moment leaves either no complete set or the whole new one."""
    for writer in writers:
        writer._final(".idx").unlink(missing_ok=True)
    for suffix in (".bin", ".idx"):
        for writer in writers:
            os.replace(writer._partial[suffix], writer._final(suffix))
    for writer in writers:
        writer.discard()


class IndexedDataset:
    """A .bin/.idx pair, memory-mapped: `dataset[i]` is the i-th sequence.

    Args:
        path_prefix: path without `.bin` and `.idx`.

    Raises:
        UserError: a file is missing, isn't an index, or the two don't fit together.
    """

    def __init__(self, path_prefix: str | Path) -> None:
        self.path_prefix = Path(path_prefix)
        index_path, bin_path = check_files(self.path_prefix)
        self._read_index(index_path)
        back_to_back = np.array_equal(self.offsets, _offsets(self.lengths, self.dtype.itemsize))
        if self.lengths.min(initial=0) < 0 or not back_to_back:
            raise UserError(f"{index_path}: its sequences do not lie back to back. Preprocess the data again")
        size, needed = bin_path.stat().st_size, int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        if size != needed:
            raise UserError(f"{bin_path}: {size} bytes, but its index needs {needed}. Preprocess the data again")
        self._tokens = np.memmap(bin_path, dtype=self.dtype, mode="r") if size else np.empty(0, self.dtype)

    def _read_index(self, path: Path) -> None:
        raw = path.read_bytes()
        if len(raw) < HEADER.size or raw[:9] != MAGIC:
            raise UserError(f"{path}: not a Megatron index (it does not begin with MMIDIDX)")
        _, version, code, sequences, documents = HEADER.unpack_from(raw)
        if version != VERSION or code not in DTYPES:
            raise UserError(f"{path}: version {version}, number type {code}; known are version 1, types 1 to 8")
        if len(raw) < HEADER.size + 12 * sequences + 8 * documents:
            raise UserError(f"{path}: cut short. Preprocess the data again")
        self.dtype = np.dtype(DTYPES[code])
        at = HEADER.size
        self.lengths = np.frombuffer(raw, "<i4", sequences, at)
        """int32 [N] tokens of each sequence."""
        self.offsets = np.frombuffer(raw, "<i8", sequences, at + 4 * sequences)
        """int64 [N] first byte of each sequence in the .bin."""
        self.documents = np.frombuffer(raw, "<i8", documents, at + 12 * sequences)
        """int64 [D] sequences before each document mark."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        start = int(self.offsets[i]) // self.dtype.itemsize
        return np.asarray(self._tokens[start : start + int(self.lengths[i])]).astype(np.int32, copy=False)

    @property
    def tokens(self) -> np.ndarray:
        """[sum(lengths)] every token of the .bin, memory-mapped."""
        return self._tokens


def _offsets(lengths: np.ndarray, itemsize: int) -> np.ndarray:
    ends = np.cumsum(lengths, dtype=np.int64) * itemsize
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(lengths) else ends


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
