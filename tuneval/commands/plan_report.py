"""The figures of `tuneval plan` in the terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from tuneval import console
from tuneval.planning.estimate import Estimate, Speed
from tuneval.planning.ledger import OTHER
from tuneval.planning.rehearsal import GRADIENTS, OPTIMIZER, PARAMETERS
from tuneval.planning.search import MARGIN, Candidate, fits

GIB = 2**30
_KINDS = (PARAMETERS, GRADIENTS, OPTIMIZER, OTHER)
_WHO = {"tp": "tensor-parallel", "dp": "data-parallel", "pp": "pipeline"}


def print_plan(plan: Estimate, run: Any, memory: int | None, speed: Speed) -> None:
    """Memory by stage, bubble, traffic, steps and tokens; whether it fits."""
    _print_memory(plan)
    passes = plan.passes(speed)
    lines = [
        f"micro-batches of a step: {plan.micro_batches} on each data-parallel process, {_tokens(plan)} tokens each at most"
    ]
    if plan.layout.pipeline > 1:
        lines.append(f"pipeline bubble: {100 * passes.bubble:.1f}% of the devices' time")
    for (axis, kind), size in sorted(plan.sent.items()):
        if size >= 1 << 20:
            lines.append(f"sent by a process in a step, {_WHO.get(axis, axis)} {kind}: {size / GIB:.3f} GiB")
    lines.append(
        f"operations of a step: {plan.step_flops / 1e15:.3f} PFLOP; at {speed.flops / 1e12:g} TFLOP/s a device and "
        f"{speed.link / 1e9:g} GB/s a link (assumed), nothing overlapped: {plan.seconds(speed):.2f} s"
    )
    lines.append(_length(plan, run))
    if memory is not None:
        left = f"{100 * MARGIN:.0f}% are left for runtime and fragmentation"
        verdict = "fits" if fits(plan.peak, memory) else "does not fit"
        lines.append(f"peak {plan.peak / GIB:.2f} GiB: {verdict} in {memory / GIB:.1f} GiB ({left})")
    for line in lines:
        console.out.print(line, markup=False)


def _print_memory(plan: Estimate) -> None:
    table = Table(title=f"{plan.layout}: memory of one process, GiB", box=box.SIMPLE, title_justify="left")
    for name in ("stage", "layers", *_KINDS, "peak"):
        table.add_column(name, justify="right")
    for stage, account in enumerate(plan.stages):
        layers = sum(len(plan.layout.layers[c]) for c in plan.layout.chunks_of(stage))
        figures = [account.memory.get(kind, 0) / GIB for kind in _KINDS] + [account.peak / GIB]
        table.add_row(str(stage), str(layers), *(f"{f:.2f}" for f in figures))
    console.out.print(table)


def print_suggestion(candidate: Candidate, plan: Estimate, speed: Speed) -> None:
    """The cheapest layout that fits, as flags."""
    console.out.print(
        f"cheapest that fits: {flags_of(candidate)}\n  ({candidate.layout}; peak {plan.peak / GIB:.2f} GiB, "
        f"{plan.seconds(speed):.2f} s a step by the assumed speeds)",
        markup=False,
    )


def flags_of(candidate: Candidate) -> str:
    """A layout as `tune` takes it."""
    given, words = candidate.flags, []
    words += ["--tensor-model-parallel-size", str(given.tensor_model_parallel_size)]
    words += ["--pipeline-model-parallel-size", str(given.pipeline_model_parallel_size)]
    words += ["--num-layer-list", given.num_layer_list] if given.num_layer_list else []
    words += ["--sequence-parallel"] if given.sequence_parallel else []
    words += ["--data-parallel-sharding", given.sharding] if given.sharding != "none" else []
    words += ["--recompute-granularity", candidate.recompute] if candidate.recompute else []
    return " ".join(words)


def as_json(
    plan: Estimate, run: Any, memory: int | None, speed: Speed, suggested: tuple[Candidate, Estimate] | None
) -> dict[str, Any]:
    """Everything that is printed, in bytes, FLOPs and seconds."""
    return {
        "layout": str(plan.layout),
        "world_size": plan.layout.world_size,
        "micro_batches": plan.micro_batches,
        "stages": [{"peak": s.peak, **{k: s.memory.get(k, 0) for k in _KINDS}} for s in plan.stages],
        "peak": plan.peak,
        "bubble": plan.passes(speed).bubble,
        "sent": {f"{axis} {kind}": size for (axis, kind), size in sorted(plan.sent.items())},
        "step_flops": plan.step_flops,
        "assumed": {"flops_per_second": speed.flops, "link_bytes_per_second": speed.link},
        "step_seconds": plan.seconds(speed),
        "train_iters": run.train_iters,
        "tokens_per_step": plan.job.global_batch_size * run.mean_tokens,
        "device_memory": memory,
        "fits": None if memory is None else fits(plan.peak, memory),
        "suggested": None if suggested is None else {"flags": flags_of(suggested[0]), "peak": suggested[1].peak},
    }


def _tokens(plan: Estimate) -> int:
    return plan.job.samples_together * plan.job.sample_tokens


def _length(plan: Estimate, run: Any) -> str:
    tokens = plan.job.global_batch_size * run.mean_tokens
    text = f"a step: {plan.job.global_batch_size} samples, {tokens:,.0f} tokens"
    if run.train_iters is not None:
        text += f"; the run: {run.train_iters:,} steps, {run.train_iters * tokens:,.0f} tokens"
    return text
