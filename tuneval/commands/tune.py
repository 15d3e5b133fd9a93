"""`tuneval tune`: plan, load, train, save; the same command continues a run that was cut off."""

from __future__ import annotations

import sys
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tuneval import console, runtime
from tuneval.checkpoints import resume
from tuneval.checkpoints.convert import check_replaceable
from tuneval.commands.tune_output import is_written, output_folder
from tuneval.commands.tune_plan import Plan, make_plan
from tuneval.commands.tune_run import TuneRun
from tuneval.config.flags import Parsed, to_dict
from tuneval.config.schema import LaunchConfig, ParallelConfig, TuneConfig
from tuneval.errors import Problems, UserError
from tuneval.files import read_jsonl
from tuneval.report import records

_LAYOUT = {f.name for section in (ParallelConfig, LaunchConfig) for f in fields(section)}
FREE_TO_CHANGE = _LAYOUT | set(
    "load save finetune save_interval keep_checkpoints ckpt_format transformer_impl log_interval log_format "
    "log_throughput eval_interval eval_iters tensorboard_dir tensorboard_log_interval tensorboard_queue_size "
    "log_timers_to_tensorboard log_batch_size_to_tensorboard log_validation_ppl_to_tensorboard log_memory_to_tensorboard "
    "log_world_size_to_tensorboard no_log_learning_rate_to_tensorboard no_log_loss_scale_to_tensorboard "
    "no_save_optim lora_ckpt_filter micro_batch_tokens recompute_granularity torch_compile train_iters data_path "
    "tokenizer_name_or_path".split()
)
"""Settings that a continued run may change. Weights and data are held against their hashes instead of their paths;
`train_iters` may change where `lr_decay_iters` stays."""

_WAYS_OUT = "Give the same as before to continue, another --save, or --finetune to start afresh"


def main(parsed: Parsed) -> int:
    """Tune. Returns 0 when the run is finished; 143 (SIGTERM) or 130 (Ctrl-C) when it saved and left."""
    plan = make_plan(parsed)
    folder = Path(plan.config.save.save)
    if plan.config.save.finetune and runtime.is_main():
        _start_afresh(folder)
    _wait_for_main()
    done, earlier = resume.latest_step(folder), _earlier(folder, plan, parsed.config)
    if earlier is not None and is_written(plan) and _last_step(folder, done) >= plan.train_iters:
        console.out.print(f"{folder}: finished, the result is {output_folder(plan)}. Nothing to do.", markup=False)
        return 0
    if plan.config.save.ckpt_format == "torch":
        check_replaceable(folder / "mcore")  # hours before it is written
    _wait_for_main()  # others have read what is there before anything changes
    runtime.seed_everything(plan.config.log.seed)
    run = TuneRun(plan)
    counts = run.model.parameter_counts()
    if runtime.is_main():
        resume.remove_partial(folder)
        _check_weights(folder, plan, earlier, run.model.identity)
        records.write_record(folder / "config.json", _record(plan, run, counts, earlier))
    _wait_for_main()
    if not (folder / "config.json").is_file():
        raise UserError(f"--save {folder}: process 0 writes there, this machine does not see it. Give a shared folder")
    return run.train(done)


def _wait_for_main() -> None:
    """Until every process has come here; at once where there is one."""
    if dist.is_initialized():
        dist.barrier()


def _start_afresh(folder: Path) -> None:
    if not any((folder / name).exists() for name in ("config.json", "checkpoints", "model", "adapter")):
        return  # no run: whose files these are is not known
    aside = resume.set_aside(folder)
    if aside is not None:
        console.note(f"--finetune: starting afresh; what {folder} held is now in {aside}")


