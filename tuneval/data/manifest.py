"""PREFIX_manifest.json: what preprocess says of the token files beside it. Files of MindSpeed-LLM have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneval.errors import UserError
from tuneval.files import read_object

_PARTS: dict[str, type] = {
    "samples": int,
    "prompt_type": str,
    "template_fingerprint": str,
    "template": dict,
    "stop_token_ids": list,
    "tokenizer": dict,
    "input": dict,
    "skipped": dict,
    "over_long": int,
    "data_sha256": str,
    "packed": str,
}
"""What its readers need of it, and as what."""


def manifest_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}_manifest.json")


def read_manifest(prefix: str | Path) -> dict[str, Any] | None:
    """The manifest of a data set; None where there is none.

    Raises:
        UserError: there is one, but not as preprocess writes it.
    """
    path = manifest_path(prefix)
    if not path.exists():
        return None
    manifest = read_object(path)
    wrong = [name for name, kind in _PARTS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise UserError(
            f"{path}: not as preprocess writes it ({', '.join(wrong)}: missing, or of a wrong type). Preprocess the data "
            "again, or remove the file to do without it"
        )
    return manifest
