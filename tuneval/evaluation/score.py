"""Token ids of prompts -> scores. What prompts share is computed once per forward pass.

T tokens of one packed row `[shared prefix | rest of prompt 1 | rest of prompt 2 | ...]`, H hidden size, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tuneval.errors import UserError
from tuneval.model.loss import VocabularyShard

Progress = Callable[[int], object]
_VOCABULARY_BLOCK = 16384
"""Rows of the head that are in fp32 at a time."""


class PackedModel(Protocol):
    """What scoring needs of a model; `model.decoder.Decoder` is one."""

    head_weight: torch.Tensor
    """[V, H]; a DTensor cut by words where several processes share the model, each of which must make the same calls."""
    config: object

    def __call__(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, segments: tuple[int, ...], prefix_length: int
    ) -> torch.Tensor: ...


@torch.inference_mode()
def letter_logits(
    model: PackedModel,
    encoded: Sequence[Sequence[int]],
    letters: Sequence[int],
    batch_tokens: int,
    names: Sequence[str],
    scored: Progress = lambda n: None,
) -> list[list[float]]:
    """Next-token logits of the answer letters after each prompt.

    Args:
        model: the model to score, in eval mode.
        encoded: the prompts' token ids; their shared beginning is computed once per forward pass.
        letters: token id of each letter.
        batch_tokens: tokens of one forward pass at most; a longer single prompt still gets its own pass.
        names: what errors call each prompt.
        scored: called with the number of prompts each pass has scored.

    Returns:
        For each prompt, the logits of `letters`: products of the last hidden state and the head's rows, in fp32 (bf16
        logits have 8 significant bits and often tie).

    Raises:
        UserError: a prompt longer than the model's positions; logits that are not finite.
    """
    _check_lengths(encoded, model.config, names)
    head = _rows(model.head_weight, letters)  # [letters, H]
    prefix = shared_prefix(encoded)
    logits: list[list[float]] = []
    for chunk in chunks([len(ids) - prefix for ids in encoded], batch_tokens - prefix):
        hidden, bounds = _hidden(model, [encoded[i] for i in chunk], prefix)
        ends = torch.tensor(bounds[1:], device=hidden.device) - 1
        found = (hidden[ends].float() @ head.T).tolist()  # [prompts of the chunk, letters]
        _check_finite(found, names[chunk.start : chunk.stop])
        logits += found
        scored(len(chunk))
    return logits


@torch.inference_mode()
def option_log_probabilities(
    model: PackedModel,
    encoded: Sequence[Sequence[Sequence[int]]],
    starts: Sequence[int],
    batch_tokens: int,
    names: Sequence[str],
    scored: Progress = lambda n: None,
) -> list[list[float]]:
    """Log probability of each option after its prompt.

    Options that differ in their last token alone are scored from one position. The beginning that all prompts share is
    computed once per forward pass; where that is fewer tokens, each question gets its own pass, which shares its prompt.

    Args:
        model: the model to score, in eval mode.
        encoded: question -> option -> token ids of the prompt and the option together.
        starts: question -> where its options begin, at least 1.
        batch_tokens, names, scored: as for `letter_logits`, by question.

    Returns:
        Question -> option -> sum of the log probabilities of its tokens, nats, from fp32 products with the head.

    Raises:
        UserError: as `letter_logits`.
    """
    _check_lengths([max(options, key=len) for options in encoded], model.config, names)
    inputs = [list(dict.fromkeys(tuple(ids[:-1]) for ids in options)) for options in encoded]
    prefix = shared_prefix([ids for rows in inputs for ids in rows]) if len(inputs) > 1 else 0
    prefix = min(prefix, *starts)
    own = [sum(len(ids) - prefix for ids in rows) for rows in inputs]
    found: list[list[float]] = []
    for chunk in chunks(own, batch_tokens - prefix):
        for group in _cheaper(chunk, inputs, starts, prefix, own):
            found += _log_probabilities(model, group, inputs, encoded, starts, prefix)
            _check_finite(found[-len(group) :], names[group.start : group.stop])
            scored(len(group))
    return found


def shared_prefix(encoded: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; each keeps at least one token of its own.

    Found on the finished token lists: where the text's common part ends, tokens may join with what follows, and
    cutting the text there would tokenize it otherwise than whole.
    """
    longest = min(len(ids) for ids in encoded) - 1
    first = encoded[0]
    return next((i for i in range(longest) if any(ids[i] != first[i] for ids in encoded)), longest)


def chunks(lengths: Sequence[int], capacity: int) -> Iterator[range]:
    """Consecutive items whose lengths add up to `capacity` at most; an item above it stands alone."""
    start, total = 0, 0
    for i, length in enumerate(lengths):
        if i > start and total + length > capacity:
            yield range(start, i)
            start, total = i, 0
        total += length
    yield range(start, len(lengths))


