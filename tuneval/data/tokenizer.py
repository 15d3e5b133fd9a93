"""The tokenizer of a folder, loaded in one way everywhere: from this machine alone, and nothing in the folder runs."""

from __future__ import annotations

from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any

from tuneval.errors import UserError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken")


def load_tokenizer(folder: str | Path, fast: bool = True) -> Any:
    """The tokenizer of a model's folder, or of a run's.

    Args:
        folder: holds the tokenizer's files, itself or in model/ or adapter/.
        fast: the Rust tokenizer, where transformers has both.

    Raises:
        UserError: no tokenizer there (transformers would make an empty one), or one that it can't use.
    """
    found = find_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(found, use_fast=fast, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions, and transformers what its versions like
        raise UserError(f"{found}: no tokenizer that transformers can use ({type(error).__name__}: {error})") from None


def find_tokenizer(folder: str | Path) -> Path:
    """The folder with the tokenizer's files: `folder` itself, or its model/ or adapter/. Raises a UserError for none."""
    folder = Path(folder)
    found = next((f for f in (folder, folder / "model", folder / "adapter") if _holds_tokenizer(f)), None)
    if found is None:
        raise UserError(_nothing_there(folder))
    return found


def vocabulary_sha256(tokenizer: Any) -> str:
    """Hash of every token with its id."""
    vocabulary = tokenizer.get_vocab()
    lines = (f"{number} {token}\n" for token, number in sorted(vocabulary.items(), key=itemgetter(1)))
    return sha256("".join(lines).encode()).hexdigest()


def _holds_tokenizer(folder: Path) -> bool:
    return folder.is_dir() and any(any(folder.glob(name)) for name in _FILES)


def _nothing_there(folder: Path) -> str:
    if folder.is_dir():
        looked = ", ".join(_FILES)
        return f"{folder}: no tokenizer. Looked for {looked}. Copy the original model's tokenizer files there."
    if folder.exists():
        return f"{folder}: a file. Give the folder that holds the tokenizer's files."
    text = f"{folder}: no such folder. Give the folder that holds the tokenizer's files."
    is_hub_id = not folder.is_absolute() and len(folder.parts) == 2 and folder.parts[0] not in ("~", "..")
    return f"{text} Is it the id of a model on a hub? tuneval download {folder} fetches it." if is_hub_id else text
