"""`tuneval plan`: what a training layout needs and costs, by rehearsing the real model on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuneval import console, runtime
from tuneval.checkpoints.hf import read_config
from tuneval.checkpoints.load import open_source
from tuneval.checkpoints.paths import holds_run
from tuneval.commands.plan_flags import memory_bytes
from tuneval.commands.plan_report import as_json, print_plan, print_suggestion
from tuneval.config.flags import Parsed, check_model_facts
from tuneval.config.schema import DataConfig, PlanConfig
from tuneval.data.batches import SftDataset
from tuneval.data.split import split_borders
from tuneval.errors import Problems, UserError
from tuneval.files import write_json
from tuneval.model.lora import LoraSettings, hf_targets
from tuneval.parallel.mesh import Layout, make_layout, without_effect
from tuneval.planning.estimate import Estimate, Job, Speed, estimate
from tuneval.planning.rehearsal import Rehearsals
from tuneval.planning.search import Candidate, cheapest, fits


@dataclass(frozen=True)
class Run:
    """How long training goes on."""

    train_iters: int | None
    """None: nothing says so."""
    samples: int | None
    mean_tokens: float
    """Of a sample."""


def main(parsed: Parsed) -> int:
    """Plan. Returns 0; 1 where `--device-memory` is given and the layout does not fit."""
    config: PlanConfig = parsed.config
    hf_config = _model_config(config)
    problems = Problems()
    tp, pp = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
    world_size = config.world_size or max(1, tp * pp)
    layout = make_layout(config.parallel, hf_config, world_size, problems, config.batch.global_batch_size)
    memory = None if config.device_memory is None else memory_bytes(config.device_memory)
    targets = ()
    try:
        check_model_facts(parsed.model_facts, hf_config.to_dict())
        targets = hf_targets(config.lora.lora_target_modules, hf_config) if config.lora.enabled else ()
    except UserError as error:
        problems.add(str(error))
    problems.raise_if_any()
    for notice in without_effect(config.parallel, layout):
        console.note(notice)
    job, run = _job(config, hf_config, targets)
    speed = Speed(flops=config.device_tflops * 1e12, link=config.link_gbytes * 1e9)
    return _plan(config, job, run, layout, memory, speed)


def _plan(config: PlanConfig, job: Job, run: Run, layout: Layout, memory: int | None, speed: Speed) -> int:
    rehearsals = Rehearsals()
    console.note(f"rehearsing {layout}: one process of each of {layout.pipeline} stages")
    plan = estimate(job, layout, rehearsals)
    print_plan(plan, run, memory, speed)
    suggested = _suggest(config, job, layout, memory, speed, rehearsals) if memory is not None else None
    if suggested is not None:
        print_suggestion(*suggested, speed)
    elif memory is not None and not fits(plan.peak, memory):
        console.out.print(
            "No layout of these processes fits. More of them (--world-size), or LoRA (--lora-r), need less."
        )
    if config.output is not None:
        write_json(config.output, as_json(plan, run, memory, speed, suggested))
        console.note(f"wrote {config.output}")
    return 1 if memory is not None and not fits(plan.peak, memory) else 0


def _suggest(
    config: PlanConfig, job: Job, layout: Layout, memory: int, speed: Speed, rehearsals: Rehearsals
) -> tuple[Candidate, Estimate] | None:
    def tried(candidate: Candidate, peak: int, whole: bool) -> None:
        recompute = ", full recompute" if candidate.recompute else ""
        verdict = "fits" if fits(peak, memory) else "does not fit"
        console.note(
            f"  {candidate.layout}{recompute}: {'' if whole else 'at least '}{peak / 2**30:.1f} GiB, {verdict}"
        )

    console.note(f"looking for the cheapest layout of {layout.world_size} processes in {memory / 2**30:.0f} GiB")
    return cheapest(job, layout.world_size, config.nproc_per_node, memory, speed, rehearsals, tried)


def _model_config(config: PlanConfig) -> Any:
    """A model's config.json is enough; other folders are opened as `tune` opens them."""
    if (config.load / "config.json").is_file() and not holds_run(config.load):
        return read_config(config.load)
    return open_source(config.load).config


def _job(config: PlanConfig, hf_config: Any, targets: tuple[str, ...]) -> tuple[Job, Run]:
    batch, lora = config.batch, config.lora
    longest, mean, samples = config.seq_length or 4096, float(config.seq_length or 4096), None
    if config.data_path is not None:
        lengths = SftDataset(config.data_path).lengths
        lengths = lengths.clip(max=config.seq_length) if config.seq_length else lengths
        longest, mean, samples = int(lengths.max()), float(lengths.mean()), len(lengths)
    # As `tune` counts them where it is given no --split.
    train_iters = batch.train_iters if samples is None else batch.steps(split_borders(samples, DataConfig.split)[1])
    settings = LoraSettings(lora.rank, lora.alpha, lora.lora_dropout, targets, lora.lora_shared_a)
    job = Job(
        hf_config=hf_config,
        dtype=runtime.DTYPES[config.precision.dtype],
        lora=settings if lora.enabled else None,
        recompute=config.precision.recompute_granularity,
        global_batch_size=batch.global_batch_size,
        sample_tokens=longest,
        mean_tokens=mean,
        micro_batch_tokens=batch.micro_batch_tokens,
        micro_batch_size=batch.micro_batch_size,
        optim=config.optim,
    )
    return job, Run(train_iters, samples, mean)
