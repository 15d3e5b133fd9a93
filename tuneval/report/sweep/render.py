"""A sweep's folder -> one page, its Markdown twin, and the same figures as CSV and JSON."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tuneval.report.document import Code, Document, Section, Text, csv_text
from tuneval.report.gather import Gathered, Run
from tuneval.report.parts.samples import samples_section
from tuneval.report.parts.setting import command_text, reproduce_section, settings_section, setup_section
from tuneval.report.render import to_html, to_json, to_markdown, write_all
from tuneval.report.sweep import spelling
from tuneval.report.sweep.axes import effects_section
from tuneval.report.sweep.gather import PointResult, Setting, SweepResult, gather_sweep
from tuneval.report.sweep.runs import cost_section, failed_section, methods_section, points_section
from tuneval.report.sweep.scores import scores_section
from tuneval.report.sweep.summary import Analysis, analyse, summary_section
from tuneval.report.words import Words


def write_sweep_report(folder: Path, output: Path, lang: str, title: str | None = None) -> tuple[Path, ...]:
    """Compare the points of a sweep.

    Args:
        folder: of `tuneval ablate`.
        output: the HTML file; Markdown, CSV and JSON go beside it.
        lang: `zh` or `en`.
        title: heading; None: a plain one.

    Returns:
        The four files.

    Raises:
        UserError: a folder or record that is not what it should be.
    """
    t = Words(lang)
    sweep = gather_sweep(folder)
    analysis = analyse(sweep)
    document = build(sweep, analysis, t, title)
    texts = {
        output: to_html(document),
        output.with_suffix(".md"): to_markdown(document),
        output.with_suffix(".csv"): points_csv(sweep),
        output.with_suffix(".json"): to_json(document, points=points_data(sweep)),
    }
    write_all(texts)
    return tuple(texts)


def build(sweep: SweepResult, analysis: Analysis, t: Words, title: str | None) -> Document:
    """The report as blocks; the same records give the same document."""
    sections = [
        summary_section(sweep, analysis, t),
        _winner_section(sweep, t),
        effects_section(sweep, analysis, t),
        scores_section(sweep, analysis, t),
        cost_section(sweep, analysis, t),
        _samples(sweep, t),
        points_section(sweep, t),
        failed_section(sweep, t),
        methods_section(sweep, t),
        *_setting_sections(sweep, t),
    ]
    subtitle = t("sweep_subtitle", name=sweep.name, settings=len(sweep.settings), runs=len(sweep.points))
    return Document(
        lang=t("language_tag"),
        title=title or t("sweep_title"),
        subtitle=subtitle,
        sections=tuple(section for section in sections if section is not None),
        footer=t("made_by", version=metadata.version("tuneval")),
        contents=t("contents"),
        words={"prompt": t("prompt"), "figures_in_html": t("figures_in_html"), "data_link": t("data_link")},
    )


def _winner_section(sweep: SweepResult, t: Words) -> Section | None:
    """What to type to get the best setting again."""
    point = _representative(sweep, sweep.ranked[0]) if sweep.ranked else None
    if point is None or point.run is None:
        return None
    text = command_text(point.run.record.command)
    return Section(
        id="winner", title=t("sweep_winner"), blocks=(Code(title=spelling.name(sweep.ranked[0]), text=text),)
    )


def _representative(sweep: SweepResult, setting: Setting) -> PointResult | None:
    """Of a setting's runs the one with the best figure."""
    done = [(figure, p) for p in setting.done if (figure := sweep.figure(p)) is not None]
    choose = max if sweep.objective == "score" else min
    return choose(done, key=lambda entry: entry[0])[1] if done else None


def _chosen_runs(sweep: SweepResult, of_each_method: bool) -> list[tuple[Setting, Run]]:
    """The best setting's run; with `of_each_method` the best of full tuning and of LoRA."""
    found: dict[str, tuple[Setting, Run]] = {}
    for setting in sweep.ranked:
        point = _representative(sweep, setting)
        if point is not None and point.run is not None:
            found.setdefault(point.run.record.method if of_each_method else "", (setting, point.run))
    return list(found.values())


def _labelled(chosen: list[tuple[Setting, Run]]) -> tuple[Run, ...]:
    return tuple(replace(run, label=spelling.name(setting)) for setting, run in chosen)


def _samples(sweep: SweepResult, t: Words) -> Section | None:
    """Base, full and LoRA side by side: the best setting of each method."""
    chosen = [(s, run) for s, run in _chosen_runs(sweep, of_each_method=True) if run.samples]
    if not chosen:
        return None
    section = samples_section(Gathered(runs=_labelled(chosen), baseline={}), t)
    labels = t.listed([spelling.name(s) for s, _ in chosen])
    first = Text(text=t("sweep_samples_note", labels=labels), style="note")
    return Section(id=section.id, title=section.title, blocks=(first, *section.blocks[1:]))


def _setting_sections(sweep: SweepResult, t: Words) -> list[Section]:
    """Set-up, commands and hashes of the best setting's run, and the sweep file."""
    chosen = _chosen_runs(sweep, of_each_method=False)
    file = Code(title=t("sweep_file"), text=_yaml(sweep.file))
    if not chosen:
        return [Section(id="reproduce", title=t("reproduce"), blocks=(file,))]
    point = next(p for p in chosen[0][0].points if p.run is chosen[0][1])
    gathered = Gathered(runs=_labelled(chosen), baseline=point.baseline)
    setup = setup_section(gathered, t)
    reproduce = reproduce_section(gathered, t)
    note = Text(text=t("sweep_common"), style="note")
    return [
        Section(id=setup.id, title=setup.title, blocks=(note, *setup.blocks)),
        Section(id=reproduce.id, title=reproduce.title, blocks=(file, *reproduce.blocks)),
        settings_section(gathered, t),
    ]


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, default_flow_style=None, width=88).strip()


def points_data(sweep: SweepResult) -> list[dict[str, Any]]:
    """Every run with its settings and main figures, as JSON values."""
    rows = []
    for setting in sweep.settings:
        for point in setting.points:
            evaluation, trained = point.evaluation(sweep.exam), point.curve
            rows.append(
                {
                    "setting": setting.number,
                    "run": point.id,
                    "levels": setting.levels,
                    "seed": point.seed,
                    "status": point.status,
                    "failed_step": point.failed_step or None,
                    "error": point.error or None,
                    "score": point.score(sweep.exam),
                    "correct": None if evaluation is None else evaluation.result.micro.get("correct"),
                    "questions": None if evaluation is None else evaluation.result.questions,
                    "validation_loss": point.validation_loss,
                    "training_loss": None if trained is None else trained.last,
                    "seconds": None if trained is None else trained.seconds,
                    "tokens_per_second": None if trained is None else trained.tokens_per_second,
                    "peak_memory_bytes": None if trained is None else trained.peak_memory_bytes,
                    "tokens": None if trained is None else trained.tokens,
                    "samples": None if trained is None else trained.samples,
                    "trainable_parameters": None if point.run is None else point.run.record.parameters.get("trainable"),
                }
            )
    return rows


def points_csv(sweep: SweepResult) -> str:
    """The same as a table: a column for every axis."""
    rows = points_data(sweep)
    axes = list(dict.fromkeys(axis for row in rows for axis in row["levels"]))
    names = [name for name in rows[0] if name not in ("levels", "error")] if rows else []
    body = [[row["levels"].get(axis) for axis in axes] + [row[name] for name in names] for row in rows]
    return csv_text([*axes, *names], body)
