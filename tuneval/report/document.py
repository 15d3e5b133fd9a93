"""The report as blocks, before it becomes HTML or Markdown: both pages say the same."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a figure's legend."""

    label: str
    colour: int
    """Number of the page's CSS variable --run-N."""
    sign: str
    """The marker as a character."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    id: str
    title: str
    caption: str
    alt: str
    """What the figure shows, in words, for those who can't see it."""
    svg: str
    legend: tuple[Key, ...] = ()
    data: str = ""
    """The figures drawn, as CSV; empty: none is offered."""


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV; None becomes an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures side by side where there is room."""

    figures: tuple[Figure, ...]
    kind: str = "figures"


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    head: tuple[str, ...]
    """Column headings, the first over the rows' names."""
    rows: tuple[tuple[str, ...], ...]
    """Cells; the first of each row is its name."""
    groups: tuple[tuple[int, str], ...] = ()
    """(row, heading put above that row)."""
    note: str = ""
    text: bool = False
    """Cells are words (left-aligned, may wrap), not figures."""
    tight: bool = False
    """Cells never wrap; a narrow screen scrolls the table."""
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Text:
    text: str
    style: str = ""
    """`note` for an aside, `warning` for what limits the trust in a figure."""
    kind: str = "text"


@dataclass(frozen=True, kw_only=True)
class Bullets:
    title: str
    items: tuple[str, ...]
    colour: int | None = None
    kind: str = "bullets"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    title: str
    tiles: tuple[Tile, ...]
    key: Key | None = None
    """The run the figures are of, as figures mark it."""
    kind: str = "tiles"


@dataclass(frozen=True, kw_only=True)
class Code:
    title: str
    text: str
    kind: str = "code"


@dataclass(frozen=True, kw_only=True)
class Answer:
    label: str
    colour: int
    sign: str
    """Marker of the model in the figures."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and what each model answered."""

    title: str
    prompt: str
    answers: tuple[Answer, ...]
    kind: str = "sample"


@dataclass(frozen=True, kw_only=True)
class Section:
    id: str
    title: str
    blocks: tuple[object, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Document:
    lang: str
    """BCP 47 tag."""
    title: str
    subtitle: str
    sections: tuple[Section, ...] = ()
    footer: str = ""
    contents: str = ""
    """Heading of the table of contents."""
    words: dict[str, str] = field(default_factory=dict)
    """Few fixed words the templates need."""
