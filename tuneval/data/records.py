"""Rows -> conversations. A handler turns one row into messages, or says in a few fixed words why it can't."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuneval.data.rows import BadRow as BadRow
from tuneval.data.rows import read_rows as read_rows
from tuneval.errors import Problems, UserError


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of one row: a system message, if any, first; then user and assistant in turn, assistant last."""

    messages: tuple[Message, ...]
    row: int
    """Number of the row in the input, from 0, all files counted through."""


ALPACA_ATTRIBUTES = ("prompt", "query", "response", "history", "system")
ALPACA_COLUMNS = (
    ("instruction", "input", "output"),
    ("zh_instruction", "zh_input", "zh_output"),
    ("en_instruction", "en_input", "en_output"),
    ("prompt", "", "response"),
    ("prompt", "", "completion"),
    ("question", "", "answer"),
)
"""Columns looked for where --map-keys says nothing, in this order: prompt, query ("": none), response."""
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


@dataclass(frozen=True)
class AlpacaHandler:
    """instruction / input / output rows. An empty column name switches the attribute off."""

    prompt: str
    query: str
    response: str
    history: str = ""
    system: str = ""

    def __call__(self, row: Any, number: int) -> Conversation:
        """Raises BadRow."""
        _check_row(row, (self.prompt, self.response))
        messages = []
        if self.system and row.get(self.system):
            messages.append(Message("system", _text(row[self.system])))
        for pair in _list(row.get(self.history) if self.history else None):
            if not isinstance(pair, list) or len(pair) != 2:
                raise BadRow("wrong type")
            messages += [_question(_text(pair[0])), _answer(_text(pair[1]))]
        parts = [_text(row.get(c) or "") for c in (self.prompt, self.query) if c]
        messages.append(_question("\n".join(p for p in parts if p)))
        response = row[self.response]
        if isinstance(response, list):
            if len(response) != 1:
                raise BadRow("empty answer" if not response else "several answers")
            response = response[0]
        messages.append(_answer(_text("" if response is None else response)))
        return Conversation(tuple(messages), number)


