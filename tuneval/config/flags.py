"""Command line -> configuration: tyro over the schema, `--config` files, and Megatron's further flags."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuneval.errors import Problems, UserError

C = TypeVar("C")

CHECKED: dict[str, str] = {
    "num-layers": "num_hidden_layers",
    "hidden-size": "hidden_size",
    "ffn-hidden-size": "intermediate_size",
    "num-attention-heads": "num_attention_heads",
    "num-query-groups": "num_key_value_heads",
    "padded-vocab-size": "vocab_size",
    "rotary-base": "rope_theta",
    "norm-epsilon": "rms_norm_eps",
}
"""Megatron flags that describe the model: flag -> key of the Hugging Face config it must equal."""

NO_EFFECT: dict[str, str] = {
    "use-mcore-models": "there is one model implementation",
    "use-flash-attn": "the fastest attention of the device is always used",
    "use-fused-rmsnorm": "kernels are chosen by torch",
    "use-fused-swiglu": "kernels are chosen by torch",
    "use-fused-rotary-pos-emb": "kernels are chosen by torch",
    "no-gradient-accumulation-fusion": "there is no such fusion to switch off",
    "no-masked-softmax-fusion": "there is no such fusion to switch off",
    "is-instruction-dataset": "the data set's manifest says what it is",
    "variable-seq-lengths": "samples are never padded",
    "no-pad-to-seq-lengths": "samples are never padded",
    "group-query-attention": "read from the model",
    "add-qkv-bias": "read from the model",
    "disable-bias-linear": "read from the model",
    "swiglu": "read from the model",
    "untie-embeddings-and-output-weights": "read from the model",
    "use-rotary-position-embeddings": "read from the model",
    "position-embedding-type": "read from the model",
    "normalization": "read from the model",
    "max-position-embeddings": "read from the model",
    "make-vocab-size-divisible-by": "read from the model",
    "attention-dropout": "read from the model",
    "hidden-dropout": "read from the model",
    "init-method-std": "weights are loaded, never drawn",
    "attention-softmax-in-fp32": "the attention kernel accumulates in fp32",
    "distributed-backend": "chosen by the device",
    "tokenizer-type": "read from the tokenizer's folder",
    "tokenizer-not-use-fast": "the tokenizer only decodes here",
    "stage": "tune is supervised fine-tuning (sft)",
    "sequence-parallel": "training runs on one process so far",
    "num-layer-list": "training runs on one process so far",
    "use-distributed-optimizer": "training runs on one process so far",
    "overlap-grad-reduce": "training runs on one process so far",
    "overlap-param-gather": "training runs on one process so far",
    "lora-fusion": "the same mathematics, and no communication to hide",
    "no-load-optim": "--load gives weights alone; a run goes on from its own --save",
    "no-load-rng": "--load gives weights alone; a run goes on from its own --save",
    "no-save-optim": "checkpoints always hold it, so that a run can go on; --keep-checkpoints limits their number",
    "no-save-rng": "checkpoints always hold it, so that a run can go on exactly",
    "exit-on-missing-checkpoint": "a missing checkpoint is always an error",
    "reset-position-ids": "positions always start again with each sample",
    "reset-attention-mask": "no sample ever sees another",
    "neat-pack": "no sample ever sees another",
    "calculate-per-token-loss": "--loss-reduction token is the default",
    "n-subs": "the input is streamed, so it need not be split",
    "overwrite-cache": "preprocess keeps no cache",
    "cache-dir": "preprocess keeps no cache",
    "streaming": "records are always streamed",
    "dataset-impl": "token files are always memory-mapped",
    "json-keys": "names the columns of pretraining; --map-keys names those of instructions",
    "pad-vocab-size-to": "token files do not depend on it",
    "vocab-file": "read from the tokenizer's folder",
    "merge-file": "read from the tokenizer's folder",
    "tokenizer-model": "read from the tokenizer's folder",
    "placeholder-token": "belongs to reward models",
    "reward-tokens": "belongs to reward models",
}
"""Megatron flags that are known and change nothing here: flag -> why."""

_SWITCHES = frozenset(
    """
    use-mcore-models use-flash-attn use-fused-rmsnorm use-fused-swiglu use-fused-rotary-pos-emb
    no-gradient-accumulation-fusion no-masked-softmax-fusion is-instruction-dataset variable-seq-lengths
    no-pad-to-seq-lengths group-query-attention add-qkv-bias disable-bias-linear swiglu
    untie-embeddings-and-output-weights use-rotary-position-embeddings attention-softmax-in-fp32
    tokenizer-not-use-fast sequence-parallel use-distributed-optimizer overlap-grad-reduce overlap-param-gather
    lora-fusion no-load-optim no-load-rng no-save-optim no-save-rng exit-on-missing-checkpoint reset-position-ids
    reset-attention-mask neat-pack calculate-per-token-loss overwrite-cache streaming
    """.split()
)
_ONE_PROCESS = ("tensor-model-parallel-size", "pipeline-model-parallel-size")


@dataclass(frozen=True)
class Parsed:
    """A configuration and what else the command line said."""

    config: Any
    model_facts: dict[str, str]
    """Hugging Face config key -> value the user stated; `check_model_facts` holds them against the model."""
    notices: tuple[str, ...]
    """One line for each flag that changes nothing, with the reason."""


def parse(config_type: type[C], arguments: list[str], program: str) -> Parsed:
    """Parse `arguments` into `config_type`.

    Args:
        config_type: a dataclass of `config.schema`.
        arguments: the words after the command's name.
        program: the command as typed, for usage texts.

    Raises:
        UserError: an unknown flag (with the nearest known spelling) or an unreadable `--config` file.
        SystemExit: tyro's own usage errors (status 2) and `--help` (status 0).
    """
    import tyro

    arguments, file_values = _take_config_file(_normalise(arguments))
    defaults = _flags_from_file(config_type, file_values, given=arguments)
    marker = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    config, unknown = tyro.cli(
        config_type, prog=program, args=defaults + arguments, config=marker, return_unknown_args=True, add_help=True
    )
    facts, notices = _sort_out(unknown, _known_flags(config_type))
    return Parsed(config, facts, notices)


def check_model_facts(facts: dict[str, str], hf_config: dict[str, Any]) -> None:
    """Raise one UserError that lists every stated fact the model contradicts."""
    problems = Problems()
    flag_of = {key: flag for flag, key in CHECKED.items()}
    for key, stated in facts.items():
        actual = hf_config.get(key)
        if actual is None:
            actual = (hf_config.get("rope_parameters") or {}).get(key)
        if actual is not None and float(stated) != float(actual):
            problems.add(
                f"--{flag_of[key]} {stated}: the model's {key} is {actual}. Leave the flag out or give {actual}."
            )
    problems.raise_if_any()


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON values, one flat level, as a `--config` file would spell it."""
    flat: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            flat.update(to_dict(value))
        else:
            flat[f.name] = json.loads(json.dumps(value, default=str))
    return flat


