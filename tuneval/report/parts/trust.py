"""How far a score can be trusted: what the evaluation found out about itself, from results.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tuneval.report import words as spell
from tuneval.report.document import Table
from tuneval.report.records import EvalResult
from tuneval.report.words import Words

ONE_ANSWER = 0.9
"""Share of the questions above which always the same answer is called out."""
UNPARSED = 0.01
"""Share of unreadable replies above which they are called out."""
FEW_QUESTIONS = 20
"""Fewer questions may have the same answer by chance."""


def trust_table(title: str, columns: Sequence[tuple[str, EvalResult]], t: Words) -> Table | None:
    """A row for everything that some result records about itself, a column for each model.

    Args:
        title: of the exam.
        columns: (name, result).
        t: words.

    Returns:
        None where nothing is recorded (results of logs, or of an older version).
    """
    rows = []
    for key, cell in _ROWS.items():
        cells = [cell(result, t) for _, result in columns]
        if any(cells):
            rows.append((t(key), *(c or t("missing") for c in cells)))
    if not any(result.self_test for _, result in columns) or not rows:
        return None
    head = (t("item"), *(name for name, _ in columns))
    name = f"{title}{t('colon')}{t('tab_trust')}"
    return Table(title=name, head=head, rows=tuple(rows), note=t("trust_note"), text=True)


def trust_warnings(name: str, result: EvalResult, t: Words) -> list[str]:
    """What a reader of the score must know before the score; `name`: what the model is called."""
    found = []
    if result.at_chance:
        found.append(t("warn_chance", name=name))
    most = max(result.answers.values(), default=0)
    if result.questions >= FEW_QUESTIONS and most > ONE_ANSWER * result.questions:
        label = max(result.answers, key=result.answers.__getitem__)
        found.append(t("warn_one_answer", name=name, most=most, n=result.questions, label=label))
    asked, right = result.self_test.get("trivial", 0), result.self_test.get("trivial_right", 0)
    if 2 * right < asked:
        found.append(t("warn_self_test", name=name, asked=asked, right=right))
    if (result.unparsed or 0) > UNPARSED * result.questions:
        share = spell.percent(result.unparsed / result.questions)  # type: ignore[operator]
        found.append(t("warn_unparsed", name=name, n=result.unparsed, share=share))
    return found


def contamination_warning(result: EvalResult, t: Words) -> list[str]:
    """Whether the tuned model saw questions of the exam."""
    facts = result.contamination
    clean = facts.get("clean") or {}
    if not facts.get("touched") or not clean.get("n"):
        return []
    values = {name: facts[name] for name in ("judged", "touched", "whole")}
    return [t("warn_contamination", **values, n=clean["n"], accuracy=spell.percent(clean["accuracy"]))]


Cell = Callable[[EvalResult, Words], str]
"""Empty where the result does not record it."""


def _mean(result: EvalResult, t: Words) -> str:
    return t.named("mean", result.aggregation) if result.aggregation else ""


def _self_test(result: EvalResult, t: Words) -> str:
    found = result.self_test
    return t("trust_self_tested", asked=found["trivial"], right=found["trivial_right"]) if found else ""


def _batch(result: EvalResult, t: Words) -> str:
    size = result.self_test.get("largest_batch_difference")
    return "" if size is None else t("trust_batch_difference", size=f"{size:.2g}")


def _unparsed(result: EvalResult, t: Words) -> str:
    generates = result.decision.get("kind") in ("reply", "lm_eval")
    return t("trust_of", n=result.unparsed, all=result.questions) if generates and result.unparsed is not None else ""


def _ties(result: EvalResult, t: Words) -> str:
    return "" if result.exact_ties is None else t("trust_of", n=result.exact_ties, all=result.questions)


def _noise(result: EvalResult, t: Words) -> str:
    found = result.noise
    if not found:
        return ""
    sizes = {name: f"{found[name]:.2g}" for name in ("largest", "median")}
    return t("trust_noise_found", n=found["questions"], changed=found["changed"], **sizes)


def _within(result: EvalResult, t: Words) -> str:
    return "" if result.within_noise is None else t("trust_of", n=result.within_noise, all=result.questions)


def _contamination(result: EvalResult, t: Words) -> str:
    found: dict[str, Any] = result.contamination
    if not found:
        return t("not_looked_at") if result.self_test else ""
    text = t("trust_contaminated", **{name: found[name] for name in ("judged", "touched", "whole", "run")})
    clean = found.get("clean") or {}
    if found["touched"] and clean.get("n"):
        text += t("semicolon") + t("trust_clean", n=clean["n"], accuracy=spell.percent(clean["accuracy"]))
    return text


def _duplicates(result: EvalResult, t: Words) -> str:
    found = result.duplicates
    if not any(found.values()):
        return t("none") if found else ""
    names = {"repeated": "repeated", "contradictory": "contradictory", "examples": "worked_examples"}
    return t("trust_repeated", **{name: found.get(key, 0) for name, key in names.items()})


def _answers(result: EvalResult, t: Words) -> str:
    return " · ".join(f"{label}\u00a0{n}" for label, n in result.answers.items())


_ROWS: dict[str, Cell] = {
    "trust_mean": _mean,
    "trust_self_test": _self_test,
    "trust_batch": _batch,
    "trust_unparsed": _unparsed,
    "trust_ties": _ties,
    "trust_noise": _noise,
    "trust_within": _within,
    "trust_contamination": _contamination,
    "trust_duplicates": _duplicates,
    "trust_answers": _answers,
}
