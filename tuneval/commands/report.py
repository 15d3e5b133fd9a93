"""`tuneval report RUN ... --output report.html --lang zh|en`: one page from run folders."""

from __future__ import annotations

from tuneval import console
from tuneval.config.flags import Parsed
from tuneval.config.schema import ReportConfig
from tuneval.report.audit.check import check_run, print_findings
from tuneval.report.render import write_report
from tuneval.report.sweep.gather import is_sweep
from tuneval.report.sweep.render import write_sweep_report


def main(parsed: Parsed) -> int:
    """Write the page and what stands beside it; the paths go to standard output."""
    config: ReportConfig = parsed.config
    if config.check:
        return _check(config)
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
    sound = True
    for run in config.check:
        found = check_run(run)
        print_findings(run, found)
        sound = sound and found.sound
    return 0 if sound else 1
