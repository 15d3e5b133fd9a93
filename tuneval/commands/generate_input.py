"""What generate answers: the prompt or the file of prompts, checked before any model is loaded."""

from __future__ import annotations

import json
from typing import Any

from tuneval.config.schema import GenerateConfig
from tuneval.data.records import BadRow, Message, is_text, read_rows
from tuneval.errors import Problems, UserError
from tuneval.files import read_jsonl

ROLES = ("system", "user", "assistant")
HALF_A_CHARACTER = "has half a character (a surrogate such as \\ud83d by itself), which is not text"


def read_input(config: GenerateConfig) -> tuple[list[dict[str, Any]], list[list[Message]]]:
    """The rows of `--input` (or `--prompt` as one), and the messages of each.

    Raises:
        UserError: the file can't be read or is empty, or rows of it are no conversations; a dozen of them are named.
    """
    if config.input is None:
        rows, where = [{"prompt": config.prompt}], "--prompt"
    else:
        rows, where = list(read_rows(config.input)), f"{config.input}: line"
    if not rows:
        raise UserError(f"--input {config.input}: empty; it needs a line such as {json.dumps({'prompt': 'Hello'})}")
    problems, conversations = Problems(), []
    if not is_text(config.system or ""):
        problems.add(f"--system: {HALF_A_CHARACTER}")
    for number, row in enumerate(rows, 1):
        messages = _messages(row, config)
        if isinstance(messages, str):
            problems.add(f"{where}: {messages}" if config.input is None else f"{where} {number}: {messages}")
        else:
            conversations.append(messages)
    more = len(problems.messages) - 12
    if more > 0:  # a file of something else has as many wrong lines as lines
        problems.messages[12:] = [f"{config.input}: and {more} more lines"]
    problems.raise_if_any()
    return rows, conversations


def earlier_answers(rows: list[dict[str, Any]], config: GenerateConfig) -> list[dict[str, Any]]:
    """Every row of `--before`, whose prompts must be the input's."""
    answered = read_jsonl(config.before)
    whole = all(isinstance(row.get(key), str) for row in answered for key in ("prompt", "response"))
    if not whole or [row["prompt"] for row in answered] != [row.get("prompt") for row in rows]:
        raise UserError(
            f"--before {config.before}: its prompts are not those of --input {config.input}. Answer that file with the "
            "model before tuning: tuneval generate --load MODEL --input FILE --output BEFORE"
        )
    return answered


def _messages(row: Any, config: GenerateConfig) -> list[Message] | str:
    """The row's messages, or what is wrong with it."""
    if isinstance(row, BadRow):
        return row.reason
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        return "must be an object with `prompt` or `messages`"
    wrong = _unwritable(row)
    if wrong:
        return wrong
    if "prompt" in row:
        turns = [{"role": "user", "content": row["prompt"]}]
    elif config.raw:
        return "has `messages`, which --raw can't render; give `prompt`"
    else:
        turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(t, dict) and {"role", "content"} <= t.keys() for t in turns):
        return "`messages` must be a list of objects with `role` and `content`"
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    if not messages or any(m.role not in ROLES or not isinstance(m.content, str) for m in messages):
        return f"roles must be {', '.join(ROLES)} and contents must be text"
    if messages[-1].role != "user":
        return "the last message must be the user's"
    first = 1 if messages[0].role == "system" else 0
    if [m.role for m in messages[first:]] != (["user", "assistant"] * len(messages))[: len(messages) - first]:
        return "after a system message at most, user and assistant must take turns"
    if config.system is not None and not first:
        messages.insert(0, Message("system", config.system))
    return messages


def _unwritable(row: dict[str, Any]) -> str:
    """Why the row can't be written out again beside its answer; "" where it can."""
    try:
        text = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        return f"can't be written as JSON ({error}); leave such columns out"
    return "" if is_text(text) else HALF_A_CHARACTER
