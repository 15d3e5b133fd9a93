"""One run of `tune`: the model and its optimizer, the steps, and what happens between two of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tuneval import console, runtime
from tuneval.checkpoints import resume
from tuneval.commands.number_type import tell_slow_type
from tuneval.commands.tune_log import RunLog
from tuneval.commands.tune_model import TunedModel
from tuneval.commands.tune_output import output_folder, write_output
from tuneval.commands.tune_plan import Plan
from tuneval.data.batches import GlobalBatch, Share, global_batches, make_global_batch
from tuneval.errors import UserError
from tuneval.parallel.mesh import Mesh
from tuneval.training.loop import NotFinite, Progress, Step, train
from tuneval.training.loss_scale import LossScaler


class TuneRun:
    """Loads the model and makes it ready to train.

    Args:
        plan: what to do; the random generators must be seeded.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, config = plan, plan.config
        self.folder = Path(config.save.save)
        self.progress = Progress()
        tell_slow_type(config.precision.dtype, "--", trains=True)
        several = f" on {plan.layout.world_size} processes, {plan.layout}" if plan.layout.world_size > 1 else ""
        console.note(f"loading {config.model.load} as {config.precision.dtype}{several}")
        if plan.compiles:
            console.note("compiling the layers: the first step takes a minute longer (not with --torch-compile off)")
        self.mesh = Mesh(plan.layout, runtime.device().type)
        self.model = TunedModel(plan, self.mesh)
        self.runner, self.optimizer = self.model.runner, self.model.optimizer
        self.scaler = LossScaler(config.precision)
        self.share = Share(self.mesh.dp_rank, plan.layout.data)
        runtime.seed_everything(config.log.seed + self.mesh.dp_rank)  # other samples, other dropout
        self._validation = self._split_batch(1)
        self._saved: int | None = None

    def train(self, done: int | None) -> int:
        """Train from the checkpoint of step `done` (None: from the start) to the end.

        Returns:
            0 at the end; 128 + the signal's number when one made it save and leave.

        Raises:
            UserError: a loss or gradient was not finite; the last good state is saved.
        """
        if done is not None:
            self._restore(done)
        with RunLog(self.plan, done) as log, _stop_requests() as stop:
            if done is not None:
                log.say(f" loading checkpoint from {resume.checkpoints_folder(self.folder)} at iteration {done}")
            else:
                self._validate(log, "iteration 0")
            try:
                for step in self._steps():
                    signalled, peak = self.mesh.largest(stop[0] if stop else 0, step.peak_memory_bytes)
                    self._after(replace(step, peak_memory_bytes=peak), log, bool(signalled))
                    if signalled and step.step < self.plan.train_iters:
                        return self._leave(log, signalled)
            except NotFinite as error:
                self._save(log)
                raise UserError(
                    f"{error} The state after step {self.progress.step} is saved in {self._where()}"
                ) from None
            self._finish(log)
        return 0

    def _steps(self) -> Iterator[Step]:
        plan, config = self.plan, self.plan.config
        order = plan.order(0, plan.train_iters * config.batch.global_batch_size)
        start, longest = self.progress.samples, config.data.seq_length
        batches = global_batches(plan.dataset, order, config.batch, longest, start, self.share)
        return train(self.runner, batches, self.optimizer, plan.schedule, self.scaler, self.progress)

    def _after(self, step: Step, log: RunLog, stopping: bool) -> None:
        """Log, validate, save, in this order: a checkpoint's records are always complete."""
        config, last = self.plan.config, step.step == self.plan.train_iters
        log.step(step)
        if last:
            self._validate(log, f"iteration {step.step} on validation set")
        elif step.step % config.log.eval_interval == 0:
            self._validate(log, f"iteration {step.step}")
        if last or stopping or step.step % config.save.save_interval == 0:
            self._save(log)

    def _validate(self, log: RunLog, where: str) -> None:
        if self._validation is not None:
            log.validation(self.progress.step, self.runner.evaluate(self._validation), where)

    def _split_batch(self, split: int) -> GlobalBatch | None:
        """The samples that validation (1) or test (2) looks at, always the same, as one batch; None: there are none."""
        config, borders = self.plan.config, self.plan.borders
        size = min(config.log.eval_iters * config.batch.global_batch_size, borders[split + 1] - borders[split])
        if not size:
            return None
        ids = self.plan.order(split, size).tolist()
        per_token = replace(config.batch, loss_reduction="token")  # so that its exponential is a perplexity
        batch = make_global_batch(self.plan.dataset, ids, per_token, config.data.seq_length, self.share)
        return batch if batch.trained_tokens else None

    def _save(self, log: RunLog) -> None:
        step = self.progress.step
        if self._saved == step:
            return
        if self.plan.config.save.no_save_optim:
            if step < self.plan.train_iters:  # the end writes it anyway
                self._write(log)
            return
        folder = resume.checkpoints_folder(self.folder)
        log.say(f"saving checkpoint at iteration {step:7d} to {folder} in torch_dist format")
        facts = {
            "progress": self.progress.to_dict(),
            "scaler": self.scaler.state(),
            "adam_step": self.optimizer.step_count,
        }
        keep = self.plan.config.save.keep_checkpoints
        resume.save_state(self.folder, step, self.optimizer.state(), facts, keep)
        log.say(f"  successfully saved checkpoint from iteration {step:7d} to {folder}")
        self._saved = step

    def _write(self, log: RunLog) -> Path:
        """Write the model or the adapter as it is now."""
        step, main = self.progress.step, output_folder(self.plan)
        folders = {main: "peft" if self.plan.config.lora.enabled else "hf"}
        if self.plan.config.save.ckpt_format == "torch":
            folders[self.folder / "mcore"] = "torch"
        for folder, kind in folders.items():
            log.say(f"saving checkpoint at iteration {step:7d} to {folder} in {kind} format")
        write_output(self.plan, self.model, step)
        for folder in folders:
            log.say(f"  successfully saved checkpoint from iteration {step:7d} to {folder}")
        return main

    def _restore(self, done: int) -> None:
        facts = resume.load_state(self.folder, done, self.optimizer.state())
        self.progress = Progress.from_dict(facts["progress"])
        self.scaler.load_state(facts["scaler"])
        self.optimizer.step_count = facts["adam_step"]
        self._saved = done

    def _where(self) -> Path:
        """Where the last save went."""
        if self.plan.config.save.no_save_optim:
            return output_folder(self.plan)
        return resume.checkpoints_folder(self.folder) / f"step_{self.progress.step:07d}"

    def _leave(self, log: RunLog, number: int) -> int:
        log.say(
            f"{signal.Signals(number).name}: left after step {self.progress.step} of {self.plan.train_iters}, "
            + (
                f"its model is {output_folder(self.plan)} (--no-save-optim: the run can't be continued)"
                if self.plan.config.save.no_save_optim
                else "its state is saved. The same command continues"
            )
        )
        return 128 + number

    def _finish(self, log: RunLog) -> None:
        test = self._split_batch(2)
        if test is not None:
            where = f"iteration {self.progress.step} on test set"
            log.say_validation(self.runner.evaluate(test), where)
        result = self._write(log)
        notes = [f"{self.progress.step} steps, {self.progress.samples} samples"]
        if self.progress.untrainable:
            notes.append(f"{self.progress.untrainable} of them without a trainable token")
        if self.progress.skipped:
            notes.append(f"{self.progress.skipped} steps skipped")
        (peak,) = self.mesh.largest(runtime.peak_memory_bytes())
        of_one = " of the process that needs most" if self.mesh.grid is not None else ""
        notes.append(f"peak memory {peak / 2**30:.2f} GiB{of_one}")
        log.say(f"finished: {result} ({', '.join(notes)})")


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def take(number: int, _: object) -> None:
        if received and signal.SIGINT in (number, received[0]):  # torchrun passes a second Ctrl-C on as SIGTERM
            raise KeyboardInterrupt
        received.append(number)
        if runtime.world_size() == 1:  # of many, one says so once all have agreed; a job that fails sends it too
            console.note(f"{signal.Signals(number).name}: saving after this step (Ctrl-C again stops at once)")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
