"""What the flags of `tune` show by themselves: exclusions, ranges, and defaults that depend on model and data."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

from tuneval.checkpoints.paths import check_there
from tuneval.commands.inspect_flags import check_data_set
from tuneval.config.schema import LogConfig, LoraConfig, OptimStateConfig, TuneConfig
from tuneval.data.split import split_borders
from tuneval.data.template import check_prompt_type
from tuneval.data.tokenizer import find_tokenizer
from tuneval.errors import Problems
from tuneval.files import check_folder
from tuneval.parallel.sizes import check_sizes
from tuneval.training.schedule import Schedule


def resolve(config: TuneConfig, hf_config: Any, train_samples: int) -> TuneConfig:
    """Fill the defaults that depend on the model and the data.

    Args:
        config: as given.
        hf_config: the model's.
        train_samples: samples of the training split.
    """
    batch, optim, data, lora = config.batch, config.optim, config.data, config.lora
    train_iters = batch.steps(train_samples)
    limit = getattr(hf_config, "max_position_embeddings", None)
    seq_length = data.seq_length or limit or 4096
    if lora.enabled:
        lora = replace(lora, lora_r=lora.rank, lora_alpha=lora.alpha)
    return replace(
        config,
        batch=replace(batch, train_iters=train_iters, train_epochs=None),
        optim=replace(
            optim,
            lr=_rate(config),
            lr_decay_iters=optim.lr_decay_iters or train_iters,
        ),
        data=replace(data, seq_length=seq_length),
        precision=replace(config.precision, bf16=config.precision.dtype == "bf16"),
        lora=lora,
    )


def _rate(config: TuneConfig) -> float:
    """`--lr`, or what is usual."""
    return config.optim.lr if config.optim.lr is not None else 1e-4 if config.lora.enabled else 1e-5


def check(config: TuneConfig) -> None:
    """Raise one UserError for the flags, and for paths where nothing is."""
    problems = Problems()
    check_flags(config, problems)
    steps, size = config.batch.train_iters or config.optim.lr_decay_iters, config.batch.global_batch_size
    if steps is not None and min(steps, size) >= 1:
        Schedule(config.optim, steps, size).check(problems)
    check_sizes(config.parallel, problems)
    problems.attempt(lambda: split_borders(1, config.data.split))
    problems.attempt(lambda: check_prompt_type(config.model.prompt_type))
    problems.attempt(lambda: check_there(config.model.load, config.lora.lora_load))
    if config.model.tokenizer_name_or_path is not None:
        problems.attempt(lambda: find_tokenizer(config.model.tokenizer_name_or_path))
    problems.attempt(lambda: check_data_set(config.data.data_path))
    problems.attempt(lambda: check_folder("--save", config.save.save))
    if config.log.tensorboard_dir is not None:
        problems.attempt(lambda: check_folder("--tensorboard-dir", config.log.tensorboard_dir))
    problems.raise_if_any()


def check_flags(config: TuneConfig, problems: Problems) -> None:
    """Add every problem that shows without model and data."""
    batch, optim, precision, log = config.batch, config.optim, config.precision, config.log
    given = [name for name in ("bf16", "fp16", "fp32") if getattr(precision, name)]
    problems.check(len(given) < 2, f"--{' --'.join(given)}: give one of them")
    problems.check(
        batch.train_iters is None or batch.train_epochs is None, "--train-iters and --train-epochs: give one of them"
    )
    problems.check(
        optim.lr_warmup_fraction is None or not optim.lr_warmup_iters,
        "--lr-warmup-fraction and --lr-warmup-iters: give one of them",
    )
    _check_ranges(config, problems)
    if batch.loss_reduction == "micro-batch":
        size = batch.micro_batch_size
        problems.check(
            size is not None, "--loss-reduction micro-batch: give --micro-batch-size, the samples of one mean"
        )
        problems.check(
            not size or batch.global_batch_size % size == 0,
            f"--global-batch-size {batch.global_batch_size}: no multiple of --micro-batch-size {size}, which "
            "--loss-reduction micro-batch needs",
        )
    check_lora(config.lora, problems)
    problems.check(
        not config.lora.lora_ckpt_filter or config.save.ckpt_format == "torch",
        "--lora-ckpt-filter: is about Megatron's files; give --ckpt-format torch too",
    )
    check_state(optim, precision.dtype, problems)
    problems.check(
        optim.optimizer != "adam8bit" or find_spec("bitsandbytes"),
        "--optimizer adam8bit: needs bitsandbytes. Run pip install 'tuneval[adam8bit]'",
    )
    if log.tensorboard_dir is not None:
        problems.check(
            find_spec("tensorboard"),
            f"--tensorboard-dir {log.tensorboard_dir}: tensorboard is not installed. "
            "Run pip install 'tuneval[tensorboard]', or leave the flag out (RUN/metrics.jsonl holds the same)",
        )


def check_lora(lora: LoraConfig, problems: Problems) -> None:
    """Add what is said of an adapter that there will not be."""
    if lora.enabled:
        return
    for flag in ("lora_alpha", "lora_dropout", "lora_shared_a", "lora_ckpt_filter"):
        value = getattr(lora, flag)
        problems.check(not value, f"{_as_given(flag, value)}: LoRA is off; give --lora-r too")


def check_state(optim: OptimStateConfig, dtype: str, problems: Problems) -> None:
    """Add what the optimizer's state can't be beside weights of a type."""
    for flag, value in (("optimizer", optim.optimizer), ("main-grads-dtype", optim.main_grads_dtype)):
        problems.check(
            value not in ("adam8bit", "bf16") or dtype == "bf16",
            f"--{flag} {value} --{dtype}: saves memory beside bf16 weights only; leave one of the two out",
        )


_SCALING = ("loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis")
_TENSORBOARD = tuple(f.name for f in fields(LogConfig) if "tensorboard" in f.name)


def settings_without_effect(config: TuneConfig) -> list[str]:
    """A notice of the flags given (another value than the default) that change nothing beside the others.

    Args:
        config: resolved.
    """
    optim, log, save = config.optim, config.log, config.save
    warms_up = optim.lr_warmup_iters or optim.lr_warmup_fraction
    needs = (
        (config.precision.fp16, "only --fp16 scales the loss", _SCALING),
        (optim.lr_decay_style == "WSD", "it is of --lr-decay-style WSD", ("lr_wsd_decay_style", "lr_wsd_decay_iters")),
        (optim.lr_decay_style != "constant", "the learning rate is constant", ("min_lr",)),
        (warms_up, "there is no --lr-warmup-iters or --lr-warmup-fraction", ("lr_warmup_init",)),
        (log.tensorboard_dir, "there is no --tensorboard-dir", _TENSORBOARD),
        (save.ckpt_format == "torch", "only --ckpt-format torch writes Megatron's files", ("transformer_impl",)),
    )
    given = {
        f.name: _as_given(f.name, value)
        for section in (config.precision, optim, log, save)
        for f in fields(section)
        if (value := getattr(section, f.name)) != f.default
    }
    notices = []
    for met, reason, names in needs:
        flags = [given[name] for name in names if name in given]
        if flags and not met:
            notices.append(f"{', '.join(flags)}: no effect, {reason}")
    decay, steps = optim.lr_decay_iters, config.batch.train_iters
    if decay and steps and decay < steps and not optim.min_lr and optim.lr_decay_style != "constant":
        notices.append(f"--lr-decay-iters {decay}: the steps after it change no weight, --min-lr is 0")
    if optim.lr == 0 and not optim.lr_warmup_init:
        notices.append("--lr 0: no weight will change")
    return notices


def _as_given(name: str, value: Any) -> str:
    """A setting as the command line says it."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


