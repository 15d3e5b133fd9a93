"""Curves and dot charts as SVG to be put into a page.

Matplotlib places, the browser writes: every word goes in as an ASCII stand-in and is put into the finished SVG as text,
so no font of the drawing machine matters and Chinese needs none. Colours are stand-ins too, turned into the page's CSS
variables, so that one SVG follows the light and the dark scheme.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, GRID, SURFACE = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
RUN_COLOURS = ("#0a0b00", "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
"""Stand-in of a series; 0 is the model before tuning."""
MARKERS = "oDs^vPX"
"""Of the series above, so that colour is never the only difference."""
MARKER_SIGNS = "●◆■▲▼✚✖"
"""The same markers as text, for legends in HTML."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface"} | {
    colour: f"--run-{i}" for i, colour in enumerate(RUN_COLOURS)
}
WIDTH = 400.0
"""Of every figure, in SVG units; text is 11 of them high, so a phone's 360 pixels still show it readably."""
_POINTS_PER_INCH = 72.0
_LARGEST = 1e300


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line or one row of dots."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    """Index into RUN_COLOURS."""
    points: Sequence[tuple[float, float]] = ()
    """Further (x, y), drawn as markers joined by a dashed line: validation."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value with its interval; `low` and `high` None: no interval."""

    value: float
    low: float | None
    high: float | None
    colour: int = 0


@dataclass
class Texts:
    """Hands out stand-ins and puts the real words in at the end."""

    given: list[str] = field(default_factory=list)

    def stand_in(self, text: str) -> str:
        self.given.append(text)
        return f"@{len(self.given) - 1}@"

    def put_in(self, svg: str) -> str:
        return re.sub(r"@(\d+)@", lambda m: html.escape(self.given[int(m[1])]), svg)


def curves(
    series: Sequence[Series],
    *,
    name: str,
    x_label: str,
    y_format: Callable[[float], str] = "{:g}".format,
    smooth: int = 1,
    from_zero: bool = False,
    lanes: bool = False,
) -> str:
    """Lines over steps.

    Args:
        series: the lines; NaN and infinite values leave gaps.
        name: prefix of every id in the SVG; unique in the page.
        x_label: unit of the horizontal axis.
        y_format: value -> tick label.
        smooth: width of a centred moving mean, steps; above 1 the raw line is drawn faint beneath it.
        from_zero: let the vertical axis start at zero.
        lanes: a panel of its own for every series, each with its own scale.

    Returns:
        An `<svg>` element without size, to be scaled by CSS.
    """
    panels = len(series) if lanes else 1
    with matplotlib.rc_context(STYLE):
        words = Texts()
        figure, axes = new_figure(height=232 if panels == 1 else 96 * panels + 48, panels=panels, left=46)
        for i, one in enumerate(series):
            _draw_line(axes[i % panels], one, smooth)
        for axis in axes:
            axis.grid(axis="y")
            axis.yaxis.set_major_locator(MaxNLocator(5 if panels == 1 else 3))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y_format(value)))
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=_whole(series)))
            _limits(axis, from_zero)
        if lanes:
            for one, axis in zip(series, axes):
                axis.text(0.99, 0.97, words.stand_in(one.label), transform=axis.transAxes, ha="right", va="top")
        axes[-1].set_xlabel(words.stand_in(x_label), labelpad=3)
        return words.put_in(to_svg(figure, name))


