"""MindSpeed-LLM's command lines -> tuneval's: each entry file's words, with the defaults that they have there.

What an entry says once at its start is in `Translated.notices`. Source: reference sections 1.8 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneval.config.mindspeed_answers import evaluation, inference
from tuneval.config.mindspeed_tune import posttrain_gpt
from tuneval.config.words import Words
from tuneval.errors import Problems


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
    if "--help" in arguments or "-h" in arguments:
        return Translated(command, ["--help"], ())
    words = Words(arguments)
    words.take("local-rank")  # `python -m torch.distributed.launch` gives it to every process
    of_entry(words)
    return Translated(command, words.flat(), tuple(words.notices))


# --- preprocess_data.py ---


def _preprocess_data(words: Words) -> None:
    thinking = words.take("enable-thinking")
    if thinking not in (None, "false"):
        words.note(
            f"--enable-thinking {thinking}: the empty thought of an answer without one is part of the prompt and never "
            "trained (MindSpeed-LLM's `false`)"
        )
    if "prompt-type" not in words:
        words.note(
            "no --prompt-type: MindSpeed-LLM would refuse; the tokenizer's own chat template is taken (--prompt-type auto)"
        )
    if not words.value("handler-name"):  # "" there means plain text for pretraining
        words.drop("handler-name")


# --- convert_ckpt.py, convert_ckpt_v2.py ---


def _convert(words: Words) -> str:
    """What both converters share; returns what is written, `hf` or `mg`."""
    problems = Problems()
    read, written = words.take("load-model-type"), words.take("save-model-type")
    for flag, value in (("load", read), ("save", written)):
        problems.check(value in ("hf", "mg"), f"--{flag}-model-type {value or ''}: give hf or mg")
        problems.check(f"{flag}-dir" in words, f"--{flag}-dir: give a folder")
    if read in _MARKS and words.value("load-dir"):
        folder = Path(words.value("load-dir"))
        found = [kind for kind, marks in _MARKS.items() if any(any(folder.glob(mark)) for mark in marks)]
        remedy = f"Give {', '.join(found)}, or another --load-dir"
        problems.check(
            read in found or not found, f"--load-model-type {read}: {folder} holds weights of the other type. {remedy}"
        )
    problems.raise_if_any()
    words.rename("load-dir", "load")
    words.rename("save-dir", "save")
    words.give("to", "mcore" if written == "mg" else "hf")
    if written == "hf":
        layout = "target-tensor-parallel-size target-pipeline-parallel-size num-layer-list make-vocab-size-divisible-by"
        dropped = words.drop(*layout.split(), "num-layers-per-virtual-pipeline-stage", "transformer-impl")
        if dropped:
            words.note(
                f"{', '.join(dropped)}: no effect, a Hugging Face folder has no layout, and the source's is read"
            )
    return written


_MARKS = {
    "hf": ("*.safetensors", "pytorch_model*.bin"),
    "mg": ("latest_checkpointed_iteration.txt", "iter_*", "mp_rank_*"),
}
"""Type of a folder -> what shows it."""


def _convert_ckpt(words: Words) -> None:
    """Version 1: a Megatron checkpoint goes to SAVE/mg2hf, and SAVE is the original Hugging Face folder."""
    written = _convert(words)
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


ENTRIES: dict[str, tuple[str, Callable[[Words], None]]] = {
    "preprocess_data.py": ("preprocess", _preprocess_data),
    "convert_ckpt.py": ("convert", _convert_ckpt),
    "convert_ckpt_v2.py": ("convert", _convert_ckpt_v2),
    "posttrain_gpt.py": ("tune", posttrain_gpt),
    "inference.py": ("inference", inference),
    "evaluation.py": ("evaluation", evaluation),
}
"""Entry file -> (tuneval's command, what is done to its words)."""
