"""`tuneval download` without a network: what can't be fetched is never said to be there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("begun", [False, True])
def test_offline_is_an_error_even_where_a_folder_is_there(tmp_path, begun):
    folder = tmp_path / "model"
    if begun:  # the hub's client would answer with this folder
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    words = [sys.executable, "-m", "tuneval", "download", "some/model", "--to", str(folder)]
    found = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert found.returncode == 2 and not found.stdout
    assert "some/model could not be fetched" in found.stderr and "HF_ENDPOINT" in found.stderr
