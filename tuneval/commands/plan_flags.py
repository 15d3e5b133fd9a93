"""What the flags of `plan` show by themselves."""

from __future__ import annotations

import re

from tuneval.checkpoints.paths import check_there
from tuneval.commands.inspect_flags import check_data_set
from tuneval.commands.tune_flags import check_lora, check_state
from tuneval.config.schema import PlanConfig
from tuneval.errors import Problems, UserError
from tuneval.files import check_writable
from tuneval.parallel.sizes import check_sizes

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def check(config: PlanConfig) -> None:
    """Raise one UserError for all that is wrong."""
    problems = Problems()
    batch, precision = config.batch, config.precision
    given = [name for name in ("bf16", "fp16", "fp32") if getattr(precision, name)]
    problems.check(len(given) < 2, f"--{' --'.join(given)}: give one of them")
    positive = {
        "world-size": config.world_size,
        "nproc-per-node": config.nproc_per_node,
        "seq-length": config.seq_length,
        "device-tflops": config.device_tflops,
        "link-gbytes": config.link_gbytes,
        "global-batch-size": batch.global_batch_size,
        "micro-batch-size": batch.micro_batch_size,
        "micro-batch-tokens": batch.micro_batch_tokens,
        "train-iters": batch.train_iters,
        "train-epochs": batch.train_epochs,
        "lora-r": config.lora.lora_r,
    }
    for flag, value in positive.items():
        problems.check(value is None or value > 0, f"--{flag} {value}: must be above 0")
    problems.check(
        batch.train_iters is None or batch.train_epochs is None, "--train-iters and --train-epochs: give one of them"
    )
    problems.check(
        batch.train_epochs is None or config.data_path is not None,
        f"--train-epochs {batch.train_epochs}: of what? Give --data-path too, or --train-iters",
    )
    check_sizes(config.parallel, problems)
    check_lora(config.lora, problems)
    problems.check(
        config.lora.lora_load is None,
        f"--lora-load {config.lora.lora_load}: no weights are read here; give its --lora-r and --lora-target-modules",
    )
    check_state(config.optim, precision.dtype, problems)
    if config.device_memory is not None:
        problems.attempt(lambda: memory_bytes(config.device_memory))
    problems.attempt(lambda: check_there(config.load))
    if config.data_path is not None:
        problems.attempt(lambda: check_data_set(config.data_path))
    problems.raise_if_any()
    if config.output is not None:
        check_writable(config.output)


def memory_bytes(text: str) -> int:
    """`64GiB`, `64GB`, `64G` -> bytes. Raises a UserError for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)B?", text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--device-memory {text}: give a size such as 64GiB or 32GB")
    return int(float(match[1]) * _UNITS[match[2]])
