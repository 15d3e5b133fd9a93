"""Segment attention: several samples lie in one row and none sees another. Registered with transformers as "tuneval".

Shapes: T tokens of one packed row, Hq query heads, Hkv key/value heads, D size of a query or key, Dv of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuneval.errors import UserError
from tuneval.runtime import varlen_attention

NAME = "tuneval"
"""What `attn_implementation` and `config._attn_implementation` say to choose this attention."""

SHORT = 384
"""Tokens up to which training on a CPU attends by plain products. torch's fused backward pass takes two to five times as long
there; a segment's probabilities, kept for the backward pass, are at most a fifth of a layer's activations."""

_NOT_COMPUTED = {"softcap": "capped attention scores", "s_aux": "attention sinks", "sinks": "attention sinks"}


class Segments:
    """Where the samples of a packed row begin and end.

    One object that goes through all layers: what depends on the bounds is made once, and torch.compile, which looks into
    tuples and compiles anew when their length changes, passes it on as it is.

    Args:
        bounds: cumulative, from 0 to T.
        prefix_length: where above 0, the first segment ([0, prefix_length)) is seen by every later one too.
    """

    def __init__(self, bounds: tuple[int, ...], prefix_length: int = 0) -> None:
        assert prefix_length in (0, bounds[1]), "the shared prefix is the first segment"
        self.prefix_length = prefix_length
        self.lengths = [end - start for start, end in pairwise(bounds)]
        self._on_device: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None

    def on_device(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Cumulative numbers of queries and of keys, [segments + 1] int32 each, and with a prefix which row each key is."""
        if self._on_device is None:
            own = torch.tensor(self.lengths)
            keys = own + self.prefix_length
            keys[0] = own[0]
            bounds = [torch.cat((own.new_zeros(1), n.cumsum(0))).to(device, torch.int32) for n in (own, keys)]
            rows = None
            if self.prefix_length:
                prefix, *others = torch.arange(int(own.sum())).split(self.lengths)
                rows = torch.cat([prefix, *(part for other in others for part in (prefix, other))]).to(device)
            self._on_device = bounds[0], bounds[1], rows
        return self._on_device


@torch.compiler.disable  # lengths are Python numbers, other ones every time
def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment, with a prefix shared by all segments where one is given.

    Args:
        module: the attention layer, as transformers passes it.
        query: [1, Hq, T, D] ([batch, Hq, T, D] where `segments` is None).
        key: [1, Hkv, T, D].
        value: [1, Hkv, T, Dv].
        attention_mask: for where `segments` is None only; the bounds are the mask otherwise.
        dropout: probability, 0 outside training.
        scaling: factor of the scores; None: 1 / sqrt(D).
        sliding_window: a token sees this many tokens, itself included; None: all.
        segments: the samples of the row. None: plain sdpa, key/value cache and padding included.

    Returns:
        [1, T, Hq, Dv], and None for the attention weights, which never exist.

    Raises:
        UserError: the model wants something this attention doesn't compute.
    """
    for name, what in _NOT_COMPUTED.items():
        if kwargs.get(name) is not None:
            raise UserError(f'{type(module).__name__} uses {what}, which attention "{NAME}" does not compute')
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if attention_mask is not None or kwargs.get("position_bias") is not None:  # `Decoder` hands the layers none
        raise UserError(f'{type(module).__name__} makes a mask of its own, which attention "{NAME}" does not look at')
    varlen = varlen_attention(query.device)
    if varlen is not None and _is_flash(query, value, dropout):
        return _attend_at_once(varlen, query, key, value, segments, sliding_window, scaling), None
    lengths = segments.lengths
    # `split`, not slices: its backward is one concatenation, where every slice's would fill T zeros.
    pieces = list(zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)))
    longest, outputs = max(lengths), []
    for index, (q, k, v) in enumerate(pieces):
        seen = segments.prefix_length if index else 0
        if seen:
            k, v = torch.cat((pieces[0][1], k), 2), torch.cat((pieces[0][2], v), 2)  # [1, Hkv, seen + t, D]
        outputs.append(_attend(q, k, v, seen, longest, sliding_window, dropout, scaling))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), None


def _is_flash(q: torch.Tensor, v: torch.Tensor, dropout: float) -> bool:
    """Whether flash attention has a kernel for it."""
    sizes = q.shape[-1] == v.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    return dropout == 0 and q.dtype in (torch.bfloat16, torch.float16) and sizes


def _attend_at_once(
    varlen: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """All segments in one kernel -> [1, T, Hq, Dv]. It aligns a segment's last query with its last key, prefix or not."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    queries, keys, rows = segments.on_device(q.device)
    if rows is not None:
        k, v = k.index_select(0, rows), v.index_select(0, rows)
    longest = max(segments.lengths)
    reach = (-1 if window is None else window - 1, 0)
    most_keys = segments.prefix_length + longest
    return varlen(q, k, v, queries, keys, longest, most_keys, scale=scaling, window_size=reach)[None]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: int,
    longest: int,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """One segment [1, Hq, t, D] over its keys [1, Hkv, seen + t, D] -> [1, t, Hq, Dv]."""
    length, keys = q.shape[2], k.shape[2]
    if _is_short(q, keys, window, dropout):
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        return _ShortAttention.apply(q, k, v, scale).transpose(1, 2)
    needs_mask = seen > 0 or (window is not None and window < keys)
    mask = _mask(longest, seen, window, q.device)[:length, :keys] if needs_mask else None
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=not needs_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2)


