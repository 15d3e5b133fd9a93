"""Plots: words that need no font, ids of their own, colours from the page; a moving mean that is one."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tuneval.report import plots
from tuneval.report.plots import Dot, Series

SVG = "{http://www.w3.org/2000/svg}"


def line(label: str = "LoRA", **changes) -> Series:
    return Series(**{"label": label, "x": list(range(1, 41)), "y": [3 / i for i in range(1, 41)], **changes})


def draw_all() -> dict[str, str]:
    """Every kind of figure, with Chinese words."""
    dots = [
        ("社会科学", [Dot(value=0.5, low=0.4, high=0.6), None]),
        ("理工", [None, Dot(value=0.3, low=None, high=None)]),
    ]
    return {
        "plain": plots.curves([line()], name="plain", x_label="步"),
        "smooth": plots.curves([line(points=[(5, 1.0), (40, 0.4)])], name="smooth", x_label="步", smooth=5),
        "lanes": plots.curves([line("全参数"), line("低秩", colour=2)], name="lanes", x_label="步", lanes=True),
        "dots": plots.dots(dots, name="dots", line=0.25, line_label="随机猜测 25%"),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph would be a warning
        return draw_all()


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.removeprefix(SVG) == "text"]


@pytest.mark.parametrize("name", ["plain", "smooth", "lanes", "dots"])
def test_svg_is_well_formed_and_self_contained(drawn, name):
    svg = drawn[name]
    ElementTree.fromstring(svg)
    assert "http" not in svg and "<style" not in svg and "<?xml" not in svg
    assert "font" not in svg, "the page chooses the font"
    assert not re.search(r"#[0-9a-f]{6}", svg), "a colour that does not follow the page"
    assert not re.search(r"@\d+@", svg), "a stand-in was left"
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) and all(i.startswith(f"{name}-") for i in ids)
    referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert {a or b for a, b in referred} <= set(ids)


def test_chinese_words_are_text(drawn):
    assert "步" in texts(drawn["plain"])
    assert {"全参数", "低秩"} <= set(texts(drawn["lanes"]))
    assert {"社会科学", "理工", "随机猜测 25%"} <= set(texts(drawn["dots"]))


def test_words_are_escaped():
    svg = plots.dots([("<script>&", [Dot(value=0.5, low=None, high=None)])], name="x", line=0.0, line_label="@0@")
    assert "<script>" not in svg and {"<script>&", "@0@"} <= set(texts(svg))


def test_the_same_input_draws_the_same_figure(drawn):
    assert draw_all() == drawn


def test_series_differ_by_more_than_colour(drawn):
    """Markers of two series have different paths."""
    both = [("a", [Dot(value=0.5, low=None, high=None, colour=i) for i in (0, 1)])]
    svg = plots.dots(both, name="m", line=0.0, line_label="")
    used = {re.search(rf"fill: var\(--run-{i}\)", svg) is not None for i in (0, 1)}
    marks = re.findall(r'<use href="#(m-m[0-9a-f]+)"[^>]*fill: var\(--run-', svg)
    assert used == {True} and len(set(marks)) == 2
    assert len(plots.MARKERS) == len(plots.MARKER_SIGNS) == len(plots.RUN_COLOURS)


@pytest.mark.parametrize(
    "y",
    [
        [math.nan] * 5,
        [1.0, math.nan, math.inf, 2.0, 3.0],
        [2.5] * 5,
        [0.0] * 5,
        [1e-12, 1e12, 1.0, 1.0, 1.0],
        [1.0, 3e38, 2.0, 3.0, 1e38],
        [1e308, 1.0, -1e308, 1.7e308, 1e308],
    ],
    ids=["nothing", "gaps", "flat", "zero", "extremes", "fp32", "huge"],
)
@pytest.mark.parametrize("smooth", [1, 5])
@pytest.mark.parametrize("from_zero", [False, True])
def test_odd_values_are_drawn(y, smooth, from_zero):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.curves([line(x=range(1, 6), y=y)], name="odd", x_label="step", smooth=smooth, from_zero=from_zero)
    ElementTree.fromstring(svg)
    assert not re.search(r"\bnan\b|\binf\b", svg)


def box(svg: str) -> tuple[float, float]:
    """Left and right end of the axes."""
    found = re.search(r'id="\w+-patch_2">\s*<path d="M ([\d.]+) [\d.]+\s*L ([\d.]+) ', svg)
    assert found
    return float(found[1]), float(found[2])


def test_one_step_is_drawn():
    """A line through one point is nothing to see: its marker is."""
    svg = plots.curves([line(x=[1], y=[2.0])], name="one", x_label="step")
    middle = sum(box(svg)) / 2
    assert re.search(rf'<use href="#one-\w+" x="{middle:g}" y="[\d.]+" style="[^"]*--run-1', svg)


def test_a_very_long_label_leaves_room():
    rows = [("a name without end " * 20, [Dot(value=0.5, low=None, high=None)])]
    left, right = box(plots.dots(rows, name="long", line=0.25, line_label="guessing"))
    assert right - left > plots.WIDTH / 2


def test_moving_mean_equals_the_definition():
    values = np.sin(np.arange(30) * 1.7)
    values[[3, 11]] = [math.nan, math.inf]
    expected = []
    for i in range(30):
        near = [v for v in values[max(0, i - 3) : i + 4] if math.isfinite(v)]
        expected.append(sum(near) / len(near))
    np.testing.assert_allclose(plots.moving_mean(values, 7), expected, rtol=1e-12)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(plots.moving_mean(values, 5), expected, rtol=1e-12)


def test_a_huge_value_does_not_swallow_what_comes_after_it():
    mean = plots.moving_mean([2.0] * 5 + [1e30] + [2.0] * 20, 5)
    assert mean[3:8] == pytest.approx(2e29) and mean[[0, 1, 2, *range(8, 26)]] == pytest.approx(2.0, rel=1e-12)
    assert plots.moving_mean([1.5e308] * 9, 5) == pytest.approx(1.5e308)


def test_moving_mean_of_nothing_finite():
    assert np.isnan(plots.moving_mean([math.nan, math.inf], 3)).all()


def test_a_home_that_can_not_be_written_is_no_matter():
    code = "from tuneval import runtime; import tuneval.report.plots"
    environment = {**os.environ, "HOME": "/dev/null/home", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
