"""`tuneval evaluate`: score a model on an exam; compare two results question by question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tuneval import console
from tuneval.checkpoints.load import Loaded
from tuneval.commands import evaluate_harness, evaluate_matrix
from tuneval.commands.evaluate_flags import chosen, exams_of, output_of, result_name
from tuneval.commands.evaluate_run import Examination, load, score_exam
from tuneval.config import flags
from tuneval.config.schema import EvaluateConfig
from tuneval.data.template import Template
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import ALL, HARNESS
from tuneval.evaluation.contamination import measure
from tuneval.evaluation.decisions import Reply
from tuneval.evaluation.model_scorer import ModelScorer
from tuneval.evaluation.styles import Style
from tuneval.evaluation.tasks import Task
from tuneval.evaluation.units import Ranks
from tuneval.inference.generate import choose_template
from tuneval.model.decoder import Decoder
from tuneval.report import tables
from tuneval.report.comparison import check_comparable, check_same_template, compare_results
from tuneval.report.records import EvalResult, result_folder, write_record


def main(parsed: flags.Parsed) -> int:
    config: EvaluateConfig = parsed.config
    if config.load is None:
        before, after = config.compare
        _compare(before, after, config.output or result_folder(after))
    elif config.task.startswith(HARNESS):
        evaluate_harness.evaluate(config, parsed.model_facts)
    else:
        evaluate(config, parsed.model_facts)
    return 0


def evaluate(config: EvaluateConfig, model_facts: dict[str, str] | None = None) -> list[EvalResult]:
    """Load a model, score it, write and print the results; test it against an earlier one where the settings name one.

    Of several processes each must call it; the first writes.

    Args:
        config: the settings; `load` is given.
        model_facts: what the command line states about the model, checked.

    Returns:
        The result of each style, as written. Where the split's answers are secret its accuracies are absent.

    Raises:
        UserError: settings, exam or model can't be used.
    """
    task, styles = chosen(config)
    _say_without_effect(config, styles)
    examinations = _examinations(config, task, styles)
    output = output_of(config, result_name(config, task, styles))
    first = examinations[0]
    for earlier in config.compare:
        check_comparable(earlier, first.config, first.asked if first.form_is_settled else None)
    console.note(f"loading {config.load}")
    loaded = load(config)
    ranks = Ranks.of(loaded.mesh)
    flags.check_model_facts(model_facts or {}, loaded.config.to_dict())
    template = _template(loaded, config, [e.style for e in examinations])
    if template is None:
        examinations = _without_template(examinations, config)
    first = examinations[0].with_template(template)
    for earlier in config.compare:
        check_same_template(earlier, first.template_fingerprint)
        check_comparable(earlier, first.config, first.asked)
    decoder = Decoder(loaded.model).eval()
    scorer = ModelScorer(loaded, decoder, template, config.batch_tokens)
    training = measure(examinations[0].exam, config.train_data, loaded.tokenizer) if config.train_data else None
    results = []
    for each in examinations:
        each = replace(each.with_template(template), training=training)
        folder = output / each.style.name if len(styles) > 1 else output
        try:
            results.append(score_exam(each, loaded.identity, scorer, folder, ranks, decoder))
        except UserError as error:
            if config.style != ALL:
                raise
            console.warn(f"style {each.style.name} left out: {error}")
    if not results:
        raise UserError("--style all: none of the styles could be scored; the reasons stand above")
    if len(styles) > 1 and ranks.is_main:
        evaluate_matrix.write(results, output)
    for earlier in config.compare if ranks.is_main else ():
        _compare(earlier, output, output)
    return results


def _compare(a: Path, b: Path, output: Path) -> None:
    comparison = compare_results(a, b)
    write_record(output / "comparison.json", comparison)
    tables.print_comparison(comparison, output)


def _say_without_effect(config: EvaluateConfig, styles: list[Style]) -> None:
    """One line for each flag that changes nothing with these styles."""
    plain = all(s.form == "plain" for s in styles)
    generating = any(isinstance(s.decision, Reply) for s in styles)
    for given, flag, why in (
        (plain and config.prompt_type, "prompt-type", "the style is plain text"),
        (plain and config.no_chat_template, "no-chat-template", "the style is plain text"),
        (
            config.no_chat_template and all(s.needs_chat_template for s in styles),
            *("no-chat-template", "the style is a conversation"),
        ),
        (not generating and config.max_new_tokens, "max-new-tokens", "the style generates nothing"),
        (not generating and config.allow_unparsed, "allow-unparsed", "the style generates nothing"),
    ):
        if given:
            console.note(f"--{flag}: no effect, {why}")


def _examinations(config: EvaluateConfig, task: Task, styles: list[Style]) -> list[Examination]:
    found, split = [], config.split or task.split
    for style, shots, exam in exams_of(config, task, styles):
        if config.max_new_tokens is not None and isinstance(style.decision, Reply):
            both = {"decision": style.decision, "zero_shot_decision": style.zero_shot_decision}
            longer = {k: d and replace(d, max_new_tokens=config.max_new_tokens) for k, d in both.items()}
            style = replace(style, **longer)
        settled = replace(config, split=split, style=style.name, shots=shots)
        chat = not config.no_chat_template
        found.append(Examination(exam=exam, style=style, shots=shots, config=settled, chat=chat))
    return found


def _template(loaded: Loaded, config: EvaluateConfig, styles: list[Style]) -> Template | None:
    """The template that styles which converse use; None where none does, or the model has none."""
    if all(s.form == "plain" for s in styles) or (
        config.no_chat_template and not any(s.needs_chat_template for s in styles)
    ):
        return None
    named = config.prompt_type or loaded.template_name
    if named in (None, "auto") and not getattr(loaded.tokenizer, "chat_template", None):
        return None
    return choose_template(loaded, config.prompt_type)


def _without_template(examinations: list[Examination], config: EvaluateConfig) -> list[Examination]:
    """What can be asked in plain text. With `--style all` the rest is left out; a style asked for by name is an error."""
    lacking = [e.style.name for e in examinations if e.style.needs_chat_template]
    if lacking and config.style != ALL:
        raise UserError(
            f"--style {', '.join(lacking)}: talks to the model through its chat template, and {config.load} has none; give "
            "--prompt-type, or a style of plain text"
        )
    if lacking:
        console.note(f"left out, the model has no chat template: {', '.join(lacking)}")
    return [replace(e, chat=False) for e in examinations if not e.style.needs_chat_template]
