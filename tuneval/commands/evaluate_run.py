"""One exam in one style: self-test, scoring piece by piece, what the number type changes, the record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneval import console, runtime
from tuneval.checkpoints.load import Loaded, load_model
from tuneval.commands.number_type import tell_slow_type
from tuneval.config import flags
from tuneval.config.schema import EvaluateConfig, EvaluationConfig
from tuneval.data.batches import deal
from tuneval.data.template import Template
from tuneval.errors import UserError
from tuneval.evaluation import contamination, stats
from tuneval.evaluation.contamination import Training
from tuneval.evaluation.decisions import METHODS, Answer, Decision, LetterLogits, Prompt, Reply, Scorer, describe
from tuneval.evaluation.exam import Exam, categories, duplicates
from tuneval.evaluation.margins import near_tie
from tuneval.evaluation.partial import Partial
from tuneval.evaluation.precision import Noise, in_fp32, noise
from tuneval.evaluation.self_test import SelfTest, self_test
from tuneval.evaluation.styles import Style, all_prompts, prompt_sha256, run_sha256
from tuneval.evaluation.units import ALONE, Ranks, Unit, units
from tuneval.files import write_json
from tuneval.report import tables
from tuneval.report.records import EvalResult, Prediction, to_dict, write_record, write_records

UNPARSED_LIMIT = 0.01
"""Share of replies without a readable answer above which a result must be asked for with --allow-unparsed."""


@dataclass(frozen=True)
class Examination:
    """What is asked of a model, and how."""

    exam: Exam
    style: Style
    shots: int
    config: EvaluateConfig
    """The settings, split, style and shots resolved."""
    chat: bool
    """Whether the model's chat template may be used."""
    template_fingerprint: str | None = None
    """Of the template that conversations are rendered with; None: none is used."""
    training: Training | None = None
    """What the model was tuned on, searched for the questions; None: not looked at."""

    def with_template(self, template: Template | None) -> Examination:
        converses = any(p.messages for rows in self.prompts.values() for p in rows)
        return replace(self, template_fingerprint=template.fingerprint if template and converses else None)

    @property
    def form_is_settled(self) -> bool:
        """Whether the style and the flags alone say how questions are put; else it depends on the model having a template."""
        return not (self.chat and "or plain" in self.style.form)

    @property
    def decision(self) -> Decision:
        return self.style.decision_for(self.shots)

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """Subject -> prompt of each question."""
        return all_prompts(self.style, self.exam, self.shots, self.chat)

    @cached_property
    def hashes(self) -> dict[str, list[str]]:
        return {subject: prompt_sha256(rows) for subject, rows in self.prompts.items()}

    @property
    def asked(self) -> dict[tuple[str, str], tuple[str | None, str | None]]:
        """(subject, id) -> right answer and hash of the prompt."""
        return {
            (subject, q.id): (q.answer, text_hash)
            for subject, questions in self.exam.questions.items()
            for q, text_hash in zip(questions, self.hashes[subject], strict=True)
        }

    @cached_property
    def asked_sha256(self) -> str:
        return run_sha256(self.style, self.shots, self.hashes)


def load(config: EvaluateConfig) -> Loaded:
    """The model to score, or this process's part of it."""
    tell_slow_type(config.dtype, "--dtype ", trains=False)
    return load_model(
        config.load,
        config.dtype,
        config.lora_load,
        config.tokenizer_name_or_path,
        config.lora if isinstance(config, EvaluationConfig) else None,
        config.shard.tensor_model_parallel_size,
    )


