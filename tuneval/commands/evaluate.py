"""`tuneval evaluate`: score a model on an exam; compare two results question by question."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tuneval import console, runtime
from tuneval.checkpoints.load import Loaded, load_model
from tuneval.config import flags
from tuneval.config.schema import EvaluateConfig
from tuneval.errors import Problems, UserError
from tuneval.evaluation import score, stats, styles
from tuneval.evaluation.partial import Partial
from tuneval.evaluation.tasks import LETTERS, Exam, categories, load_ceval
from tuneval.files import write_json
from tuneval.model.decoder import Decoder
from tuneval.report import tables
from tuneval.report.comparison import check_comparable, compare_results
from tuneval.report.records import EvalResult, Prediction, to_dict, write_record, write_records

Scorer = Callable[[list[str], list[str], Callable[[int], object]], list[list[float]]]
"""(prompts of one subject, texts of the letters, progress) -> logits of the letters for each prompt."""


def main(parsed: flags.Parsed) -> int:
    config: EvaluateConfig = parsed.config
    if config.load is None:
        _check_comparison(config)
        before, after = config.compare
        _compare(before, after, config.output or (after.parent if after.suffix == ".json" else after))
    else:
        evaluate(config, parsed.model_facts)
    return 0


def evaluate(config: EvaluateConfig, model_facts: dict[str, str] | None = None) -> EvalResult:
    """Load a model, score it, write and print the result; test it against an earlier one where the settings name one.

    Args:
        config: the settings; `load` and `task_data_path` are given.
        model_facts: what the command line states about the model, checked.

    Returns:
        The result, as written. Where the split's answers are secret its accuracies are absent.

    Raises:
        UserError: settings, exam or model can't be used.
    """
    style = _check(config)
    subjects = tuple(s.strip() for s in (config.subjects or "").split(",") if s.strip())
    exam = load_ceval(config.task_data_path, config.split, subjects, config.limit, config.shots)
    output = _output(config)
    _check_output(output, config.compare)
    for earlier in config.compare:
        check_comparable(earlier, config, _asked(exam, style, config.shots))
    console.note(f"loading {config.load}")
    loaded = load_model(config.load, config.dtype, config.lora_load)
    flags.check_model_facts(model_facts or {}, loaded.config.to_dict())
    result = score_exam(exam, style, config, loaded.identity, _scorer(loaded, config), output)
    for earlier in config.compare:
        _compare(earlier, output, output)
    return result


def score_exam(
    exam: Exam, style: styles.Style, config: EvaluateConfig, identity: dict, scorer: Scorer, output: Path
) -> EvalResult:
    """Score every subject, or those an earlier unfinished call left, then write and print the result.

    Args:
        exam: the questions.
        style: how they become prompts.
        config: the settings.
        identity: what is scored, for the record.
        scorer: gives logits; the only thing here that knows a model.
        output: folder to write.
    """
    prompts = {subject: styles.prompts(style, exam, subject, config.shots) for subject in exam.subjects}
    hashes = {subject: styles.prompt_sha256(texts) for subject, texts in prompts.items()}
    asked = styles.run_sha256(style, config.shots, [h for each in hashes.values() for h in each])
    settings = [config.dtype, config.batch_tokens, runtime.versions()]
    partial = Partial(output, [identity, exam.data_sha256, asked, settings])
    targets = [styles.target(style, letter) for letter in LETTERS]
    with console.progress_bar("scoring", sum(map(len, prompts.values()))) as bar:
        for subject, texts in prompts.items():
            if subject in partial.subjects:
                bar.advance(len(texts))
                continue
            bar.describe(f"scoring {subject}")
            started = time.monotonic()
            logits = scorer(texts, targets, bar.advance)
            rows = _predictions(exam, subject, logits, hashes[subject])
            partial.add(subject, [to_dict(r) for r in rows], time.monotonic() - started)
    kept = [partial.subjects[subject] for subject in exam.subjects]
    predictions = [Prediction(**row) for each in kept for row in each["predictions"]]
    result = _result(exam, config, identity, asked, predictions, sum(each["seconds"] for each in kept))
    _write(output, exam, config, result, predictions)
    partial.remove()
    tables.print_result(result, output)
    return result


def _compare(a: Path, b: Path, output: Path) -> None:
    comparison = compare_results(a, b)
    write_record(output / "comparison.json", comparison)
    tables.print_comparison(comparison, output)


def _check(config: EvaluateConfig) -> styles.Style:
    problems = Problems()
    problems.check(config.task == "ceval", f"--task {config.task}: unknown; known is ceval")
    problems.check(config.task_data_path, "--task-data-path: give the exam's folder or zip")
    problems.check(config.limit is None or config.limit > 0, f"--limit {config.limit}: must be at least 1")
    problems.check(config.batch_tokens > 0, f"--batch-tokens {config.batch_tokens}: must be positive; 4096 is usual")
    problems.check(
        len(config.compare) <= 1,
        f"--compare: {len(config.compare)} results beside --load; give one earlier result, or two without --load",
    )
    problems.raise_if_any()
    style = styles.find_style(config.style)
    styles.check_shots(style, config.shots, config.split)
    return style


def _check_comparison(config: EvaluateConfig) -> None:
    if len(config.compare) != 2:
        raise UserError(
            f"--load is missing and --compare names {len(config.compare)} results: give --load MODEL to score a model, "
            "or --compare BEFORE AFTER to compare two results"
        )
    unused = [
        f"--{name.replace('_', '-')}"
        for name in ("lora_load", "task_data_path", "subjects", "limit")
        if getattr(config, name) is not None
    ]
    if unused:
        raise UserError(f"{', '.join(unused)}: nothing is scored without --load; give --load, or leave it out")


def _asked(exam: Exam, style: styles.Style, shots: int) -> dict[tuple[str, str], tuple[str | None, str | None]]:
    """(subject, id) -> right answer and hash of the prompt."""
    asked = {}
    for subject, questions in exam.questions.items():
        hashes = styles.prompt_sha256(styles.prompts(style, exam, subject, shots))
        asked |= {(subject, q.id): (q.answer, text_hash) for q, text_hash in zip(questions, hashes, strict=True)}
    return asked


def _output(config: EvaluateConfig) -> Path:
    """`--output`, or for a run folder RUN/evaluation/TASK-STYLE, with what is not the usual setting behind it."""
    if config.output is not None:
        return config.output
    if not (config.load / "metrics.jsonl").is_file():
        raise UserError(f"--output: give a folder for the result ({config.load} is not a run folder)")
    unusual = [config.split] if config.split != "val" else []
    unusual += [f"{config.shots}shot"] if config.shots != 5 else []
    return config.load / "evaluation" / "-".join([config.task, config.style, *unusual])


def _check_output(output: Path, compare: tuple[Path, ...]) -> None:
    """Before an hour of scoring: whether the result can be written, and not over the one to compare with."""
    problems = Problems()
    there = next(p for p in (output, *output.absolute().parents) if p.exists() or p.is_symlink())
    problems.check(there.is_dir(), f"--output {output}: {there} is a file; give a folder")
    for earlier in compare:
        folder = earlier.parent if earlier.name == "results.json" else earlier
        problems.check(
            folder.resolve() != output.resolve(),
            f"--compare {earlier}: this call's result would take its place; give another --output",
        )
    problems.raise_if_any()


def _scorer(loaded: Loaded, config: EvaluateConfig) -> Scorer:
    decoder = Decoder(loaded.model).eval()

    def scorer(prompts: list[str], targets: list[str], scored: Callable[[int], object]) -> list[list[float]]:
        return score.letter_logits(decoder, loaded.tokenizer, prompts, targets, config.batch_tokens, scored)

    return scorer


def _predictions(exam: Exam, subject: str, logits: list[list[float]], hashes: list[str]) -> list[Prediction]:
    rows = []
    for question, values, text_hash in zip(exam.questions[subject], logits, hashes, strict=True):
        scores = dict(zip(LETTERS, values, strict=True))
        letter, margin = score.decide(scores)
        rows.append(
            Prediction(
                subject=subject,
                id=question.id,
                answer=question.answer,
                prediction=letter,
                correct=None if question.answer is None else letter == question.answer,
                scores=scores,
                margin=margin,
                prompt_sha256=text_hash,
            )
        )
    return rows


def _result(
    exam: Exam, config: EvaluateConfig, identity: dict, asked: str, predictions: list[Prediction], seconds: float
) -> EvalResult:
    right = {s: [bool(p.correct) for p in predictions if p.subject == s] for s in exam.subjects}
    groups = categories({s: facts.category for s, facts in exam.subjects.items()})
    if exam.answered:
        figures = stats.summary(right, groups)
    else:
        figures = {"micro": {}, "macro": {}, "categories": {}, "subjects": {s: {"n": len(right[s])} for s in right}}
    for subject, facts in exam.subjects.items():
        figures["subjects"][subject] = {
            "name_zh": facts.name_zh,
            "category": facts.category,
            **figures["subjects"][subject],
        }
    return EvalResult(
        task=config.task,
        style=config.style,
        shots=config.shots,
        split=config.split,
        model=identity,
        versions=runtime.versions(),
        data_sha256=exam.data_sha256,
        prompt_sha256=asked,
        template_fingerprint=None,
        dtype=config.dtype,
        seconds=seconds,
        questions=len(predictions),
        near_ties=sum(score.near_tie(p.scores) for p in predictions),
        exact_ties=sum(p.margin == 0 for p in predictions),
        methods=stats.METHODS,
        config=flags.to_dict(config),
        machine=runtime.machine(),
        **figures,
    )


def _write(output: Path, exam: Exam, config: EvaluateConfig, result: EvalResult, predictions: list[Prediction]) -> None:
    """Predictions first: a folder with its last file is complete, so what an earlier call left goes before them.

    Where answers are secret there is no results.json, which promises accuracies, but the submission file of C-Eval's
    site and record.json with the same facts.
    """
    for name in ("results.json", "record.json", "submission.json", "comparison.json"):
        (output / name).unlink(missing_ok=True)
    write_records(output / "predictions.jsonl", predictions)
    if exam.answered:
        write_record(output / "results.json", result)
    else:
        write_record(output / "record.json", result)
    if exam.split == "test":
        letters = {s: {str(p.id): p.prediction for p in predictions if p.subject == s} for s in exam.subjects}
        write_json(output / "submission.json", letters)
        if config.subjects or config.limit:
            console.warn(f"{output / 'submission.json'}: not every question of the exam is in it (--subjects, --limit)")