def _cheaper(
    chunk: range, inputs: list[list[tuple[int, ...]]], starts: Sequence[int], prefix: int, own: Sequence[int]
) -> list[range]:
    """One pass for the whole chunk, or one for each question, whichever computes fewer tokens."""
    together = prefix + sum(own[i] for i in chunk)
    apart = sum(starts[i] - 1 + sum(len(ids) - starts[i] + 1 for ids in inputs[i]) for i in chunk)
    return [chunk] if together <= apart else [range(i, i + 1) for i in chunk]


def _log_probabilities(
    model: PackedModel,
    group: range,
    inputs: list[list[tuple[int, ...]]],
    encoded: Sequence[Sequence[Sequence[int]]],
    starts: Sequence[int],
    prefix: int,
) -> list[list[float]]:
    rows = [ids for i in group for ids in inputs[i]]
    if len(group) == 1:
        prefix = max(prefix, starts[group.start] - 1) if len(rows) > 1 else 0
    hidden, bounds = _hidden(model, rows, prefix)
    number = 0
    places, targets = [], []  # position in the packed row that predicts a token, and that token
    for i in group:
        row_of = {ids: number + k for k, ids in enumerate(inputs[i])}
        number += len(inputs[i])
        for ids in encoded[i]:
            start = bounds[row_of[tuple(ids[:-1])]]
            for at in range(starts[i] - 1, len(ids) - 1):
                places.append(at if at < prefix else start + at - prefix)
                targets.append(ids[at + 1])
    values = iter(_token_log_probabilities(hidden, places, targets, model.head_weight))
    return [[sum(next(values) for _ in ids[starts[i] :]) for ids in encoded[i]] for i in group]


def _token_log_probabilities(
    hidden: torch.Tensor, places: Sequence[int], targets: Sequence[int], head: torch.Tensor
) -> list[float]:
    """log P(target) at each place, the head's rows in fp32 block by block: [T, H], [V, H] -> [places]."""
    once = list(dict.fromkeys(places))  # options of one question share places
    states = hidden[once].float()
    total = _log_sum_exp(states, head)
    index = {place: k for k, place in enumerate(once)}
    rows = torch.tensor([index[place] for place in places], device=hidden.device)
    return ((states[rows] * _rows(head, targets)).sum(1) - total[rows]).tolist()


def _log_sum_exp(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """log of the sum over all words of exp(logit): [n, H], [V, H] -> [n]."""
    words = VocabularyShard.of(head) if isinstance(head, DTensor) else None
    total = torch.full((len(states),), float("-inf"), device=states.device)
    for block in (head if words is None else head.to_local()).split(_VOCABULARY_BLOCK):
        total = torch.logaddexp(total, (states @ block.float().T).logsumexp(1))
    if words is None:
        return total
    largest = total.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, words.group)
    sums = (total - largest).exp()
    dist.all_reduce(sums, group=words.group)
    return largest + sums.log()


def _rows(head: torch.Tensor, words: Sequence[int]) -> torch.Tensor:
    """The head's rows of some words, in fp32: [V, H] -> [words, H]. Each is one process's, and 0 in the others' sum."""
    ids = torch.tensor(words, device=head.device)
    if not isinstance(head, DTensor):
        return head[ids].float()
    held = VocabularyShard.of(head)
    mine, at = held.find(ids)
    rows = torch.where(mine[:, None], head.to_local()[at].float(), 0.0)
    dist.all_reduce(rows, group=held.group)
    return rows


def _hidden(model: PackedModel, encoded: Sequence[Sequence[int]], prefix: int) -> tuple[torch.Tensor, list[int]]:
    """Hidden states of the packed row [T, H], and the bounds of the prompts' own parts in it: the first begins there."""
    device = model.head_weight.device
    row, positions, bounds = list(encoded[0][:prefix]), list(range(prefix)), [prefix]
    for ids in encoded:
        row += ids[prefix:]
        positions += range(prefix, len(ids))
        bounds.append(len(row))
    hidden = model(
        torch.tensor([row], device=device),  # [1, T]
        torch.tensor([positions], device=device),
        segments=tuple(([0] if prefix else []) + bounds),
        prefix_length=prefix,
    )
    return hidden[0], bounds


def _check_lengths(encoded: Sequence[Sequence[int]], config: object, names: Sequence[str]) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if limit is not None and len(encoded[longest]) > limit:
        raise UserError(
            f"{names[longest]}: its prompt has {len(encoded[longest])} tokens, the model's limit is {limit}; give fewer "
            "--shots"
        )


def _check_finite(found: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """No letter is the best of NaN; a score made of such would look like any other."""
    for name, values in zip(names, found, strict=True):
        if not all(map(isfinite, values)):
            raise UserError(
                f"{name}: the answers' scores are {values}, which is no answer; give --dtype fp32 (fp16 overflows early), "
                "and check that the checkpoint holds no NaN"
            )
