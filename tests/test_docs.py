"""The documentation holds: both languages show the same commands, every command parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tuneval import cli
from tuneval.config import flags, schema
from tuneval.config.mindspeed import ENTRIES, translate

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
PAIRS = [
    (p, p.with_name(p.name.replace(".md", ".zh-CN.md"))) for p in PAGES if p.with_name(p.stem + ".zh-CN.md").exists()
]


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """Lines of a block as words, continued lines joined, comments dropped."""
    lines = block.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        for at in [i for i, w in enumerate(words) if w in ("&&", "|")][::-1]:
            found.append(words[at + 1 :])
            words = words[:at]
        found.append(words)
    return [w for w in found if w]


def tuneval_commands(page: Path) -> list[list[str]]:
    """[command, flag, ...] of each tuneval call on the page, entry files with MindSpeed-LLM's names included."""
    found = []
    for block in code_blocks(page):
        for words in commands(block):
            while words and "=" in words[0]:
                words = words[1:]
            if words and words[0] == "tuneval" and words[1] in cli.COMMANDS and "..." not in words:
                found.append(words[1:])
            elif (at := next((i for i, w in enumerate(words) if Path(w).name in ENTRIES), 0)) > 0:
                ours = translate(Path(words[at]).name, words[at + 1 :])
                found.append([ours.command, *ours.words])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_parses(page):
    for command, *rest in tuneval_commands(page):
        config_type = getattr(schema, f"{command.capitalize()}Config")
        if "--help" not in rest:
            flags.parse(config_type, cli.positional_as_flags(command, rest), f"tuneval {command}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_script_is_there(page):
    for block in code_blocks(page):
        for words in commands(block):
            while "=" in words[0]:
                words = words[1:]
            assert words[0] != "bash" or (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda p: p.name)
def test_both_languages_show_the_same_commands(english, chinese):
    """But for the language of a report, which is the page's."""

    def without_language(page: Path) -> list[str]:
        return [re.sub(r" --lang (zh|en)", "", " ".join(words)) for words in tuneval_commands(page)]

    assert without_language(english) == without_language(chinese)


def test_readmes_open_with_exactly_two_set_up_commands():
    expected = ["pip install -e . && tuneval quickstart\n", "pip install -e '.[dev]' && pytest\n"]
    for name in ("README.md", "README.zh-CN.md"):
        assert code_blocks(ROOT / name)[:2] == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        path = target[0] or target[1]
        if not re.match(r"[a-z]+:", path):
            assert (page.parent / path).exists(), f"{page.name}: {path}"


def test_the_parser_of_these_tests_finds_commands():
    assert len(tuneval_commands(ROOT / "README.md")) >= 8
