"""What `--load` names, looked for without torch: a misspelt path is told at once."""

from __future__ import annotations

from pathlib import Path

from tuneval.errors import UserError


def check_there(path: str | Path) -> None:
    """Raise a UserError where nothing is at a checkpoint's path; what it holds is `load.open_source`'s question."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such folder. Give a Hugging Face, Megatron, run or adapter folder.")
