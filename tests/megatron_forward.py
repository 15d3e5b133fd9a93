"""Megatron's forward pass over rank files, written as its layers read them, knowing nothing of the weight table."""

from __future__ import annotations

import torch

IDS = torch.tensor([[3, 141, 59, 26, 53, 58, 97, 93, 23, 84]])


@torch.no_grad()
def megatron_logits(folder):
    """The forward pass over rank files, as Megatron's parallel layers do it (sums stand for all-reduces).

    LoRA layers compute base(x) + alpha / r * B(A x), each rank with what its own file holds.
    """
    files = sorted(folder.glob("iter_*/*/*.pt"))
    states = [torch.load(file, weights_only=False) for file in files]
    args = states[0]["args"]
    tp, pp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    grid = {(int(f.parent.name[8:10]), int(f.parent.name[11:] or 0)): s for f, s in zip(files, states)}
    keys = [f"model{i}" for i in range(args.virtual_pipeline_model_parallel_size or 0)] or ["model"]
    pieces = [[grid[t, stage][key] for t in range(tp)] for key in keys for stage in range(pp)]  # in the model's order
    x = torch.cat([rank["embedding.word_embeddings.weight"] for rank in pieces[0]])[IDS[0]]  # [token, hidden]
    for ranks in pieces:
        for layer in range(sum(".input_layernorm." in name for name in ranks[0])):
            own = [
                {n.split(".", 3)[3]: w for n, w in r.items() if n.startswith(f"decoder.layers.{layer}.")} for r in ranks
            ]
            h = rms_norm(x, own[0]["input_layernorm.weight"], args.norm_epsilon)
            x = x + attention(h, own, args) + own_bias(own[0], "self_attention.linear_proj")
            h = rms_norm(x, own[0]["pre_mlp_layernorm.weight"], args.norm_epsilon)
            x = x + sum(mlp(h, w, args) for w in own) + own_bias(own[0], "mlp.linear_fc2")
    ranks = pieces[-1]
    x = rms_norm(x, ranks[0]["decoder.final_layernorm.weight"], args.norm_epsilon)
    tied_alone = not args.untie_embeddings_and_output_weights and pp == 1
    head = "embedding.word_embeddings.weight" if tied_alone else "output_layer.weight"
    return (x @ torch.cat([r[head] for r in ranks]).T)[None]


def attention(h, ranks, args):
    """Column-parallel linear_qkv, attention by query groups, row-parallel linear_proj."""
    groups, d, tokens = args.num_query_groups, args.kv_channels, len(h)
    per_group = args.num_attention_heads // groups
    mixed = torch.cat([linear(h, r, "self_attention.linear_qkv", args) for r in ranks], 1)
    mixed = mixed.view(tokens, groups, (per_group + 2) * d)  # [token, group, queries + key + value]
    q, k, v = mixed.split([per_group * d, d, d], 2)
    q = q.reshape(tokens, groups * per_group, d)
    if args.qk_layernorm:
        q = rms_norm(q, ranks[0]["self_attention.q_layernorm.weight"], args.norm_epsilon)
        k = rms_norm(k, ranks[0]["self_attention.k_layernorm.weight"], args.norm_epsilon)
    q, k = rotate(q, args.rotary_base), rotate(k, args.rotary_base)
    k, v = (t.repeat_interleave(per_group, 1) for t in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) / d**0.5
    scores = scores + torch.full((tokens, tokens), float("-inf")).triu(1)
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(tokens, -1)
    pieces = mixed.chunk(len(ranks), 1)
    return sum(linear(piece, r, "self_attention.linear_proj", args) for piece, r in zip(pieces, ranks))


def mlp(h, rank, args):
    gate, up = linear(h, rank, "mlp.linear_fc1", args).chunk(2, 1)  # each rank: its gate, then its up
    return linear(torch.nn.functional.silu(gate) * up, rank, "mlp.linear_fc2", args)


def linear(h, rank, name, args):
    """A rank's share of a layer's output. Row-parallel layers have their bias added once, by the caller."""
    base = f"{name}.base_layer" if f"{name}.base_layer.weight" in rank else name
    bias = 0 if name.endswith(("linear_proj", "linear_fc2")) else rank.get(f"{base}.bias", 0)
    y = h @ rank[f"{base}.weight"].T + bias
    if f"{name}.lora_A.default.weight" in rank:
        a, b = (rank[f"{name}.lora_{half}.default.weight"] for half in "AB")
        y = y + args.lora_alpha / args.lora_r * (h @ a.T) @ b.T
    return y


def own_bias(rank, name):
    return rank.get(f"{name}.bias", rank.get(f"{name}.base_layer.bias", 0))


def rms_norm(x, weight, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotate(x, base):
    """Rotary embedding of [token, head, dim], halves rotated."""
    d = x.shape[-1]
    angles = torch.outer(torch.arange(len(x)), base ** (-torch.arange(0, d, 2) / d))
    cos, sin = (f(torch.cat([angles, angles], 1))[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
