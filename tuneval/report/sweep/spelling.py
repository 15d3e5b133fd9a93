"""How a sweep's figures are spelled: its objective, a test, a setting's name."""

from __future__ import annotations

from tuneval.evaluation.sign_flip import Difference
from tuneval.report import words as spell
from tuneval.report.parts.summary import exam_name
from tuneval.report.sweep.gather import Setting, SweepResult
from tuneval.report.words import Words


def what(sweep: SweepResult, t: Words) -> str:
    """The objective in words."""
    return t(f"what_{sweep.objective}")


def value(sweep: SweepResult, figure: float | None, t: Words) -> str:
    """A figure of the sweep's objective."""
    if figure is None:
        return spell.DASH
    return spell.percent(figure) if sweep.objective == "score" else f"{figure:.4f}"


def size(sweep: SweepResult, difference: float, t: Words) -> str:
    """The size of a difference, with its unit."""
    if sweep.objective == "score":
        return t("unit_points", value=f"{100 * abs(difference):.1f}")
    return f"{abs(difference):.4f}"


def figures(test: Difference, t: Words) -> str:
    """Interval and p value of a test."""
    return t("s_figures", low=spell.points(test.low), high=spell.points(test.high), p=spell.p_value(test.p_value))


def name(setting: Setting) -> str:
    """Number and levels, as figures and sentences name a setting."""
    return f"#{setting.number}\u00a0{setting.label}"


def exam(sweep: SweepResult, t: Words) -> str:
    """The exam's name; empty where none was taken."""
    return "" if sweep.exam is None else exam_name(sweep.exam, [sweep.exam], t)


def tick(sweep: SweepResult):
    """Value -> tick label of an axis that shows the objective."""
    return (lambda v: f"{100 * v:.4g}%") if sweep.objective == "score" else "{:g}".format
