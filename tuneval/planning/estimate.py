"""A layout and what it costs: memory of each stage, the pipeline's bubble, traffic, operations, time by a given speed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from transformers import PretrainedConfig

from tuneval.config.schema import OptimStateConfig
from tuneval.model.lora import LoraSettings
from tuneval.parallel.mesh import Layout
from tuneval.parallel.micro_batches import needed
from tuneval.parallel.schedules import Timetable, timetable
from tuneval.planning.rehearsal import Account, Part, Rehearsals, Work


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, whatever the layout."""

    hf_config: PretrainedConfig
    dtype: torch.dtype
    lora: LoraSettings | None
    recompute: str | None
    global_batch_size: int
    sample_tokens: int
    """Tokens of the longest sample."""
    mean_tokens: float
    """Tokens of a sample on average."""
    micro_batch_tokens: int
    micro_batch_size: int | None = None
    optim: OptimStateConfig = field(default_factory=OptimStateConfig)

    @property
    def samples_together(self) -> int:
        """Longest samples of one micro-batch."""
        fitting = max(1, self.micro_batch_tokens // self.sample_tokens)
        return min(fitting, self.micro_batch_size or fitting)

    @property
    def segments(self) -> tuple[int, ...]:
        """Cumulative bounds of the samples of one micro-batch."""
        return tuple(i * self.sample_tokens for i in range(self.samples_together + 1))

    def micro_batches(self, layout: Layout) -> int:
        """Of one data-parallel process in a step, samples being of the mean length."""
        samples = -(-self.global_batch_size // layout.data)
        together = max(1, int(self.micro_batch_tokens / self.mean_tokens))
        return needed(-(-samples // min(together, self.micro_batch_size or together)), layout)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a device is assumed to do; nothing here measures one."""

    flops: float
    """Sustained, per second."""
    link: float
    """Bytes per second between two processes."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one training step."""

    layout: Layout
    job: Job
    micro_batches: int
    stages: tuple[Account, ...]
    """Of the process of each pipeline stage that holds most: tensor-parallel and data-parallel number 0."""
    scale: float
    """Micro-batches of a step for each one that was rehearsed."""

    @property
    def peak(self) -> int:
        """Bytes of the process that needs most."""
        return max(stage.peak for stage in self.stages)

    @property
    def sent(self) -> dict[tuple[str, str], int]:
        """(axis, kind) -> bytes that one process sends in a step, the most of any stage."""
        most: Counter[tuple[str, str]] = Counter()
        for stage in self.stages:
            total = Counter(stage.sent_after)
            for key, size in stage.sent_in_passes.items():
                once = key[0] == "dp" and self.layout.sharding != "full"
                total[key] += size if once else round(size * self.scale)
            most |= total
        return dict(most)

    @property
    def step_flops(self) -> float:
        """Of the whole job."""
        of_stages = sum(s.forward_flops + s.backward_flops for s in self.stages)
        return of_stages * self.scale * self.layout.tensor * self.layout.data

    def passes(self, speed: Speed) -> Timetable:
        """The step's forward and backward passes on every stage, tensor-parallel traffic included, data-parallel not."""
        rehearsed = self.micro_batches / self.scale
        chunks = self.layout.chunks_per_stage  # each takes its share of its stage's time
        forward, backward, transfer = [], [], 0.0
        for stage in self.stages:
            traffic = sum(size for (axis, _), size in stage.sent_in_passes.items() if axis == "tp") / speed.link
            flops = stage.forward_flops + stage.backward_flops
            for times, part in ((forward, stage.forward_flops), (backward, stage.backward_flops)):
                times.append((part / speed.flops + traffic * part / max(flops, 1)) / rehearsed / chunks)
            sends = sum(size for (axis, _), size in stage.sent_in_passes.items() if axis == "pp")
            transfer = max(transfer, sends / speed.link / rehearsed / 2 / chunks)
        # of all global chunks: number c runs on stage c % stages
        return timetable(self.layout, self.micro_batches, forward * chunks, backward * chunks, transfer)

    def seconds(self, speed: Speed) -> float:
        """Of a step, as if nothing overlapped."""
        between = sum(size for (axis, _), size in self.sent.items() if axis == "dp")
        return self.passes(speed).duration + between / speed.link


def estimate(job: Job, layout: Layout, rehearsals: Rehearsals) -> Estimate:
    """Rehearse one process of every pipeline stage.

    Args:
        job: what is trained.
        layout: how.
        rehearsals: that run it.
    """
    count = job.micro_batches(layout)
    stages = tuple(rehearse_stages(job, layout, rehearsals, range(layout.pipeline)))
    return Estimate(layout=layout, job=job, micro_batches=count, stages=stages, scale=count / _enough(count, layout))


def rehearse_stages(job: Job, layout: Layout, rehearsals: Rehearsals, stages: Iterable[int]) -> list[Account]:
    """Accounts of the first process of some pipeline stages, in order."""
    some = _enough(job.micro_batches(layout), layout)
    work = Work(
        dtype=job.dtype,
        recompute=job.recompute,
        lora=job.lora,
        segments=job.segments,
        micro_batches=some,
        optim=job.optim,
    )
    ranks = [stage * layout.tensor * layout.data for stage in stages]
    return rehearsals.run([Part(hf_config=job.hf_config, layout=layout, rank=rank, work=work) for rank in ranks])


def _enough(count: int, layout: Layout) -> int:
    """Micro-batches after which nothing new comes: memory has had its peak, and each further one is like the last.

    At the peak a stage holds whole gradients, of one micro-batch that is through, beside the activations of all that it
    ever has at once: of as many as there are stages, or of more where a stage has several chunks.
    """
    if layout.schedule == "gpipe" and layout.pipeline > 1:
        return count
    at_once = 2 * layout.pipeline - 1 if layout.chunks_per_stage > 1 else layout.pipeline
    return min(count, needed(at_once + 1, layout))


def with_layers(job: Job, layout: Layout, each: int) -> tuple[Job, Layout]:
    """The same job on a model of `each` layers in every chunk: layers are alike, so that memory is linear in them."""
    config = copy.deepcopy(job.hf_config)
    chunks = len(layout.layers)
    config.num_hidden_layers = each * chunks
    if types := getattr(config, "layer_types", None):
        config.layer_types = [types[i % len(types)] for i in range(each * chunks)]  # uneven stages may need more
    layers = tuple(tuple(range(c * each, (c + 1) * each)) for c in range(chunks))
    return replace(job, hf_config=config), replace(layout, layers=layers)
