"""Pipeline cases on four processes, for test_pipeline.py: `torchrun ... pipeline_cases.py FOLDER` writes FOLDER/RANK.pt.

Two stages: ranks 0 and 2 are one pipeline, 1 and 3 its data-parallel copy, which is given the same micro-batches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import tiny_model

from tuneval.data.batches import MicroBatch
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder, cut_stage, stored_name
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.model.loss import linear_cross_entropy
from tuneval.parallel import pipeline
from tuneval.parallel.mesh import Layout, Mesh
from tuneval.parallel.schedules import Action

EVEN = {2: ((0, 1), (2, 3)), 4: ((0,), (1,), (2,), (3,))}
STEPS = (
    ((7, 5), (11,), (3, 4, 2), (6, 9), (8,)),
    ((30, 2),),  # fewer than stages
    ((5, 5, 5), (9, 9), (4,), (17,), (12, 1), (3,), (20,)),
)
"""Lengths of the samples of every micro-batch of every step; the length of the longest changes from step to step."""


@dataclass(frozen=True)
class Case:
    layers: tuple[tuple[int, ...], ...] = EVEN[2]
    stages: int = 2
    schedule: str = "1f1b"
    tied: bool = False
    lora: bool = False
    recompute: str | None = None
    scale: float = 1.0
    broken: str = ""
    """What is done wrong on purpose."""

    @property
    def layout(self) -> Layout:
        return Layout(pipeline=self.stages, data=4 // self.stages, layers=self.layers, schedule=self.schedule)


CASES = {
    "two stages": Case(tied=True, scale=64.0),
    "four stages, recompute": Case(layers=EVEN[4], stages=4, recompute="full"),
    "four stages, tied, LoRA": Case(layers=EVEN[4], stages=4, tied=True, lora=True),
    "uneven": Case(layers=((0,), (1, 2, 3)), tied=True, lora=True, recompute="selective"),
    "gpipe": Case(schedule="gpipe", lora=True),
    "gpipe, tied": Case(layers=((0, 1, 2), (3,)), schedule="gpipe", tied=True),
    "interleaved": Case(layers=EVEN[4], tied=True),
    "interleaved, LoRA": Case(layers=EVEN[4], lora=True, recompute="full"),
    "broken order": Case(broken="order"),
    "broken positions": Case(broken="positions", lora=True),
}


def micro_batch(number: int, lengths: tuple[int, ...]) -> MicroBatch:
    """Samples of these lengths; nothing is trained in a micro-batch of one sample of 4 tokens."""
    draw, tokens = torch.Generator().manual_seed(number), sum(lengths)
    ids, targets = torch.randint(0, 150, (2, 1, tokens), generator=draw)
    weights = torch.rand(1, tokens, generator=draw) / 50
    targets[0, :: 1 if lengths == (4,) else 3] = -100
    return MicroBatch(
        input_ids=ids,
        targets=targets,
        weights=torch.where(targets == -100, 0.0, weights),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        segments=(0, *accumulate(lengths)),
        sample_ids=tuple(range(len(lengths))),
    )


def steps() -> list[list[MicroBatch]]:
    return [[micro_batch(10 * s + m, lengths) for m, lengths in enumerate(step)] for s, step in enumerate(STEPS)]


def loss(decoder: Decoder, hidden: torch.Tensor, m: MicroBatch) -> torch.Tensor:
    rows = (m.targets[0] != -100).nonzero()[:, 0]
    return linear_cross_entropy(hidden[0, rows], decoder.head_weight, m.targets[0, rows], m.weights[0, rows])


def decoder_of(case: Case, cut: tuple | None = None) -> Decoder:
    """The case's model, whole or cut, with weights that no random generator draws."""
    source = tiny_model(tie_word_embeddings=case.tied)
    state = source.state_dict()
    model = build_model(source.config, lambda name: state[name].clone(), torch.float32)
    if cut is not None:
        cut_stage(model, *cut)
    if case.lora:
        add_lora(model, LoraSettings(r=4, alpha=8), seed=1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.copy_(torch.sin(torch.arange(p.numel()) * 0.3 + len(name)).view_as(p) * 0.05)
    return Decoder(model, case.recompute).train()


def run(case: Case) -> dict:
    """What one process saw of the case: gradients and losses of every step, actions taken, memory held for transfers."""
    layout = case.layout
    mesh = Mesh(layout)
    last = len(layout.layers) - 1
    chunks = [decoder_of(case, (layout.layers[c], c == 0, c == last)) for c in layout.chunks_of(mesh.stage)]
    if case.broken == "order" and mesh.stage == 0:
        chunks[0].model.layers[0], chunks[0].model.layers[1] = chunks[0].model.layers[1], chunks[0].model.layers[0]
    pipe = pipeline.Pipeline(chunks, layout, mesh.pp.get_group(), torch.device("cpu"), torch.float32)
    seen: dict = {"grads": [], "losses": [], "evaluated": [], "actions": [], "buffers": []}
    for micro_batches in steps():
        if case.broken == "positions" and mesh.stage == 1:
            micro_batches[0].position_ids.add_(1).fill_(3)
        with watched() as (actions, buffers):
            losses = pipe.step(micro_batches, loss, case.scale)
        seen["actions"].append(actions)
        seen["buffers"].append(max(buffers, default=0))
        seen["losses"].append(losses)
        seen["grads"].append({name: p.grad for name, p in named(case, chunks) if p.grad is not None})
        for chunk in chunks:
            chunk.zero_grad(set_to_none=True)
        with torch.no_grad():
            seen["evaluated"].append(pipe.step(micro_batches, loss, train=False))
    seen["mesh"] = (mesh.stage, mesh.dp_rank)
    return seen


def named(case: Case, chunks: list[Decoder]):
    config = tiny_model(tie_word_embeddings=case.tied).config
    return [(stored_name(config, name), p) for chunk in chunks for name, p in chunk.named_parameters()]


@contextmanager
def watched() -> Iterator[tuple[list[Action], list[int]]]:
    """Note every action of the stages, and how many tensors they then hold for what comes from elsewhere."""
    actions: list[Action] = []
    buffers: list[int] = []

    def watching(kind, method):
        def action(stage, number, *args, **kwargs):
            infos = [i for some in (*stage.args_recv_info.values(), *stage.grad_recv_info.values()) for i in some]
            held = [getattr(info, "buffer", None) for info in infos]
            buffers.append(sum(b is not None and not b.is_meta for b in held))
            actions.append(Action(kind, stage.stage_index, number))
            return method(stage, number, *args, **kwargs)

        return action

    forward, backward = pipeline._Stage.forward_one_chunk, pipeline._Stage.backward_one_chunk
    pipeline._Stage.forward_one_chunk = watching("F", forward)
    pipeline._Stage.backward_one_chunk = watching("B", backward)
    yield actions, buffers
    pipeline._Stage.forward_one_chunk, pipeline._Stage.backward_one_chunk = forward, backward


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.save({name: run(case) for name, case in CASES.items()}, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
    dist.destroy_process_group()
