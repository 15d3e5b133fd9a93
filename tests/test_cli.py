"""The command line as a process: quick help, exit statuses, errors without a traceback."""

from __future__ import annotations

import subprocess
import sys

from tuneval import cli
from tuneval.config import schema


def tuneval(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tuneval", *arguments], capture_output=True, text=True, timeout=120)


def test_help_lists_every_command():
    found = tuneval("--help")
    assert found.returncode == 0
    assert all(name in found.stdout for name in cli.COMMANDS)


def test_help_imports_nothing_heavy():
    code = "import sys; from tuneval.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_every_command_has_a_schema_and_a_file():
    from importlib.util import find_spec

    for name in cli.COMMANDS:
        assert hasattr(schema, f"{name.capitalize()}Config"), name
        assert find_spec(f"tuneval.commands.{name}"), name


def test_unknown_command_names_the_nearest():
    found = tuneval("tunee")
    assert found.returncode == 2
    assert "did you mean tune?" in found.stderr


def test_bad_input_is_one_clear_line():
    found = tuneval(
        "preprocess", "--input", "a", "--tokenizer-name-or-path", "b", "--output-prefix", "c", "--workerz", "2"
    )
    assert found.returncode == 2
    assert "--workerz: unknown flag; did you mean --workers?" in found.stderr
    assert "Traceback" not in found.stderr


def test_positional_words():
    assert cli.positional_as_flags("verify", ["A", "B"]) == ["--a", "A", "--b", "B"]
    assert cli.positional_as_flags("report", ["R1", "R2", "--lang", "en"]) == ["--runs", "R1", "R2", "--lang", "en"]
    assert cli.positional_as_flags("tune", ["--load", "m"]) == ["--load", "m"]
