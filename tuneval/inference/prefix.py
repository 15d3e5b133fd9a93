"""What several prompts begin with, computed once for all of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tuneval.checkpoints.load import Loaded


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The shared beginning as a model keeps it."""

    tokens: int
    cache: DynamicCache
    """Keys and values of one row."""

    def rows(self, n: int) -> DynamicCache:
        """The cache for a batch of `n` rows; this one stays as it is."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(n)
        return cache


def cache_argument(model: torch.nn.Module) -> str:
    """What this version of transformers calls the keys and values of earlier tokens."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@torch.inference_mode()
def compute_prefix(loaded: Loaded, ids: Sequence[int]) -> Prefix | None:
    """Keys and values of tokens that several prompts begin with.

    Args:
        loaded: the model.
        ids: the tokens, at least one.

    Returns:
        None where a prompt's beginning can't stand apart: a sliding window, or layers that keep a state.
    """
    text_config = loaded.config.get_text_config()
    plain = set(getattr(text_config, "layer_types", None) or ()) <= {"full_attention"}
    if not plain or getattr(loaded.model, "_is_stateful", False):
        return None
    cache = DynamicCache(config=loaded.config)
    loaded.model(
        input_ids=torch.tensor([list(ids)], device=loaded.model.device),
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(loaded.model): cache},
    )
    return Prefix(tokens=len(ids), cache=cache) if all(type(layer) is DynamicLayer for layer in cache.layers) else None
