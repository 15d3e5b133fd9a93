"""`tuneval report RUN ... --output report.html --lang zh|en`: one page from run folders."""

from __future__ import annotations

from tuneval import console
from tuneval.config.flags import Parsed
from tuneval.config.schema import ReportConfig
from tuneval.errors import Problems, UserError
from tuneval.report.audit.check import check_run, print_findings
from tuneval.report.render import write_report
from tuneval.report.sweep.gather import is_sweep
from tuneval.report.sweep.render import write_sweep_report


def main(parsed: Parsed) -> int:
    """Write the page and what stands beside it; the paths go to standard output."""
    config: ReportConfig = parsed.config
    if config.check:
        return _check(config)
    problems = Problems()
    problems.check(
        config.runs or config.from_log, "name at least one run folder: tuneval report RUN --output report.html"
    )
    problems.check(
        config.output.suffix.lower() in (".html", ".htm"),
        f"--output {config.output}: must end in .html; the Markdown twin is written beside it",
    )
    there = next(p for p in (config.output.parent, *config.output.absolute().parents) if p.exists())
    problems.check(there.is_dir(), f"--output {config.output}: {there} is a file; choose another place")
    problems.check(not config.output.is_dir(), f"--output {config.output}: is a folder; name a file")
    problems.raise_if_any()
    if len(config.runs) == 1 and is_sweep(config.runs[0]):
        paths = write_sweep_report(config.runs[0], config.output, config.lang, config.title)
    else:
        paths = write_report(
            config.runs, config.output, config.lang, config.title, config.baseline, logs=config.from_log
        )
    for path in paths:
        console.out.print(str(path), markup=False)
    return 0


def _check(config: ReportConfig) -> int:
    """Print what each folder holds that is wrong. Returns 1 where anything is."""
    given = [flag for flag, value in (("RUN", config.runs), ("--from-log", config.from_log)) if value]
    if given:
        raise UserError(f"--check: makes no page, so {' and '.join(given)} can't act; name the folders behind --check")
    sound = True
    for run in config.check:
        found = check_run(run)
        print_findings(run, found)
        sound = sound and found.sound
    return 0 if sound else 1
