"""What the flags of `report` show by themselves."""

from __future__ import annotations

from tuneval.config.schema import ReportConfig
from tuneval.errors import Problems, UserError


def check(config: ReportConfig) -> None:
    """Raise one UserError for all that is wrong."""
    if config.check:
        _check_of_check(config)
        return
    problems = Problems()
    problems.check(
        config.runs or config.from_log, "name at least one run folder: tuneval report RUN --output report.html"
    )
    for folder in config.runs:
        problems.check(folder.is_dir(), f"{folder}: no such folder. Give a run folder, the --save of `tuneval tune`")
    problems.check(
        config.output.suffix.lower() in (".html", ".htm"),
        f"--output {config.output}: must end in .html; the Markdown twin is written beside it",
    )
    there = next(p for p in (config.output.parent, *config.output.absolute().parents) if p.exists())
    problems.check(there.is_dir(), f"--output {config.output}: {there} is a file; choose another place")
    problems.check(not config.output.is_dir(), f"--output {config.output}: is a folder; name a file")
    problems.raise_if_any()


def _check_of_check(config: ReportConfig) -> None:
    """`--check` looks at folders and makes no page."""
    given = [flag for flag, value in (("RUN", config.runs), ("--from-log", config.from_log)) if value]
    if given:
        raise UserError(f"--check: makes no page, so {' and '.join(given)} can't act; name the folders behind --check")
