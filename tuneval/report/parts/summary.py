"""The first section: what was tuned, what the loss did, what the score did, and what can't be told."""

from __future__ import annotations

import math
from itertools import combinations

from tuneval.evaluation.stats import Paired
from tuneval.report import words as spell
from tuneval.report.document import Bullets, Section, Text, Tile, Tiles
from tuneval.report.findings import SIGNIFICANCE, Pair, curve, holm, in_order, pair
from tuneval.report.gather import Evaluation, ExamKey, Gathered, Run, identity_hash
from tuneval.report.legend import legend_key
from tuneval.report.parts.trust import contamination_warning, trust_warnings
from tuneval.report.records import RunRecord
from tuneval.report.words import Words

MOST_RUNS_PAIRED = 3
EXAM_NAMES = {"ceval": "C-Eval", "cmmlu": "CMMLU"}


def summary_section(gathered: Gathered, t: Words) -> Section:
    """Headline figures and plain sentences, run by run, then run against run."""
    several = len(gathered.runs) > 1
    blocks: list[object] = []
    for i, run in enumerate(gathered.runs, 1):
        title = run.label if several else ""
        blocks.append(Tiles(title=title, tiles=tuple(_tiles(run, gathered, t)), key=legend_key(title, i)))
        blocks.append(Bullets(title="", items=tuple(_sentences(run, gathered, t)), colour=i if several else None))
    between = _between(gathered, t)
    if between:
        blocks.append(Bullets(title=t("tab_pairs"), items=tuple(between)))
    blocks += [Text(text=t("note_baseline_gone", path=p), style="warning") for p in gathered.baseline_gone]
    return Section(id="summary", title=t("summary"), blocks=tuple(blocks))


def label_of(record: RunRecord, t: Words) -> str:
    """A run's short name: its method, with the rank of LoRA."""
    if record.method != "lora":
        return t("label_full")
    rank = record.config.get("lora_r")
    return t("label_lora", r=16 if rank is None else rank)


def model_name(identity: dict) -> str:
    """Last part of the path a model came from."""
    name = str(identity.get("name") or identity.get("path") or "?").rstrip("/\\")
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def exam_name(key: ExamKey, exams: list[ExamKey], t: Words) -> str:
    """Such as `C-Eval (val, 5-shot)`; with the style where two exams differ in that alone."""
    task, style, shots, split = key
    split = t("split_missing") if split == "?" else split  # a log that does not say
    twins = [k for k in exams if (k[0], k[2], k[3]) == (task, shots, key[3])]
    kind = "exam_name_style" if len(twins) > 1 else "exam_name"
    return t(kind, task=EXAM_NAMES.get(task, task), style=style, shots=shots, split=split)


def verdict(test: Paired, a: str, b: str, t: Words) -> list[str]:
    """A paired test as sentences."""
    if test.a_only + test.b_only == 0:
        return [t("say_same", n=test.n)]
    significant = test.p_value <= SIGNIFICANCE
    kind = "say_unclear" if not significant else "say_better" if test.difference > 0 else "say_worse"
    figures = {name: spell.points(getattr(test, name)) for name in ("low", "high")}
    if significant:
        figures["size"] = f"{100 * abs(test.difference):.1f}"
    else:
        figures["difference"] = spell.points(test.difference)
    text = t(kind, **figures, p=spell.p_value(test.p_value), n=test.n, a=a, b=b, a_only=test.a_only, b_only=test.b_only)
    return [text] if significant else [text, t("say_detectable", detectable=f"{100 * test.detectable:.1f}")]


def _tiles(run: Run, gathered: Gathered, t: Words):
    trained = curve(run.steps)
    if trained:
        yield Tile(label=t("tile_loss"), value=f"{spell.loss(trained.first)} → {spell.loss(trained.last)}")
    for key in gathered.exams[:1]:
        before, after = gathered.baseline.get(key), run.evaluations.get(key)
        shares = [spell.percent(e.result.micro["accuracy"]) if e else t("missing") for e in (before, after)]
        name = EXAM_NAMES.get(key[0], key[0])
        yield Tile(label=t("tile_score", exam=name), value=" → ".join(shares))
        tested = pair(before, after).test if before and after else None
        if tested:
            mark = "significant" if tested.p_value <= SIGNIFICANCE else "not_significant"
            interval = f"[{spell.points(tested.low)}, {spell.points(tested.high)}]"
            note = f"{interval}\n{t(mark)}"
            yield Tile(label=t("tile_difference"), value=spell.points(tested.difference), note=note)
    if trained:
        yield Tile(label=t("tile_speed"), value=speed_text(trained.tokens_per_second, t))
        yield Tile(label=t("tile_memory"), value=memory_text(trained.peak_memory_bytes, t))
    total, trainable = run.record.parameters.get("total"), run.record.parameters.get("trainable")
    if total and trainable is not None:
        yield Tile(label=t("tile_trainable"), value=share(trainable, total), note=f"{trainable:,} / {total:,}")


