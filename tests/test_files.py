"""Files are whole or absent."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys

import pytest

from tuneval import files
from tuneval.errors import UserError, tell


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


def test_a_link_to_a_folder_stays_one(tmp_path):
    """Models often lie on a larger disk."""
    link, disk = tmp_path / "model", tmp_path / "disk"
    link.symlink_to(disk / "model")
    for text in ("1", "2"):
        with files.atomic_folder(link) as new:
            (new / "a").write_text(text)
        assert link.is_symlink() and (disk / "model" / "a").read_text() == text
    assert sorted(tmp_path.iterdir()) == [disk, link] and list(disk.iterdir()) == [disk / "model"]


def test_json_lines_forgive_a_torn_end_only(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        files.read_jsonl(path)
    path.write_text("1" * 5000 + "\n{}\n")  # Python makes no number of that
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        files.read_jsonl(path)
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(path)


def test_json_lines_forgive_an_end_inside_a_character(tmp_path):
    """Cut at every byte of the last line: a killed writer stops anywhere."""
    path = tmp_path / "m.jsonl"
    first, last = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ({"a": "甲\u2028"}, {"a": "乙"}))
    for end in range(len(last) - 1):
        path.write_bytes(first + last[:end])
        assert files.read_jsonl(path) == [{"a": "甲\u2028"}], end
    path.write_bytes(first + last[:-4] + b"\n" + last)
    with pytest.raises(UserError, match=r"m\.jsonl: not UTF-8 text \(byte 7\) in line 2"):
        files.read_jsonl(path)


def test_free_space_is_checked_before_writing(tmp_path):
    files.check_free_space(tmp_path / "new" / "folder", 1, "a test")
    with pytest.raises(UserError, match="GiB free"):
        files.check_free_space(tmp_path, 2**60, "a test")


FULL = """
import sys
from tuneval import files
kind, path = sys.argv[1:]
try:
    with (files.atomic_file(path, "wb") if kind == "file" else files.atomic_folder(path)) as new:
        (new if kind == "file" else open(new / "weights", "wb")).write(bytes(1 << 20))
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_without_room_is_told_by_the_final_path_and_nothing_stays(tmp_path, kind):
    """A limit on the size of files stands for a full disk: both refuse a write in the middle of a file."""
    target = tmp_path / "result"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, "-c", FULL, kind, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    number, _, name = done.stdout.strip().partition(" ")
    assert (int(number), name) == (errno.EFBIG, str(target)), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [files.atomic_file, files.atomic_folder])
def test_a_path_below_a_file_is_told(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught, make(tmp_path / "file" / "a" / "b"):
        pass
    assert str(tmp_path / "file") in tell(caught.value) and "a part of this path is a file" in tell(caught.value)


@pytest.mark.parametrize("make", [files.atomic_file, files.atomic_folder])
@pytest.mark.parametrize("path", [".", "..", "/", "a/.."])
def test_the_folder_one_stands_in_is_not_replaced(make, path):
    with pytest.raises(OSError, match="can't be replaced") as caught, make(path):
        pass
    assert tell(caught.value).endswith("give the name of a new one")


def test_every_errors_text_has_path_reason_and_remedy():
    full = OSError(errno.ENOSPC, "No space left on device", "out/model")
    assert tell(full) == "out/model: No space left on device: free some space, or choose a folder on another disk"
    assert tell(OSError("odd")) == "odd"
