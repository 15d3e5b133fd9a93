"""Data, set-up and machine, commands and hashes, all settings: what another person needs to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields

from tuneval.config.flags import setting_words
from tuneval.config.schema import EvaluateConfig, PreprocessConfig
from tuneval.report import words as spell
from tuneval.report.document import Code, Section, Table, Text
from tuneval.report.gather import Evaluation, Gathered, Run, identity_hash
from tuneval.report.parts.summary import exam_name
from tuneval.report.records import RunRecord
from tuneval.report.words import DASH, Words

PERCENTILES = ("p5", "p50", "p90", "p95", "p99", "max")


def data_section(gathered: Gathered, t: Words) -> Section:
    """Statistics from the data's manifest; one column where every run used the same data."""
    blocks: list[object] = []
    if not any(run.record.data for run in gathered.runs):
        blocks.append(Text(text=t("note_no_manifest"), style="note"))
    blocks.append(_by_run(t("tab_data"), gathered.runs, lambda run: _data_column(run, t), t))
    return Section(id="data", title=t("data"), blocks=tuple(blocks))


def _data_column(run: Run, t: Words) -> dict[str, str]:
    data = run.record.data
    source = data.get("input") if isinstance(data.get("input"), dict) else {}
    lengths = data.get("lengths") or {}
    spread = " · ".join(f"{name}\u00a0{lengths[name]:,.0f}" for name in PERCENTILES if name in lengths)
    skipped = data.get("skipped")
    reasons = (
        "" if not skipped else "\n".join(f"{t.named('skip', reason)}{t('colon')}{n:,}" for reason, n in skipped.items())
    )
    return {
        t("data_input"): t.or_missing(source.get("path") or source.get("name")),
        t("data_handler"): t.or_missing(data.get("handler")),
        t("data_template"): t.or_missing(data.get("prompt_type")),
        t("data_rows"): _count(source.get("rows"), t),
        t("data_samples"): _count(data.get("samples"), t),
        t("data_tokens"): _count(data.get("tokens"), t),
        t("data_trained"): _count(data.get("trained_tokens"), t),
        t("data_lengths"): spread or t("missing"),
        t("data_skipped"): t("missing") if skipped is None else reasons or "0",
        t("data_over_long"): _count(data.get("over_long"), t),
        t("data_duplicates"): _count(data.get("duplicates"), t),
        t("data_packed"): t.named("packed", data["packed"]) if "packed" in data else t("missing"),
        t("data_split"): t.or_missing(run.record.config.get("split")),
        t("data_train"): f"{run.record.train_samples:,}" if run.record.train_samples else t("missing"),
    }


def _count(value: object, t: Words) -> str:
    if isinstance(value, (list, dict)):
        return f"{len(value):,}"
    return f"{value:,}" if isinstance(value, int) else t.or_missing(value)


def _by_run(title: str, runs: tuple[Run, ...], column: Callable[[Run], dict[str, str]], t: Words) -> Table:
    """A table with a column a run, or a single one where all say the same; rows that some run lacks show a dash."""
    columns = [column(run) for run in runs]
    names = list(dict.fromkeys(name for c in columns for name in c))
    same = all(c == columns[0] for c in columns)
    shown = columns[:1] if same else columns
    head = (t("item"), "") if same else (t("item"), *(run.label for run in runs))
    rows = tuple((name, *(c.get(name, DASH) for c in shown)) for name in names)
    return Table(title=title, head=head, rows=rows, text=True)


def setup_section(gathered: Gathered, t: Words) -> Section:
    runs = gathered.runs
    blocks = (
        _by_run(t("tab_setup"), runs, lambda run: _setup_column(run, t), t),
        _by_run(t("tab_machine"), runs, lambda run: _machine_column(run.record, t), t),
        _by_run(t("tab_versions"), runs, lambda run: {k: str(v) for k, v in run.record.versions.items()}, t),
    )
    return Section(id="setup", title=t("setup"), blocks=blocks)


def _setup_column(run: Run, t: Words) -> dict[str, str]:
    record, config = run.record, run.record.config
    column = {
        t("set_method"): t(record.method) if t.has(record.method) else record.method,
        t("set_model"): t.or_missing(record.model.get("path")),
        t("set_kind"): t.or_missing(record.model.get("kind")),
        t("set_dtype"): _dtype(config, t),
        t("set_lr"): _learning_rate(run, t),
        t("set_warmup"): _warmup(config, t),
        t("set_batch"): t.or_missing(config.get("global_batch_size")),
        t("set_reduction"): t.or_missing(config.get("loss_reduction")),
        t("set_decay"): f"{t.or_missing(config.get('weight_decay'))} / {t.or_missing(config.get('clip_grad'))}",
        t("set_seq"): str(config.get("seq_length") or t("set_seq_model")),
        t("set_seed"): t.or_missing(config.get("seed")),
    }
    if record.method == "lora":
        r = 16 if config.get("lora_r") is None else config["lora_r"]
        alpha = 2 * r if config.get("lora_alpha") is None else config["lora_alpha"]
        column[t("set_lora")] = f"{r} / {alpha:g} / {t.or_missing(config.get('lora_dropout'))}"
        column[t("set_targets")] = t.listed(list(config.get("lora_target_modules") or [])) or t("set_targets_all")
    column[t("set_git")] = t.or_missing(record.git)
    return column


