"""Files are whole or absent."""

from __future__ import annotations

import pytest

from tuneval import files
from tuneval.errors import UserError


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), files.atomic_file(path) as file:
        file.write("half")
        raise RuntimeError
    assert files.read_json(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_folder_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    with files.atomic_folder(folder) as new:
        (new / "a").write_text("1")
    with pytest.raises(RuntimeError), files.atomic_folder(folder) as new:
        (new / "a").write_text("2")
        raise RuntimeError
    assert (folder / "a").read_text() == "1"
    with files.atomic_folder(folder) as new:
        (new / "b").write_text("3")
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [folder]


def test_json_lines_forgive_a_torn_end_only(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        files.read_jsonl(path)


def test_free_space_is_checked_before_writing(tmp_path):
    files.check_free_space(tmp_path / "new" / "folder", 1, "a test")
    with pytest.raises(UserError, match="GiB free"):
        files.check_free_space(tmp_path, 2**60, "a test")
