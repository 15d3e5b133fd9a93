"""What each pipeline stage does in a step, in order, and how long that takes: torch's schedules without running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tuneval.parallel.mesh import Layout


class Action(NamedTuple):
    """One forward or backward pass of one micro-batch through one chunk of layers."""

    kind: Literal["F", "B"]
    chunk: int
    """Global number, as in `Layout.layers`."""
    micro_batch: int


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When every action of a step begins and ends."""

    spans: tuple[tuple[tuple[Action, float, float], ...], ...]
    """For each stage (action, begin, end) in order, in the unit of the given times."""

    @property
    def duration(self) -> float:
        """From the first begin to the last end."""
        return max(stage[-1][2] for stage in self.spans)

    @property
    def busy(self) -> tuple[float, ...]:
        """Time that each stage computes."""
        return tuple(sum(end - begin for _, begin, end in stage) for stage in self.spans)

    @property
    def bubble(self) -> float:
        """Share of the stages' time, taken together, in which they wait."""
        return 1 - sum(self.busy) / (len(self.spans) * self.duration)

    @property
    def in_flight(self) -> tuple[int, ...]:
        """For each stage the most forward passes whose backward is still to come: what activations it holds at once."""
        peaks = []
        for stage in self.spans:
            held = peak = 0
            for action, _, _ in stage:
                held += 1 if action.kind == "F" else -1
                peak = max(peak, held)
            peaks.append(peak)
        return tuple(peaks)


def timetable(
    layout: Layout,
    micro_batches: int,
    forward: Sequence[float] | float = 1.0,
    backward: Sequence[float] | float = 2.0,
    transfer: float = 0.0,
) -> Timetable:
    """Play a step through: every stage takes its actions in order, each as soon as what it needs is there.

    Args:
        layout: stages, chunks and schedule.
        micro_batches: of one pipeline and step, a number that `micro_batches.needed` gives.
        forward: time of one micro-batch through each global chunk, or through any.
        backward: the same for the backward pass; with full recompute it includes a forward.
        transfer: time of what goes from one chunk to the next.
    """
    chunks = len(layout.layers)
    times = {"F": _each(forward, chunks), "B": _each(backward, chunks)}
    queues = [list(reversed(actions)) for actions in orders(layout, micro_batches)]
    ends: dict[Action, float] = {}
    spans: list[list[tuple[Action, float, float]]] = [[] for _ in queues]
    while any(queues):
        before = len(ends)
        for queue, done in zip(queues, spans):
            while queue and all(need in ends for need in _needs(queue[-1], chunks)):
                action = queue.pop()
                ready = max((ends[need] + transfer for need in _needs(action, chunks)), default=0.0)
                begin = max(ready, done[-1][2] if done else 0.0)
                ends[action] = begin + times[action.kind][action.chunk]
                done.append((action, begin, ends[action]))
        assert len(ends) > before, "a schedule that waits for itself"
    return Timetable(spans=tuple(map(tuple, spans)))


def orders(layout: Layout, micro_batches: int) -> list[list[Action]]:
    """For each stage its actions in the order that torch's schedules take them."""
    return [list(_order(layout, stage, micro_batches)) for stage in range(layout.pipeline)]


def _order(layout: Layout, stage: int, count: int) -> Iterator[Action]:
    """Some forwards ahead (all of them for GPipe), then one forward and one backward in turn, then backwards.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), section 2.2, as `torch.distributed.pipelining.schedules` has it.
    """
    pp, chunks = layout.pipeline, layout.chunks_per_stage
    if chunks > 1:
        ahead = min((chunks - 1) * pp + 2 * (pp - 1 - stage), chunks * count)
    else:
        ahead = count if layout.schedule == "gpipe" else min(pp - 1 - stage, count)
    forwards = [_pass("F", layout, stage, step) for step in range(chunks * count)]
    backwards = [_pass("B", layout, stage, step) for step in range(chunks * count)]
    yield from forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards):
        yield from (forward, backward)
    yield from backwards[len(forwards) - ahead :]


def _pass(kind: Literal["F", "B"], layout: Layout, stage: int, step: int) -> Action:
    """A stage's pass number `step`: rounds of one micro-batch for each stage, through its chunks one after the other."""
    pp, chunks = layout.pipeline, layout.chunks_per_stage
    if chunks == 1:
        return Action(kind, stage, step)
    cycle, within = divmod(step, pp * chunks)
    chunk, number = divmod(within, pp)
    local = chunk if kind == "F" else chunks - 1 - chunk
    return Action(kind, local * pp + stage, cycle * pp + number)


def _needs(action: Action, chunks: int) -> list[Action]:
    """What must have ended elsewhere before an action begins."""
    kind, chunk, micro_batch = action
    if kind == "F":
        return [Action("F", chunk - 1, micro_batch)] if chunk else []
    return [Action("B", chunk + 1, micro_batch)] if chunk + 1 < chunks else [Action("F", chunk, micro_batch)]


def _each(times: Sequence[float] | float, chunks: int) -> list[float]:
    return [times] * chunks if isinstance(times, (int, float)) else list(times)
