"""What `--load` names, looked for without torch: a misspelt path is told at once."""

from __future__ import annotations

from pathlib import Path

from tuneval.errors import UserError
from tuneval.files import read_object


def check_there(*paths: str | Path | None) -> None:
    """Raise a UserError where nothing is at a checkpoint's path; what it holds is `load.open_source`'s question.

    Args:
        paths: of checkpoints; None: not given.
    """
    for path in filter(None, paths):
        if not Path(path).exists():
            raise UserError(f"{path}: no such folder. Give a Hugging Face, Megatron, run or adapter folder.")
        if not Path(path).is_dir():
            raise UserError(f"{path}: is a file. Give the folder that holds it.")


def holds_run(folder: str | Path) -> bool:
    """Whether a folder's config.json is a run's record; a model has a config.json, too."""
    path = Path(folder) / "config.json"
    return path.is_file() and "schema_version" in read_object(path)