def score_exam(
    each: Examination, identity: dict, scorer: Scorer, output: Path, ranks: Ranks = ALONE, decoder: Any = None
) -> EvalResult:
    """Score every piece, or those an earlier unfinished call left, then write and print the result.

    Args:
        each: what is asked.
        identity: what is scored, for the record.
        scorer: gives logits and replies; with `decoder` the only thing here that knows a model.
        output: folder to write.
        ranks: the processes that divide the pieces; the first writes.
        decoder: the model's forward, to measure what its number type changes; None: not measured.

    Raises:
        UserError: the self-test fails, or too many replies hold no readable answer.
    """
    config, exam = each.config, each.exam
    settings = [config.dtype, config.batch_tokens, runtime.versions(), each.template_fingerprint]
    settings.append(config.tokenizer_name_or_path)  # which the identity, of the weights, does not hold
    partial = Partial(output, [identity, exam.data_sha256, each.asked_sha256, settings], ranks)
    checked = self_test(scorer, each.style, exam, each.shots, each.chat, config.dtype)
    kept = _all_pieces(each, scorer, partial, ranks)
    predictions = [Prediction(**row) for piece in kept for row in piece["predictions"]]
    if each.training is not None:
        shares = each.training.shares
        predictions = [replace(p, contamination=shares[p.subject, str(p.id)]) for p in predictions]
    _check_parsed(predictions, config, output)
    measured = _noise(each, predictions, scorer, decoder)
    seconds = sum(piece["seconds"] for piece in kept)
    result = _result(each, identity, predictions, seconds, checked, measured)
    if ranks.is_main:
        _write(output, exam, config, result, predictions)
        partial.remove()
        tables.print_result(result, output)
    return result


def _all_pieces(each: Examination, scorer: Scorer, partial: Partial, ranks: Ranks) -> list[dict]:
    """Every piece, as `Partial` keeps it: this rank scores its share, then all know all.

    Raises:
        UserError: of whichever rank; the same one on all, so that they stay together.
    """
    pieces = units(each.exam)
    mine = [pieces[i] for i in deal([_cost(each, u) for u in pieces], ranks.world)[ranks.rank]]
    failure = None
    try:
        _score_pieces(each, mine, scorer, partial)
    except UserError as error:
        failure = str(error)
    kept: dict[Unit, dict] = {}
    for failed, rows in ranks.gather((failure, {} if failure else {u: partial[u] for u in mine})):
        if failed is not None:
            raise UserError(failed)
        kept |= rows
    return [kept[u] for u in pieces]


def _cost(each: Examination, unit: Unit) -> int:
    """Characters to read: the examples once, each question."""
    rows = each.prompts[unit.subject][unit.start : unit.stop]
    sizes = [len(p.text) + sum(len(m.content) for m in p.messages) for p in rows]
    return sum(sizes) if isinstance(each.decision, Reply) else max(sizes) + sum(s - min(sizes) for s in sizes)


def _score_pieces(each: Examination, mine: Sequence[Unit], scorer: Scorer, partial: Partial) -> None:
    with console.progress_bar("scoring", sum(u.stop - u.start for u in mine)) as bar:
        for unit in mine:
            if unit in partial:
                bar.advance(unit.stop - unit.start)
                continue
            bar.describe(f"scoring {unit.subject}")
            started = time.monotonic()
            part = slice(unit.start, unit.stop)
            questions, asked = each.exam.questions[unit.subject][part], each.prompts[unit.subject][part]
            answers = each.decision.answers(scorer, asked, questions, bar.advance)
            rows = [
                _prediction(q, a, h)
                for q, a, h in zip(questions, answers, each.hashes[unit.subject][part], strict=True)
            ]
            partial.add(unit, [to_dict(r) for r in rows], time.monotonic() - started)


def _prediction(question, answer: Answer, text_hash: str) -> Prediction:
    return Prediction(
        subject=question.subject,
        id=question.id,
        answer=question.answer,
        prediction=answer.prediction,
        correct=None if question.answer is None else answer.prediction == question.answer,
        scores=answer.scores,
        margin=answer.margin,
        prompt_sha256=text_hash,
        response=answer.response,
    )


def _check_parsed(predictions: Sequence[Prediction], config: EvaluateConfig, output: Path) -> None:
    unread = [p for p in predictions if p.prediction is None]
    if len(unread) > UNPARSED_LIMIT * len(predictions) and not config.allow_unparsed:
        first = unread[0]
        raise UserError(
            f"{len(unread)} of {len(predictions)} replies hold no readable answer, such as {first.subject} {first.id}: "
            f"{(first.response or '')[:120]!r}. They would count as wrong; at most {UNPARSED_LIMIT:.0%} is taken in silence. "
            f"Choose a style that suits the model, raise --max-new-tokens, or repeat the command with --allow-unparsed: the "
            f"replies are kept in {output}, no question is asked again"
        )


