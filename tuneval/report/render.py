"""Gathered runs -> one HTML page, its Markdown twin, and the figures as CSV and JSON."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tuneval.files import atomic_file
from tuneval.report.document import Document, csv_text
from tuneval.report.findings import curve, pair
from tuneval.report.gather import Gathered, gather
from tuneval.report.logs import read_logs
from tuneval.report.parts.samples import samples_section
from tuneval.report.parts.scores import scores_section
from tuneval.report.parts.setting import data_section, reproduce_section, settings_section, setup_section
from tuneval.report.parts.summary import label_of, model_name, summary_section
from tuneval.report.parts.training import training_section
from tuneval.report.words import Words

SECTIONS = (
    summary_section,
    training_section,
    scores_section,
    samples_section,
    data_section,
    setup_section,
    reproduce_section,
    settings_section,
)
"""The order of the page: what came out, then how."""


def write_report(
    runs: tuple[Path, ...],
    output: Path,
    lang: str,
    title: str | None = None,
    baseline: Path | None = None,
    logs: tuple[Path, ...] = (),
) -> tuple[Path, ...]:
    """Read the run folders and write the page and what stands beside it.

    Args:
        runs: run folders, in the order to show.
        output: the HTML file; the Markdown goes beside it.
        lang: `zh` or `en`.
        title: heading; None: one made from the model and the methods.
        baseline: folder with results.json of the model before tuning; None: the one that the runs name.
        logs: logs of runs made elsewhere, as `report.logs` reads them.

    Returns:
        The files: HTML, Markdown, CSV, JSON.

    Raises:
        UserError: a folder or file that is not what it should be.
    """
    t = Words(lang)
    from_logs, logged_baseline = read_logs(logs)
    gathered = gather(runs, baseline, lambda record: label_of(record, t), from_logs, logged_baseline)
    document, figures = build(gathered, t, title), run_figures(gathered)
    rows = [list(figures[0]), *([row[name] for name in figures[0]] for row in figures)]
    texts = {
        output: to_html(document),
        output.with_suffix(".md"): to_markdown(document),
        output.with_suffix(".csv"): csv_text(rows[0], rows[1:]),
        output.with_suffix(".json"): to_json(document, runs=figures),
    }
    write_all(texts)
    return tuple(texts)


def write_all(texts: dict[Path, str]) -> None:
    """Write every file whole, as text that any reader takes."""
    for path, text in texts.items():
        with atomic_file(path) as file:
            file.write(printable(text))


def build(gathered: Gathered, t: Words, title: str | None = None) -> Document:
    """The report as blocks. The same input gives the same document: no clock, no random numbers."""
    records = [run.record for run in gathered.runs]
    models = t.listed(list(dict.fromkeys(model_name(r.model) for r in records)))
    methods = t.listed(list(dict.fromkeys(t(r.method) if t.has(r.method) else r.method for r in records)))
    subtitle = t("title_run", model=models, methods=methods)
    if records[0].created:
        subtitle += f" · {t('started', date=records[0].created[:10])}"
    return Document(
        lang=t("language_tag"),
        title=title or t("report_title"),
        subtitle=subtitle,
        sections=tuple(section(gathered, t) for section in SECTIONS),
        footer=t("made_by", version=metadata.version("tuneval")),
        contents=t("contents"),
        words={"prompt": t("prompt"), "figures_in_html": t("figures_in_html"), "data_link": t("data_link")},
    )


def run_figures(gathered: Gathered) -> list[dict[str, Any]]:
    """Every run's main figures, as JSON values; scores of every exam with their paired test against the baseline."""
    rows = []
    for run in gathered.runs:
        trained, record = curve(run.steps), run.record
        row = {
            "run": run.label,
            "folder": str(run.folder),
            "method": record.method,
            "model": record.model.get("path"),
            "lr": record.config.get("lr"),
            "global_batch_size": record.config.get("global_batch_size"),
            "trainable_parameters": record.parameters.get("trainable"),
            "steps": None if trained is None else trained.steps,
            "training_loss_first": None if trained is None else trained.first,
            "training_loss_last": None if trained is None else trained.last,
            "validation_loss": run.validations[-1].loss if run.validations else None,
            "seconds": None if trained is None else trained.seconds,
            "tokens_per_second": None if trained is None else trained.tokens_per_second,
            "peak_memory_bytes": None if trained is None else trained.peak_memory_bytes,
        }
        for key in gathered.exams:
            name, before, after = "-".join(map(str, key)), gathered.baseline.get(key), run.evaluations.get(key)
            test = pair(before, after).test if before is not None and after is not None else None
            row[f"{name} before"] = None if before is None else before.result.micro["accuracy"]
            row[f"{name} after"] = None if after is None else after.result.micro["accuracy"]
            row[f"{name} p_value"] = None if test is None else test.p_value
        rows.append(row)
    return rows


def to_html(document: Document) -> str:
    """The page. Every text is escaped by jinja2; only our own SVGs go in as they are."""
    environment = Environment(
        loader=PackageLoader("tuneval.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["svg"] = Markup  # of report.plots, whose words are escaped there
    return environment.get_template("report.html").render(d=document).strip() + "\n"


def data_uri(text: str) -> str:
    """CSV as a link that holds it: the page stays one file."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(printable(text).encode()).decode()


def to_markdown(document: Document) -> str:
    """The same as Markdown; model output stands in fenced blocks, other text is escaped."""
    environment = Environment(
        loader=PackageLoader("tuneval.report", "templates"),
        autoescape=False,  # HTML escaping would show in a reader of plain text; every value passes `finalize` instead
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fence"] = fence
    environment.filters["cell"] = lambda text: Markup(escape_markdown(text).replace("\n", "<br>"))
    text = environment.get_template("report.md").render(d=document)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_json(document: Document, **more: Any) -> str:
    """Everything the page says as JSON: sentences, tables, the figures' data; drawings apart.

    Args:
        document: the page.
        more: further values under their names.
    """
    blocks = [{"section": s.id, "title": s.title, "blocks": [_data_of(b) for b in s.blocks]} for s in document.sections]
    values = {"title": document.title, "subtitle": document.subtitle, "language": document.lang, "sections": blocks}
    return json.dumps(_finite({**values, **more}), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null takes its place."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _data_of(block: Any) -> dict[str, Any]:
    """A block without what only draws."""
    values = asdict(block)
    for figure in values.get("figures", ()):
        del figure["svg"], figure["legend"]
        figure["data"] = list(csv.DictReader(io.StringIO(figure["data"])))
    return {k: v for k, v in values.items() if v not in ("", None, (), [])}


def printable(text: str) -> str:
    """The text as UTF-8 can hold it and a page may: half characters (surrogates) spelled out, controls as pictures."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", lambda m: chr(0x2400 + min(ord(m[0]), 0x21)), text)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no table border."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text).replace("&", "&amp;")


def fence(text: str) -> Markup:
    """A fenced block that the text can't close: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}text\n{text}\n{ticks}")
