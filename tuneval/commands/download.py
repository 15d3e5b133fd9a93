"""`tuneval download ID`: a model or tokenizer from a hub into a folder; a broken download continues."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from tuneval import console
from tuneval.config.flags import Parsed
from tuneval.config.schema import DownloadConfig
from tuneval.errors import UserError
from tuneval.files import check_folder

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
WEIGHTS = ["*.safetensors"]


def main(parsed: Parsed) -> int:
    config: DownloadConfig = parsed.config
    folder = config.to or Path(config.id.rstrip("/").split("/")[-1])
    patterns = SMALL_FILES + ([] if config.tokenizer_only else WEIGHTS)
    check_folder("--to", folder)
    fetch, hub = from_hugging_face, os.environ.get("HF_ENDPOINT", "the default hub")
    if config.source == "modelscope":
        fetch, hub = from_modelscope, "ModelScope"
    try:
        fetch(config, folder, patterns)
    except UserError:
        raise
    except Exception as error:  # of the client, or of whatever carries its requests: they share no class
        raise UserError(
            f"{config.id} could not be fetched from {hub}: {error}. Check the id and the network; the environment "
            "variable HF_ENDPOINT chooses a mirror, and --source modelscope another hub. The same command continues "
            "where it stopped."
        ) from None
    console.out.print(f"{config.id} is in {folder}", markup=False)
    return 0


def from_hugging_face(config: DownloadConfig, folder: Path, patterns: list[str]) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        # Without an answer from the hub, snapshot_download takes any folder that is there for the whole.
        HfApi().repo_info(config.id, revision=config.revision)
    except HFValidationError as error:
        raise UserError(f"--id {config.id}: {error}") from None
    snapshot_download(config.id, revision=config.revision, local_dir=folder, allow_patterns=patterns)


def from_modelscope(config: DownloadConfig, folder: Path, patterns: list[str]) -> None:
    if find_spec("modelscope") is None:
        raise UserError("--source modelscope needs the package modelscope: pip install 'tuneval[modelscope]'")
    from modelscope import snapshot_download

    revision = {} if config.revision is None else {"revision": config.revision}
    snapshot_download(config.id, local_dir=str(folder), allow_patterns=patterns, **revision)