def _is_short(q: torch.Tensor, keys: int, window: int | None, dropout: float) -> bool:
    """Whether plain products are the faster way."""
    plain = q.shape[2] == keys and (window is None or window >= keys) and dropout == 0
    return plain and keys <= SHORT and q.device.type == "cpu" and q.requires_grad and torch.is_grad_enabled()


class _ShortAttention(torch.autograd.Function):
    """Causal attention of one segment by plain products, the query heads of a key head side by side: [Hkv, Hq / Hkv * t, D].

    Scores and their gradients are fp32 whatever the type of the rest.
    """

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """[1, Hq, t, D], [1, Hkv, t, D], [1, Hkv, t, Dv] -> [1, Hq, t, Dv]."""
        shapes, length = (q.shape, k.shape, v.shape), q.shape[2]
        q, k, v = (x.reshape(k.shape[1], -1, x.shape[-1]) for x in (q, k, v))
        scores = torch.bmm(q.float(), k.float().transpose(1, 2)).mul_(scale)  # [Hkv, Hq / Hkv * t, t]
        scores.view(-1, length, length).add_(_future(SHORT, q.device)[:length, :length])
        p = scores.softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, p)
        ctx.shapes, ctx.scale = shapes, scale
        return torch.bmm(p, v).view(*shapes[0][:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        q, k, v, p = ctx.saved_tensors
        grad = grad.reshape(*q.shape[:-1], -1)
        grad_v = torch.bmm(p.transpose(1, 2), grad)
        p = p.float()
        weighed = torch.bmm(grad.float(), v.float().transpose(1, 2)).mul_(p)
        grad_scores = weighed.sub_(p.mul(weighed.sum(-1, keepdim=True))).mul_(ctx.scale).to(q.dtype)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        of_q, of_k, of_v = ctx.shapes
        return grad_q.view(of_q), grad_k.view(of_k), grad_v.view(of_v), None


@lru_cache(maxsize=1)
def _future(length: int, device: torch.device) -> torch.Tensor:
    """[length, length] fp32: -inf where a key comes after its query, 0 elsewhere; shorter segments take its upper left corner."""
    return torch.full((length, length), -torch.inf, device=device).triu(1)


@lru_cache(maxsize=4)
def _mask(length: int, seen: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[length, seen + length] booleans: query i stands at position seen + i and sees the window that ends there.

    Shorter segments take its upper left corner; kept between calls because every layer asks for it again.
    """
    mask = torch.ones(length, seen + length, dtype=torch.bool, device=device).tril(seen)
    return mask if window is None else mask.triu(seen - window + 1)


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
