"""Greedy replies to many prompts: their shared beginning computed once, the rest sorted by length and batched, each row
ended where its answer can't change any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from tuneval.checkpoints.load import Loaded
from tuneval.config.schema import SamplingConfig
from tuneval.errors import UserError
from tuneval.evaluation.score import shared_prefix
from tuneval.inference.generate import generate, positions_limit
from tuneval.inference.prefix import compute_prefix


def replies(
    loaded: Loaded,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    stops: Sequence[str],
    settled: Callable[[str], bool],
    batch_tokens: int,
    names: Sequence[str],
    scored: Callable[[int], object],
) -> list[str]:
    """The greedy continuation of each prompt.

    Args:
        loaded: the model.
        encoded: token ids of the prompts.
        max_new_tokens: tokens of a reply at most.
        stop_token_ids: tokens that end a reply.
        stops: texts that end a reply; neither they nor what follows belongs to it.
        settled: whether a reply so far is enough; it ends there.
        batch_tokens: tokens of one batch at most, padding and replies included; a longer single prompt gets its own.
        names: what errors call each prompt.
        scored: called with the number of prompts each batch has answered.

    Returns:
        The texts, in the order of the prompts.

    Raises:
        UserError: a prompt that leaves no room within the model's positions.
    """
    limit = positions_limit(loaded)
    for name, ids in zip(names, encoded, strict=True):
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise UserError(
                f"{name}: its prompt has {len(ids)} tokens, with {max_new_tokens} of a reply that passes the model's limit of "
                f"{limit}; give fewer --shots or --max-new-tokens"
            )
    shared = shared_prefix(encoded) if len(encoded) > 1 else 0
    prefix = compute_prefix(loaded, encoded[0][:shared]) if shared else None
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
    sampling = SamplingConfig(greedy=True, max_new_tokens=max_new_tokens)
    texts = [""] * len(encoded)
    for batch in _batches([len(encoded[i]) + max_new_tokens for i in order], batch_tokens):
        rows = [order[i] for i in batch]
        ended = _Ended(loaded.tokenizer, len(encoded[rows[0]]), stops, settled)
        found = generate(
            loaded,
            [list(encoded[i]) for i in rows],
            sampling,
            stop_token_ids,
            stopping_criteria=StoppingCriteriaList([ended]),
            prefix=prefix,
        )
        for i, tokens in zip(rows, found, strict=True):
            texts[i] = _cut(loaded.tokenizer.decode(tokens, skip_special_tokens=True), stops)
        scored(len(rows))
    return texts


class _Ended(StoppingCriteria):
    """Which rows of a batch need no further token."""

    def __init__(self, tokenizer, prompt_length: int, stops: Sequence[str], settled: Callable[[str], bool]) -> None:
        self._tokenizer, self._start, self._stops, self._settled = tokenizer, prompt_length, stops, settled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """[rows] booleans."""
        texts = self._tokenizer.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        ended = [any(stop in text for stop in self._stops) or self._settled(text) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _batches(lengths: Sequence[int], capacity: int) -> list[range]:
    """Runs of rows, longest first, whose padded size stays within the capacity; a longer row stands alone."""
    found, start = [], 0
    while start < len(lengths):
        rows = max(1, capacity // lengths[start])
        found.append(range(start, min(len(lengths), start + rows)))
        start += rows
    return found


def _cut(text: str, stops: Sequence[str]) -> str:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