def _dtype(config: dict, t: Words) -> str:
    given = next((name for name in ("fp32", "fp16", "bf16") if config.get(name)), None)
    return given or ("bf16" if config.get("load") else t("missing"))


def _learning_rate(run: Run, t: Words) -> str:
    config = run.record.config
    peak = config.get("lr") or max((s.lr for s in run.steps), default=None)
    lowest = config.get("min_lr")
    ends = [t("missing") if v is None else spell.rate(float(v)) for v in (peak, lowest)]
    style = config.get("lr_decay_style")
    return " → ".join(ends) + (f" ({style})" if style else "")


def _warmup(config: dict, t: Words) -> str:
    if config.get("lr_warmup_fraction") is not None:
        return f"{100 * config['lr_warmup_fraction']:g}%"
    steps = config.get("lr_warmup_iters")
    return t("missing") if steps is None else t("set_warmup_steps", n=steps) if steps else t("none")


def _machine_column(record: RunRecord, t: Words) -> dict[str, str]:
    column = {}
    for key, value in record.machine.items():
        name = t(f"machine_{key}") if t.has(f"machine_{key}") else key
        column[name] = spell.gib(value) if key.endswith("_bytes") and isinstance(value, int) else t.or_missing(value)
    return column or {t("tab_machine"): t("missing")}


def reproduce_section(gathered: Gathered, t: Words) -> Section:
    """The commands as recorded, those of the evaluations, and every hash."""
    recorded = [(run.label, command_text(run.record.command) or t("missing")) for run in gathered.runs]
    rebuilt = [(t("preprocess"), _rebuilt("preprocess", PreprocessConfig, run.preprocess)) for run in gathered.runs]
    for label, evaluation in _evaluations(gathered, t):
        rebuilt.append((label, _rebuilt("evaluate", EvaluateConfig, evaluation.result.config)))
    blocks: list[object] = [Code(title=t("commands_recorded"), text=_listing(recorded))]
    rebuilt = [(label, text) for label, text in dict.fromkeys(rebuilt) if text]
    if rebuilt:
        blocks.append(Code(title=t("commands_rebuilt"), text=_listing(rebuilt)))
    blocks.append(Table(title=t("tab_hashes"), head=(t("item"), ""), rows=tuple(_hashes(gathered, t)), text=True))
    return Section(id="reproduce", title=t("reproduce"), blocks=tuple(blocks))


def command_text(words: list[str]) -> str:
    """The words as a shell takes them, a line for each flag."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and lines[-1]:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n    ".join(" ".join(line) for line in lines)


def _evaluations(gathered: Gathered, t: Words) -> list[tuple[str, Evaluation]]:
    found = [(t("baseline"), e) for e in gathered.baseline.values()]
    return found + [(run.label, e) for run in gathered.runs for e in run.evaluations.values()]


def _listing(commands: list[tuple[str, str]]) -> str:
    return "\n\n".join(f"# {label}\n{text}" for label, text in commands)


def _rebuilt(command: str, config_type: type, settings: dict) -> str:
    """The command that gives these settings; a setting at its default is left out. Empty where nothing is recorded."""
    words = []
    for f in fields(config_type):
        value = settings.get(f.name)
        if value not in ([], f.default):
            words += setting_words(f.name, value)
    return command_text(["tuneval", command, *words]) if words else ""


def _hashes(gathered: Gathered, t: Words):
    """(what, hash), each pair once; with the run's name where runs differ."""
    found: dict[str, dict[str, str]] = {}
    for run in gathered.runs:
        record = run.record
        source = record.data.get("input") if isinstance(record.data.get("input"), dict) else {}
        values = {
            "hash_model": identity_hash(record.model),
            "hash_data": _flat_hash(record.data.get("data_sha256")),
            "hash_input": source.get("sha256"),
            "hash_template": record.template_fingerprint,
            "set_git": record.git,
        }
        for key, value in values.items():
            found.setdefault(t(key), {})[run.label] = t.or_missing(value)
    for label, evaluation in _evaluations(gathered, t):
        result = evaluation.result
        exam = exam_name((result.task, result.style, result.shots, result.split), gathered.exams, t)
        found.setdefault(t("hash_exam", exam=exam), {})[label] = t.or_missing(result.data_sha256)
        found.setdefault(t("hash_prompts", exam=exam), {})[label] = t.or_missing(result.prompt_sha256)
    for name, by_run in found.items():
        if len(set(by_run.values())) == 1:
            yield name, next(iter(by_run.values()))
        else:
            yield from ((f"{name} · {label}", value) for label, value in by_run.items())


def _flat_hash(value: object) -> str | None:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {digest}" for name, digest in value.items())
    return None if value is None else str(value)


def settings_section(gathered: Gathered, t: Words) -> Section:
    """Every resolved setting; a sign before those in which the runs differ."""
    runs = gathered.runs
    names = sorted({name for run in runs for name in run.record.config})
    rows = []
    for name in names:
        values = [_setting(run.record.config.get(name)) for run in runs]
        sign = "≠ " if len(set(values)) > 1 else ""
        rows.append((f"{sign}{name}", *values))
    head = (t("item"), *(run.label for run in runs))
    table = Table(title=t("tab_settings") if len(runs) > 1 else "", head=head, rows=tuple(rows), text=True)
    return Section(id="settings", title=t("settings"), blocks=(table,))


def _setting(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, list):
        return " ".join(map(str, value)) or DASH
    return str(value)