def _noise(each: Examination, predictions: Sequence[Prediction], scorer: Scorer, decoder: Any) -> Noise | None:
    """A few questions of two subjects once more in fp32."""
    wanted = each.config.noise_questions
    if decoder is None or each.config.dtype == "fp32" or isinstance(each.decision, Reply) or not wanted:
        return None
    found = {(p.subject, p.id): p.scores for p in predictions}
    subjects = list(each.exam.subjects)
    here, there = [], []
    for subject in dict.fromkeys((subjects[0], subjects[len(subjects) // 2])):
        part = slice(0, max(1, wanted // 2))
        questions = each.exam.questions[subject][part]
        with in_fp32(decoder):
            exact = each.decision.answers(scorer, each.prompts[subject][part], questions, lambda n: None)
        here += [found[q.subject, q.id] for q in questions]
        there += [a.scores for a in exact]
    return noise(here, there)


def _result(
    each: Examination,
    identity: dict,
    predictions: list[Prediction],
    seconds: float,
    checked: SelfTest,
    measured: Noise | None,
) -> EvalResult:
    config, exam, style = each.config, each.exam, each.style
    right: dict[str, list[bool]] = {s: [] for s in exam.subjects}
    for p in predictions:
        right[p.subject].append(bool(p.correct))
    groups = categories({s: facts.groups for s, facts in exam.subjects.items()})
    if exam.answered:
        figures = stats.summary(right, groups)
    else:
        figures = {"micro": {}, "macro": {}, "categories": {}, "subjects": {s: {"n": len(right[s])} for s in right}}
    for subject, facts in exam.subjects.items():
        names = {"name_zh": facts.name_zh, "category": facts.category, "groups": list(facts.groups)}
        figures["subjects"][subject] = {**names, **figures["subjects"][subject]}
    scored = [p for p in predictions if p.margin is not None]
    return EvalResult(
        task=config.task,
        style=style.name,
        shots=each.shots,
        split=exam.split,
        model=identity,
        versions=runtime.versions(),
        data_sha256=exam.data_sha256,
        prompt_sha256=each.asked_sha256,
        template_fingerprint=each.template_fingerprint,
        dtype=config.dtype,
        seconds=seconds,
        questions=len(predictions),
        near_ties=sum(near_tie(p.scores) for p in scored) if isinstance(each.decision, LetterLogits) else None,
        exact_ties=sum(p.margin == 0 for p in scored) if scored else None,
        chance=exam.chance,
        methods={**stats.METHODS, **_methods(each.decision)},
        config=flags.to_dict(config),
        machine=runtime.machine(),
        decision=describe(each.decision),
        aggregation=style.aggregation,
        source=style.source,
        unparsed=sum(p.prediction is None for p in predictions),
        answers=_counts(exam, predictions),
        at_chance=stats.at_chance(figures["micro"], exam.chance),
        noise=asdict(measured) if measured else {},
        within_noise=sum(p.margin <= measured.largest for p in scored) if measured else None,
        self_test=asdict(checked),
        duplicates=duplicates(exam),
        contamination=_contamination(each, predictions),
        **figures,
    )


def _methods(decision: Decision) -> dict[str, str]:
    found = {"prediction": METHODS[decision.kind]}
    if isinstance(decision, LetterLogits):
        found["near_ties"] = "best two letters closer than one step of bf16 at the size of the best logit"
    return found


def _contamination(each: Examination, predictions: Sequence[Prediction]) -> dict[str, Any]:
    if each.training is None:
        return {}
    return contamination.summary(each.training, {(p.subject, str(p.id)): p.correct for p in predictions})


def _counts(exam: Exam, predictions: Sequence[Prediction]) -> dict[str, int]:
    """How often each label was chosen; {} where answers are free."""
    labels = sorted({label for rows in exam.questions.values() for question in rows for label in question.choices})
    return {label: sum(p.prediction == label for p in predictions) for label in labels}


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
    if exam.split == "test" and exam.task == "ceval":
        letters = {s: {str(p.id): p.prediction or "" for p in predictions if p.subject == s} for s in exam.subjects}
        write_json(output / "submission.json", letters)
        if config.subjects or config.limit:
            console.warn(f"{output / 'submission.json'}: not every question of the exam is in it (--subjects, --limit)")
