"""Record files -> rows: json, jsonl, csv and parquet, plain or compressed, streamed where the format allows it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tuneval.console import note
from tuneval.errors import UserError

KINDS = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED = {".xz": lzma.open, ".gz": gzip.open}


class BadRow(Exception):
    """A row that can't become a sample. `reason` is one of a few fixed texts, so that rows can be counted by it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def input_files(path: str | Path) -> list[Path]:
    """The record files that `path` names: itself, or those of a folder by name.

    Raises:
        UserError: nothing there, or nothing of a known kind.
    """
    path = Path(path)
    known = f"known are {', '.join(KINDS)}, also with {' or '.join(COMPRESSED)} added"
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and _kind(p) in KINDS and not p.name.startswith("."))
        if not files:
            raise UserError(f"--input {path}: no record file in this folder; {known}")
        return files
    if not path.exists():
        raise UserError(f"--input {path}: no such file or folder")
    if not path.is_file():
        raise UserError(
            f"--input {path}: neither a file nor a folder; it is read more than once, so write it to a file"
        )
    if _kind(path) not in KINDS:
        raise UserError(f"--input {path}: unknown kind of file; {known}")
    return [path]


def read_rows(path: str | Path, on_total: Callable[[int], None] = lambda total: None) -> Iterator[Any]:
    """Yield the rows of a file, or of a folder's files one after the other: dicts, where the file is well made.

    Everything but a .json array is streamed. A line of a .jsonl file that isn't JSON comes out as a `BadRow`, so that
    one torn line doesn't stop the rest.

    Args:
        path: a file, or a folder of files.
        on_total: called with a file's number of rows before they come, where its format tells that.

    Raises:
        UserError: a file that can't be read at all.
    """
    return map(parsed, read_unparsed(path, on_total))


def read_unparsed(path: str | Path, on_total: Callable[[int], None] = lambda total: None) -> Iterator[Any]:
    """The same, but a line of JSON comes as bytes: `parsed` makes the row of it, in another process if need be."""
    for file in input_files(path):
        try:
            yield from _READERS[_kind(file)](file, on_total)
        except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise UserError(f"{file}: damaged compressed file ({error})") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 text ({error}). Save it as UTF-8") from None


def parsed(row: Any) -> Any:
    """The row of one that `read_unparsed` gave; what was a row already stays."""
    if not isinstance(row, bytes):
        return row
    try:
        return json.loads(row.decode())
    except (ValueError, RecursionError):  # not only JSON's: numbers of 4,300 digits; the second: brackets without end
        return BadRow("not JSON")


def _kind(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def _open(path: Path, binary: bool = False) -> IO[Any]:
    opener = COMPRESSED.get(path.suffix.lower(), open)
    return opener(path, "rb") if binary else opener(path, "rt", encoding="utf-8-sig", newline="")


def _read_json(path: Path, on_total: Callable[[int], None]) -> Iterator[Any]:
    """A top-level array; an object that holds one; one object; or one value a line, which many call .json too."""
    with _open(path) as file:
        lines = (line.strip() for line in file)
        first = next((line for line in lines if line), "")
        second = next((line for line in lines if line), "")
        file.seek(0)
        if not first.startswith("[") and not _one_object(first, second):
            yield from _lines(file)
            return
        try:
            value = json.load(file)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not valid JSON ({error}). It may hold an array of objects, or an object in each line"
            ) from None
    rows = value if isinstance(value, list) else _rows_inside(path, value)
    on_total(len(rows))
    yield from rows


def _one_object(first: str, second: str) -> bool:
    """Whether a file's first two filled lines belong to one object, instead of being one each."""
    if not first.startswith("{"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return first.endswith(("{", "[", ","))  # else a torn line
    return not second


def _rows_inside(path: Path, value: dict[str, Any]) -> list[Any]:
    """The rows of `{"data": [{...}, ...]}`, whatever the name; an object without such a list is a row itself.

    A row's own list of objects, as of messages, is told by its columns.
    """
    if value.keys() & _LISTS_OF_A_ROW:
        return [value]
    lists = [k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    if len(lists) > 1:
        raise UserError(
            f"{path}: one object with several lists of objects: {', '.join(lists)}. Keep the one of the rows"
        )
    if lists:
        note(f"{path}: the rows are those under {lists[0]}")
    return value[lists[0]] if lists else [value]


_LISTS_OF_A_ROW = frozenset(["messages", "conversations", "history"])


def _read_jsonl(path: Path, _: Callable[[int], None]) -> Iterator[Any]:
    with _open(path) as file:
        yield from _lines(file)


def _lines(file: IO[str]) -> Iterator[bytes]:
    return (line.encode() for line in file if line.strip())


def _read_csv(path: Path, _: Callable[[int], None]) -> Iterator[Any]:
    csv.field_size_limit(1 << 30)
    with _open(path) as file:
        try:
            for row in csv.DictReader(file):
                yield BadRow("more cells than columns") if None in row else row
        except csv.Error as error:
            raise UserError(f"{path}: not a CSV file ({error})") from None


def _read_parquet(path: Path, on_total: Callable[[int], None]) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    with _open(path, binary=True) as file:
        source = io.BytesIO(file.read()) if path.suffix.lower() in COMPRESSED else file
        try:
            table = parquet.ParquetFile(source)
            on_total(table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        except (ArrowException, OSError, UnicodeDecodeError) as error:  # pyarrow's OSErrors are about what it decodes
            raise UserError(f"{path}: not a parquet file, or damaged ({error})") from None


_READERS: dict[str, Callable[[Path, Callable[[int], None]], Iterator[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
