"""MindSpeed-LLM's command lines -> tuneval's: each entry file's words, with the defaults that they have there.

What an entry says once at its start is in `Translated.notices`. Source: reference sections 1.8, 3.1, 4, 5 and 6.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneval.config.flags import as_words, normalise
from tuneval.errors import Problems, UserError
from tuneval.files import read_json


@dataclass(frozen=True)
class Translated:
    """A command line of tuneval, and what was said on the way to it."""

    command: str
    """Name of the file in `commands/`."""
    words: list[str]
    """Its flags."""
    notices: tuple[str, ...]


def translate(entry: str, arguments: list[str]) -> Translated:
    """tuneval's command line for one of MindSpeed-LLM's.

    Args:
        entry: name of the entry file, such as `posttrain_gpt.py`.
        arguments: the words after it.

    Raises:
        UserError: what is asked for can't be had.
    """
    command, of_entry = ENTRIES[entry]
    words = Words(arguments)
    words.take("local-rank")  # `python -m torch.distributed.launch` gives it to every process
    of_entry(words)
    return Translated(command, words.flat(), tuple(words.notices))


class Words:
    """A command line by flags; of a flag given twice the last counts, as with argparse."""

    def __init__(self, arguments: list[str]) -> None:
        self.flags: dict[str, list[str]] = {}
        self.notices: list[str] = []
        name = None
        for word in normalise(arguments):
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                self.flags.pop(name, None)
                self.flags[name] = [value] if equals else []
            elif name is None:
                raise UserError(f"{word}: not a flag, and no flag before it takes it")
            else:
                self.flags[name].append(word)

    def __contains__(self, name: str) -> bool:
        return name in self.flags

    def value(self, name: str, default: str | None = None) -> str | None:
        """The flag's value, its words joined."""
        return " ".join(self.flags[name]) if self.flags.get(name) else default

    def take(self, name: str, default: str | None = None) -> str | None:
        """The flag's value; the flag is gone afterwards."""
        value = self.value(name, default)
        self.flags.pop(name, None)
        return value

    def drop(self, *names: str) -> list[str]:
        """Take flags out; returns those that were there, as typed."""
        return [f"--{name}" for name in names if self.flags.pop(name, None) is not None]

    def give(self, name: str, *values: object) -> None:
        """Set a flag, in the place of an earlier value."""
        self.flags[name] = [str(value) for value in values]

    def default(self, name: str, *values: object) -> None:
        """Set a flag where it was not given."""
        if name not in self.flags:
            self.give(name, *values)

    def rename(self, name: str, new: str) -> None:
        """Move a flag's words to another name."""
        if name in self.flags:
            self.flags[new] = self.flags.pop(name)

    def note(self, text: str) -> None:
        self.notices.append(text)

    def flat(self) -> list[str]:
        words: list[str] = []
        for name, values in self.flags.items():
            words += as_words(f"--{name}", values[0]) if len(values) == 1 else [f"--{name}", *values]
        return words


# --- preprocess_data.py ---


def _preprocess_data(words: Words) -> None:
    thinking = words.take("enable-thinking")
    if thinking not in (None, "false"):
        words.note(
            f"--enable-thinking {thinking}: the empty thought of an answer without one is part of the prompt and never "
            "trained (MindSpeed-LLM's `false`)"
        )
    if not words.value("handler-name"):  # "" there means plain text for pretraining
        words.drop("handler-name")


# --- convert_ckpt.py, convert_ckpt_v2.py ---


def _convert(words: Words) -> tuple[str, str]:
    """What both converters share; returns what is read and what is written, `hf` or `mg`."""
    problems = Problems()
    read, written = words.take("load-model-type"), words.take("save-model-type")
    for flag, value in (("load", read), ("save", written)):
        problems.check(value in ("hf", "mg"), f"--{flag}-model-type {value or ''}: give hf or mg")
        problems.check(f"{flag}-dir" in words, f"--{flag}-dir: give a folder")
    problems.raise_if_any()
    words.rename("load-dir", "load")
    words.rename("save-dir", "save")
    words.give("to", "mcore" if written == "mg" else "hf")
    if written == "hf":
        layout = "target-tensor-parallel-size target-pipeline-parallel-size num-layer-list make-vocab-size-divisible-by"
        dropped = words.drop(*layout.split(), "num-layers-per-virtual-pipeline-stage")
        if dropped:
            words.note(
                f"{', '.join(dropped)}: no effect, a Hugging Face folder has no layout, and the source's is read"
            )
    return read, written


