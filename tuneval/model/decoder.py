"""Decoder: a transformers model's embedding, layers and final norm, run over one packed row of samples."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tuneval.errors import Problems, UserError
from tuneval.model import attention

_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
_WINDOWS = {"full_attention", "sliding_attention"}


class Decoder(torch.nn.Module):
    """The one forward of training and scoring. Shares the model's modules, so parameters keep their HF names.

    Args:
        model: a causal language model made by `build_model` (adapters included, if any).
        recompute: what the backward pass computes again instead of keeping: "full" whole layers, "selective" the
            attention blocks, None nothing.

    Raises:
        UserError: the architecture does more than embed, run layers, normalise and project.
    """

    def __init__(self, model: PreTrainedModel, recompute: Literal["full", "selective"] | None = None) -> None:
        super().__init__()
        _check_structure(model)
        self.config = model.config
        self.model = model.model
        self.lm_head = model.lm_head
        self.recompute = recompute
        _check_forward(model, self)
        if recompute == "selective":
            for layer in self.model.layers:
                layer.self_attn.forward = partial(checkpoint, layer.self_attn.forward, use_reentrant=False)

    @property
    def head_weight(self) -> torch.Tensor:
        """[V, H]; the embedding itself where the two are tied."""
        return self.lm_head.weight

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: tuple[int, ...] | None = None,
        prefix_length: int = 0,
    ) -> torch.Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: [1, T], samples one after another.
            position_ids: [1, T], starting again with every sample (after a shared prefix: going on from it).
            segments: cumulative bounds of the samples, 0 ... T. None: one sample.
            prefix_length: tokens of a first segment that all later ones see; 0: none.

        Returns:
            [1, T, H]
        """
        segments = segments or (0, input_ids.shape[1])
        assert segments[0] == 0 and segments[-1] == input_ids.shape[1], "segments must cover the row"
        assert prefix_length in (0, segments[1]), "the shared prefix is the first segment"
        base = self.model
        hidden = base.embed_tokens(input_ids)
        rotary = base.rotary_emb(hidden, position_ids)
        arguments = {
            "attention_mask": None,
            "position_ids": position_ids,
            "position_embeddings": rotary,
            "segments": segments,
            "prefix_length": prefix_length,
        }
        for layer in base.layers:
            if self.recompute == "full" and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, use_reentrant=False, **arguments)
            else:
                hidden = layer(hidden, **arguments)
            if isinstance(hidden, tuple):  # some layers of transformers 4 return their attention weights too
                hidden = hidden[0]
        return base.norm(hidden)


def _check_structure(model: PreTrainedModel) -> None:
    config, problems = model.config, Problems()
    base = getattr(model, "model", None)
    missing = [part for part in _PARTS if not hasattr(base, part)]
    problems.check(not missing, f"model type {config.model_type}: its base model has no {', '.join(missing)}")
    head = getattr(model, "lm_head", None)
    problems.check(
        head is not None and getattr(head, "bias", None) is None,
        f"model type {config.model_type}: it has no output head lm_head, or one with a bias",
    )
    kinds = set(getattr(config, "layer_types", None) or ()) - _WINDOWS
    problems.check(not kinds, f"model type {config.model_type}: layers of kind {', '.join(sorted(kinds))}")
    chosen = config._attn_implementation
    problems.check(chosen == attention.NAME, f"attention is {chosen}: build the model with build_model")
    problems.raise_if_any()


@torch.no_grad()
def _check_forward(model: PreTrainedModel, decoder: Decoder) -> None:
    """Hold this forward against transformers' own on four tokens: an architecture with a scale, a cap or a second

    embedding that the layers don't show is refused instead of trained wrongly. Left out where weights are on `meta`.
    """
    if any(p.is_meta for p in model.parameters()):
        return
    training = model.training
    model.eval()
    device = decoder.head_weight.device
    input_ids = torch.arange(4, device=device)[None] % model.config.vocab_size
    expected = model(input_ids, use_cache=False).logits.float()
    actual = decoder.lm_head(decoder(input_ids, torch.arange(4, device=device)[None])).float()
    model.train(training)
    if not bool(torch.isfinite(expected).all()):
        return  # broken weights: training names them, with the step
    tolerance = 1e-4 if decoder.head_weight.dtype == torch.float32 else 5e-2
    if not torch.allclose(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()), equal_nan=True):
        raise UserError(
            f"model type {model.config.model_type}: transformers' own forward gives other logits than embedding, "
            "layers, norm and head in a row; this architecture can be converted and chatted with, not tuned or scored"
        )
