"""Evaluation results in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    _print_whole(table)
    facts = [f"guessing: {100 * result.chance:.1f}%", *_closeness(result), f"{result.seconds:.1f} s of scoring"]
    console.out.print("; ".join(facts))
    for remark in _remarks(result):
        console.out.print(remark, markup=False)
    console.out.print(f"result: {folder}", markup=False)


def print_matrix(results: Sequence[EvalResult], folder: Path) -> None:
    """A row a style: both means with their intervals; the one its own recipe reports is marked."""
    table = _table(
        f"{results[0].task} {results[0].split}, {results[0].dtype}", ("", "shots", "reads", "micro", "macro")
    )
    for result in results:
        means = [
            " ".join(_figures(getattr(result, mean))[1:]).replace(" to ", "-")  # both means must fit in 80 columns
            + (" *" if mean == result.aggregation else "  ")
            for mean in (("micro", "macro") if result.micro else ())
        ]
        table.add_row(escape(result.style), str(result.shots), _READS[result.decision["kind"]], *means)
    _print_whole(table)
    console.out.print("* the mean that the style's own recipe reports")
    console.out.print(f"results: {folder / 'matrix.json'}", markup=False)


_READS = {"letter_logits": "letters", "option_likelihood": "options", "reply": "reply", "lm_eval": "lm_eval"}
"""Kind of decision -> what is read."""


def _closeness(result: EvalResult) -> list[str]:
    if result.exact_ties is None:
        return [] if result.unparsed is None else [f"{result.unparsed} of {result.questions} replies unreadable"]
    words = [f"{result.near_ties} near ties"] if result.near_ties is not None else []
    words.append(f"{result.exact_ties} exact ties")
    if result.within_noise is not None:
        words.append(f"{result.within_noise} answers within the noise of {result.dtype}")
    return words


def _remarks(result: EvalResult) -> list[str]:
    """What a reader of the score must know."""
    found = []
    if result.at_chance:
        found.append("The score is no better than guessing.")
    most = max(result.answers.values(), default=0)
    if result.questions >= 20 and most > 0.9 * result.questions:
        label = max(result.answers, key=result.answers.__getitem__)
        found.append(f"{most} of {result.questions} answers are {label}: the model chooses a letter, not an answer.")
    asked, right = result.self_test.get("trivial", 0), result.self_test.get("trivial_right", 0)
    if right < asked:
        found.append(f"Self-test: {right} of {asked} questions whose answer stands in them were answered right.")
    repeated, shown = result.duplicates.get("repeated", 0), result.duplicates.get("worked_examples", 0)
    if repeated:
        found.append(f"{repeated} questions repeat an earlier one and count again.")
    if shown:
        found.append(f"{shown} questions stand among the worked examples, answer included.")
    if result.contamination:
        found.append(_contamination(result.contamination))
    return found


def print_comparison(comparison: Comparison, folder: Path) -> None:
    """The verdict, the difference by category, and where the record is."""
    names = ("", "n", "before", "after", "change", "95% interval", "lost", "won", "p")
    table = _table(f"{comparison.a} -> {comparison.b}", names)
    for name, facts in comparison.categories.items():
        table.add_row(escape(name), *_paired(facts))
    table.add_section()
    table.add_row("all", *_paired(vars(comparison)), style="bold")
    _print_whole(table)
    console.out.print(comparison.verdict, markup=False)
    for line in _many_subjects(comparison):
        console.out.print(line, markup=False)
    console.out.print(f"comparison: {folder / 'comparison.json'}", markup=False)


def _contamination(facts: Mapping) -> str:
    said = f"Training data: {facts['touched']} of {facts['judged']} questions share words with it, {facts['whole']} stand in it"
    clean = facts["clean"]
    if not facts["touched"] or not clean["n"]:
        return f"{said}."
    return f"{said}; without them {100 * clean['accuracy']:.1f}% of {clean['n']} are right."


def _many_subjects(comparison: Comparison) -> list[str]:
    """What holds of the mean of subjects, and of single ones once their number is allowed for."""
    found, drawn = [], comparison.bootstrap
    if drawn and len(comparison.subjects) > 1:
        low, high = (100 * x for x in drawn["macro"])
        found.append(
            f"Mean of subjects: {100 * drawn['macro_difference']:+.1f} points (95% bootstrap interval {low:+.1f} to {high:+.1f})."
        )
    changed = {s: f for s, f in comparison.subjects.items() if f["p_holm"] <= 0.05}
    if len(comparison.subjects) > 1:
        names = ", ".join(f"{s} {100 * f['difference']:+.0f} (p = {f['p_holm']:.3f})" for s, f in changed.items())
        found.append(
            f"Single subjects, p corrected for all {len(comparison.subjects)} (Holm): {names or 'none differs'}."
        )
    return found


def _table(title: str, names: tuple[str, ...]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table


def _print_whole(table: Table) -> None:
    """Print a table at its own width: what a narrower terminal breaks can be read, what rich would cut off can not."""
    table.width = console.out.measure(table, options=console.out.options.update_width(1000)).maximum
    console.out.print(table)


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
