"""A conversation with a model, and the terminal loop around it."""

from __future__ import annotations

import difflib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tuneval import console, runtime
from tuneval.checkpoints.load import Loaded
from tuneval.config.schema import SamplingConfig
from tuneval.data.records import Message
from tuneval.data.template import Template
from tuneval.errors import UserError, tell
from tuneval.files import write_jsonl
from tuneval.inference.generate import TextStream, generate, positions_limit

HELP = """\
/clear          forget the conversation (also: clear, new)
/system TEXT    set the system message; without TEXT: back to the template's own
/save FILE      write the conversation as one JSON line of `messages`, which preprocess reads
/help           this list
/exit           leave (also: exit, quit, q, Ctrl-D)
Ctrl-C          stop the answer under way; what came so far stays in the conversation"""

_WORDS = {"clear": "/clear", "new": "/clear", "q": "/exit", "quit": "/exit", "exit": "/exit"}
"""Lines that are commands without a slash, as in MindSpeed-LLM's chat."""


@dataclass
class Chat:
    """What was said so far, and the model that answers."""

    loaded: Loaded
    template: Template
    sampling: SamplingConfig
    system: str | None = None
    """None: the template's own."""
    turns: list[Message] = field(default_factory=list)
    """user and assistant in turn."""
    history_turns: int | None = None
    """Earlier questions and answers that a prompt holds. None: all that fit."""
    answers: int = 0
    """Answers given, forgotten ones too; each draws from its own seed."""

    def ask(self, text: str, on_text: Callable[[str], None] = lambda _: None) -> str:
        """The answer to `text`, which joins the conversation with it.

        Args:
            text: what the user says.
            on_text: gets the answer piece by piece.

        Raises:
            KeyboardInterrupt: stopped by the user; what came so far is kept as the answer.
            UserError: `text` alone is longer than the model's positions.
        """
        kept = (
            self.turns if self.history_turns is None else self.turns[max(0, len(self.turns) - 2 * self.history_turns) :]
        )
        said = [*kept, Message("user", text)]
        prompt, said = self._fitting_prompt(said)
        stream = _StoppableStream(self.loaded.tokenizer, on_text, self.template.stop_token_ids)
        sampling = replace(self.sampling, seed=self.sampling.seed + self.answers)
        try:
            with _asks_to_stop(stream):
                generate(self.loaded, [prompt], sampling, self.template.stop_token_ids, stream)
        finally:
            if stream.tokens:
                self.answers += 1
                self.turns = [*said, Message("assistant", stream.text)]
        return stream.text

    def messages(self) -> list[Message]:
        """The conversation, the system message first where one was set."""
        return self._with_system(self.turns)

    def _with_system(self, turns: list[Message]) -> list[Message]:
        return ([] if self.system is None else [Message("system", self.system)]) + turns

    def _fitting_prompt(self, turns: list[Message]) -> tuple[list[int], list[Message]]:
        """Prompt of the newest turns that leave room for an answer (at most half of the positions), and these turns."""
        limit = positions_limit(self.loaded)
        dropped = 0
        while True:
            prompt = self.template.prompt_ids(self._with_system(turns))
            wanted = len(prompt) + min(self.sampling.max_new_tokens, (limit or 0) // 2)
            if limit is None or wanted <= limit or len(turns) == 1:
                break
            turns, dropped = turns[2:], dropped + 1
        if dropped:
            console.note(f"the {dropped} oldest turns were left out: the model has {limit} positions")
        return prompt, turns


def run_chat(chat: Chat, lines: Iterator[str], show_speed: bool = False, heading: str = "") -> None:
    """Answer every line until the last or /exit.

    Args:
        chat: the conversation, changed by it.
        lines: what the user types.
        show_speed: add tokens and tokens/s after each answer.
        heading: a line before each answer; "": none.
    """
    for line in lines:
        line = line.strip()
        line = _WORDS.get(line.lower(), line)
        if line.split(maxsplit=1)[:1] == ["/exit"]:
            break
        try:
            if line.startswith("/"):
                _command(chat, line)
            elif line:
                if heading:
                    console.out.print(heading, markup=False)
                _answer(chat, line, show_speed)
        except UserError as error:
            console.note(str(error))


class _StoppableStream(TextStream):
    """Ends the answer at the next token once that was asked for."""

    stop = False

    def put(self, value: torch.Tensor) -> None:
        if self.stop:
            raise KeyboardInterrupt
        super().put(value)


@contextmanager
def _asks_to_stop(stream: _StoppableStream) -> Iterator[None]:
    """Ctrl-C asks the stream to stop; a second one does not wait for its next token.

    Python raises KeyboardInterrupt wherever it happens to be: inside a destructor or a callback it is printed and lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and is the one that Ctrl-C reaches
        return

    def ask(*_: object) -> None:
        if stream.stop:
            raise KeyboardInterrupt
        stream.stop = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def lines_said() -> tuple[Iterator[str], bool]:
    """What the user types, or sends through a pipe; and whether it is typed."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text become a mark, not the end of the talk
    if sys.stdin is not None and sys.stdin.isatty():
        return _typed_lines(), True
    return iter(sys.stdin or ()), False


def _typed_lines() -> Iterator[str]:
    """Lines typed at a terminal, with its line editing; Ctrl-D ends, Ctrl-C takes the line back."""
    import readline  # noqa: F401 - makes input() edit lines and remember them

    while True:
        try:
            yield input("You >> ")
        except EOFError:
            console.out.print()
            return
        except KeyboardInterrupt:
            console.note("\n(/exit or Ctrl-D leaves)")


def _answer(chat: Chat, text: str, show_speed: bool) -> None:
    started = time.perf_counter()

    def show(piece: str) -> None:
        if not console.out.quiet:
            console.out.file.write(piece)  # not by rich, which makes spaces of tabs
            console.out.file.flush()

    try:
        answer = chat.ask(text, show)
    except KeyboardInterrupt:
        console.out.print()
        console.note("(stopped)")
        return
    console.out.print()
    if show_speed:
        seconds = time.perf_counter() - started
        tokens = len(chat.loaded.tokenizer(answer, add_special_tokens=False)["input_ids"])
        console.err.print(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s", style="dim")


def _command(chat: Chat, line: str) -> None:
    name, _, argument = line.partition(" ")
    actions = {"/clear": _clear, "/system": _system, "/save": _save, "/help": lambda *_: console.note(HELP)}
    if name not in actions:
        nearest = difflib.get_close_matches(name, [*actions, "/exit"], n=1)
        hint = f"Did you mean {nearest[0]}?" if nearest else "/help lists the commands."
        raise UserError(f"{name}: no such command. {hint}")
    actions[name](chat, argument.strip())


def _clear(chat: Chat, _: str) -> None:
    chat.turns = []
    console.note("(forgotten)")


def _system(chat: Chat, text: str) -> None:
    chat.system = text or None
    console.note(f"system: {text}" if text else "(the template's own system message)")


def _save(chat: Chat, name: str) -> None:
    if not name:
        raise UserError("/save: give a file name, such as /save talk.jsonl")
    if not chat.turns:
        raise UserError("/save: nothing was said yet")
    if name.endswith("/"):
        raise UserError(f"/save {name}: names a folder; give a file in it")
    try:
        path = Path(name).expanduser()
        if runtime.is_main():
            write_jsonl(path, [{"messages": [{"role": m.role, "content": m.content} for m in chat.messages()]}])
    except OSError as error:
        raise UserError(f"/save {name}: {tell(error)}") from None
    except RuntimeError as error:  # ~ of a user that is not there
        raise UserError(f"/save {name}: {error}") from None
    console.note(f"saved {path}")
