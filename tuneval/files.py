"""Files that are either whole or absent: atomic writes, hashes, free space, JSON lines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tuneval.errors import UserError

_ESCAPE = "backslashreplace"
"""What is no character (a byte of a file name that is no UTF-8) becomes \\udcff, which JSON reads back."""


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "w", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path`; publish it by rename when the block ends well, else remove it.

    Args:
        path: to write.
        mode: of `open`.
        sync: wait until the disk has it. Not needed inside `atomic_folder`, whose other files may be gigabytes under way.
    """
    path = Path(path)
    temporary = _neighbour(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n", "errors": _ESCAPE}
    try:
        with open(temporary, mode, **options) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _name(error, temporary, path)
        raise
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, it can't be removed
            temporary.unlink(missing_ok=True)


def _neighbour(path: Path, ending: str = "partial") -> Path:
    if path.name in ("", ".."):  # `.`, `..`, `/`
        raise OSError(errno.EBUSY, "the current folder, or one above it, can't be replaced", str(path))
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _name(error: OSError, temporary: Path, path: Path) -> None:
    """Let an error of writing name the file that was to be written: full disks name none."""
    told = str(temporary) if error.filename is None else str(error.filename)
    if told.startswith(str(temporary)):
        error.filename, error.filename2 = str(path) + told.removeprefix(str(temporary)), None


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary neighbour folder of `path`; publish it by rename when the block ends well, else remove it.

    An existing folder at `path` is replaced only after the new one is complete. Where `path` is a link, what it points to is.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    temporary = _neighbour(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        with _locked(temporary):
            yield temporary
            if path.exists():
                replaced = _neighbour(path, "replaced")
                os.rename(path, replaced)
                os.rename(temporary, path)
                shutil.rmtree(replaced)
            else:
                os.rename(temporary, path)
    except OSError as error:
        _name(error, temporary, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with the process that holds it. False: another has it, or there are no locks."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError:
        locked = False
    try:
        yield locked
    finally:
        os.close(opened)


def remove_partial(path: str | Path) -> None:
    """Remove what killed writers of a folder left beside it. One that still writes keeps its own."""
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        with contextlib.suppress(FileNotFoundError), _locked(left) as abandoned:  # its writer may end well just now
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)


def write_json(path: str | Path, value: Any, sync: bool = True) -> None:
    with atomic_file(path, sync=sync) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:  # not only JSON's: Python refuses numbers of 4,300 digits
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_object(path: str | Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "an object")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path) -> list[dict]:
    """Rows of a JSON-lines file. A torn last line (a killed writer) is left out; a torn inner line is an error."""
    # Split as bytes: a killed writer's last line may end inside a character.
    lines = [line for line in Path(path).read_bytes().split(b"\n") if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            if isinstance(error, UnicodeDecodeError):
                raise UserError(f"{path}: not UTF-8 text (byte {error.start}) in line {number}") from None
            raise UserError(f"{path}: line {number} is not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} must be a JSON object, found {_kind(row)}")
        rows.append(row)
    return rows


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: IO[bytes]) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors=_ESCAPE)).hexdigest()


def check_writable(path: str | Path) -> None:
    """Raise now what writing a file would raise after hours of work.

    Raises:
        OSError: the file can't be made there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    trial = _neighbour(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        trial.touch()
    except OSError as error:
        _name(error, trial, path)
        raise
    trial.unlink()


def check_folder(flag: str, folder: str | Path) -> None:
    """Raise a UserError for what making a folder and writing in it would raise after hours of work. Makes nothing."""
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there}: a file is in the way; choose another {flag}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there}: can't be written; choose another {flag}")


def check_free_space(folder: str | Path, needed_bytes: int, what: str) -> None:
    """Raise a UserError before anything is written when `needed_bytes` do not fit on the disk of `folder`."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise UserError(
            f"{what} needs {needed_bytes / 2**30:.2f} GiB at {folder}, which has {free / 2**30:.2f} GiB free: "
            "free some space or choose another folder"
        )
