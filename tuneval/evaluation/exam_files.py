"""The files of an exam in its published layout, read in place from a folder or a zip."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tuneval.errors import UserError

MAPPING = "subject_mapping.json"
"""Beside an exam's files: its own subjects, or other names for the known ones."""


class ExamFiles:
    """The files of an exam by their names below its root, whether it is a folder or a zip.

    A zip may hold everything below further folders; what macOS leaves (`__MACOSX`, a `._NAME` beside NAME) is passed over.

    Args:
        path: folder or zip.
        patterns: regular expressions of the names the exam's layout knows, without groups.

    Raises:
        UserError: no such path, no zip, or several exams in one zip.
    """

    def __init__(self, path: str | Path, patterns: Sequence[str]) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        known = [*patterns, re.escape(MAPPING)]
        if self.path.is_dir():
            found = [
                p
                for depth in ("*", "*/*")
                for p in sorted(self.path.glob(depth))
                if p.is_file() and not p.name.startswith("._")
            ]
            names = {p.relative_to(self.path).as_posix(): str(p) for p in found}
            self._members = {n: p for n, p in names.items() if any(re.fullmatch(k, n) for k in known)}
        elif self.path.is_file():
            self._members = self._open_zip(patterns)
        else:
            raise UserError(f"--task-data-path {self.path}: no such folder or zip")

    def _open_zip(self, patterns: Sequence[str]) -> dict[str, str]:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile:
            raise UserError(f"--task-data-path {self.path}: not a zip file; give the exam's folder or zip") from None
        names = [n for n in self._zip.namelist() if not n.endswith("/") and not re.match(r"__MACOSX/|(.*/)?\._", n)]
        layout = re.compile(rf"((?:.*/)?)(?:{'|'.join(patterns)})")
        roots = {m[1] for n in names if (m := layout.fullmatch(n))}
        if len(roots) > 1:
            self._zip.close()
            raise UserError(
                f"{self.path}: holds several exams ({', '.join(sorted(roots))}); give one of them as a folder"
            )
        root = roots.pop() if roots else ""
        return {n.removeprefix(root): n for n in names if n.startswith(root)}

    @property
    def names(self) -> dict[str, str]:
        return self._members

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            UserError: its part of the zip is damaged or encrypted.
        """
        if self._zip is None:
            return Path(self._members[name]).read_bytes()
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.where(name)}: can't be read ({error}); fetch the zip again or unpack it") from None

    def where(self, name: str) -> str:
        """How an error names a file."""
        return f"{self.path}!{self._members.get(name, name)}" if self._zip else str(self.path / name)

    def __enter__(self) -> ExamFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip:
            self._zip.close()
