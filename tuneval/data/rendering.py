"""Pieces of text -> token ids and labels: what every template shares, and the named templates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from tuneval.data.prompt_types import CONTENT, PromptType, Slots, Special
from tuneval.data.records import BadRow, Conversation, Message
from tuneval.errors import UserError
from tuneval.files import sha256_json

MASKED = -100
"""Label of a token that isn't trained."""
AUTO = "auto"
"""The `--prompt-type` of the tokenizer's own chat template."""


class Encoded(NamedTuple):
    """A sample. Labels are not shifted: labels[i] is input_ids[i] where that token is trained, else -100."""

    input_ids: list[int]
    labels: list[int]


class EncodedBatch(NamedTuple):
    """Samples back to back, labels as in `Encoded`."""

    input_ids: np.ndarray
    """int32 [sum(lengths)]"""
    labels: np.ndarray
    """int32 [sum(lengths)]"""
    lengths: np.ndarray
    """int32 [conversations] tokens of each; 0 where the template refused it."""
    refused: dict[int, BadRow]
    """Place in the batch -> why."""

    def samples(self) -> Iterable[Encoded]:
        """One after the other, as lists."""
        borders = pairwise([0, *np.cumsum(self.lengths).tolist()])
        return (Encoded(self.input_ids[a:b].tolist(), self.labels[a:b].tolist()) for a, b in borders)


class Piece(NamedTuple):
    """A part of a rendered conversation that is encoded by itself; an int is a token id."""

    text: str | int
    trained: bool


