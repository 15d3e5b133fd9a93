"""Evaluation results in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from tuneval import console
from tuneval.report.records import Comparison, EvalResult


def print_result(result: EvalResult, folder: Path) -> None:
    """Accuracy by subject and category, micro and macro, with 95% intervals; then where the record is."""
    if not result.micro:
        console.out.print(f"{result.questions} questions answered; the right answers of {result.split} are secret.")
        console.out.print(f"submission and predictions: {folder}", markup=False)
        return
    title = f"{result.task} {result.split}, style {result.style}, {result.shots} shots, {result.dtype}"
    table = _table(title, ("", "right", "accuracy", "95% interval"))
    for category in dict.fromkeys(facts["category"] for facts in result.subjects.values()):
        for subject, facts in result.subjects.items():
            if facts["category"] == category:
                table.add_row(escape(subject), *_figures(facts))
        table.add_section()
    for name, facts in result.categories.items():
        table.add_row(escape(name), *_figures(facts))
        table.add_row("  mean of its subjects", *_figures(facts["macro"]), style="dim")
    table.add_section()
    table.add_row("all questions (micro)", *_figures(result.micro), style="bold")
    table.add_row("mean of subjects (macro)", *_figures(result.macro), style="bold")
    console.out.print(table)
    ties = f"{result.near_ties} near ties, {result.exact_ties} exact" if result.near_ties else "no near ties"
    console.out.print(f"guessing: {100 * result.chance:.1f}%; {ties}; {result.seconds:.1f} s of scoring")
    console.out.print(f"result: {folder}", markup=False)


def print_comparison(comparison: Comparison, folder: Path) -> None:
    """The verdict, the difference by category, and where the record is."""
    names = ("", "n", "before", "after", "change", "95% interval", "lost", "won", "p")
    table = _table(f"{comparison.a} -> {comparison.b}", names)
    for name, facts in comparison.categories.items():
        table.add_row(escape(name), *_paired(facts))
    table.add_section()
    table.add_row("all", *_paired(vars(comparison)), style="bold")
    console.out.print(table)
    console.out.print(comparison.verdict, markup=False)
    console.out.print(f"comparison: {folder / 'comparison.json'}", markup=False)


def _table(title: str, names: tuple[str, ...]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table


def _figures(facts: Mapping) -> tuple[str, str, str]:
    right = f"{facts['correct']}/{facts['n']}" if "n" in facts else ""
    return right, f"{100 * facts['accuracy']:.1f}%", f"{100 * facts['low']:.1f} to {100 * facts['high']:.1f}"


def _paired(facts: Mapping) -> tuple[str, ...]:
    p = facts["p_value"]
    return (
        str(facts["n"]),
        f"{100 * facts['a_accuracy']:.1f}%",
        f"{100 * facts['b_accuracy']:.1f}%",
        f"{100 * facts['difference']:+.1f}",
        f"{100 * facts['low']:+.1f} to {100 * facts['high']:+.1f}",
        str(facts["a_only"]),
        str(facts["b_only"]),
        "<0.0001" if p < 0.0001 else f"{p:.4f}",
    )
