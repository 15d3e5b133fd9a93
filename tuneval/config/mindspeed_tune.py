"""MindSpeed-LLM's posttrain_gpt.py -> `tune`: its defaults, its loss, its traps told. Source: reference section 4."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tuneval.config.fields import flat_types
from tuneval.config.schema import EvaluationConfig, InferenceConfig, TuneConfig
from tuneval.config.words import Words
from tuneval.errors import UserError
from tuneval.files import read_json

ANSWERING = ("hf-chat-template", "no-chat-template", "alternative-prompt", "eval-language", "max-eval-samples")
"""Flags of inference.py and evaluation.py under MindSpeed-LLM's names alone: its entries share one parser."""

TUNE_DEFAULTS = {
    "split": "969,30,1",
    "log-interval": "100",
    "eval-interval": "1000",
    "eval-iters": "100",
    "lr-decay-style": "linear",
    "ckpt-format": "torch",
    "log-format": "megatron",
}
"""Where MindSpeed-LLM's defaults differ from tune's."""


def posttrain_gpt(words: Words) -> None:
    for name, value in TUNE_DEFAULTS.items():
        words.default(name, value)
    if not any(name in words for name in ("bf16", "fp16", "fp32")):
        words.give("fp32")
        words.note("neither --bf16 nor --fp16: fp32, as there; --bf16 halves the memory of weights and activations")
    _batch(words)
    _continue_from_save(words)
    _lora(words)
    _data(words)
    _save(words)
    _variable_seq_lengths(words)
    _tensorboard(words)
    _limits(words)
    answering = set(flat_types(InferenceConfig)) | set(flat_types(EvaluationConfig))
    names = [name.replace("_", "-") for name in sorted(answering - set(flat_types(TuneConfig)))]
    words.without_effect("belongs to generation and evaluation", *names, *ANSWERING)


def _batch(words: Words) -> None:
    """Sizes, and the loss that they mean there: the mean of the micro-batches' means over their tokens."""
    size = words.value("micro-batch-size")
    if size is None:
        raise UserError("--micro-batch-size: give it; it decides what weighs the same in MindSpeed-LLM's loss")
    if "global-batch-size" not in words:
        replicas = _data_parallel_size(words)
        words.give("global-batch-size", int(size) * replicas if size.isdigit() else size)
    if words.drop("calculate-per-token-loss"):
        words.default("loss-reduction", "token")
    words.default("loss-reduction", "micro-batch")
    reduction = words.value("loss-reduction")
    if reduction == "micro-batch":
        words.note(
            f"--micro-batch-size {size}: decides the loss (--loss-reduction micro-batch), not the size of a forward pass: "
            "samples are packed into --micro-batch-tokens, to the same result"
        )
    else:
        words.without_effect(
            f"--loss-reduction {reduction} says what weighs the same, and samples are packed into --micro-batch-tokens",
            "micro-batch-size",
        )


