"""A handed-in run folder: is it complete, and does it agree with itself?"""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from tuneval import console
from tuneval.errors import UserError
from tuneval.report.audit.findings import OK, OPEN, WRONG, Findings
from tuneval.report.audit.scores import check_scores
from tuneval.report.audit.training import check_training
from tuneval.report.records import SampleAnswer, read_records

SIGNS = {OK: "[green]ok[/]", WRONG: "[red]WRONG[/]", OPEN: "[yellow]open[/]"}


def check_run(run: Path) -> Findings:
    """Look at everything that a run folder holds.

    Args:
        run: the folder.

    Returns:
        The findings; what can only be told with files of another machine is `open`, not wrong.

    Raises:
        UserError: no such folder.
    """
    if not run.is_dir():
        raise UserError(f"--check {run}: no such folder. Give a run folder, the --save of `tuneval tune`")
    found = Findings()
    check_training(run, found)
    check_scores(run, found)
    samples = run / "samples.jsonl"
    if samples.is_file():
        rows = found.attempt("samples.jsonl", lambda: read_records(SampleAnswer, samples))
        if rows is not None:
            found.add("samples.jsonl", OK, f"{len(rows)} prompts")  # type: ignore[arg-type]
    return found


def print_findings(run: Path, found: Findings) -> None:
    """The findings as a table, then the verdict in a sentence."""
    table = Table(title=escape(str(run)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    for one in found.found:
        table.add_row(SIGNS[one.state], escape(one.what), escape(one.detail))
    console.out.print(table)
    wrong, left = (sum(f.state == state for f in found.found) for state in (WRONG, OPEN))
    verdict = f"{wrong} of {len(found.found)} checks are wrong" if wrong else "complete and consistent"
    rest = f"; {left} could not be made here" if left else ""
    console.out.print(f"{run}: {verdict}{rest}", markup=False)