def _convert_ckpt(words: Words) -> None:
    """Version 1: a Megatron checkpoint goes to SAVE/mg2hf, and SAVE is the original Hugging Face folder."""
    _, written = _convert(words)
    if written == "hf":
        original = Path(words.value("save"))
        words.give("save", original / "mg2hf")
        if (original / "config.json").is_file() and not _carries_config(words.value("load")):
            words.default("hf-cfg-dir", original)
        words.note(f"--save-dir {original}: the Hugging Face folder goes to {original / 'mg2hf'}, as version 1 does")
    if "params-dtype" not in words:
        words.note("no --params-dtype: weights keep their type (MindSpeed-LLM's version 1 would make them fp16)")


def _carries_config(folder: str) -> bool:
    """Whether a folder to read has a config of its own: Hugging Face's, a run's, or what convert wrote."""
    return (Path(folder) / "config.json").is_file()


def _convert_ckpt_v2(words: Words) -> None:
    _convert(words)
    if "hf-cfg-dir" in words and _carries_config(words.value("load")):
        words.note(f"--hf-cfg-dir {words.take('hf-cfg-dir')}: no effect, --load-dir carries its own config")
    if words.drop("save-lora-to-hf"):
        words.give("to", "peft")


# --- posttrain_gpt.py ---

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


