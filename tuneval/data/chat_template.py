"""The tokenizer's own chat template, and where in its text the answers are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from jinja2 import TemplateError

from tuneval.console import warn
from tuneval.data.prompt_types import PROMPT_TYPES
from tuneval.data.records import BadRow, Conversation, Message
from tuneval.data.rendering import AUTO, EncodedBatch, Piece, Template, back_to_back
from tuneval.errors import UserError

NOT_FOUND = "answer not found in the chat template's text"


class ChatTemplate(Template):
    """The tokenizer's own chat template.

    A conversation is rendered whole, and once more up to each answer with the generation prompt; where that second text
    ends, the trained span begins. It ends after the end-of-turn token, which a probe conversation shows. The text is
    cut at these borders and each part encoded by itself, so that a prompt in training is the prompt in chat, token by
    token; a probe proves that this equals encoding the whole, and where it doesn't (SentencePiece-like tokenizers that
    put a space before every text) the whole is encoded and the spans are found by character offsets.

    Rendering costs as much as encoding. Where probes show that answers begin after the same words (`<|im_start|>assistant`)
    and nowhere else, a text that has these words once for every answer is not rendered a second time. And what most texts
    begin with, a default system message, is a part of its own: a batch encodes it once.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(AUTO, tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            known = ", ".join(PROMPT_TYPES)
            raise UserError(f"--prompt-type {AUTO}: the tokenizer has no chat template. Name one: {known}")
        # What no probe has found yet counts as not there: the long way is always right. Each probe uses those before it.
        self._direct, self._excess, self._opening, self._prefix = False, "", "", ""
        self._excess, self._lead, self._marker = self._probe_borders()
        self._direct = self._probe_direct()
        self._opening = self._probe_opening()
        self._prefix = self._probe_prefix()
        self.whole = not self._parts_equal_whole()
        if self.whole:
            self._check_prompts_are_prefixes()
        self.eos_token_id = self._token_id(self._marker or tokenizer.eos_token, "the end-of-turn token")
        eos = () if tokenizer.eos_token_id in (None, self.eos_token_id) else (tokenizer.eos_token_id,)
        self.stop_token_ids = (self.eos_token_id, *eos)
        pad = tokenizer.pad_token_id
        self.pad_token_id = self.eos_token_id if pad is None else pad
        self.description = {
            "kind": "chat_template",
            "name": AUTO,
            "chat_template": tokenizer.get_chat_template(),
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "end_of_turn": self._marker,
        }

    # -- rendering

    def _render(self, batch: list[Sequence[Message]], prompt: bool) -> list[str]:
        if not batch:
            return []
        return self._render_directly(batch, prompt) if self._direct else self._render_by_transformers(batch, prompt)

    def _render_by_transformers(self, batch: list[Sequence[Message]], prompt: bool) -> list[str]:
        return self.tokenizer.apply_chat_template(_as_dicts(batch), tokenize=False, add_generation_prompt=prompt)

    def _render_directly(self, batch: list[Sequence[Message]], prompt: bool) -> list[str]:
        """By the compiled template alone: `apply_chat_template` copies every message twice."""
        compiled = _compiled(self.tokenizer.get_chat_template())
        names = {"tools": None, "documents": None, "add_generation_prompt": prompt, **self.tokenizer.special_tokens_map}
        return [compiled.render(names, messages=messages) for messages in _as_dicts(batch)]

    def _render_prompts(self, batch: list[Sequence[Message]]) -> list[str]:
        return [text.removesuffix(self._excess) for text in self._render(batch, prompt=True)]

    def _rendered(self, conversations: Sequence[Conversation]) -> list[tuple[str, list[tuple[int, int]]] | BadRow]:
        """Text of each conversation and its trained spans, [start, end) in characters."""
        answers = [[i for i, m in enumerate(c.messages) if m.role == "assistant"] for c in conversations]
        try:
            texts = self._render([c.messages for c in conversations], prompt=False)
            starts = [self._starts(text, len(at)) for text, at in zip(texts, answers)]
            unclear = [(c, at) for c, at, known in zip(conversations, answers, starts) if known is None]
            prompts = iter(self._render_prompts([c.messages[:i] for c, at in unclear for i in at]))
        except (TemplateError, TypeError, ValueError):
            if len(conversations) == 1:
                return [BadRow("refused by the chat template")]
            return list(chain.from_iterable(self._rendered([c]) for c in conversations))
        result: list[tuple[str, list[tuple[int, int]]] | BadRow] = []
        for conversation, text, at, known in zip(conversations, texts, answers, starts):
            own = [next(prompts) for _ in at] if known is None else []
            try:
                where = _ends(text, own) if known is None else known
                result.append((text, self._spans(text, where, [conversation.messages[i].content for i in at])))
            except BadRow as bad:
                result.append(bad)
        return result

    def _starts(self, text: str, answers: int) -> list[int] | None:
        """Where each answer begins, if the words before answers tell; else None."""
        parts = text.split(self._opening) if self._opening else []
        if len(parts) != answers + 1:
            return None
        return list(accumulate(len(part) + len(self._opening) for part in parts[:-1]))

    def _spans(self, text: str, starts: list[int], contents: list[str]) -> list[tuple[int, int]]:
        limits = [*starts[1:], len(text)]
        return [(a, self._answer_end(text, content, a, b)) for a, b, content in zip(starts, limits, contents)]

    def _answer_end(self, text: str, content: str, start: int, limit: int) -> int:
        """Where an answer's end-of-turn token ends. A template may trim an answer, or drop its thoughts."""
        tail = self._lead + self._marker
        said = content.split("</think>")[-1].lstrip()
        for form in (content, content.strip(), said, said.rstrip()):
            wanted = form + tail
            at = start if text.startswith(wanted, start) else text.find(wanted, start, limit)
            if at >= 0 and (form or at == start) and not (self._marker and self._marker in text[start:at]):
                return at + len(wanted)
        raise BadRow(NOT_FOUND)

    def leaves_out_thoughts(self) -> bool:
        thinking = Message("assistant", "<think>\nHmm.\n</think>\n\nCertainly.")
        return "Hmm." not in self._render([(Message("user", "Hello"), thinking)], prompt=False)[0]

    # -- pieces

    def _pieces(self, conversations: Sequence[Conversation]) -> list[list[Piece] | BadRow]:
        return [r if isinstance(r, BadRow) else self._cut(*r) for r in self._rendered(conversations)]

    def _cut(self, text: str, spans: list[tuple[int, int]]) -> list[Piece]:
        """Pieces of `text`, the spans trained."""
        at = len(self._prefix) if text.startswith(self._prefix) else 0
        pieces = [Piece(self._prefix, False)] if at else []
        for start, end in spans:
            pieces += [Piece(text[at:start], False), Piece(text[start:end], True)]
            at = end
        return [*pieces, Piece(text[at:], False)] if at < len(text) else pieces

    def _prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Cut like training's text, so that an earlier answer has the same tokens in chat."""
        answers = [] if self.whole else [i for i, m in enumerate(messages) if m.role == "assistant"]
        try:
            text, *prompts = self._render_prompts([messages, *(messages[:i] for i in answers)])
            return self._cut(text, self._spans(text, _ends(text, prompts), [messages[i].content for i in answers]))
        except (TemplateError, TypeError, ValueError, BadRow) as error:
            raise UserError(
                f"the chat template refuses this conversation of {', '.join(m.role for m in messages)} ({error})"
            ) from None

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        if not self.whole:
            return super().encode_batch(conversations)
        rendered = self._rendered(conversations)
        refused = {i: r for i, r in enumerate(rendered) if isinstance(r, BadRow)}
        good = [r for r in rendered if not isinstance(r, BadRow)]
        encodings = self._backend.encode_batch([text for text, _ in good], add_special_tokens=False)
        trained = [_inside(start, end, spans) for e, (_, spans) in zip(encodings, good) for start, end in e.offsets]
        lengths = np.zeros(len(rendered), np.int32)
        lengths[[i for i in range(len(rendered)) if i not in refused]] = [len(e) for e in encodings]
        return back_to_back((e.ids for e in encodings), np.array(trained, bool), lengths, refused)

    # -- what a probe conversation shows

    def _probe_borders(self) -> tuple[str, str, str]:
        """What a prompt has beyond the text that an answer follows; what ends an answer: text, then end-of-turn token."""
        answer = "Certainly."
        messages = (Message("user", "Hello"), Message("assistant", answer))
        try:
            text = self._render([messages], prompt=False)[0]
            prompt = self._render([messages[:1]], prompt=True)[0]
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(
                f"--prompt-type {AUTO}: the tokenizer's chat template can't render a question and its answer ({error})"
            ) from None
        common, going_on = _common(text, prompt), _common(self._longer(messages), prompt)
        if going_on > prompt.rfind(messages[0].content):  # else the conversation begins otherwise
            common = min(common, going_on)
        end = text.rfind(answer) + len(answer)
        if common > end - len(answer):
            raise UserError(f"--prompt-type {AUTO}: the tokenizer's chat template doesn't show the assistant's answer")
        tail = text[end:]
        specials = [t for t in self._special_tokens() if t in tail]
        if not specials:
            warn("the chat template ends an answer without a special token: a model tuned with it can't learn to stop")
            return prompt[common:], "", ""
        marker = min(specials, key=lambda t: (tail.index(t), -len(t)))
        return prompt[common:], tail[: tail.index(marker)], marker

    def _longer(self, messages: tuple[Message, ...]) -> str:
        """The text of a conversation that goes on: a prompt may open a thought that earlier answers lose. "": refused."""
        try:
            return self._render([messages + PROBES[0].messages], prompt=False)[0]
        except (TemplateError, TypeError, ValueError):
            return ""

    def _probe_direct(self) -> bool:
        """Whether the compiled template alone renders what `apply_chat_template` does."""
        batch = [c.messages[:n] for c in PROBES for n in (1, len(c.messages))]
        try:
            return all(
                self._render_directly(batch, prompt) == self._render_by_transformers(batch, prompt)
                for prompt in (False, True)
            )
        except (ImportError, TemplateError, TypeError, ValueError):
            return False

    def _probe_opening(self) -> str:
        """The words before every answer, where the probes show that an answer begins after them and nowhere else."""
        try:
            alone, prompt = (self._render([PROBES[0].messages[:1]], prompt)[0] for prompt in (False, True))
            opening = prompt.removesuffix(self._excess).removeprefix(alone)
            for messages in (c.messages for c in (*PROBES, *SYSTEM_PROBES)):
                text = self._render([messages], prompt=False)[0]
                answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
                ends = _ends(text, self._render_prompts([messages[:i] for i in answers]))
                if ends != [i + len(opening) for i in range(len(text)) if text.startswith(opening, i)]:
                    return ""
        except (TemplateError, TypeError, ValueError, BadRow):
            return ""  # it refuses a system message, or more: every prompt is rendered
        return opening

    def _probe_prefix(self) -> str:
        """What every text without a system message begins with, up to its last special token."""
        first, second = (self._render([c.messages], prompt=False)[0] for c in PROBES[:2])
        common = first[: _common(first, second)]
        added = self.tokenizer.added_tokens_decoder.values()
        borders = [t.content for t in added if t.special and not t.rstrip and t.content in common]
        return common[: max((common.rfind(t) + len(t) for t in borders), default=0)]

    def _special_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return [*{t.content for t in added if t.special} | set(self.tokenizer.all_special_tokens)]

    def _parts_equal_whole(self) -> bool:
        if self._backend is None:
            return True
        texts = [r for r in self._rendered(PROBES) if not isinstance(r, BadRow)]
        return all(
            self._encode_pieces([self._cut(text, spans)]).input_ids.tolist() == self._encode_texts([text])[0]
            for text, spans in texts
        )

    def _check_prompts_are_prefixes(self) -> None:
        for messages in (c.messages for c in PROBES):
            whole = self._encode_texts(self._render([messages], prompt=False))[0]
            prompt = self._encode_texts(self._render_prompts([messages[:1]]))[0]
            if whole[: len(prompt)] != prompt:
                raise UserError(
                    f"--prompt-type {AUTO}: with this tokenizer the prompt's tokens change once an answer follows, so "
                    f"training and chat would differ. Name a template: {', '.join(PROMPT_TYPES)}"
                )


PROBES = [
    Conversation(tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)), 0)
    for texts in (
        ("Hello", "Certainly."),
        ("你好，请回答。", "好的：1+1=2。"),
        ("What is 2 + 2?", "4\n\nfour", "And 3?", "(three) - 3"),
    )
]
SYSTEM_PROBES = [Conversation((Message("system", "Be brief."), *c.messages), 0) for c in PROBES]


def _as_dicts(batch: list[Sequence[Message]]) -> list[list[dict[str, str]]]:
    return [[{"role": m.role, "content": m.content} for m in messages] for messages in batch]


def _compiled(chat_template: str) -> Any:
    """The template in transformers' sandbox, compiled once and remembered. ImportError: this name isn't a public one."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(chat_template)


def _common(a: str, b: str) -> int:
    """Characters that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _ends(text: str, prompts: list[str]) -> list[int]:
    """Where in `text` each of the prompts it begins with ends."""
    if not all(text.startswith(prompt) for prompt in prompts):
        raise BadRow(NOT_FOUND)
    return [len(prompt) for prompt in prompts]


def _inside(start: int, end: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a token of these characters lies in a trained span."""
    return start < end and any(a <= start and end <= b for a, b in spans)