def _normalise(arguments: list[str]) -> list[str]:
    """`--some_flag=v` and `--some_flag v` -> `--some-flag v`; values are left alone."""
    words = []
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-"))
            if equals:
                words.append(value)
        else:
            words.append(word)
    return words


def _take_config_file(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    if "--config" not in arguments:
        return arguments, {}
    import yaml

    at = arguments.index("--config")
    if at + 1 == len(arguments):
        raise UserError("--config: give a YAML file")
    path = Path(arguments[at + 1])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: must hold `flag: value` lines, found {type(values).__name__}")
    return arguments[:at] + arguments[at + 2 :], values


def _flags_from_file(config_type: type, values: dict[str, Any], given: list[str]) -> list[str]:
    """The file's values as flags, for those the command line does not give itself."""
    words: list[str] = []
    for key, value in values.items():
        flag = "--" + str(key).replace("_", "-")
        if flag in given or value is None or value is False:
            continue
        words.append(flag)
        if isinstance(value, list):
            words += [str(v) for v in value]
        elif isinstance(value, dict):
            words.append(json.dumps(value, ensure_ascii=False))
        elif value is not True:
            words.append(str(value))
    return words


def _known_flags(config_type: type) -> list[str]:
    """Every flag name of a schema class, sections included."""
    names: list[str] = []
    hints = _type_hints(config_type)
    for f in dataclasses.fields(config_type):
        section = hints[f.name]
        names += _known_flags(section) if is_dataclass(section) else [f.name.replace("_", "-")]
    return names


def _type_hints(config_type: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(config_type)


def _sort_out(unknown: list[str], known: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    facts: dict[str, str] = {}
    notices: list[str] = []
    problems = Problems()
    words = list(unknown)
    while words:
        word = words.pop(0)
        name = word.removeprefix("--")
        value = words.pop(0) if name not in _SWITCHES and words and not words[0].startswith("--") else None
        if not word.startswith("--"):
            problems.add(f"{word}: not a flag, and no flag before it takes it")
        elif name in CHECKED:
            problems.check(value is not None, f"--{name}: give a number")
            facts[CHECKED[name]] = value or "nan"
        elif name in NO_EFFECT:
            notices.append(f"--{name}: no effect, {NO_EFFECT[name]}")
        elif name in _ONE_PROCESS:
            remedy = "training runs on one process so far; give 1 (a checkpoint of any layout loads as it is)"
            problems.check(value == "1", f"--{name} {value}: {remedy}")
        else:
            nearest = difflib.get_close_matches(name, [*known, *CHECKED, *NO_EFFECT, "config"], n=1)
            problems.add(f"--{name}: unknown flag" + (f"; did you mean --{nearest[0]}?" if nearest else ""))
    problems.raise_if_any()
    return facts, tuple(notices)