def dots(
    rows: Sequence[tuple[str, Sequence[Dot | None]]],
    *,
    name: str,
    line: float,
    line_label: str,
    x_format: Callable[[float], str] = lambda share: f"{100 * share:.4g}%",
) -> str:
    """A row of dots with intervals for every label.

    Args:
        rows: (label, one dot a series, None where it has no value), at least one, drawn from the top.
        name: prefix of every id in the SVG; unique in the page.
        line: where a dashed line stands: the share that guessing reaches, or no change.
        line_label: its name.
        x_format: value -> tick label; shares from 0 to 1 become percent.
    """
    deepest = max(len(d) for _, d in rows)
    row_height = 12.0 * deepest + 12
    left = min(12 + max(text_width(label) for label, _ in rows), 0.45 * WIDTH)
    with matplotlib.rc_context(STYLE):
        words = Texts()
        figure, (axis,) = new_figure(height=row_height * len(rows) + 46, left=left, top=20, bottom=26)
        for i, (_, row) in enumerate(rows):
            if i % 2 == 0:
                axis.axhspan(i - 0.5, i + 0.5, color=GRID, alpha=0.35, linewidth=0)
            for j, dot in enumerate(row):
                if dot is not None:
                    _draw_dot(axis, dot, y=i + (j - (len(row) - 1) / 2) * 12 / row_height)
        axis.set_yticks(range(len(rows)), [words.stand_in(label) for label, _ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(*_dot_limits(rows, line))
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_format(value)))
        axis.grid(axis="x")
        axis.axvline(line, color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
        axis.text(
            line, 1.02, words.stand_in(line_label), transform=axis.get_xaxis_transform(), ha="center", color=MUTED
        )
        return words.put_in(to_svg(figure, name))


def moving_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Centred mean over `width` values, fewer at the ends, NaN and infinite ones left out. Shape [len(values)]."""
    array, half = np.asarray(values, dtype=float), width // 2
    good, window = np.isfinite(array), np.ones(2 * half + 1)
    middles = slice(half, half + len(array))
    # Each window by itself: in running sums one huge loss would swallow all that come after it.
    means = np.convolve(np.where(good, array, 0.0) / len(window), window)[middles]
    n = np.convolve(good.astype(float), window)[middles]
    return np.where(n > 0, means * (len(window) / np.maximum(n, 1)), np.nan)


STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tuneval",
    "font.size": 11.0,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "figure.facecolor": "none",
    "path.simplify": True,
}


def new_figure(
    height: float, panels: int = 1, left: float = 46, top: float = 10, bottom: float = 38
) -> tuple[Figure, list[Axes]]:
    """A figure of WIDTH x height with fixed margins, in SVG units."""
    figure = Figure(figsize=(WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
    FigureCanvasSVG(figure)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(
        left=left / WIDTH, right=1 - 14 / WIDTH, top=1 - top / height, bottom=bottom / height, hspace=0.18
    )
    return figure, list(axes)


def _draw_line(axis: Axes, one: Series, smooth: int) -> None:
    colour, marker = RUN_COLOURS[one.colour % len(RUN_COLOURS)], MARKERS[one.colour % len(MARKERS)]
    y = _drawable(one.y)
    few = len(one.x) < 12
    if smooth > 1:
        axis.plot(one.x, y, color=colour, alpha=0.35, linewidth=0.9)
        axis.plot(one.x, moving_mean(y, smooth), color=colour, linewidth=1.8)
    else:
        axis.plot(one.x, y, color=colour, linewidth=1.6, marker=marker if few else None, markersize=4)
    if one.points:
        px, py = zip(*one.points)
        axis.plot(px, _drawable(py), color=colour, linewidth=1, linestyle=(0, (4, 2)), marker=marker, markersize=6,
                  markerfacecolor=SURFACE, markeredgecolor=colour, markeredgewidth=1.5)  # fmt: skip


def _drawable(values: Sequence[float]) -> np.ndarray:
    """NaN in the place of what no axis can show: infinities, and numbers that leave no room for a margin."""
    array = np.asarray(values, dtype=float)
    return np.where(np.abs(array) < _LARGEST, array, np.nan)


def _whole(series: Sequence[Series]) -> bool:
    return all(float(x).is_integer() for one in series for x in one.x)


def _limits(axis: Axes, from_zero: bool) -> None:
    """A flat line must not be stretched to fill the panel; a range that must start at zero does."""
    low, high = axis.get_ylim()
    if from_zero:
        axis.set_ylim(0, max(high, 1e-12) * (1.05 if high > 0 else 1))
    elif high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
        axis.set_ylim(low - abs(low) * 0.1 - 1e-12, high + abs(high) * 0.1 + 1e-12)


def _draw_dot(axis: Axes, dot: Dot, y: float) -> None:
    colour, marker = RUN_COLOURS[dot.colour % len(RUN_COLOURS)], MARKERS[dot.colour % len(MARKERS)]
    if dot.low is not None and dot.high is not None:
        axis.plot([dot.low, dot.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axis.plot([dot.value], [y], color=colour, marker=marker, markersize=6.5, linestyle="none")


def _dot_limits(rows: Sequence[tuple[str, Sequence[Dot | None]]], line: float) -> tuple[float, float]:
    """The range shown: every interval and the line, with a little air; shares don't leave 0 to 1."""
    dots = [d for _, row in rows for d in row if d is not None]
    values = [v for d in dots for v in (d.value, d.low, d.high) if v is not None] + [line]
    low, high = min(values), max(values)
    air = max(0.02, 0.08 * (high - low))
    return (low if low == 0 else low - air), (high + air if high < 1 else 1.01)


def text_width(text: str) -> float:
    """Width in SVG units at the phone's larger letters (13): a Chinese character is one em, a Latin one about 0.58."""
    return sum(13.0 if ord(c) > 0x2E7F else 7.6 for c in text)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an inline `<svg>`: no size, no fonts, ids of its own, colours from the page."""
    buffer = StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg, count=1
    )
    svg = re.sub(r"font(-size|-family|-weight|-style)?: [^;\"]*(; )?", "", svg)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"#0a0[ab]0\d", lambda m: f"var({_VARIABLES[m[0]]})", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
