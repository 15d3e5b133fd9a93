"""Decoder: a transformers model's embedding, layers and final norm, or a slice of them, over one packed row of samples."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneval.errors import Problems, UserError
from tuneval.model import attention
from tuneval.model.frugal import keep_products

_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
_WINDOWS = {"full_attention", "sliding_attention"}
_REMAINS = "this architecture can be converted and chatted with, not tuned or scored"


class Decoder(torch.nn.Module):
    """The one forward of training and scoring. Shares the model's modules, so parameters keep their HF names.

    Args:
        model: a causal language model made by `build_model` (adapters included, if any), or what `cut_stage` left of it.
        recompute: what the backward pass computes again instead of keeping: "full" whole layers, "selective" the
            attention blocks, None nothing.
        compile: whether torch.compile fuses what lies between the matrix products of each layer, in training; a forward
            alone is rarely long enough to repay a second compilation.

    Raises:
        UserError: the architecture does more than embed, run layers, normalise and project, or lets packed samples see
            each other.
    """

    def __init__(
        self, model: PreTrainedModel, recompute: Literal["full", "selective"] | None = None, compile: bool = False
    ) -> None:
        super().__init__()
        _check_structure(model)
        self.config = model.config
        self.model = model.model
        self.lm_head = model.lm_head
        self.recompute = recompute
        if self.is_first and self.is_last:
            _check_forward(model, self)
        if recompute == "full":
            keep_products(self)
        if recompute == "selective":
            for layer in self.layers():
                layer.self_attn.forward = partial(checkpoint, layer.self_attn.forward, use_reentrant=False)
        self._run_compiled = torch.compile(_run_layer, dynamic=True) if compile else _run_layer

    @property
    def is_first(self) -> bool:
        """Whether it embeds token ids itself; otherwise it takes the hidden states of the slice before it."""
        return self.model.embed_tokens is not None

    @property
    def is_last(self) -> bool:
        """Whether it ends in the norm and the head; otherwise in hidden states for the slice after it."""
        return self.lm_head is not None

    def layers(self) -> Iterator[torch.nn.Module]:
        """The layers it holds, in order."""
        return (layer for layer in self.model.layers if layer is not None)

    @property
    def head_weight(self) -> torch.Tensor:
        """[V, H]; the embedding itself where the two are tied. The last slice alone has one."""
        return self.lm_head.weight

    def forward(
        self,
        inputs: torch.Tensor,
        position_ids: torch.Tensor,
        segments: tuple[int, ...] | None = None,
        prefix_length: int = 0,
    ) -> torch.Tensor:
        """Hidden states after the final norm; of a slice that is not the last, after its layers.

        Args:
            inputs: [1, T] token ids, samples one after another; to a slice that is not the first, hidden states
                [1, T, H] (with sequence parallelism this process's [1, T / TP, H]).
            position_ids: [1, T], starting again with every sample (after a shared prefix: going on from it).
            segments: cumulative bounds of the samples, 0 ... T. None: one sample.
            prefix_length: tokens of a first segment that all later ones see; 0: none.

        Returns:
            [1, T, H] (with sequence parallelism, where it is not the last, [1, T / TP, H])
        """
        segments = segments or (0, position_ids.shape[1])
        assert segments[0] == 0 and segments[-1] == position_ids.shape[1], "segments must cover the row"
        base = self.model
        hidden = base.embed_tokens(inputs) if self.is_first else inputs
        samples = attention.Segments(segments, prefix_length)
        arguments = {
            "attention_mask": None,
            "position_ids": position_ids,
            "position_embeddings": self._rotary(hidden, position_ids, samples),
            "segments": samples,
        }
        trains = torch.is_grad_enabled()
        run = self._run_compiled if trains else _run_layer
        for layer in self.layers():
            if self.recompute == "full" and trains:
                hidden = checkpoint(run, layer, hidden, use_reentrant=False, **arguments)
            else:
                hidden = run(layer, hidden, **arguments)
        return base.norm(hidden) if base.norm is not None else hidden

    def _rotary(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, samples: attention.Segments
    ) -> tuple[torch.Tensor, ...]:
        """Cosines and sines of the positions.

        "longrope" (Phi 3 and 4) has other frequencies for a text longer than it was first trained on, and takes a row for
        one text: a short sample beside a long one would get the long one's. Behind a shared prefix one choice holds for all.
        """
        rotary = self.model.rotary_emb
        if getattr(rotary, "rope_type", None) != "longrope" or samples.prefix_length:
            return rotary(hidden, position_ids)
        parts = [rotary(hidden, positions) for positions in position_ids.split(samples.lengths, 1)]
        return tuple(torch.cat(part, 1) for part in zip(*parts))


def _run_layer(layer: torch.nn.Module, hidden: torch.Tensor, **arguments: object) -> torch.Tensor:
    """One function for all layers: alike as they are, they share what is compiled of it."""
    hidden = layer(hidden, **arguments)
    return hidden[0] if isinstance(hidden, tuple) else hidden  # layers of transformers 4 return attention weights too


def cut_stage(model: PreTrainedModel, layers: Iterable[int], first: bool, last: bool) -> PreTrainedModel:
    """Take out of a whole model what one consecutive slice of it does not hold; names of the rest stay.

    Args:
        model: whole, on `meta` as `empty_model` makes it (or with weights); changed in place. Its config no longer says
            "tied": the last slice has a head of its own, `lm_head.weight`; `stored_name` says what a checkpoint calls it.
        layers: numbers of the layers it holds.
        first: whether it holds the embedding.
        last: whether it holds the final norm and the head.

    Returns:
        `model`.

    Raises:
        UserError: the architecture does more than embed, run layers, normalise and project.
    """
    _check_structure(model)
    kept, base = set(layers), model.model
    for number in range(len(base.layers)):
        if number not in kept:
            base.layers[number] = None  # an empty place: the others keep their numbers in their names
    if not first:
        base.embed_tokens = None
    if not last:
        base.norm = model.lm_head = None
    if not (first and last):
        model.config.tie_word_embeddings, model._tied_weights_keys = False, None  # peft looks for both ends of a tie
    return model


def stored_name(config: PretrainedConfig, name: str) -> str:
    """What a checkpoint calls a parameter: the head of a tied model is stored as the embedding.

    Args:
        config: of the whole model, as the checkpoint has it.
        name: of a parameter of one slice.
    """
    tied = config.tie_word_embeddings and name == "lm_head.weight"
    return "model.embed_tokens.weight" if tied else name


def check_architecture(config: PretrainedConfig) -> None:
    """Hold the decoder's forward against transformers' own for a model that no process holds whole.

    One layer of random weights, few words, a narrow FFN: enough to see a scale, a cap, a second embedding or samples that
    see each other.

    Args:
        config: of the model; unchanged.

    Raises:
        UserError: as `Decoder` does, or transformers can't build one such layer.
    """
    with _naming(config), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = _one_layer(config)
        Decoder(AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention.NAME))


def _one_layer(config: PretrainedConfig) -> PretrainedConfig:
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.intermediate_size = 1, 64, 64
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    return small


def _check_structure(model: PreTrainedModel) -> None:
    config, problems = model.config, Problems()
    base = getattr(model, "model", None)
    missing = [part for part in _PARTS if not hasattr(base, part)]
    problems.check(not missing, f"model type {config.model_type}: its base model has no {', '.join(missing)}")
    problems.check(
        hasattr(model, "lm_head") and getattr(model.lm_head, "bias", None) is None,
        f"model type {config.model_type}: it has no output head lm_head, or one with a bias",
    )
    kinds = set(getattr(config, "layer_types", None) or ()) - _WINDOWS
    problems.check(not kinds, f"model type {config.model_type}: layers of kind {', '.join(sorted(kinds))}")
    chosen = config._attn_implementation
    problems.check(chosen == attention.NAME, f"attention is {chosen}: build the model with build_model")
    problems.raise_if_any()


@torch.no_grad()
def _check_forward(model: PreTrainedModel, decoder: Decoder) -> None:
    """Hold this forward of two samples in a row against transformers' own of each, four tokens long.

    An architecture with a scale, a cap or a second embedding that the layers don't show, or with layers that keep the
    samples' bounds from their attention, is refused instead of trained wrongly. Left out where weights are on `meta`.
    """
    if any(p.is_meta for p in model.parameters()):
        return
    training = model.training
    model.eval()
    samples = torch.arange(8, device=decoder.head_weight.device).view(2, 4) % model.config.vocab_size
    positions = torch.arange(4, device=samples.device).repeat(2)[None]  # [1, 8]
    with _naming(model.config):
        expected = model(samples, use_cache=False).logits.float()  # [2, 4, V]
        actual = decoder.lm_head(decoder(samples.view(1, 8), positions, (0, 4, 8))).float().view_as(expected)
    model.train(training)
    if not bool(torch.isfinite(expected).all()):
        return  # broken weights: training names them, with the step
    tolerance = (1e-4 if decoder.head_weight.dtype == torch.float32 else 5e-2) * float(expected.abs().max())
    first, second = (torch.allclose(a, e, rtol=0, atol=tolerance, equal_nan=True) for a, e in zip(actual, expected))
    if not first:  # sees nothing but itself, whatever the bounds
        raise UserError(
            f"model type {model.config.model_type}: transformers' own forward gives other logits than embedding, "
            f"layers, norm and head in a row; {_REMAINS}"
        )
    if not second:
        raise UserError(
            f"model type {model.config.model_type}: a sample has other logits behind another one in its row than alone: "
            f"the layers don't tell their attention where samples end; {_REMAINS}"
        )


@contextmanager
def _naming(config: PretrainedConfig) -> Iterator[None]:
    """What an architecture raises when it is tried becomes a UserError that names it; too little memory stays what it is."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"model type {config.model_type}: a trial of its layers raised {type(error).__name__}: {error}; {_REMAINS}"
        ) from error
