"""Prompts of one subject -> a logit for each answer letter. What the prompts share is computed once per forward pass.

T tokens of one packed row `[shared prefix | rest of prompt 1 | rest of prompt 2 | ...]`, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import frexp, isfinite
from typing import Protocol

import torch

from tuneval.errors import Problems, UserError


class PackedModel(Protocol):
    """What scoring needs of a model; `model.decoder.Decoder` is one."""

    head_weight: torch.Tensor
    config: object

    def __call__(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, segments: tuple[int, ...], prefix_length: int
    ) -> torch.Tensor: ...


def letter_logits(
    model: PackedModel,
    tokenizer: Callable[[str], dict],
    prompts: Sequence[str],
    targets: Sequence[str],
    batch_tokens: int,
    scored: Callable[[int], object] = lambda n: None,
) -> list[list[float]]:
    """Next-token logits of the answer letters after each prompt.

    Args:
        model: the model to score, in eval mode.
        tokenizer: its tokenizer, called as in `tokenizer(text)`, special tokens included.
        prompts: the prompts of one subject, whose shared beginning is computed once per forward pass.
        targets: the text of each letter as it would follow a prompt; one token each.
        batch_tokens: tokens of one forward pass at most; a longer single prompt still gets its own pass.
        scored: called with the number of prompts each pass has scored.

    Returns:
        For each prompt, the logits of `targets`: products of the last hidden state and the head's rows, in fp32 (bf16
        logits have 8 significant bits and often tie).

    Raises:
        UserError: letters that aren't single, distinct tokens; a prompt longer than the model's positions; logits that
            are not finite.
    """
    letters = letter_ids(tokenizer, prompts[0], targets)
    encoded = [list(tokenizer(text)["input_ids"]) for text in prompts]
    _check_lengths(encoded, model.config)
    head = model.head_weight[letters].float()  # [letters, H]
    prefix = shared_prefix(encoded)
    logits: list[list[float]] = []
    with torch.inference_mode():
        for chunk in chunks([len(ids) - prefix for ids in encoded], batch_tokens - prefix):
            last = _last_hidden(model, [encoded[i] for i in chunk], prefix)  # [prompts of the chunk, H]
            found = (last.float() @ head.T).tolist()
            _check_finite(found, chunk.start)
            logits += found
            scored(len(chunk))
    return logits


def letter_ids(tokenizer: Callable[[str], dict], prompt: str, targets: Sequence[str]) -> list[int]:
    """The token of each target as it follows `prompt`, by tokenizing both together.

    Raises:
        UserError: a target is no single token there, changes the prompt's own tokens, or shares its token with another.
    """
    problems, before, found = Problems(), list(tokenizer(prompt)["input_ids"]), []
    for target in targets:
        after = list(tokenizer(prompt + target)["input_ids"])
        if len(after) == len(before) + 1 and after[:-1] == before:
            found.append(after[-1])
        else:
            problems.add(
                f"answer {target!r} after {prompt[-6:]!r}: not one token of its own with this tokenizer (tokens "
                f"{before[-2:]} become {after[len(before) - 2 :]}); choose another --style, and check that the "
                "tokenizer adds no end-of-sequence token (add_eos_token in tokenizer_config.json)"
            )
    problems.raise_if_any()
    if len(set(found)) < len(found):
        raise UserError(f"answers {', '.join(targets)}: tokens {found} are not distinct; is it the model's tokenizer?")
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


def decide(scores: dict[str, float]) -> tuple[str, float]:
    """The letter with the highest score, the first of equals, and its lead over the second."""
    best = max(scores, key=scores.__getitem__)
    return best, scores[best] - max(value for letter, value in scores.items() if letter != best)


def near_tie(scores: dict[str, float]) -> bool:
    """Whether the best two letters are closer than one step of bf16 at the size of the best logit.

    Such a choice can turn with the order of additions; two engines are compared by margins there, not by letters.
    """
    best, margin = decide(scores)
    return margin < bf16_step(scores[best])


def bf16_step(value: float) -> float:
    """Distance between neighbouring bf16 numbers (8 significant bits) at the size of `value`."""
    return 2.0 ** (frexp(value)[1] - 8)


def _check_lengths(encoded: Sequence[Sequence[int]], config: object) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if limit is not None and len(encoded[longest]) > limit:
        raise UserError(
            f"question {longest + 1} of the subject: its prompt has {len(encoded[longest])} tokens, the model's limit "
            f"is {limit}; give fewer --shots"
        )


def _check_finite(logits: Sequence[Sequence[float]], first: int) -> None:
    """No letter is the best of NaN; a score made of such would look like any other."""
    for number, values in enumerate(logits, first + 1):
        if not all(map(isfinite, values)):
            raise UserError(
                f"question {number} of the subject: the letters' logits are {values}, which is no answer; give --dtype "
                "fp32 (fp16 overflows early), and check that the checkpoint holds no NaN"
            )


def _last_hidden(model: PackedModel, encoded: Sequence[Sequence[int]], prefix: int) -> torch.Tensor:
    """Hidden state of each prompt's last token: [prompts, H]."""
    device = model.head_weight.device
    row, positions, bounds = list(encoded[0][:prefix]), list(range(prefix)), [0, prefix] if prefix else [0]
    for ids in encoded:
        row += ids[prefix:]
        positions += range(prefix, len(ids))
        bounds.append(len(row))
    hidden = model(
        torch.tensor([row], device=device),  # [1, T]
        torch.tensor([positions], device=device),
        segments=tuple(bounds),
        prefix_length=prefix,
    )
    ends = torch.tensor(bounds[-len(encoded) :], device=device) - 1
    return hidden[0, ends]
