"""Gathered runs -> one HTML page and its Markdown twin."""

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
from tuneval.report.document import Document
from tuneval.report.gather import Gathered, gather
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
    runs: tuple[Path, ...], output: Path, lang: str, title: str | None = None, baseline: Path | None = None
) -> tuple[Path, Path]:
    """Read the run folders and write the page and its Markdown twin.

    Args:
        runs: run folders, in the order to show.
        output: the HTML file; the Markdown goes beside it.
        lang: `zh` or `en`.
        title: heading; None: one made from the model and the methods.
        baseline: folder with results.json of the model before tuning; None: the one that the runs name.

    Returns:
        The two files.

    Raises:
        UserError: a folder or file that is not what it should be.
    """
    t = Words(lang)
    gathered = gather(runs, baseline, lambda record: label_of(record, t))
    document = build(gathered, t, title)
    markdown = output.with_suffix(".md")
    for path, text in ((output, to_html(document)), (markdown, to_markdown(document))):
        with atomic_file(path) as file:
            file.write(printable(text))
    return output, markdown


def build(gathered: Gathered, t: Words, title: str | None = None) -> Document:
    """The report as blocks. The same input gives the same document: no clock, no random numbers."""
    records = [run.record for run in gathered.runs]
    models = t.listed(list(dict.fromkeys(model_name(r.model) for r in records)))
    methods = t.listed(list(dict.fromkeys(t(r.method) if t.has(r.method) else r.method for r in records)))
    subtitle = f"{t('title_run', model=models, methods=methods)} · {t('started', date=records[0].created[:10])}"
    return Document(
        lang=t("language_tag"),
        title=title or t("report_title"),
        subtitle=subtitle,
        sections=tuple(section(gathered, t) for section in SECTIONS),
        footer=t("made_by", version=metadata.version("tuneval")),
        contents=t("contents"),
        words={"prompt": t("prompt"), "figures_in_html": t("figures_in_html"), "data_link": t("data_link")},
    )


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
