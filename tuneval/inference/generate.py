"""Answers from a model: sampling over transformers' `generate`, left padding, stop tokens, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tuneval.checkpoints.load import Loaded
from tuneval.config.schema import SamplingConfig
from tuneval.console import warn
from tuneval.data.template import Template, load_template, template_difference
from tuneval.errors import UserError
from tuneval.inference.prefix import Prefix, cache_argument
from tuneval.inference.sampling import check_sampling


def generate(
    loaded: Loaded,
    prompts: list[list[int]],
    sampling: SamplingConfig,
    stop_token_ids: Sequence[int],
    streamer: BaseStreamer | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    prefix: Prefix | None = None,
) -> list[list[int]]:
    """Continue every prompt, all in one batch.

    Args:
        loaded: the model.
        prompts: token ids, of any lengths above 0; shorter ones are padded on the left, or behind `prefix`.
        sampling: the flags. Its seed alone decides the draws; the global random state is left as it was.
        stop_token_ids: an answer ends before the first of these.
        streamer: gets tokens as they come; for one prompt and one beam only.
        stopping_criteria: of transformers, further ones.
        prefix: what all prompts begin with, from `compute_prefix`; each prompt is longer. For one beam only.

    Returns:
        The new tokens of each prompt, without the stop token.

    Raises:
        UserError: a sampling flag out of range, or a prompt that leaves no room within the model's positions.
    """
    check_sampling(sampling)
    longest = max(map(len, prompts))
    new_tokens = min(sampling.max_new_tokens, _room(loaded, longest))
    padding = stop_token_ids[0] if stop_token_ids else 0
    device = loaded.model.device
    shared = prefix.tokens if prefix is not None else 0
    # Positions come from the mask, so padding between the prefix and a prompt's own part counts for nothing. It is a token
    # of the prompt: one that ends answers need not be of the model's vocabulary, and older versions of transformers let the
    # repetition penalty look at masked tokens, too.
    input_ids = torch.tensor([[*p[:shared], *[p[0]] * (longest - len(p)), *p[shared:]] for p in prompts], device=device)
    attention_mask = torch.tensor(
        [[1] * shared + [0] * (longest - len(p)) + [1] * (len(p) - shared) for p in prompts], device=device
    )
    computed = {} if prefix is None else {cache_argument(loaded.model): prefix.rows(len(prompts))}
    with _drawing_from(sampling.seed, device), torch.inference_mode():
        output = loaded.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=_generation_config(sampling, new_tokens, stop_token_ids, padding),
            streamer=streamer,
            stopping_criteria=stopping_criteria,
            **computed,
        )
    return [_before_stop(row, set(stop_token_ids)) for row in output[:, longest:].tolist()]


def positions_limit(loaded: Loaded) -> int | None:
    """Tokens that the model's positions reach; None: no limit is known."""
    return getattr(loaded.config, "max_position_embeddings", None)


def choose_template(loaded: Loaded, prompt_type: str | None) -> Template:
    """The template to talk to a model in: the one asked for, else the one it was tuned with, else the tokenizer's own.

    Raises:
        UserError: the tuned model's template renders differently today (what differs is named).
    """
    template = load_template(prompt_type or loaded.template_name or "auto", loaded.tokenizer)
    if loaded.template_fingerprint in (None, template.fingerprint):
        return template
    tuned = f"{loaded.identity['path']}: was tuned with template {loaded.template_name}"
    differing = template_difference(loaded.template_description or {}, template.description)
    if prompt_type is None:
        raise UserError(
            f"{tuned}, which renders differently here. Differing ({loaded.template_name} then and now): {differing}. "
            "Put the tokenizer's files of the tuning back, or name a template with --prompt-type"
        )
    warn(f"{tuned}; --prompt-type {prompt_type} differs from it: {differing}")
    return template


class TextStream(BaseStreamer):
    """Turns tokens into text as they come; a character that spans several tokens waits until it is whole.

    Args:
        tokenizer: decodes; special tokens are left out.
        on_text: gets each new piece of text.
        stop_token_ids: tokens that end the answer, left out too: not every tokenizer calls them special.
    """

    def __init__(self, tokenizer, on_text: Callable[[str], None], stop_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer, self._on_text, self._stops = tokenizer, on_text, set(stop_token_ids)
        self.tokens: list[int] = []
        self._prompt_seen = False
        self._start, self._shown = 0, 0  # text of tokens[start:shown] is out; decoding from there keeps spaces right

    @property
    def text(self) -> str:
        """Everything so far."""
        return self._decode(self.tokens)

    def put(self, value: torch.Tensor) -> None:
        """Called by transformers: first with the prompt, then with every new token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.tokens += value.flatten().tolist()
        self._show(unfinished="\ufffd")

    def end(self) -> None:
        """Called by transformers after the last token."""
        self._show(unfinished=None)

    def _show(self, unfinished: str | None) -> None:
        old, new = (self._decode(self.tokens[self._start : end]) for end in (self._shown, None))
        if len(new) <= len(old) or (unfinished and new.endswith(unfinished)):
            return
        self._start, self._shown = self._shown, len(self.tokens)
        self._on_text(new[len(old) :])

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode([t for t in tokens if t not in self._stops], skip_special_tokens=True)


def _room(loaded: Loaded, prompt_length: int) -> int:
    limit = positions_limit(loaded)
    if limit is None:
        return 1 << 30
    if prompt_length >= limit:
        raise UserError(
            f"a prompt of {prompt_length} tokens: the model has {limit} positions, and the answer needs some too. "
            "Shorten the prompt"
        )
    return limit - prompt_length


def _generation_config(
    sampling: SamplingConfig, new_tokens: int, stop_token_ids: Sequence[int], padding: int
) -> GenerationConfig:
    common = {
        "max_new_tokens": new_tokens,
        "num_beams": sampling.num_beams,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": list(stop_token_ids) or None,
        "pad_token_id": padding,
    }
    if sampling.greedy:
        return GenerationConfig(do_sample=False, **common)
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        **common,
    )


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Within: torch's generators start from `seed`. Afterwards they are as before."""
    where = {"devices": []} if device.type == "cpu" else {"devices": [device.index or 0], "device_type": device.type}
    with torch.random.fork_rng(**where):
        torch.manual_seed(seed)
        yield


def _before_stop(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