@dataclass(frozen=True)
class MessagesHandler:
    """Rows with a list of messages, ShareGPT's or OpenAI's; `tags` names the keys and roles."""

    messages: str
    tags: dict[str, str]
    system: str = ""
    tools: str = ""

    def __call__(self, row: Any, number: int) -> Conversation:
        """Raises BadRow."""
        _check_row(row, (self.messages,))
        turns = row[self.messages]
        if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
            raise BadRow("wrong type")
        if (self.tools and row.get(self.tools)) or any(self._is_tool_use(t) for t in turns):
            raise BadRow("tool use")
        roles = [t.get(self.tags["role_tag"]) for t in turns]
        contents = [_parts(t.get(self.tags["content_tag"])) for t in turns]
        messages = []
        if roles and roles[0] == self.tags["system_tag"]:
            messages = [Message("system", contents[0])] if contents[0] else []
            roles, contents = roles[1:], contents[1:]
        elif self.system and row.get(self.system):
            messages = [Message("system", _text(row[self.system]))]
        expected = [self.tags["user_tag"], self.tags["assistant_tag"]] * (len(roles) // 2)
        if not roles or roles != expected:
            raise BadRow("broken turn order")
        messages += [_answer(c) if i % 2 else _question(c) for i, c in enumerate(contents)]
        return Conversation(tuple(messages), number)

    def _is_tool_use(self, turn: dict) -> bool:
        tool_roles = (self.tags["observation_tag"], self.tags["function_tag"])
        return turn.get(self.tags["role_tag"]) in tool_roles or bool(turn.get("tool_calls"))


def _check_row(row: Any, required: tuple[str, ...]) -> None:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("wrong type")
    if any(column not in row for column in required if column):
        raise BadRow("missing column")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type")
    if not is_text(value):
        raise BadRow("half a character")
    return value


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON's \\ud83d without its other half can't, and no tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list(value: Any) -> list:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise BadRow("wrong type")
    return value


def _parts(value: Any) -> str:
    """OpenAI's content may be a list of parts; its text parts are joined."""
    if isinstance(value, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" for p in value):
            raise BadRow("wrong type")
        return "".join(_text(p.get("text")) for p in value)
    return _text("" if value is None else value)


def _question(content: str) -> Message:
    if not content:
        raise BadRow("empty prompt")
    return Message("user", content)


def _answer(content: str) -> Message:
    if not content:
        raise BadRow("empty answer")
    return Message("assistant", content)


Handler = Callable[[Any, int], Conversation]


def make_handler(name: str, map_keys: dict[str, Any] | None, first_row: dict[str, Any]) -> Handler:
    """The handler for a data set.

    Args:
        name: MindSpeed-LLM's class name, or `auto`: by the columns.
        map_keys: attribute -> column, as `--map-keys` gives it.
        first_row: a row that shows the columns (the first good one).

    Raises:
        UserError: an unknown handler, attribute or column, with the known ones, nearest first.
    """
    kind = _kind_by_columns(map_keys or {}, first_row) if name == "auto" else name
    if kind not in HANDLERS:
        known = ", ".join(nearest_first(name, [*HANDLERS, "auto"]))
        raise UserError(f"--handler-name {name}: unknown. Known are {known}")
    return HANDLERS[kind](map_keys or {}, first_row, name == "auto")


def handler_name(handler: Handler) -> str:
    """MindSpeed-LLM's class name of a made handler."""
    if isinstance(handler, AlpacaHandler):
        return "AlpacaStyleInstructionHandler"
    tags = getattr(handler, "tags", {})
    return "OpenAIInstructionHandler" if tags == OPENAI_TAGS else "SharegptStyleInstructionHandler"


def nearest_first(name: str, known: list[str]) -> list[str]:
    """`known`, the most alike to `name` first."""
    return sorted(known, key=lambda k: -difflib.SequenceMatcher(None, name.lower(), k.lower()).ratio())


def _kind_by_columns(map_keys: dict[str, Any], row: dict[str, Any]) -> str:
    column = map_keys.get("messages") or next((c for c in ("messages", "conversations") if c in row), None)
    if not isinstance(column, str):
        return "AlpacaStyleInstructionHandler"
    turns = row.get(column)
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    return "OpenAIInstructionHandler" if "role" in first else "SharegptStyleInstructionHandler"


def _make_alpaca(map_keys: dict[str, Any], row: dict[str, Any], auto: bool) -> Handler:
    _check_map_keys(map_keys, ALPACA_ATTRIBUTES, row)
    found = next((c for c in ALPACA_COLUMNS if c[0] in row and c[2] in row), ALPACA_COLUMNS[0])
    columns = dict(zip(ALPACA_ATTRIBUTES, found))
    if columns["query"] not in row:
        columns["query"] = ""
    if auto:  # MindSpeed's own handler takes these two from --map-keys alone
        columns.update({c: c for c in ("history", "system") if c in row})
    columns.update(map_keys)
    for attribute in ("prompt", "response"):
        switched_off = attribute == "prompt" and columns["prompt"] == "" and columns["query"]
        if columns[attribute] not in row and not switched_off:
            raise UserError(
                f"no column {columns[attribute] or '(none)'} for the {attribute}: "
                f"the input has {', '.join(row) or 'none'}. "
                f'Name it with --map-keys, such as \'{{"prompt": "...", "query": "...", "response": "..."}}\''
            )
    return AlpacaHandler(**columns)


def _make_sharegpt(map_keys: dict[str, Any], row: dict[str, Any], auto: bool) -> Handler:
    return _make_messages(map_keys, row, auto, SHAREGPT_TAGS, "conversations", tools="")


def _make_openai(map_keys: dict[str, Any], row: dict[str, Any], auto: bool) -> Handler:
    return _make_messages(map_keys, row, auto, OPENAI_TAGS, "messages", tools="tools")


def _make_messages(
    map_keys: dict[str, Any], row: dict[str, Any], auto: bool, tags: dict[str, str], default: str, tools: str
) -> Handler:
    _check_map_keys(map_keys, ("messages", "tags", "system", "tools"), row)
    given_tags = map_keys.get("tags", {})
    if not isinstance(given_tags, dict):
        raise UserError(f"--map-keys tags: {given_tags!r} must be a JSON object such as {json.dumps(SHAREGPT_TAGS)}")
    _check_attributes("--map-keys tags", given_tags, tuple(SHAREGPT_TAGS))
    for tag, name in given_tags.items():
        if not isinstance(name, str):
            raise UserError(f"--map-keys tags {tag}: {name!r} must be a text")
    column = map_keys.get("messages") or next((c for c in (default, "messages", "conversations") if c in row), default)
    if column not in row:
        raise UserError(
            f"no column {column} with the messages: the input has {', '.join(row) or 'none'}. "
            'Name it with --map-keys \'{"messages": "..."}\''
        )
    system = map_keys.get("system", "system" if auto and "system" in row else "")
    return MessagesHandler(column, {**tags, **given_tags}, system, map_keys.get("tools", tools))


def _check_map_keys(map_keys: dict[str, Any], attributes: tuple[str, ...], row: dict[str, Any]) -> None:
    _check_attributes("--map-keys", map_keys, attributes)
    problems = Problems()
    for attribute, column in map_keys.items():
        if attribute != "tags" and not isinstance(column, str):
            problems.add(f"--map-keys {attribute}: {column!r} must be the name of a column")
        elif attribute != "tags" and column and column not in row:
            columns = ", ".join(nearest_first(column, [*row]))
            problems.add(f"--map-keys {attribute}: no column {column} in the input. It has {columns}")
    problems.raise_if_any()


def _check_attributes(flag: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    problems = Problems()
    for attribute in given:
        if attribute not in known:
            problems.add(f"{flag} {attribute}: unknown. Known are {', '.join(nearest_first(attribute, [*known]))}")
    problems.raise_if_any()


HANDLERS: dict[str, Callable[[dict[str, Any], dict[str, Any], bool], Handler]] = {
    "AlpacaStyleInstructionHandler": _make_alpaca,
    "SharegptStyleInstructionHandler": _make_sharegpt,
    "OpenAIInstructionHandler": _make_openai,
}
"""MindSpeed-LLM's handler names -> how each is made from --map-keys, the columns, and whether `auto` chose it."""