def speed_text(tokens_per_second: float, t: Words) -> str:
    """Tokens per second; logs of other programs don't say."""
    return spell.number(float(tokens_per_second)) if math.isfinite(tokens_per_second) else t("missing")


def memory_text(peak_bytes: int, t: Words) -> str:
    """Peak memory; logs of other programs may not say."""
    return spell.gib(peak_bytes) if peak_bytes else t("missing")


def share(part: int, whole: int) -> str:
    return "100%" if part == whole else f"{100 * part / whole:.2g}%"


def _sentences(run: Run, gathered: Gathered, t: Words):
    yield from _say_training(run, t)
    yield from _say_validation(run, t)
    if not gathered.exams:
        yield t("say_no_evaluation")
    for key in gathered.exams:
        yield from _say_score(run, key, gathered, t)


def _say_training(run: Run, t: Words):
    record, trained = run.record, curve(run.steps)
    if trained is None:
        yield t("say_no_steps")
        return
    logged = not record.parameters and not record.train_samples
    yield t(
        "say_tuned_logged" if logged else "say_tuned",
        method=_method(record, t),
        model=model_name(record.model),
        steps=f"{trained.steps:,}",
        seen=f"{trained.samples:,}" if trained.samples else t("missing"),
        **({} if logged else _sizes(record, t)),
    )
    if trained.steps < record.train_iters:
        yield t("say_unfinished", planned=f"{record.train_iters:,}", done=f"{trained.steps:,}")
    ends = {"first": spell.loss(trained.first), "last": spell.loss(trained.last)}
    if trained.not_finite:
        yield t("say_not_finite", n=len(trained.not_finite), step=trained.not_finite[0])
    elif len(run.steps) == 1:
        yield t("say_loss_one_step", first=ends["first"])
    else:
        yield t("say_loss_single" if trained.window == 1 else "say_loss", **ends, **_only(trained.window))
    if not math.isfinite(trained.seconds):
        yield t("say_speed_unknown", memory=memory_text(trained.peak_memory_bytes, t))
        return
    facts = {"time": t.seconds(trained.seconds), "memory": memory_text(trained.peak_memory_bytes, t)}
    if math.isfinite(trained.tokens_per_second):
        yield t("say_speed", speed=speed_text(trained.tokens_per_second, t), **facts)
    else:
        yield t("say_speed_no_tokens", **facts)


def _sizes(record: RunRecord, t: Words) -> dict[str, str]:
    """How much is trained, on how much."""
    total, trainable = record.parameters.get("total"), record.parameters.get("trainable")
    return {
        "trainable": f"{trainable:,}" if trainable is not None else t("missing"),
        "total": f"{total:,}" if total else t("missing"),
        "share": share(trainable, total) if total and trainable is not None else t("missing"),
        "samples": f"{record.train_samples:,}" if record.train_samples else t("missing"),
    }


def _method(record: RunRecord, t: Words) -> str:
    """The method's name as a sentence starts with it."""
    name = t(record.method) if t.has(record.method) else record.method
    return name[:1].upper() + name[1:]


def _only(window: int) -> dict[str, int]:
    return {} if window == 1 else {"k": window}


def _say_validation(run: Run, t: Words):
    if not run.steps:
        return
    if not run.validations:
        yield t("say_no_validation")
        return
    finite = [v for v in run.validations if math.isfinite(v.loss)]
    if len(finite) < len(run.validations):
        broken = next(v for v in run.validations if not math.isfinite(v.loss))
        yield t("say_validation_not_finite", n=len(run.validations) - len(finite), step=broken.step)
    if not finite:
        return
    first, last = finite[0], finite[-1]
    end = {"last": spell.loss(last.loss), "last_ppl": f"{last.perplexity:,.2f}"}
    if first is last:
        yield t("say_validation_one", step=last.step, **end)
        return
    start = {"first": spell.loss(first.loss), "first_ppl": f"{first.perplexity:,.2f}"}
    yield t("say_validation", first_step=first.step, last_step=last.step, **start, **end)
    best = min(finite, key=lambda v: v.loss)
    if spell.loss(best.loss) != spell.loss(last.loss):
        yield t("say_validation_best", best=spell.loss(best.loss), step=best.step)