class Template(ABC):
    """What both kinds of template share: pieces of text in, ids and labels out."""

    name: str
    """The `--prompt-type`."""
    description: dict[str, Any]
    """What the fingerprint hashes."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer, the end-of-turn token first."""
    eos_token_id: int
    """The token `--append-eod` appends."""
    pad_token_id: int

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._backend = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None

    @property
    def fingerprint(self) -> str:
        """sha256 of the description, hexadecimal."""
        return sha256_json(self.description)

    def encode(self, conversation: Conversation) -> Encoded:
        """Ids and labels of one conversation. Raises BadRow where the template refuses it."""
        batch = self.encode_batch([conversation])
        if batch.refused:
            raise batch.refused[0]
        return next(iter(batch.samples()))

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        """The same for many, much faster. What the template refuses is empty, and told."""
        return self._encode_pieces(self._pieces(conversations))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of an unfinished conversation, up to where the assistant's answer begins.

        What training saw before that answer, token by token.
        """
        return self._encode_pieces([self._prompt_pieces(messages)]).input_ids.tolist()

    def leaves_out_thoughts(self) -> bool:
        """Whether `<think> ... </think>` before an answer is no part of the text, so never trained."""
        return False

    @abstractmethod
    def _pieces(self, conversations: Sequence[Conversation]) -> list[list[Piece] | BadRow]:
        """What each conversation is made of, or why the template refuses it."""

    @abstractmethod
    def _prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """What an unfinished conversation is made of."""

    def _encode_pieces(self, batch: list[list[Piece] | BadRow]) -> EncodedBatch:
        """Each text is encoded once, however many conversations it is a part of."""
        refused = {i: pieces for i, pieces in enumerate(batch) if isinstance(pieces, BadRow)}
        per_sample = [() if i in refused else pieces for i, pieces in enumerate(batch)]
        pieces = list(chain.from_iterable(per_sample))
        ids_of: dict[str | int, list[int]] = {text: [text] for text, _ in pieces}  # type: ignore[misc]
        wanted = [text for text in ids_of if isinstance(text, str)]
        ids_of.update(zip(wanted, self._encode_texts(wanted)))
        ids = [ids_of[text] for text, _ in pieces]
        counts = np.array([len(i) for i in ids], np.int64)
        trained = np.repeat(np.array([trained for _, trained in pieces], bool), counts)
        ends = np.cumsum([0, *counts])[np.cumsum([0, *map(len, per_sample)])]
        return back_to_back(ids, trained, np.diff(ends), refused)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is None:
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        encode = getattr(self._backend, "encode_batch_fast", self._backend.encode_batch)
        return [e.ids for e in encode(texts, add_special_tokens=False)]

    def _id_of(self, token: str) -> int | None:
        if self._backend is None:
            return self.tokenizer.get_vocab().get(token)
        return self._backend.token_to_id(token)  # without a copy of the whole vocabulary

    def _token_id(self, token: str | None, why: str) -> int:
        token_id = None if token is None else self._id_of(token)
        if token_id is None:
            raise UserError(
                f"--prompt-type {self.name}: {why} {token or ''} isn't in the tokenizer's vocabulary. "
                f"Choose a template made for this model; {AUTO} takes the tokenizer's own"
            )
        return token_id


class NamedTemplate(Template):
    """A template of `PROMPT_TYPES`: each piece encoded by itself and put together, as MindSpeed-LLM does."""

    def __init__(self, name: str, prompt_type: PromptType, tokenizer: Any) -> None:
        super().__init__(name, tokenizer)
        self.prompt_type = prompt_type
        stop_words = prompt_type.stop_words or (tokenizer.eos_token,)
        self.stop_token_ids = tuple(self._token_id(w, "its end-of-turn token") for w in stop_words)
        self.eos_token_id = self.stop_token_ids[0]
        pad = tokenizer.pad_token_id
        self.pad_token_id = self.eos_token_id if pad is None else pad
        uses_bos = Special.BOS in (*prompt_type.prefix, *prompt_type.user)
        described = {"kind": "named", "name": name, **asdict(prompt_type), "end_of_turn": stop_words[0]}
        self.description = _as_json({**described, "bos_token": tokenizer.bos_token if uses_bos else None})

    def _pieces(self, conversations: Sequence[Conversation]) -> list[list[Piece] | BadRow]:
        return [self._conversation_pieces(c.messages) for c in conversations]

    def _prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        pieces = self._conversation_pieces(messages)
        thought = self.prompt_type.empty_thought
        return [*pieces, Piece(thought, False)] if thought else pieces

    def _conversation_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        kind, pieces = self.prompt_type, []
        system, turns = _split_system(messages)
        system = system or kind.default_system
        for i, message in enumerate(turns):
            if message.role == "assistant":
                if kind.empty_thought and "<think>" not in message.content and "</think>" not in message.content:
                    pieces.append(Piece(kind.empty_thought, False))
                pieces += self._fill(kind.assistant, message.content, trained=True)
                continue
            content = message.content
            if i:
                pieces += self._fill(kind.separator, "", trained=False)
            else:
                pieces += self._fill(kind.prefix, "", trained=False)
                if system and kind.system_in_user:
                    content = "".join(str(s) for s in kind.system).replace(CONTENT, system) + content
                elif system:
                    pieces += self._fill(kind.system, system, trained=False)
            pieces += self._fill(kind.user, content, trained=False)
        return pieces

    def _fill(self, slots: Slots, content: str, trained: bool) -> list[Piece]:
        pieces: list[Piece] = []
        for slot in slots:
            if slot is Special.EOS:
                pieces.append(Piece(self.eos_token_id, trained))
            elif slot is Special.BOS:
                bos = self.tokenizer.bos_token_id
                pieces += [] if bos is None else [Piece(bos, trained)]
            else:
                pieces.append(Piece(slot.replace(CONTENT, content, 1), trained))
        return pieces


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return "", messages


def back_to_back(
    ids: Iterable[list[int]], trained: np.ndarray, lengths: Any, refused: dict[int, BadRow]
) -> EncodedBatch:
    """Samples from lists of ids, one after the other, and whether each token is trained, bool [tokens]."""
    input_ids = np.fromiter(chain.from_iterable(ids), np.int32, len(trained))
    labels = np.where(trained, input_ids, np.int32(MASKED))
    return EncodedBatch(input_ids, labels, np.asarray(lengths, np.int32), refused)


def _as_json(value: Any) -> Any:
    """Tuples to lists and enums to their values, so that a description equals itself after a trip through JSON."""
    if isinstance(value, dict):
        return {k: _as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(v) for v in value]
    return value.value if isinstance(value, Special) else value
