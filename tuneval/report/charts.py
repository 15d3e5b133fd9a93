"""The charts of a sweep: levels of an axis, score against cost, and heat maps. Drawn as report.plots draws."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tuneval.report.plots import (
    GRID,
    INK,
    MARKERS,
    MUTED,
    RUN_COLOURS,
    STYLE,
    WIDTH,
    Texts,
    new_figure,
    text_width,
    to_svg,
)

HEAT = 0.5
"""Opacity of the strongest cell: words on it keep their contrast in both schemes."""
BETTER, WORSE = RUN_COLOURS[1], RUN_COLOURS[2]


@dataclass(frozen=True, kw_only=True)
class LevelDots:
    """One level of an axis."""

    label: str
    mean: float | None
    """None: no run of this level is done."""
    values: Sequence[float] = ()
    """Of the single runs."""


@dataclass(frozen=True, kw_only=True)
class CostDot:
    """One setting in a chart of score against cost."""

    number: int
    """Written beside it, as in the tables."""
    cost: float
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 1
    best: bool = False
    """No other is both cheaper and better."""


def levels(
    rows: Sequence[LevelDots],
    *,
    name: str,
    x_label: str,
    y_format: Callable[[float], str],
    line: float | None,
    line_label: str,
) -> str:
    """Every level's mean, joined, and its single runs as faint dots.

    Args:
        rows: the levels, from the left.
        name: prefix of every id in the SVG; unique in the page.
        x_label: the axis's name.
        y_format: value -> tick label.
        line: where a dashed line stands, such as the score before tuning; None: none.
        line_label: its name.
    """
    with matplotlib.rc_context(STYLE):
        words = Texts()
        figure, (axis,) = new_figure(height=232, left=52)
        for i, row in enumerate(rows):
            axis.plot(
                [i] * len(row.values), row.values, "o", color=RUN_COLOURS[1], alpha=0.4, markersize=5, markeredgewidth=0
            )
        shown = [(i, row.mean) for i, row in enumerate(rows) if row.mean is not None]
        if shown:
            axis.plot(*zip(*shown), color=RUN_COLOURS[1], linewidth=1.8, marker="D", markersize=6.5)
        axis.set_xticks(range(len(rows)), [words.stand_in(_short(row.label, len(rows))) for row in rows])
        axis.set_xlim(-0.5, len(rows) - 0.5)
        _value_axis(axis, y_format)
        if line is not None:
            _line(axis, words, line, line_label)
        axis.set_xlabel(words.stand_in(x_label), labelpad=3)
        return words.put_in(to_svg(figure, name))


def cost(
    dots: Sequence[CostDot],
    *,
    name: str,
    x_label: str,
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
    line: float | None,
    line_label: str,
) -> str:
    """Value against cost, a numbered dot a setting; those that nothing beats are joined.

    Args:
        dots: the settings, at least one.
        name: prefix of every id in the SVG; unique in the page.
        x_label: the cost and its unit.
        x_format: cost -> tick label.
        y_format: value -> tick label.
        line: where a dashed line stands; None: none.
        line_label: its name.
    """
    with matplotlib.rc_context(STYLE):
        words = Texts()
        figure, (axis,) = new_figure(height=280, left=52)
        front = sorted((dot for dot in dots if dot.best), key=lambda dot: dot.cost)
        axis.plot([d.cost for d in front], [d.value for d in front], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        for dot in dots:
            colour = RUN_COLOURS[dot.colour % len(RUN_COLOURS)]
            if dot.low is not None and dot.high is not None:
                axis.plot([dot.cost] * 2, [dot.low, dot.high], color=colour, linewidth=1.2, alpha=0.5)
            axis.plot([dot.cost], [dot.value], marker=MARKERS[dot.colour % len(MARKERS)], color=colour, markersize=7)
            axis.annotate(
                words.stand_in(str(dot.number)), (dot.cost, dot.value), (6, 4), textcoords="offset points", color=INK
            )
        low, high = min(d.cost for d in dots), max(d.cost for d in dots)
        air = 0.08 * (high - low) or 0.1 * max(abs(high), 1e-9)
        axis.set_xlim(max(0.0, low - air), high + air)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_format(value)))
        _value_axis(axis, y_format)
        if line is not None:
            _line(axis, words, line, line_label, [(d.cost, d.value) for d in dots])
        axis.set_xlabel(words.stand_in(x_label), labelpad=3)
        return words.put_in(to_svg(figure, name))


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    *,
    name: str,
    middle: float,
    x_label: str = "",
    y_label: str = "",
) -> str:
    """A coloured table: above `middle` in one colour, below in the other, the stronger the farther.

    Args:
        rows: names of the rows, from the top.
        columns: names of the columns.
        values: [rows][columns]; None: an empty cell.
        texts: what stands in the cells.
        name: prefix of every id in the SVG; unique in the page.
        middle: the value without colour.
        x_label: what the columns are.
        y_label: what the rows are.
    """
    widest = max([text_width(row) for row in rows] + [text_width(y_label)])
    left = min(14 + widest, 0.45 * WIDTH)
    labels = [_in_lines(column, len(columns)) for column in columns]
    top, bottom = (18 if y_label else 4), (40 if x_label else 24) + 15 * (max(map(len, labels)) - 1)
    farthest = max((abs(v - middle) for row in values for v in row if v is not None), default=0.0) or 1.0
    with matplotlib.rc_context(STYLE):
        words = Texts()
        figure, (axis,) = new_figure(height=30 * len(rows) + top + bottom, left=left, top=top, bottom=bottom)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value is not None:
                    _cell(axis, i, j, value - middle, farthest)
                axis.text(j, i, words.stand_in(texts[i][j]), ha="center", va="center", color=INK)
        axis.set_yticks(range(len(rows)), [words.stand_in(row) for row in rows])
        axis.set_xticks(range(len(columns)), [words.stand_in(lines[0]) for lines in labels])
        for j, lines in enumerate(labels):
            for line in lines[1:]:  # by itself: only then the page centres it
                axis.annotate(
                    words.stand_in(line), (j, 0), (0, -18), xycoords=axis.get_xaxis_transform(),
                    textcoords="offset points", ha="center", va="top",
                )  # fmt: skip
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(-0.5, len(columns) - 0.5)
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
        axis.tick_params(length=0)
        if x_label:
            axis.set_xlabel(words.stand_in(x_label), labelpad=4)
        if y_label:
            axis.text(
                -0.02, 1.0, words.stand_in(y_label), transform=axis.transAxes, ha="right", va="bottom", color=MUTED
            )
        return words.put_in(to_svg(figure, name))


def _cell(axis: Axes, row: int, column: int, distance: float, farthest: float) -> None:
    from matplotlib.patches import Rectangle

    strength = HEAT * abs(distance) / farthest
    place = (column - 0.48, row - 0.46)
    axis.add_patch(Rectangle(place, 0.96, 0.92, color=GRID, alpha=0.35, linewidth=0))
    if strength > 0:
        colour = BETTER if distance > 0 else WORSE
        axis.add_patch(Rectangle(place, 0.96, 0.92, color=colour, alpha=round(strength, 3), linewidth=0))


def _value_axis(axis: Axes, y_format: Callable[[float], str]) -> None:
    axis.grid(axis="y")
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y_format(value)))


def _line(axis: Axes, words: Texts, value: float, label: str, dots: Sequence[tuple[float, float]] = ()) -> None:
    """A dashed line with its name at the right end, or at the left one where only that is free of dots."""
    low, high = axis.get_ylim()
    air = 0.06 * (high - low)
    axis.set_ylim(min(low, value - air), max(high, value + air))
    axis.axhline(value, color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
    left, right = axis.get_xlim()
    long = (right - left) * text_width(label) / (0.85 * WIDTH)
    near = [x for x, y in dots if abs(y - value) < 1.6 * air]
    at_left = any(x > right - long for x in near) and not any(x < left + long for x in near)
    axis.text(
        0.005 if at_left else 0.995,
        value,
        words.stand_in(label),
        transform=axis.get_yaxis_transform(),
        ha="left" if at_left else "right",
        va="bottom",
        color=MUTED,
    )


def _in_lines(label: str, count: int) -> list[str]:
    """The label in two lines at a space where one has no room for it; cut where two have none either."""
    lines = textwrap.wrap(label, _room(count), break_long_words=False) or [label]
    return lines if len(lines) <= 2 and all(len(line) <= _room(count) for line in lines) else [_short(label, count)]


def _room(count: int) -> int:
    """Characters that one of `count` labels under an axis may have."""
    return max(4, math.floor(0.8 * WIDTH / max(count, 1) / 7.6))


def _short(label: str, count: int) -> str:
    """A label that leaves its neighbours their room; the table beside the figure has it whole."""
    room = _room(count)
    return label if len(label) <= room else label[: room - 1] + "…"