def _data_parallel_size(words: Words) -> int:
    model = 1
    for name in ("tensor-model-parallel-size", "pipeline-model-parallel-size"):
        value = words.value(name, "1")
        model *= int(value) if value.isdigit() and int(value) else 1
    return max(1, int(os.environ.get("WORLD_SIZE", "1")) // model)


def _lora(words: Words) -> None:
    words.rename("lora-target-models", "lora-target-modules")  # so misspelt in generate_qwen25_7b_lora_ptd.sh
    if not words.flags.get("lora-target-modules") and "lora-load" not in words:
        given = [f"--{name}" for name in words.flags if name.startswith("lora-")]
        if given:
            raise UserError(
                f"{' '.join(given)}: MindSpeed-LLM turns LoRA on by --lora-target-modules alone, so this would tune "
                "every weight. Add --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2, or take them out"
            )
        return
    if "lora-load" in words:
        return  # the adapter says its rank, its alpha and whether it shares A
    words.default("lora-r", "16")
    words.default("lora-alpha", "32")
    words.default("lora-shared-a")


def _data(words: Words) -> None:
    prefixes = words.flags.get("data-path", [])
    if prefixes and Path(prefixes[0]).is_file():
        raise UserError(
            f"--data-path {prefixes[0]}: a file of records; give the prefix of token files. preprocess_data.py --input "
            f"{prefixes[0]} makes them"
        )
    if len(prefixes) > 1 and _is_number(prefixes[0]):
        raise UserError(
            f"--data-path {' '.join(prefixes)}: begins with a weight; those mix data sets of pretraining, and sft reads "
            "one prefix. Give one; preprocess_data.py makes it of several files where --input is their folder"
        )
    if len(prefixes) > 1:
        words.give("data-path", prefixes[0])
        words.note(f"--data-path: the first prefix is used, {', '.join(prefixes[1:])} not, as in MindSpeed-LLM's sft")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _save(words: Words) -> None:
    """Where the result goes, and what the five flags of MindSpeed-LLM's scripts mean for going on."""
    if "save" not in words:
        words.give("save", f"runs/posttrain-{_name_of_job()}")
        words.note(f"no --save: MindSpeed-LLM would keep nothing; the run goes to {words.value('save')}")
    names = ("finetune", "no-load-optim", "no-load-rng", "no-save-optim", "no-save-rng")
    given = [f"--{name}" for name in names if name in words]
    if "finetune" in words or "no-save-optim" in words:
        words.note(
            f"{' '.join(given)}: a run with these can't be continued after a stop, here as in MindSpeed-LLM. "
            "To be able to, leave them all out: the same command then continues from --save"
        )


def _name_of_job() -> str:
    """The same in every process of a machine: by the clock in one, by the launcher around them where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"{time.strftime('%Y%m%d')}-{os.getppid()}"
    return time.strftime("%Y%m%d-%H%M%S")


def _continue_from_save(words: Words) -> None:
    """`--load RUN --save RUN`, or `--lora-load RUN --save RUN`, continues a run there.

    Here the same command as before does: give what RUN began from.
    """
    save = Path(words.value("save", "")).absolute()
    record = save / "config.json"
    if "save" not in words or "finetune" in words or not record.is_file():
        return
    began = read_json(record).get("config", {})
    for flag, key in (("load", "load"), ("lora-load", "lora_load")):
        named = words.value(flag)
        if named is None or Path(named).absolute() not in (save, save / "model", save / "adapter", save / "mcore"):
            continue
        words.drop(flag)
        if began.get(key):
            words.give(flag, began[key])
        start = began.get(key) or "a fresh adapter"
        words.note(f"--{flag} {named} is in --save: the run there is continued, which began from {start}")


def _variable_seq_lengths(words: Words) -> None:
    """Its two meanings: until 2.2 it padded to the longest sample, since 2.3 it only frees the pipeline's shapes."""
    if "variable-seq-lengths" not in words:
        return
    words.drop("variable-seq-lengths")
    later = [f"--{name}" for name in ("no-pad-to-seq-lengths", "reset-attention-mask") if name in words]
    if later:
        meaning = f"read as MindSpeed-LLM 2.3 and later mean it ({later[0]} is there): shapes may differ between stages"
    else:
        meaning = "read as MindSpeed-LLM 2.0 to 2.2 mean it (no flag of 2.3 is there): pad to the longest sample only"
    words.note(f"--variable-seq-lengths: {meaning}. Either way samples are never padded here")


def _tensorboard(words: Words) -> None:
    words.rename("no-log-learnig-rate-to-tensorboard", "no-log-learning-rate-to-tensorboard")  # Megatron's spelling
    words.drop("log-learning-rate-to-tensorboard", "log-loss-scale-to-tensorboard")  # always on there and here


def _limits(words: Words) -> None:
    limit, length = words.value("max-position-embeddings"), words.value("seq-length")
    if limit and length and limit.isdigit() and length.isdigit() and int(length) > int(limit):
        raise UserError(f"--seq-length {length}: above --max-position-embeddings {limit}. Give at most that")