def _say_score(run: Run, key: ExamKey, gathered: Gathered, t: Words):
    before, after = gathered.baseline.get(key), run.evaluations.get(key)
    exam = exam_name(key, gathered.exams, t)
    if before is None and after is None:
        return
    accuracies = {name: spell.percent(e.result.micro["accuracy"]) for name, e in _given(before, after)}
    result = (after or before).result  # type: ignore[union-attr]
    size = {"n": result.questions, "m": len(result.subjects)}
    if before is None or after is None:
        kind = "say_score_only_after" if after else "say_score_only_before"
        chance = {"chance": spell.percent(after.result.chance)} if after else {}
        yield t(kind, exam=exam, **size, **accuracies, **chance)
        yield from _what_limits(before, after, t)
        return
    yield t("say_score", exam=exam, **size, chance=spell.percent(after.result.chance), **accuracies)
    tested = pair(before, after)
    yield from say_pair(tested, t("model_before"), t("model_after"), t)
    yield from warnings(before, after, tested, t)
    hashes = identity_hash(before.result.model), identity_hash(run.record.model)
    if all(hashes) and hashes[0] != hashes[1]:
        yield t("warn_other_model")
    yield from _what_limits(before, after, t)


def _what_limits(before: Evaluation | None, after: Evaluation | None, t: Words):
    """What each score's own record says against it."""
    for name, e in _given(before, after):
        yield from trust_warnings(t(f"model_{name}"), e.result, t)
    if after is not None:
        yield from contamination_warning(after.result, t)


def _given(before: Evaluation | None, after: Evaluation | None) -> list[tuple[str, Evaluation]]:
    return [(name, e) for name, e in (("before", before), ("after", after)) if e is not None]


def say_pair(tested: Pair, a: str, b: str, t: Words):
    """The verdict over all questions and by category, or why there is none."""
    if tested.test is None:
        yield t("no_pairs", why=t(tested.reason or "", **(tested.reason_values or {})))
        return
    yield "".join(verdict(tested.test, a, b, t)) if t.lang == "zh" else " ".join(verdict(tested.test, a, b, t))
    names = in_order(tested.categories or {})
    if len(names) < 2 or tested.test.a_only + tested.test.b_only == 0:
        return
    passed = holm({c: tested.categories[c].p_value for c in names})  # type: ignore[index]
    yes = t.listed([category_name(c, t) for c in names if c in passed])
    no = t.listed([category_name(c, t) for c in names if c not in passed])
    if not passed:
        yield t("say_categories_none", k=len(names), no=no)
    elif len(passed) == len(names):
        yield t("say_categories_all", k=len(names), yes=yes)
    else:
        yield t("say_categories_some", k=len(names), yes=yes, no=no)


def warnings(a: Evaluation, b: Evaluation, tested: Pair, t: Words):
    """What else than the tuning may lie behind a difference."""
    if tested.other_prompts:
        yield t("warn_other_prompts")
    if a.result.template_fingerprint != b.result.template_fingerprint:
        yield t("warn_other_template")
    if a.result.dtype != b.result.dtype:
        yield t("warn_other_dtype", a=a.result.dtype, b=b.result.dtype)


def category_name(category: str, t: Words) -> str:
    return t(f"cat_{category}") if t.has(f"cat_{category}") else category


def _between(gathered: Gathered, t: Words) -> list[str]:
    """Each two runs against each other, where both took the exam; of many runs the table alone holds the pairs."""
    if len(gathered.runs) > MOST_RUNS_PAIRED:
        return [t("say_pairs_below")] if gathered.exams else []
    said = []
    for key in gathered.exams:
        for a, b in combinations(gathered.runs, 2):
            first, second = a.evaluations.get(key), b.evaluations.get(key)
            if first is None or second is None:
                continue
            tested = pair(first, second)
            start = t("say_between", a=a.label, b=b.label, exam=exam_name(key, gathered.exams, t))
            if tested.test is not None:
                gap = "" if t.lang == "zh" else " "
                said.append(start + gap + gap.join(verdict(tested.test, a.label, b.label, t)))
                said += warnings(first, second, tested, t)
    return said
