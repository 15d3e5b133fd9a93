"""The conversation, and the terminal loop as a real process with a pipe, and with a pseudo-terminal for Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from lively import lively_folder

from tuneval.checkpoints.load import load_model
from tuneval.config.schema import SamplingConfig
from tuneval.data.records import Message
from tuneval.data.rows import read_rows
from tuneval.data.template import load_template
from tuneval.errors import UserError
from tuneval.inference.chat import Chat, run_chat
from tuneval.inference.generate import generate

GREEDY = SamplingConfig(max_new_tokens=6, greedy=True)


HELLO, SUM = "You are kind", "What is two plus two?"


@pytest.fixture
def folder(tmp_path, tokenizer):
    return lively_folder(tmp_path / "model", tokenizer)


@pytest.fixture
def chat(folder) -> Chat:
    loaded = load_model(folder, "fp32")
    return Chat(loaded, load_template("auto", loaded.tokenizer), GREEDY)


def test_an_answer_is_the_models_to_the_whole_conversation(chat):
    pieces: list[str] = []
    first, second = chat.ask(HELLO, pieces.append), chat.ask(SUM, pieces.append)
    assert "".join(pieces) == first + second
    turns = [Message("user", HELLO), Message("assistant", first), Message("user", SUM)]
    tokens = generate(chat.loaded, [chat.template.prompt_ids(turns)], GREEDY, chat.template.stop_token_ids)[0]
    assert second == chat.loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    assert chat.turns == [*turns, Message("assistant", second)]


def test_the_system_message_reaches_the_prompt(chat):
    chat.system = "You are kind. You are kind."
    chat.ask(HELLO)
    assert [m.role for m in chat.messages()] == ["system", "user", "assistant"]


def test_each_answer_draws_from_its_own_seed(chat):
    chat.sampling = SamplingConfig(max_new_tokens=8, temperature=3.0, top_k=0, top_p=1.0)
    first = chat.ask(HELLO)
    chat.turns = []
    assert chat.ask(HELLO) != first
    again = Chat(chat.loaded, chat.template, chat.sampling)
    assert again.ask(HELLO) == first


def test_the_oldest_turns_give_way(chat, capsys):
    chat.loaded = replace(chat.loaded, config=chat.loaded.config.__class__(max_position_embeddings=60))
    for _ in range(4):
        chat.ask(SUM)
    assert 2 <= len(chat.turns) < 8 and chat.turns[0].role == "user"
    assert "oldest turns were left out: the model has 60 positions" in capsys.readouterr().err
    with pytest.raises(UserError, match="60 positions"):
        chat.ask(SUM * 20)


def test_commands(chat, tmp_path, capsys):
    saved = tmp_path / "talk.jsonl"
    lines = [
        "/system 你是",
        HELLO,
        f"/save {saved}",
        "new",
        "/save",
        "/sav x",
        "/help",
        "/system",
        "quit",
        "never said",
    ]
    run_chat(chat, iter(lines))
    output, notes = capsys.readouterr()
    row = json.loads(saved.read_text(encoding="utf-8"))
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][0]["content"] == "你是" and row["messages"][2]["content"] == output.rstrip("\n")
    assert next(iter(read_rows(saved))) == row
    assert chat.turns == [] and chat.system is None
    for part in ("(forgotten)", "/save: give a file name", "/sav: no such command. Did you mean /save?", "Ctrl-C"):
        assert part in notes


def command(folder, *flags: str) -> list[str]:
    return [sys.executable, "-m", "tuneval", "chat", "--load", str(folder), "--dtype", "fp32", *flags]


def test_piped_lines_are_answered_by_a_real_process(folder, chat):
    expected = [chat.ask(HELLO), chat.ask(SUM)]
    done = subprocess.run(
        command(folder, "--greedy", "--max-new-tokens", "6", "--top-k", "3"),
        input=f"{HELLO}\n\n{SUM}\n/exit now\nmore\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(answer + "\n" for answer in expected)
    assert "Traceback" not in done.stderr and "--top-k 3: no effect, --greedy" in done.stderr


def test_bytes_that_are_no_text_do_not_end_the_talk(folder):
    done = subprocess.run(
        command(folder, "--greedy", "--max-new-tokens", "2"),
        input=b"\xff\xfe two\n/save ~nobody-here/x\n/save /\n/save ~/talks/\n/exit\n",
        capture_output=True,
        timeout=300,
    )
    error = done.stderr.decode()
    assert done.returncode == 0 and done.stdout.count(b"\n") >= 1, error
    assert "/save ~/talks/: names a folder; give a file in it" in error
    assert "/save ~nobody-here/x: " in error and "/save /: " in error and "Traceback" not in error


def read_until(terminal: int, word: str, more: int = 0, seconds: float = 300) -> str:
    """What the terminal shows until `word` and `more` characters after it have come."""
    text, end = "", time.monotonic() + seconds
    while word not in text or len(text) < text.index(word) + len(word) + more:
        assert select.select([terminal], [], [], end - time.monotonic())[0], text[-2000:]
        text += os.read(terminal, 4096).decode("utf-8", "replace")
    return text


def test_ctrl_c_stops_the_answer_and_not_the_chat(tiny_folder):
    folder = tiny_folder(max_position_embeddings=200000)  # never says its end-of-turn token
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(folder, "--max-new-tokens", "100000", "--greedy"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        read_until(ours, "You >> ")
        os.write(ours, f"{HELLO}\n".encode())
        read_until(ours, f"{HELLO}\r\n", more=20)  # the echo of the line, then the answer
        process.send_signal(signal.SIGINT)
        assert "(stopped)" in read_until(ours, "You >> ")
        os.write(ours, b"/exit\n")
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_an_answer_is_shown_as_it_is(chat, capsys):
    """Tabs and what looks like markup included."""
    wanted = "def f():\n\treturn [bold]x[/bold]"
    chat.ask = lambda text, on_text: [on_text(c) for c in wanted] and wanted
    run_chat(chat, iter([HELLO]))
    assert capsys.readouterr().out == wanted + "\n"
