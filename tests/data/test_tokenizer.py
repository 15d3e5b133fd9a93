"""A tokenizer comes from a folder of this machine, whatever its name looks like."""

from __future__ import annotations

import socket

import pytest

from tuneval.data.tokenizer import load_tokenizer
from tuneval.errors import UserError


def test_run_folders_have_theirs_inside(tokenizer, tmp_path):
    for place in ("hf", "full/model", "lora/adapter"):
        tokenizer.save_pretrained(tmp_path / place)
        assert load_tokenizer(tmp_path / place.split("/")[0]).get_vocab() == tokenizer.get_vocab()


def test_a_hub_id_is_never_asked_for(tmp_path, monkeypatch):
    """Not even where the network is there: every connection would be an error of another kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(socket.socket, "connect", lambda *address: pytest.fail(f"a connection to {address[1:]}"))
    with pytest.raises(UserError, match=r"Qwen/Qwen2: no such folder.*tuneval download Qwen/Qwen2 fetches it"):
        load_tokenizer("Qwen/Qwen2")
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "a" / "b")
    assert "download" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"[1, 2]"),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}}'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"tokenizer_class": "NoSuchTokenizer", "auto_map": 7}'),
        ("vocab.json", b"{}"),
    ],
)
def test_odd_files_are_told(tokenizer, tmp_path, name, content):
    tokenizer.save_pretrained(tmp_path)
    if name == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_bytes(content)
    if name == "tokenizer_config.json":  # what transformers reads in spite of it is a tokenizer all the same
        try:
            assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()
        except UserError as error:
            assert "no tokenizer that transformers can use" in str(error)
        return
    with pytest.raises(UserError, match="no tokenizer that transformers can use"):
        load_tokenizer(tmp_path)


def test_a_file_or_an_empty_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a file\. Give the folder"):
        load_tokenizer(tmp_path / "file")
    with pytest.raises(UserError, match=r"no tokenizer\. Looked for tokenizer\.json"):
        load_tokenizer(tmp_path)
