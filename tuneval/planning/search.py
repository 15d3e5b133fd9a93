"""Which layouts there are for a number of processes, from the cheapest on, and the first one that fits a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tuneval.config.schema import ParallelConfig
from tuneval.errors import Problems
from tuneval.model.weight_map import head_dim_of
from tuneval.parallel.mesh import Layout, make_layout
from tuneval.parallel.schedules import timetable
from tuneval.parallel.stages import divisors, even_list
from tuneval.planning.estimate import Estimate, Job, Speed, estimate, rehearse_stages, with_layers
from tuneval.planning.rehearsal import Rehearsals

MARGIN = 0.08
"""Share of a device's memory left for what no plan sees: the runtime, communication buffers, fragmentation."""


@dataclass(frozen=True)
class Candidate:
    """A layout with the flags that ask for it, and what is recomputed."""

    flags: ParallelConfig
    layout: Layout
    recompute: str | None


def fits(peak: int, memory: int) -> bool:
    return peak <= memory * (1 - MARGIN)


def candidates(job: Job, world_size: int, most_tensor: int) -> Iterator[Candidate]:
    """Every layout of a number of processes that the model allows: 1F1B without virtual stages, TP with SP.

    Args:
        job: what is trained.
        world_size: processes.
        most_tensor: the largest TP, usually the devices of a node.
    """
    layers = job.hf_config.num_hidden_layers
    for tp in divisors(world_size):
        for pp in divisors(world_size // tp):
            if tp > most_tensor or pp > layers:
                continue
            data = world_size // tp // pp
            for sharding in ("none", "optimizer", "full") if data > 1 else ("none",):
                flags = ParallelConfig(
                    tensor_model_parallel_size=tp,
                    pipeline_model_parallel_size=pp,
                    num_layer_list=even_list(layers, pp) if layers % pp else None,
                    sequence_parallel=tp > 1,
                    data_parallel_sharding=sharding,
                )
                problems = Problems()
                layout = make_layout(flags, job.hf_config, world_size, problems, job.global_batch_size)
                if not problems.messages:
                    for recompute in (None, "full"):
                        yield Candidate(flags, layout, recompute)


def cost(job: Job, candidate: Candidate, speed: Speed) -> float:
    """Seconds of a step by formula, good enough to put layouts in order: operations, bubble and traffic, none hidden.

    Source: Narayanan et al. 2021 (arXiv:2104.04473) for the traffic.
    """
    layout, config = candidate.layout, job.hf_config
    count = job.micro_batches(layout)
    tokens = job.samples_together * job.sample_tokens
    weights = _layer_weights(config) * config.num_hidden_layers + config.vocab_size * config.hidden_size
    passes = (2 if job.lora else 3) + (1 if candidate.recompute else 0)
    compute = 2 * weights * tokens * passes / layout.tensor / layout.pipeline / speed.flops
    hidden = tokens * config.hidden_size * job.dtype.itemsize
    block = 4 + (2 if candidate.recompute else 0)  # all-reduces of a layer
    ring = 2 * (layout.tensor - 1) / layout.tensor
    compute += block * ring * hidden * config.num_hidden_layers / layout.pipeline / speed.link
    bubble = timetable(layout, count, 1.0, float(passes - 1)).bubble if layout.pipeline > 1 else 0.0
    held = weights / layout.tensor / layout.pipeline
    share = (layout.data - 1) / layout.data
    between = 0.0 if job.lora else held * 4 * share * (2 if layout.sharding == "none" else 1)
    if layout.sharding != "none":
        gathers = 2 * count if layout.sharding == "full" else 1
        between += gathers * held * job.dtype.itemsize * share
    return count * compute / (1 - bubble) + between / speed.link


def cheapest(
    job: Job,
    world_size: int,
    most_tensor: int,
    memory: int,
    speed: Speed,
    rehearsals: Rehearsals,
    tried: Callable[[Candidate, int, bool], object] = lambda *_: None,
) -> tuple[Candidate, Estimate] | None:
    """The cheapest layout that fits, rehearsed whole; None where none does.

    Args:
        job: what is trained; its `recompute` is not looked at.
        world_size: processes.
        most_tensor: the largest TP.
        memory: bytes of a device.
        speed: that puts the layouts in order.
        rehearsals: that run it.
        tried: told of every layout that was looked at closer: its peak, and whether that is the whole layout's or only
            no more than it.
    """
    order = sorted(candidates(job, world_size, most_tensor), key=lambda c: cost(job, c, speed))
    for candidate in order:
        wanted = replace(job, recompute=candidate.recompute)
        if not fits(_state_bytes(wanted, candidate.layout), memory):
            continue
        least = least_peak(wanted, candidate.layout, rehearsals)
        if not fits(least, memory):
            tried(candidate, least, False)
            continue
        whole = estimate(wanted, candidate.layout, rehearsals)
        tried(candidate, whole.peak, True)
        if fits(whole.peak, memory):
            return candidate, whole
    return None


def least_peak(job: Job, layout: Layout, rehearsals: Rehearsals) -> int:
    """What a layout without virtual stages needs at least, from rehearsals of one and of two layers a stage.

    Layers are alike, so at any moment of a step memory is linear in their number, and the peak, the largest of such
    lines, grows from the second layer to the last at least as fast as from the first to the second. Of the stages in
    between, the first has most micro-batches in flight.
    """
    stages = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    one, two = (rehearse_stages(*with_layers(job, layout, each), rehearsals, stages) for each in (1, 2))
    beyond = [len(layout.layers[stage]) - 1 for stage in stages]
    return max(a.peak + (b.peak - a.peak) * more for a, b, more in zip(one, two, beyond))


def _state_bytes(job: Job, layout: Layout) -> int:
    """Weights, and in full tuning gradients and optimizer, of one process: never more than its peak."""
    config = job.hf_config
    of_stage = _layer_weights(config) * min(len(chunk) for chunk in layout.layers) / layout.tensor
    weight = job.dtype.itemsize
    gradient = 2 if weight == 2 and job.optim.sums_in_bf16 else 4
    state = 2 if job.optim.optimizer == "adam8bit" else 10 if weight == 2 else 8
    per_weight = weight if job.lora else weight + gradient + state
    shared = layout.data if layout.sharding == "full" else 1
    if layout.sharding == "optimizer":
        return int(of_stage * (weight + (0 if job.lora else gradient)))
    return int(of_stage * per_weight / shared)


def _layer_weights(config) -> int:
    """Elements of one layer's matrices."""
    hidden, heads = config.hidden_size, config.num_attention_heads + config.num_key_value_heads
    return 2 * hidden * head_dim_of(config) * heads + 3 * hidden * config.intermediate_size