def _check_ranges(config: TuneConfig, problems: Problems) -> None:
    batch, optim, precision = config.batch, config.optim, config.precision
    at_least_one = {
        "global-batch-size": batch.global_batch_size,
        "micro-batch-size": batch.micro_batch_size,
        "micro-batch-tokens": batch.micro_batch_tokens,
        "train-iters": batch.train_iters,
        "seq-length": config.data.seq_length,
        "lr-decay-iters": optim.lr_decay_iters,
        "save-interval": config.save.save_interval,
        "keep-checkpoints": config.save.keep_checkpoints,
        "log-interval": config.log.log_interval,
        "eval-interval": config.log.eval_interval,
        "tensorboard-log-interval": config.log.tensorboard_log_interval,
        "tensorboard-queue-size": config.log.tensorboard_queue_size,
        "lora-r": config.lora.lora_r,
        "hysteresis": precision.hysteresis,
        "loss-scale-window": precision.loss_scale_window,
    }
    for flag, value in at_least_one.items():
        problems.check(value is None or value >= 1, f"--{flag} {value}: must be at least 1")
    not_negative = {
        "lr": optim.lr,
        "min-lr": optim.min_lr,
        "lr-warmup-iters": optim.lr_warmup_iters,
        "lr-warmup-init": optim.lr_warmup_init,
        "weight-decay": optim.weight_decay,
        "clip-grad": optim.clip_grad,
        "eval-iters": config.log.eval_iters,
        "seed": config.log.seed,
    }
    for flag, value in not_negative.items():
        problems.check(value is None or 0 <= value < math.inf, f"--{flag} {value}: must be at least 0")
    above_zero = {
        "adam-eps": optim.adam_eps,
        "train-epochs": batch.train_epochs,
        "lora-alpha": config.lora.lora_alpha,
        "loss-scale": precision.loss_scale,
        "initial-loss-scale": precision.initial_loss_scale,
        "min-loss-scale": precision.min_loss_scale,
    }
    for flag, value in above_zero.items():
        problems.check(value is None or 0 < value < math.inf, f"--{flag} {value}: must be above 0")
    below_one = {
        "adam-beta1": optim.adam_beta1,
        "adam-beta2": optim.adam_beta2,
        "lora-dropout": config.lora.lora_dropout,
        "lr-warmup-fraction": optim.lr_warmup_fraction,
    }
    for flag, value in below_one.items():
        problems.check(value is None or 0 <= value < 1, f"--{flag} {value}: must be from 0 to below 1")
    rate = _rate(config)
    problems.check(rate < 0 or optim.min_lr <= rate, f"--min-lr {optim.min_lr}: must be at most --lr {rate}")
    problems.check(config.log.seed < 2**32, f"--seed {config.log.seed}: must be below 2**32")
