"""The one renderer of training, chat and scoring: messages -> token ids and labels, with a fingerprint."""

from __future__ import annotations

from typing import Any

from tuneval.data.chat_template import ChatTemplate
from tuneval.data.prompt_types import PROMPT_TYPES
from tuneval.data.records import nearest_first
from tuneval.data.rendering import AUTO, NamedTemplate
from tuneval.data.rendering import MASKED as MASKED
from tuneval.data.rendering import Encoded as Encoded
from tuneval.data.rendering import Template as Template
from tuneval.errors import UserError


def load_template(prompt_type: str, tokenizer: Any) -> Template:
    """The template named `prompt_type`; `auto` is the tokenizer's own chat template.

    Args:
        prompt_type: a key of `PROMPT_TYPES`, or `auto`.
        tokenizer: a transformers tokenizer.

    Raises:
        UserError: an unknown name (with the known ones, nearest first), a token or chat template the tokenizer lacks.
    """
    check_prompt_type(prompt_type)
    if prompt_type == AUTO:
        return ChatTemplate(tokenizer)
    return NamedTemplate(prompt_type, PROMPT_TYPES[prompt_type], tokenizer)


def check_prompt_type(name: str | None) -> None:
    """Raise a UserError for a name that no template has, with the known ones, nearest first; None: not given."""
    if name not in (None, AUTO, *PROMPT_TYPES):
        known = ", ".join(nearest_first(name, [*PROMPT_TYPES, AUTO]))
        raise UserError(f"--prompt-type {name}: unknown. Known are {known}")


def template_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The keys in which two descriptions differ, with both values in short; "" where they agree."""
    lines = [
        f"{key}: {_short(a.get(key))} and {_short(b.get(key))}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)
    ]
    return "; ".join(lines)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