def _posttrain_gpt(words: Words) -> None:
    for name, value in TUNE_DEFAULTS.items():
        words.default(name, value)
    if not any(name in words for name in ("bf16", "fp16", "fp32")):
        words.give("fp32")
        words.note("neither --bf16 nor --fp16: fp32, as there; --bf16 halves the memory of weights and activations")
    _batch(words)
    _lora(words)
    _data(words)
    _save(words)
    _variable_seq_lengths(words)
    _tensorboard(words)
    _limits(words)


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
    words.default("loss-reduction", "sample" if size == "1" else "micro-batch")
    if words.value("loss-reduction") != "micro-batch":
        words.drop("micro-batch-size")
    words.note(
        f"--micro-batch-size {size}: decides the loss (--loss-reduction {words.value('loss-reduction')}), not the size "
        "of a forward pass: samples are packed into --micro-batch-tokens, to the same result"
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
    if len(prefixes) > 1:
        words.give("data-path", prefixes[0])
        words.note(f"--data-path: the first prefix is used, {', '.join(prefixes[1:])} not, as in MindSpeed-LLM's sft")


def _save(words: Words) -> None:
    """Where the result goes, and what the five flags of MindSpeed-LLM's scripts mean for going on."""
    if "save" not in words:
        words.give("save", f"runs/posttrain-{time.strftime('%Y%m%d-%H%M%S')}")
        words.note(f"no --save: MindSpeed-LLM would keep nothing; the run goes to {words.value('save')}")
    _continue_from_save(words)
    names = ("finetune", "no-load-optim", "no-load-rng", "no-save-optim", "no-save-rng")
    given = [f"--{name}" for name in names if name in words]
    if "finetune" in words or "no-save-optim" in words:
        words.note(
            f"{' '.join(given)}: a run with these can't be continued after a stop, here as in MindSpeed-LLM. "
            "To be able to, leave them all out: the same command then continues from --save"
        )


def _continue_from_save(words: Words) -> None:
    """`--load RUN --save RUN` continues a run there. Here the same command as before does: give what RUN began from."""
    load, save = (Path(words.value(name, "")).absolute() for name in ("load", "save"))
    record = save / "config.json"
    if "load" in words and load == save and "finetune" not in words and record.is_file():
        began = read_json(record).get("config", {}).get("load")
        if began:
            words.give("load", began)
            words.note(f"--load {load} is --save: the run in it is continued, which began from {began}")


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


# --- inference.py, evaluation.py ---


def _answering(words: Words) -> None:
    """What inference and evaluation share: fp32 unless a type is given."""
    words.rename("lora-target-models", "lora-target-modules")
    size = words.take("tensor-model-parallel-size", "1")
    if size != "1":
        words.note(f"--tensor-model-parallel-size {size}: no effect, the first process answers with the whole model")
    given = words.drop("bf16", "fp16", "fp32")
    words.default("dtype", given[0].removeprefix("--") if given else "fp32")
    if not given:
        words.note("neither --bf16 nor --fp16: fp32, as in MindSpeed-LLM; --bf16 halves the memory")


EVALUATION_TASKS = {
    "mmlu_ppl": "mmlu",
    **{name: name for name in ("ceval", "cmmlu", "mmlu", "gsm8k", "boolq", "agieval", "hellaswag")},
}
"""MindSpeed-LLM's task -> ours."""

HARNESS_TASKS = {"bbh": "bbh", "human_eval": "humaneval", "needlebench": "niah_single_1"}
"""Tasks that are not built in -> what lm-evaluation-harness calls such a one."""


def _evaluation(words: Words) -> None:
    _answering(words)
    task = words.value("task", "")
    if task in HARNESS_TASKS:
        raise UserError(
            f"--task {task}: not built in; tuneval evaluate --task lm_eval:{HARNESS_TASKS[task]} has its kin"
        )
    if task not in EVALUATION_TASKS:
        raise UserError(f"--task {task}: give one of {', '.join([*EVALUATION_TASKS, *HARNESS_TASKS])}")
    words.give("task", EVALUATION_TASKS[task])
    _split_folder(words)
    _evaluation_style(words, task)
    words.rename("max-eval-samples", "limit")
    if "limit" in words:
        words.note(f"--max-eval-samples {words.value('limit')}: the first ones of each subject; there a random sample")


def _split_folder(words: Words) -> None:
    """`ceval/val` names the split's folder there; here the exam's folder and the split."""
    paths = words.flags.get("task-data-path")
    if not paths:
        raise UserError("--task-data-path: give the exam's folder")
    path = Path(paths[-1])
    words.give("task-data-path", path)
    if path.name in ("val", "test", "dev", "train") and not any(path.glob("*.jsonl")):
        words.give("task-data-path", path.parent)
        words.default("split", path.name)


def _evaluation_style(words: Words, task: str) -> None:
    """C-Eval's three ways of asking; other exams have their usual style, which scores letters."""
    language = words.take("eval-language", "en")
    alternative = words.drop("alternative-prompt")
    if words.drop("hf-chat-template"):
        words.give("prompt-type", "auto")
    if "style" in words:
        return
    if task != "ceval":
        words.drop("prompt-type", "no-chat-template", "max-new-tokens")
        words.note(
            f"--task {task}: asked in the exam's usual style and scored by logits; MindSpeed-LLM's own prompts are "
            "here for ceval alone"
        )
    elif "prompt-type" in words:
        words.give("style", "mindspeed_template_zh" if language == "zh" else "mindspeed_template")
    else:
        words.give("style", "mindspeed_alt" if alternative else "mindspeed_direct")
        if "no-chat-template" not in words:
            words.note(
                "neither --no-chat-template nor --prompt-type: a chat model gets the exam as one user turn without a "
                "generation prompt, as in MindSpeed-LLM, and its score collapses"
            )
    if words.value("style"):
        words.give("allow-unparsed")  # whatever is not the letter is wrong there, and counted


ENTRIES: dict[str, tuple[str, Callable[[Words], None]]] = {
    "preprocess_data.py": ("preprocess", _preprocess_data),
    "convert_ckpt.py": ("convert", _convert_ckpt),
    "convert_ckpt_v2.py": ("convert", _convert_ckpt_v2),
    "posttrain_gpt.py": ("tune", _posttrain_gpt),
    "inference.py": ("inference", _answering),
    "evaluation.py": ("evaluation", _evaluation),
}
"""Entry file -> (tuneval's command, what is done to its words)."""
