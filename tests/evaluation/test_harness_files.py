"""Task files of the user's own are judged as the harness reads them: none calls Python, however it is spelt or included."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tuneval.errors import UserError
from tuneval.evaluation import harness


class Passed(Exception):
    """The harness would begin."""


@pytest.fixture
def run(monkeypatch):
    """What comes of a folder of task files, up to where the harness begins; it need not be installed."""

    def begin() -> AbstractContextManager:
        raise Passed

    monkeypatch.setattr(harness, "find_spec", lambda name: True)
    monkeypatch.setattr(harness, "_offline", begin)
    return lambda folder: harness.run_harness(None, "mine", folder, None, False, None)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


CALL = "doc_to_text: !function utils.f\n"
CALLING = {
    "plain": {"bad.yaml": CALL},
    "a handle for half of the tag": {"bad.yaml": "%TAG !f! !func\n---\ndoc_to_text: !f!tion utils.f\n"},
    "the tag in full": {"bad.yaml": "doc_to_text: !<!function> utils.f\n"},
    "an escape in the tag": {"bad.yaml": "doc_to_text: !%66unction utils.f\n"},
    "Python's own tag": {"bad.yaml": "doc_to_text: !!python/object/apply:os.mkdir [ran]\n"},
    "an escape in the key": {"bad.yaml": 'dataset_kwargs: {"trust_remote\\x5fcode": true}\n'},
    "a name that is all ending": {"bad/.yaml": CALL},
    "an included text": {"t.yaml": "include: bad.txt\n", "bad.txt": CALL},
    "one of several": {"t.yaml": "include: [base, sub/bad]\n", "base": "task: mine\n", "sub/bad": CALL},
    "a metric that is a file": {"bad.yaml": "task: [{metric_list: [{metric: own/evil.py}]}]\n"},
    "two steps away": {"t.yaml": "include: sub/a\n", "sub/a": "include: ../bad\n", "bad": CALL},
}


@pytest.mark.parametrize("case", CALLING)
def test_a_call_is_found(case, tmp_path, run):
    with pytest.raises(UserError, match=r"/own/(sub/)?bad\S*: calls Python \(!function") as raised:
        run(write(tmp_path / "own", CALLING[case]))
    assert "t.yaml" not in str(raised.value)


def test_what_the_current_folder_has_under_the_name_is_judged(tmp_path, run, monkeypatch):
    """Version 0.4.9 of the harness looks there first."""
    write(tmp_path, {"own/t.yaml": "include: own/base\n", "own/own/base": "task: mine\n", "own/base": CALL})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/own/base: calls Python")):
        run(Path("own"))


def test_a_metric_that_the_current_folder_has_as_a_file_is_found(tmp_path, run, monkeypatch):
    write(tmp_path, {"own/bad.yaml": "metric_list: [{metric: evil}]\n", "evil/evil.py": ""})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"bad\.yaml: calls Python .*a metric that is a file"):
        run(Path("own"))


@pytest.mark.parametrize("name", ["../base.txt", "{}/base.txt", "link"])
def test_an_include_stays_in_the_folder(name, tmp_path, run):
    name = name.format(tmp_path)
    write(tmp_path, {"own/t.yaml": f"include: {name}\n", "base.txt": "task: mine\n"})
    (tmp_path / "own/link").symlink_to("../base.txt")
    with pytest.raises(UserError, match=rf"own/t\.yaml: includes {re.escape(name)}, which lies outside .*/own;"):
        run(tmp_path / "own")


@pytest.mark.parametrize("text", ["task: [", "? [a]: b", "a: 1\n---\nb: 2", "when: 2026-99-99"])
def test_a_file_that_cannot_be_judged_is_named(text, tmp_path, run):
    with pytest.raises(UserError, match=r"own/t\.yaml: not (YAML|a task file) \("):
        run(write(tmp_path / "own", {"t.yaml": text}))


def test_data_passes(tmp_path, run):
    files = {
        "t.yaml": "# not a !function\ninclude: [base, sub/a.yaml]\ntask: mine\ndescription: 'say !function'\n"
        "metric_list: [{metric: acc, aggregation: mean}]\n",
        "base": "include: t.yaml\n",
        "sub/a.yaml": "include: ../sub/a.yaml\n",
        "empty.yml": "",
        "absent.yaml": "include: nowhere\n",
        "LICENSE": "Terms: a: b: [",
        "notes.md": "!function",
    }
    with pytest.raises(Passed):
        run(write(tmp_path / "own", files))