def _earlier(folder: Path, plan: Plan, given: TuneConfig) -> records.RunRecord | None:
    """The record of the run that `--save` holds, once its settings were found equal; None where there is nothing yet.

    Args:
        given: the settings before defaults were filled in.

    Raises:
        UserError: the settings differ; all are named.
    """
    has_state = resume.latest_step(folder) is not None
    if not (folder / "config.json").is_file():
        if has_state:
            raise UserError(f"{folder}: holds checkpoints without config.json. Choose another --save, or --finetune")
        return None
    if not has_state and not output_folder(plan).exists():
        return None
    earlier = records.read_record(records.RunRecord, folder / "config.json")
    _check_settings(folder, earlier, plan, given)
    if not has_state and _last_step(folder, None) < plan.train_iters:
        raise UserError(
            f"{folder}: holds a finished run of {earlier.train_iters} steps and no checkpoint to go on from. "
            "Choose another --save, or --finetune to start afresh"
        )
    return earlier


def _check_settings(folder: Path, earlier: records.RunRecord, plan: Plan, given: TuneConfig) -> None:
    problems = Problems()
    now, manifest = to_dict(plan.config), plan.dataset.manifest or {}
    for key, before in earlier.config.items():
        if key not in FREE_TO_CHANGE and key in now and now[key] != before:
            flag = key.replace("_", "-")
            problems.add(
                f"--{flag} {now[key]}: the run in {folder} was started with {before}. {_ways_out(key, given, before)}"
            )
    if earlier.data.get("data_sha256") != manifest.get("data_sha256"):
        problems.add(
            f"--data-path {plan.config.data.data_path}: other data than {folder} was started with. {_WAYS_OUT}"
        )
    problems.raise_if_any()


def _ways_out(key: str, given: TuneConfig, before: Any) -> str:
    optim = given.optim
    if key != "lr_decay_iters" or optim.lr_decay_iters is not None:
        return _WAYS_OUT
    if optim.min_lr or optim.lr_decay_style == "constant" or (given.batch.train_iters or before) < before:
        way = f"Give --lr-decay-iters {before} to keep the schedule, another --save"
    else:
        flag = "--lora-load" if given.lora.enabled else "--load"
        way = f"At its end the rate is 0: to go on from its result, give that to {flag} with another --save"
    return f"It comes from --train-iters. {way}, or --finetune to start afresh"


def _check_weights(folder: Path, plan: Plan, earlier: records.RunRecord | None, identity: dict[str, Any]) -> None:
    if earlier is not None and earlier.model.get("weights_sha256") != identity.get("weights_sha256"):
        raise UserError(f"--load {plan.config.model.load}: other weights than {folder} was started from. {_WAYS_OUT}")


def _last_step(folder: Path, done: int | None) -> int:
    """Steps done: by the newest checkpoint, else (someone removed them) by the last recorded step."""
    if done is not None:
        return done
    metrics = folder / "metrics.jsonl"
    rows = read_jsonl(metrics) if metrics.is_file() else []
    return rows[-1]["step"] if rows else 0


def _record(plan: Plan, run: TuneRun, counts: dict[str, int], earlier: records.RunRecord | None) -> records.RunRecord:
    manifest = plan.dataset.manifest or {}
    return records.RunRecord(
        command=["tuneval", "tune", *sys.argv[2:]] if sys.argv[1:2] == ["tune"] else list(sys.argv),
        created=earlier.created if earlier else datetime.now().astimezone().isoformat(timespec="seconds"),
        config=to_dict(plan.config),
        versions=runtime.versions(),
        machine={**runtime.machine(), "processes": plan.layout.world_size, "layout": str(plan.layout)},
        git=runtime.git_commit(),
        method="lora" if plan.config.lora.enabled else "full",
        model=run.model.identity,
        data={k: v for k, v in manifest.items() if k not in ("template", "skipped_rows", "config")},
        template_fingerprint=plan.template.fingerprint if plan.template else None,
        parameters=counts,
        train_samples=plan.train_samples,
        train_iters=plan.train_iters,
        baseline_evaluation=earlier.baseline_evaluation if earlier else None,
    )
