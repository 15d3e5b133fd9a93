"""`tuneval ablate SWEEP.yaml`: every point of a sweep, resumable, ending in one comparison report."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from tuneval import console
from tuneval.config.flags import Parsed
from tuneval.config.schema import AblateConfig
from tuneval.report.sweep.render import write_sweep_report
from tuneval.sweep.checks import check_commands
from tuneval.sweep.estimate import Estimate, estimate
from tuneval.sweep.progress import spell_seconds
from tuneval.sweep.runner import Runner
from tuneval.sweep.spec import read_sweep
from tuneval.sweep.state import DONE, SweepState, open_sweep, sweep_lock
from tuneval.sweep.steps import Plan, make_plan


def main(parsed: Parsed) -> int:
    """Run the sweep. Returns 0 when every point is done, 1 when some failed, 128 + the signal's number when stopped."""
    config: AblateConfig = parsed.config
    sweep = read_sweep(config.sweep)
    folder = config.output or sweep.output or Path("runs") / config.sweep.stem
    plan = make_plan(sweep, folder)
    check_commands(plan)
    with sweep_lock(folder) as lock:
        open_sweep(plan)
        runner = Runner(plan, config.jobs, config.keep, config.skip_failed, lock)
        if config.dry_run:
            return _dry_run(plan, runner, config.measure_steps)
        return runner.run() or _report(plan, config)


def _dry_run(plan: Plan, runner: Runner, measure_steps: int) -> int:
    status = runner.prepare_data()
    if status:
        return status
    state = SweepState(plan.folder)
    found = estimate(plan, measure_steps)
    table = Table(
        "#",
        "point",
        "state",
        "steps",
        "tokens",
        "time of the steps",
        title=escape(plan.sweep.name),
        title_justify="left",
    )
    for number, one in enumerate(found, 1):
        table.add_row(str(number), escape(one.job.point.label), _state(one, state), *_figures(one))
    console.out.print(table)
    known = [e.seconds for e in found if e.seconds is not None]
    total = f"; steps of all points together: {spell_seconds(sum(known))}" if len(known) == len(found) else ""
    console.out.print(f"{len(found)} points, {len(plan.shared)} shared steps{total}")
    if known:
        console.out.print("Time by steps measured here; starting, validations, exams and answers come on top.")
    return 0


def _state(one: Estimate, state: SweepState) -> str:
    outcomes = [state.outcome(step) for step in one.job.steps]
    if all(o is not None and o.status == DONE for o in outcomes):
        return "done"
    bad = next((o.status for o in outcomes if o is not None and o.status != DONE), None)
    return bad or ("begun" if any(outcomes) else "to do")


def _figures(one: Estimate) -> tuple[str, str, str]:
    steps = "?" if one.steps is None else f"{one.steps:,}"
    tokens = "?" if one.tokens is None else f"{one.tokens:,}"
    return steps, tokens, "not measured" if one.seconds is None else spell_seconds(one.seconds)


def _report(plan: Plan, config: AblateConfig) -> int:
    state = SweepState(plan.folder)
    failed = [
        (step, outcome)
        for job in plan.jobs
        for step in job.steps
        if (outcome := state.outcome(step)) is not None and outcome.status != DONE
    ]
    for step, outcome in failed:
        console.note(f"{step.id} {outcome.status}: {outcome.error}")
    for path in write_sweep_report(plan.folder, plan.folder / "report.html", config.lang):
        console.out.print(str(path), markup=False)
    return 1 if failed else 0
