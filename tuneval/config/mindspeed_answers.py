"""MindSpeed-LLM's inference.py and evaluation.py -> `inference`, `evaluation`. Source: reference sections 5 and 6."""

from __future__ import annotations

from pathlib import Path

from tuneval.config import compatibility
from tuneval.config.fields import flat_types
from tuneval.config.schema import EvaluationConfig, InferenceConfig, TuneConfig
from tuneval.config.words import Words
from tuneval.errors import UserError


def inference(words: Words) -> None:
    _answering(words, InferenceConfig)
    words.without_effect("belongs to evaluation", *EVALUATING)


def _answering(words: Words, config_type: type) -> None:
    """What inference and evaluation share: fp32 unless a type is given, and training's flags, which all entries know."""
    words.rename("lora-target-models", "lora-target-modules")
    given = words.drop("bf16", "fp16", "fp32")
    if len(given) + ("dtype" in words) > 1:
        raise UserError(f"{' '.join([*given, *words.drop('dtype')])}: give one of them")
    if given:
        words.give("dtype", given[0].removeprefix("--"))
    elif "dtype" not in words:
        words.give("dtype", "fp32")
        words.note("neither --bf16 nor --fp16: fp32, as in MindSpeed-LLM; --bf16 halves the memory")
    training = {name.replace("_", "-") for name in set(flat_types(TuneConfig)) - set(flat_types(config_type))}
    words.without_effect(
        "belongs to training", *(name for name in words.flags if name in training - set(compatibility.known()))
    )


EVALUATING = ("task-data-path", "no-chat-template", "alternative-prompt", "eval-language", "max-eval-samples")
"""Flags of evaluation.py that inference.py knows too: the entries share one parser there."""

EVALUATION_TASKS = {
    "mmlu_ppl": "mmlu",
    **{name: name for name in ("ceval", "cmmlu", "mmlu", "gsm8k", "boolq", "agieval", "hellaswag")},
}
"""MindSpeed-LLM's task -> ours."""

REPLYING = ("gsm8k", "agieval")
"""Exams whose usual style reads what the model writes."""

HARNESS_TASKS = {"bbh": "bbh", "human_eval": "humaneval", "needlebench": "niah_single_1"}
"""Tasks that are not built in -> what lm-evaluation-harness calls such a one."""


def evaluation(words: Words) -> None:
    _answering(words, EvaluationConfig)
    words.without_effect("belongs to chat", "history-turns")
    if "," in words.value("split", ""):  # of training data, such as 100,0,0; ours names a split of the exam
        words.without_effect("it splits training data", "split")
    task = words.value("task", "")
    if task in HARNESS_TASKS:
        raise UserError(
            f"--task {task}: not built in; what comes closest is tuneval evaluate --task lm_eval:{HARNESS_TASKS[task]}"
        )
    if task not in EVALUATION_TASKS:
        several = "one exam a call; " if " " in task else ""
        raise UserError(f"--task {task}: {several}give one of {', '.join([*EVALUATION_TASKS, *HARNESS_TASKS])}")
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
    """C-Eval's three ways of asking; other exams have their usual style."""
    if words.drop("hf-chat-template"):
        words.give("prompt-type", "auto")
    if "style" in words:
        words.without_effect(f"--style {words.value('style')} says how to ask", "eval-language", "alternative-prompt")
    elif task == "ceval":
        _ceval_style(words)
    else:
        _usual_style(words, task)


def _ceval_style(words: Words) -> None:
    if "prompt-type" in words:
        words.without_effect("--prompt-type asks through the chat template", "alternative-prompt")
        language = words.take("eval-language", "en")
        words.give("style", "mindspeed_template_zh" if language == "zh" else "mindspeed_template")
    else:
        alternative = words.drop("alternative-prompt")
        words.without_effect("C-Eval without a template is asked in Chinese", "eval-language")
        words.give("style", "mindspeed_alt" if alternative else "mindspeed_direct")
        if "no-chat-template" not in words:
            words.note(
                "neither --no-chat-template nor --prompt-type: a chat model gets the exam as one user turn without a "
                "generation prompt, as in MindSpeed-LLM, and its score collapses"
            )
    words.give("allow-unparsed")  # whatever is not the letter is wrong there, and counted


def _usual_style(words: Words, task: str) -> None:
    how = "its replies read, unreadable ones wrong" if task in REPLYING else "scored by logits"
    words.note(
        f"--task {task}: asked in the exam's usual style, {how}; MindSpeed-LLM's own prompts are here for ceval alone"
    )
    words.without_effect("the exam's usual style has its own words", "alternative-prompt", "eval-language")
    if task in REPLYING:
        words.give("allow-unparsed")
