"""`tuneval download` without a network: what can't be fetched is never said to be there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from tuneval import cli


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}])
def test_offline_is_an_error_even_where_a_folder_is_there(tmp_path, begun, network):
    folder = tmp_path / "model"
    if begun:  # the hub's client would answer with this folder
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    words = [sys.executable, "-m", "tuneval", "download", "some/model", "--to", str(folder)]
    found = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **network})
    assert found.returncode == 2 and not found.stdout
    assert "some/model could not be fetched" in found.stderr and "HF_ENDPOINT" in found.stderr


def test_what_modelscope_raises_is_told_without_a_traceback(tmp_path, monkeypatch, capsys):
    def snapshot_download(*_, **__):
        raise Exception("the revision v9 is not there")

    stand_in = ModuleType("modelscope")
    stand_in.__spec__, stand_in.snapshot_download = ModuleSpec("modelscope", None), snapshot_download
    monkeypatch.setitem(sys.modules, "modelscope", stand_in)
    words = ["some/model", "--source", "modelscope", "--to", str(tmp_path / "m")]
    assert cli.main(["download", *words]) == 2
    assert "some/model could not be fetched from ModelScope: the revision v9 is not there" in capsys.readouterr().err


def test_a_file_is_no_folder_to_fetch_into(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["download", "some/model", "--to", str(tmp_path / "file")]) == 2
    assert f"{tmp_path}/file: a file is in the way; choose another --to" in capsys.readouterr().err
