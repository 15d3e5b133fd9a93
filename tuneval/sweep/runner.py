"""Runs a plan: shared steps first, then the points, one after another or several at once, each command in a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from tuneval import console, runtime
from tuneval.cores import usable_cores
from tuneval.errors import UserError
from tuneval.sweep.processes import own_session
from tuneval.sweep.progress import SweepProgress
from tuneval.sweep.state import DONE, FAILED, SKIPPED, STOPPED, Outcome, SweepState
from tuneval.sweep.steps import Job, Plan, Step

GRACE_SECONDS = 600.0
"""How long a stopped process may take to save before it is killed."""
ERROR_LINES = 15
"""Lines of a log that are kept as the error where no command says it."""


class Runner:
    """One run of a sweep.

    Args:
        plan: what to do.
        jobs: points at the same time.
        keep: `all`, `model` or `records`.
        skip_failed: leave points that failed before.
        lock: descriptor that every child holds while it lives.
    """

    def __init__(self, plan: Plan, jobs: int, keep: str, skip_failed: bool, lock: int) -> None:
        self.plan, self.jobs, self.keep, self.skip_failed, self.lock = plan, jobs, keep, skip_failed, lock
        self.state = SweepState(plan.folder)
        self.stopped = threading.Event()
        self._children: set[subprocess.Popen] = set()
        self._guard = threading.Lock()
        self._failed_shared: dict[str, str] = {}
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)

    def run(self) -> int:
        """Run everything that is not done.

        Returns:
            0 when every point is done or failed for good; 128 + the signal's number when one stopped it.
        """
        with _stop_requests(self._stop) as received, SweepProgress(self.plan, self.state, self.jobs) as progress:
            self._run_shared(progress)
            with ThreadPoolExecutor(self.jobs) as pool:
                waiting = {pool.submit(self._run_job, job, progress) for job in self.plan.jobs}
                while waiting:  # the main thread must stay awake to take signals
                    done, waiting = wait(waiting, timeout=0.5)
                    progress.refresh()
                    for future in done:
                        future.result()
        return 128 + received[0] if received else 0

    def prepare_data(self) -> int:
        """Run the shared steps that tunings need, and no other: what a dry run must know is in the token files.

        Returns:
            0, or 128 + the signal's number when one stopped it.

        Raises:
            UserError: one of them failed.
        """
        wanted = {name for job in self.plan.jobs for name in job.steps[0].needs}
        wanted |= {name for step in self.plan.shared if step.id in wanted for name in step.needs}
        with _stop_requests(self._stop) as received, SweepProgress(self.plan, self.state) as progress:
            self._run_shared(progress, wanted)
        if self._failed_shared and not received:
            raise UserError("; ".join(dict.fromkeys(self._failed_shared.values())))
        return 128 + received[0] if received else 0

    def _run_shared(self, progress: SweepProgress, wanted: set[str] | None = None) -> None:
        for step in self.plan.shared:
            if wanted is not None and step.id not in wanted:
                continue
            if self.stopped.is_set():
                return
            error = self._needs(step)
            outcome = self._run_step(step, progress, slot=0) if error is None else None
            if error is None and outcome is not None and outcome.status == FAILED:
                error = f"{step.id} failed: {outcome.error}"
                console.warn(error.strip().splitlines()[-1])
            if error is not None:
                self._failed_shared[step.id] = error

    def _needs(self, step: Step) -> str | None:
        """The error of the first needed step that failed."""
        return next((self._failed_shared[name] for name in step.needs if name in self._failed_shared), None)

    def _run_job(self, job: Job, progress: SweepProgress) -> None:
        """The point's steps, up to the first that fails; the others go on."""
        slot = self._slots.get()
        try:
            for step in job.steps:
                if self.stopped.is_set():
                    return
                error = self._needs(step)
                if error is not None:
                    self.state.record(step, SKIPPED, 0.0, error)
                    progress.ended(job, ok=False, error=error)
                    return
                outcome = self._run_step(step, progress, slot, job)
                if outcome.status == STOPPED:
                    return
                if outcome.status != DONE:
                    progress.ended(job, ok=False, error=outcome.error)
                    return
            self._tidy(job)
            progress.ended(job, ok=True)
        finally:
            self._slots.put(slot)

    def _run_step(self, step: Step, progress: SweepProgress, slot: int, job: Job | None = None) -> Outcome:
        before = self.state.outcome(step)
        if before is not None and (before.status == DONE or (before.status == FAILED and self.skip_failed)):
            return before
        if job is not None:  # what follows was made of what this step left before
            self.state.forget(job.steps[job.steps.index(step) + 1 :])
        progress.started(step, job)
        started = time.monotonic()
        log = self.state.log_file(step)
        if step.action is not None:
            status, error = _act(step.action)
        else:
            status, error = self._call(step, log, slot)
        if status == DONE and not step.output.exists():
            status, error = FAILED, f"{step.id} ended well but left no {step.output}{_why_not(step)}"
        progress.step_ended(step)
        name = str(log.relative_to(self.plan.folder)) if step.action is None else ""
        return self.state.record(step, status, time.monotonic() - started, error, name)

    def _call(self, step: Step, log: Path, slot: int) -> tuple[str, str]:
        """Run a command as a process of its own: its memory is its own, and what kills it kills no other point."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as out:
            with self._guard:
                if self.stopped.is_set():
                    return STOPPED, ""
                child = subprocess.Popen(
                    [sys.executable, "-m", "tuneval", *step.words],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=_environment(self.jobs, slot),
                    pass_fds=(self.lock,),
                    **own_session(),
                )
                self._children.add(child)
            status = child.wait()
            with self._guard:
                self._children.discard(child)
        if self.stopped.is_set() and status != 0:
            asked = status in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)
            return STOPPED, "" if asked else _error_in(log, status)
        return (DONE, "") if status == 0 else (FAILED, _error_in(log, status))

    def _stop(self, number: int) -> None:
        """Ask every child to save and leave, kill those that don't."""
        with self._guard:
            self.stopped.set()
            children = list(self._children)
        for child in children:
            child.terminate()
        if children:
            threading.Thread(target=_kill_later, args=(children,), daemon=True).start()

    def _tidy(self, job: Job) -> None:
        if self.keep != "all":
            shutil.rmtree(job.run / "checkpoints", ignore_errors=True)
        if self.keep == "records":
            for name in ("model", "adapter", "mcore"):
                shutil.rmtree(job.run / name, ignore_errors=True)


def _why_not(step: Step) -> str:
    """Why a command may have left no output."""
    secret = step.kind == "evaluate" and (step.output.parent / "record.json").is_file()
    return (
        ": the right answers of this split are secret, so there is no score; choose another `split`" if secret else ""
    )


def _act(action: Callable[[], None]) -> tuple[str, str]:
    try:
        action()
    except UserError as error:
        return FAILED, str(error)
    return DONE, ""


def _environment(jobs: int, slot: int) -> dict[str, str]:
    """Cores and accelerators shared out among the points that run at once."""
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
        environment |= runtime.one_device(slot, environment)
    return environment


def _error_in(log: Path, status: int) -> str:
    """What a failed command said: its own error, else the end of its log, else the signal that ended it."""
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    start = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("tuneval ")), None)
    said = lines[start:] if start is not None else lines[-ERROR_LINES:]
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", perhaps because memory ran out" if -status == signal.SIGKILL else ""
        said.append(f"ended by {name}{hint}")
    return "\n".join(said) or f"exit status {status} without a word"


def _kill_later(children: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


@contextmanager
def _stop_requests(stop: Callable[[int], None]) -> Iterator[list[int]]:
    """Call `stop` on SIGTERM and SIGINT; the numbers received so far."""
    received: list[int] = []

    def take(number: int, _: object) -> None:
        received.append(number)
        console.note(f"{signal.Signals(number).name}: stopping; what runs saves first. The same command continues")
        threading.Thread(target=stop, args=(number,), daemon=True).start()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
